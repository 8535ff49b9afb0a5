"""Draw what each network of a checkpoint predicts: students, ensemble, leader and fusion."""

import argparse

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis.pictures.figures import predictions_figure, save
from kd_mm.analysis.pictures.inputs import arguments, load_model, look_at, user_errors
from kd_mm.config import read_config
from kd_mm.run.launch import at_least_one


def parse_args() -> argparse.Namespace:
    parser = arguments(__doc__, 'predictions.png', number=6, images=True)
    parser.add_argument('--topk', type=at_least_one, default=5, help='classes per image (5)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors(args):
        cfg = read_config(args.config, args.cfg_options)
        loaded = load_model(cfg, args.checkpoint, args.device)
        looks, classes = look_at(loaded, cfg, args.img, args.phase, args.number)
        save(predictions_figure(looks, classes, args.topk), args.save_path)
    print('wrote', args.save_path)


if __name__ == '__main__':
    main()
