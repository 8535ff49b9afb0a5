"""Write the generated tables of READMEs, metafiles and docs anew."""

import argparse
import sys
from pathlib import Path

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis import model_zoo, step_costs
from kd_mm.analysis.option_tables import fill_options

REPO = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit code 1 where a file is stale'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    stale = model_zoo.updates(REPO)
    for path in sorted((REPO / 'docs').rglob('*.md')):
        text = stale.get(path, path.read_text())
        if fill_options(text) != path.read_text():
            stale[path] = fill_options(text)
    page = REPO / 'docs/benchmarks.md'
    costs = step_costs.fill(page.read_text(), step_costs.read(page.with_suffix('')))
    if costs != page.read_text():
        stale[page] = costs
    for path, text in stale.items():
        print('stale' if args.check else 'wrote', path.relative_to(REPO))
        if not args.check:
            path.write_text(text)
    if args.check and stale:
        sys.exit('error: run python tools/misc/update_docs.py')


if __name__ == '__main__':
    main()
