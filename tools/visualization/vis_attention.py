"""Draw where each network of a checkpoint looks: students, leader and fusion, side by side."""

import argparse

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis.pictures.figures import attention_figure, save
from kd_mm.analysis.pictures.inputs import arguments, load_model, look_at, user_errors
from kd_mm.config import read_config


def parse_args() -> argparse.Namespace:
    parser = arguments(__doc__, 'attention.png', number=6, images=True)
    parser.add_argument(
        '--target-layers',
        nargs='+',
        default=(),
        metavar='LAYER',
        help='layers of each network whose attention is drawn, such as backbone.layer3; by '
        'default the last one that gives a map',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors(args):
        cfg = read_config(args.config, args.cfg_options)
        loaded = load_model(cfg, args.checkpoint, args.device)
        looks, classes = look_at(
            loaded, cfg, args.img, args.phase, args.number, args.target_layers
        )
        save(attention_figure(looks, classes), args.save_path)
    for network, layer in looks[0].attention:
        print(f'{network}: attention of {layer}')
    print('wrote', args.save_path)


if __name__ == '__main__':
    main()
