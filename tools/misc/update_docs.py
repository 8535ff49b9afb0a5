"""Update the generated tables of READMEs and docs, and the metafiles."""

import argparse
import sys
from functools import cache
from pathlib import Path

import mmengine.config.utils

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis import step_costs

sys.path.insert(0, str(Path(__file__).parent))
import model_zoo

REPO = Path(__file__).resolve().parents[2]
# For each base in another package MMEngine reads all of that package's metafiles: 0.2 s.
mmengine.config.utils.load = cache(mmengine.config.utils.load)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit code 1 if a file is out of date'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    stale = model_zoo.updates(REPO)
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
