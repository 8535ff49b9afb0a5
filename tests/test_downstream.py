"""Another project, in a folder of its own, inherits a config of ours from a real install."""

import re

import pytest

from tests.installs import REPO, copy_source, environment_with, package_folder, run_clean

CONFIG = """
_base_ = 'kd_mm::bake/swin-t_8xb128_in1k.py'

model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, stem_channels=4, base_channels=4),
    head=dict(in_channels=32, num_classes=4, omega=0.25),
)
data_preprocessor = dict(num_classes=4)
dataset = dict(data_root={data_root!r}, metainfo=dict(classes=['a', 'b', 'c', 'd']))
# A variable of the base comes with the scope of its package, also around types of mmpretrain.
train_dataloader = dict(
    batch_size=8, num_workers=0, dataset=dict(**dataset, pipeline=_base_.train_pipeline)
)
val_dataloader = dict(batch_size=8, num_workers=0, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 3))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
# The recipe's cosine begins at epoch 20.
param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=2)]
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """The interpreter of an environment with a real install."""
    tree = copy_source(tmp_path_factory.mktemp('tree'))
    return environment_with(tmp_path_factory.mktemp('env'), tree)


def accuracies(output):
    """The last top-1 and top-3 accuracies that a tool printed."""
    pattern = r'accuracy/top1: ([\d.]+) +accuracy/top3: ([\d.]+)'
    return [float(value) for value in re.findall(pattern, output)[-1]]


def test_inherited_config_trains_and_its_dump_runs_in_mmpretrain(python, image_folder, tmp_path):
    tools = package_folder(python) / '.mim' / 'tools'
    config = tmp_path / 'ours.py'
    config.write_text(CONFIG.format(data_root=str(image_folder)))
    output = run_clean([python, tools / 'train.py', config, '--work-dir', 'runs'], tmp_path)
    steps = re.findall(r'Epoch\(train\).*loss_bake: ([\d.]+)', output)
    assert len(steps) == 2, output

    dumped = tmp_path / 'runs' / 'ours.py'
    text = dumped.read_text()
    assert 'omega=0.25' in text
    assert '_base_' not in text

    # mmpretrain's own tool: it finds kd_mm by the prefix of the types alone.
    tool = package_folder(python, 'mmpretrain') / '.mim' / 'tools' / 'test.py'
    assert 'kd_mm' not in tool.read_text()
    tested = run_clean([python, tool, dumped, tmp_path / 'runs' / 'epoch_1.pth'], tmp_path)
    assert accuracies(tested) == accuracies(output)
    # Some of the 8 images have their class among the first 3 of 4, whatever was learnt.
    assert accuracies(output)[1] > 0


# MMEngine stamps the scope of `kd_mm::` on every typed dict that has none. What is built by
# inheritance alone needs no kd_mm for mmpretrain's types. Variables such as train_pipeline are
# copies that nothing builds.
INHERIT = """
import functools, sys
from pathlib import Path

import kd_mm
import mmengine.config.utils
from mmengine.config import Config
from mmengine.hub import get_model

# For each base in another package MMEngine reads all of that package's metafiles: 0.2 s.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)


def strays(value, path):
    if isinstance(value, dict):
        if value.get('_scope_') == 'kd_mm' and '.' not in value['type']:
            yield f'{path}: {value["type"]}'
        for key, child in value.items():
            yield from strays(child, f'{path}.{key}')
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from strays(child, path)


for name in sys.argv[1:]:
    Path('inherits.py').write_text(f"_base_ = 'kd_mm::{name}'")
    cfg = Config.fromfile('inherits.py').to_dict()
    built = {key: value for key, value in cfg.items() if not key.endswith('_pipeline')}
    print(name, len(built), *strays(built, ''))
print(type(get_model('kd_mm::bake/resnet20_1xb64_digits.py').head).__name__)
"""


def test_every_config_can_be_inherited_and_none_loses_mmpretrains_types(python, tmp_path):
    names = [f'bake/{path.name}' for path in sorted((REPO / 'configs' / 'bake').glob('*.py'))]
    lines = run_clean([python, '-c', INHERIT, *names], tmp_path).splitlines()
    assert lines.pop() == 'BAKEHead'  # of a model that MMEngine's hub builds by name
    lines = [line for line in lines if line.startswith('bake/')]  # not warnings of libraries
    assert [line.split()[0] for line in lines] == names
    assert not [line for line in lines if len(line.split()) > 2]
    assert all(int(line.split()[1]) > 10 for line in lines)
