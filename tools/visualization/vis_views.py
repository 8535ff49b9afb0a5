"""Draw what each student of a recipe sees of the same images in training."""

import argparse

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis.pictures.figures import save, views_figure
from kd_mm.analysis.pictures.inputs import arguments, recipe_views, user_errors
from kd_mm.config import read_config


def parse_args() -> argparse.Namespace:
    return arguments(__doc__, 'views.png', number=4, checkpoint=False).parse_args()


def main() -> None:
    args = parse_args()
    with user_errors(args):
        cfg = read_config(args.config, args.cfg_options)
        save(views_figure(*recipe_views(cfg, args.number, args.seed)), args.save_path)
    print('wrote', args.save_path)


if __name__ == '__main__':
    main()
