"""Show images to a trained model: what each network predicts, and where it looks.

Without arguments, digits of the test set to the network of the README's first command.
"""

import argparse
import json
from pathlib import Path

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.analysis.pictures.figures import (
    attention_figure,
    class_name,
    predictions_figure,
    save,
)
from kd_mm.analysis.pictures.inputs import load_model, look_at, user_errors
from kd_mm.analysis.predictions import last_checkpoint
from kd_mm.config import read_config
from kd_mm.run.launch import add_trust_argument

CONFIG = Path(__file__).resolve().parents[1] / 'configs/bake/resnet20_1xb64_digits.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('img', nargs='*', help='images, or folders; by default of the test set')
    parser.add_argument('--model', default=str(CONFIG), help='config of the run')
    parser.add_argument(
        '--checkpoint', help='by default the last one in work_dirs/<name of the config>'
    )
    parser.add_argument(
        '--show-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for attention.png and predictions.png (work_dirs/demo)',
    )
    parser.add_argument('-n', '--number', type=int, default=4, help='images to show (4)')
    parser.add_argument('--device', default='cpu', help='device that computes (cpu)')
    add_trust_argument(parser)
    return parser.parse_args()


def find_checkpoint(config: str) -> Path:
    work_dir = Path('work_dirs') / Path(config).stem
    found = last_checkpoint(work_dir)
    if found is None:
        raise FileNotFoundError(
            f'{work_dir} must hold a checkpoint, but has none; train it by "python '
            f'tools/train.py {config}", or give --checkpoint'
        )
    return found


def main() -> None:
    args = parse_args()
    with user_errors(args):
        cfg = read_config(args.model)
        loaded = load_model(cfg, args.checkpoint or find_checkpoint(args.model), args.device)
        looks, classes = look_at(loaded, cfg, args.img, number=args.number)
        for look in looks:
            said = {'image': look.name}
            for network, scores in look.scores.items():
                label = int(scores.argmax())
                score = round(float(scores[label]), 4)
                said[network] = {'pred_class': class_name(classes, label), 'pred_score': score}
            print(json.dumps(said))
        for name, draw in (('attention', attention_figure), ('predictions', predictions_figure)):
            path = args.show_dir / f'{name}.png'
            save(draw(looks, classes), path)
            print('wrote', path)


if __name__ == '__main__':
    main()
