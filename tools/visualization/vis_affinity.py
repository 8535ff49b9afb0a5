"""Draw what the images of a training batch take from each other, and one's soft target."""

import argparse

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis.pictures.figures import affinity_figure, save
from kd_mm.analysis.pictures.inputs import arguments, batch_knowledge, load_model, user_errors
from kd_mm.analysis.run_log import SINGLE
from kd_mm.config import read_config


def parse_args() -> argparse.Namespace:
    parser = arguments(__doc__, 'affinity.png', number=16)
    parser.add_argument(
        '--index', type=int, default=0, help='the image whose soft target is shown (0)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors(args):
        cfg = read_config(args.config, args.cfg_options)
        loaded = load_model(cfg, args.checkpoint, args.device)
        found, classes = batch_knowledge(loaded, cfg, args.number, args.seed)
        path = args.save_path
        for name, batch in found.items():
            if name != SINGLE:  # a file for each student
                path = args.save_path.with_stem(f'{args.save_path.stem}_{name}')
            save(affinity_figure(batch, args.index, classes), path)
            print('wrote', path)


if __name__ == '__main__':
    main()
