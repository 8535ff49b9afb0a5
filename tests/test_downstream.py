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


@pytest.fixture(scope='module', params=['editable', 'wheel'])
def installed(request, tmp_path_factory):
    """The interpreter of an environment with a real install, and the folder of our tools."""
    tree = copy_source(tmp_path_factory.mktemp('tree'))
    flags = ['-e'] if request.param == 'editable' else []
    python = environment_with(tmp_path_factory.mktemp('env'), *flags, tree)
    package = package_folder(python)
    assert (package.parent == tree) == (request.param == 'editable')
    return python, package / '.mim' / 'tools'


def accuracies(output):
    """The last top-1 and top-3 accuracies that a tool printed."""
    pattern = r'accuracy/top1: ([\d.]+) +accuracy/top3: ([\d.]+)'
    return [float(value) for value in re.findall(pattern, output)[-1]]


def test_inherited_config_trains_and_its_dump_runs_in_mmpretrain(
    installed, image_folder, tmp_path
):
    python, tools = installed
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
FIND_STRAYS = """
import sys
from pathlib import Path

import kd_mm
from mmengine.config import Config


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
"""


@pytest.mark.parametrize('installed', ['wheel'], indirect=True)
def test_every_config_can_be_inherited_and_none_loses_mmpretrains_types(installed, tmp_path):
    names = [f'bake/{path.name}' for path in sorted((REPO / 'configs' / 'bake').glob('*.py'))]
    lines = run_clean([installed[0], '-c', FIND_STRAYS, *names], tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == names
    assert not [line for line in lines if len(line.split()) > 2]
    assert all(int(line.split()[1]) > 10 for line in lines)


@pytest.mark.parametrize('installed', ['wheel'], indirect=True)
def test_mmengine_hub_builds_a_model_by_name(installed, tmp_path):
    code = (
        'import kd_mm\n'
        'from mmengine.hub import get_model\n'
        'model = get_model("kd_mm::bake/resnet20_1xb64_digits.py")\n'
        'print(sum(p.numel() for p in model.parameters()), type(model.head).__name__)'
    )
    output = run_clean([installed[0], '-c', code], tmp_path)
    # By hand: stem 432 + 32; stages of 6, 6 and 6 convolutions 3x3 of 16, 32 and 64 channels, each
    # with batch norm; head 650. Shortcuts without parameters.
    convolutions = 6 * 2304 + (4608 + 5 * 9216) + (18432 + 5 * 36864)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert output.split()[-2:] == [str(432 + convolutions + norms + 650), 'BAKEHead']
