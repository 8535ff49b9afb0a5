"""Train the rows of a published table with several seeds; write measured next to published."""

import argparse
import shlex
import sys
from pathlib import Path

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis import reproduction
from kd_mm.run.errors import plain_errors, sigterm_as_interrupt
from kd_mm.run.rehearsal import check_folder

REPO = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    tables = ', '.join(reproduction.load_tables(REPO / 'configs'))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('table', help=tables)
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds: 0, 1, ... (3)')
    parser.add_argument('--data', metavar='DIR', help="folder of the data set (the recipes' own)")
    parser.add_argument('--epochs', type=int, help="length of each run (the recipes' own)")
    parser.add_argument('--subset', type=int, help='train on the first images only (all)')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time (1)')
    parser.add_argument('--rows', nargs='+', metavar='NAME', help='these rows only, by name')
    parser.add_argument('--work-dir', help='folder of the runs (work_dirs/reproduce/TABLE)')
    parser.add_argument('--out', help='folder of the tables (the work dir)')
    return parser.parse_args()


def choose(rows: list[reproduction.Row], names: list[str] | None) -> list[reproduction.Row]:
    unknown = set(names or ()) - {row.name for row in rows}
    if unknown:
        listed = ', '.join(row.name for row in rows)
        raise ValueError(f'--rows must be among {listed}, but got {", ".join(sorted(unknown))}')
    return [row for row in rows if names is None or row.name in names]


def train(runs: list[reproduction.Run], jobs: int) -> list[reproduction.Run]:
    def report(run: reproduction.Run) -> None:
        done = sum(run.result is not None for run in runs)
        end = 'failed' if run.result is None else 'is done'
        print(f'{run.work_dir} {end}; {done} of {len(runs)} runs are done', flush=True)

    with sigterm_as_interrupt():
        command = [sys.executable, str(REPO / 'tools/train.py')]
        return reproduction.train_all(runs, command, jobs, report)


def main() -> None:
    args = parse_args()
    work_dir = Path(args.work_dir or f'work_dirs/reproduce/{args.table}')
    settings = reproduction.Settings(args.epochs, args.subset, args.data)
    with plain_errors('; the same command goes on with it'):
        for flag in ('seeds', 'epochs', 'subset', 'jobs'):
            value = getattr(args, flag)
            if value is not None and value < 1:
                raise ValueError(f'--{flag} must be at least 1, but got {value}')
        check_folder(work_dir)
        if args.out is not None:
            check_folder(args.out, 'the folder of the table', '--out')
        if args.data is not None and Path(args.data).is_file():
            raise NotADirectoryError(f'--data must be a folder, but {args.data} is a file')
        rows = reproduction.load_table(args.table, REPO / 'configs')
        chosen = choose(rows, args.rows)
        done = {path.parent for path in work_dir.glob(f'*/*/{reproduction.RESULT}')}
        runs = [
            reproduction.Run(row, seed, settings, work_dir)
            for seed in range(args.seeds)
            for row in rows
            if row in chosen or work_dir / row.name / f'seed{seed}' in done
        ]
        failed = train(runs, args.jobs)
    results = [run.result for run in runs if run.result is not None]
    if results:
        command = shlex.join(['python', 'tools/reproduce.py', *sys.argv[1:]])
        notes = reproduction.notes(settings, runs, args.jobs, command)
        out = Path(args.out or work_dir)
        paths = reproduction.write_table(out, args.table, rows, results, notes)
        print(paths[0].read_text())
        print('wrote', *paths)
    if failed:
        logs = '\n  '.join(str(run.work_dir / reproduction.LOG) for run in failed)
        sys.exit(
            f'error: {len(failed)} runs failed; the last lines of these logs say why:\n  {logs}'
        )


if __name__ == '__main__':
    main()
