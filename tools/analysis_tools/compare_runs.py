"""Put runs side by side on one HTML page: gains over vanilla, curves, cost, calibration."""

import argparse
from pathlib import Path

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis.comparison import read_recipes
from kd_mm.analysis.predictions import last_checkpoint, predict, read_predictions
from kd_mm.analysis.report import write_report
from kd_mm.analysis.reproduction import vanilla_recipes
from kd_mm.run.errors import plain_errors

REPO = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dirs', nargs='+', metavar='WORK_DIR', help='a run, or a folder of runs at any depth'
    )
    parser.add_argument('--out', default='report.html', help='path of the page (report.html)')
    parser.add_argument(
        '--vanilla',
        nargs='+',
        default=(),
        metavar='RECIPE',
        help='the recipes that gains are taken from, by the name of their config; one serves all '
        '(those that begin with vanilla_, each for the networks with its backbone)',
    )
    parser.add_argument(
        '--predict',
        action='store_true',
        help='run the last checkpoints over the validation images, for calibration and gains by '
        'class; kept in each work dir as predictions.npz',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with plain_errors():
        recipes = read_recipes(args.work_dirs, args.vanilla, vanilla_recipes(REPO / 'configs'))
        predictions = {}
        for run in (run for recipe in recipes for run in recipe.runs.values()):
            found = read_predictions(run.work_dir)
            if found is None and args.predict and last_checkpoint(run.work_dir):
                print('predict', run.work_dir, flush=True)
                found = predict(run.work_dir, run.cfg)
            if found is not None:
                predictions[run.work_dir] = found
        write_report(recipes, predictions, Path(args.out))
        print('wrote', args.out)


if __name__ == '__main__':
    main()
