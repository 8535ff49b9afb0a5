"""Each wrong input ends in one sentence of ours, and nothing is written.

A row is a command line in a small world of configs, data and checkpoints. Where it needs a config
of its own, the row ends in its body, and ``row.py`` in the command is that file. Tools run inside
this process: a process of its own would take six seconds for each row.
"""

import importlib.util
import logging
import pickle
import re
import shlex
import shutil
import signal
import sys
import warnings
from functools import cache
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from kd_mm.registry import MODELS
from tests.conftest import REPO, write_image_folder

TOOLS = {
    'train': 'train.py',
    'test': 'test.py',
    'doctor': 'misc/doctor.py',
    'export': 'model_converters/export_student.py',
    'resize': 'model_converters/resize_swin_windows.py',
    'benchmark': 'analysis_tools/benchmark.py',
    'reproduce': 'reproduce.py',
}
SMALL = """
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_epochs=1)
train_dataloader = dict(batch_size=32)
"""
CONFIGS = {
    'bake.py': f"""
_base_ = {str(REPO / 'configs/bake/resnet20_1xb64_digits.py')!r}
model = dict(backbone=dict(depth=8))
train_dataloader = dict(batch_size=32, dataset=dict(indices=64))
val_dataloader = dict(dataset=dict(indices=64))
train_cfg = dict(max_epochs=1)
""",
    'plain.py': f"""
_base_ = {str(REPO / 'configs/vanilla/vanilla_resnet20_1xb64_digits.py')!r}
model = dict(backbone=dict(depth=8))
train_dataloader = dict(batch_size=32, dataset=dict(indices=64))
val_dataloader = dict(dataset=dict(indices=64))
test_dataloader = dict(dataset=dict(indices=64))
train_cfg = dict(max_epochs=1)
""",
    **{
        f'{name}.py': f"""
_base_ = {str(REPO / f'configs/kdcl/{config}_resnet20-wrn16-1_1xb64_digits.py')!r}
model = dict(
    students=dict(
        resnet20=dict(backbone=dict(depth=8)), wrn16_1=dict(backbone=dict(depth=10))
    )
)
train_dataloader = dict(batch_size=32, dataset=dict({indices}))
val_dataloader = dict(dataset=dict(indices=64))
train_cfg = dict(max_epochs=1)
"""
        for name, config, indices in (
            ('naive', 'kdcl-naive', 'indices=64'),
            ('linear', 'kdcl-linear', 'indices=64'),
            ('minlogit', 'kdcl-minlogit', 'indices=64'),
            ('general', 'kdcl-general', 'num_per_class=2, dataset=dict(indices=64)'),
            ('dml', 'dml', 'indices=64'),
        )
    },
    'ffsd.py': f"""
_base_ = {str(REPO / 'configs/ffsd/ffsd_resnet20_1xb64_digits.py')!r}
model = dict(
    students={{n: dict(backbone=dict(depth=8)) for n in ('student1', 'student2', 'leader')}}
)
train_dataloader = dict(batch_size=32, dataset=dict(indices=64))
val_dataloader = dict(dataset=dict(indices=64))
train_cfg = dict(max_epochs=1)
""",
    # Images in folders, by a list; without the list, a class is a folder.
    'images.py': """
_base_ = './plain.py'
model = dict(head=dict(num_classes=4, topk=(1,)))
data_preprocessor = dict(num_classes=4)
steps = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(16, 16)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        _delete_=True,
        type='ImageNet',
        data_root='data',
        split='train',
        pipeline=steps,
    ),
)
val_dataloader = dict(
    batch_size=4,
    dataset=dict(_delete_=True, type='ImageNet', data_root='data', split='val', pipeline=steps),
)
test_dataloader = val_dataloader
""",
    'folders.py': """
_base_ = './images.py'
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data',
        data_prefix='train',
        pipeline=_base_.steps,
    )
)
""",
    'cifar.py': """
_base_ = './plain.py'
model = dict(head=dict(num_classes=100))
train_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='cifar', split='train', download=False, indices=None)
)
""",
}


@cache
def load_tool(name):
    """Import a tool as a module."""
    path = REPO / 'tools' / TOOLS[name]
    spec = importlib.util.spec_from_file_location(f'bad_input_{name}', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def tree(root):
    """What is in a folder: names, sizes and times."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns, path.is_dir())
        for path in sorted(root.rglob('*'))
        if '__pycache__' not in path.parts
    }


class Bomb:
    """Writes a file where it is unpickled."""

    def __reduce__(self):
        return exec, ("open('exploded', 'w')",)


def write_checkpoints(root, weights):
    """Write checkpoints, of which plain.pth alone is good."""
    good = {'state_dict': weights, 'meta': {'epoch': 1, 'iter': 2}}
    torch.save(good, root / 'plain.pth')
    whole = (root / 'plain.pth').read_bytes()
    (root / 'torn.pth').write_bytes(whole[: len(whole) // 2])
    (root / 'zero.pth').write_bytes(b'')
    (root / 'text.pth').write_text('no checkpoint\n')
    (root / 'text.safetensors').write_text('no checkpoint\n')
    (root / 'bomb.pth').write_bytes(pickle.dumps({'state_dict': Bomb()}))
    torch.save({'state_dict': {'other.weight': torch.ones(2)}}, root / 'other.pth')
    torch.save({'state_dict': {f'net.{k}': v for k, v in weights.items()}}, root / 'prefix.pth')
    torch.save(torch.ones(2), root / 'tensor.pth')
    torch.save([weights], root / 'list.pth')
    torch.save({'state_dict': [1, 2]}, root / 'weights_list.pth')
    torch.save({'state_dict': {}}, root / 'no_weights.pth')
    torch.save({'meta': {'epoch': 1}, 'optimizer': {}}, root / 'no_state_dict.pth')
    torch.save({'state_dict': {**weights, 'head.fc.bias': 'zero'}}, root / 'text_weight.pth')
    wide = torch.ones(3, 64)
    torch.save({'state_dict': {**weights, 'head.fc.weight': wide}}, root / 'shape.pth')
    less = {k: v for k, v in weights.items() if not k.startswith('head.')}
    torch.save({'state_dict': less}, root / 'headless.pth')
    nan = {**weights, 'head.fc.bias': torch.full((10,), float('nan'))}
    torch.save({'state_dict': nan}, root / 'nan.pth')
    torch.save({**good, 'ema_state_dict': {'steps': 1}}, root / 'bad_ema.pth')
    table, index = 'a.relative_position_bias_table', 'a.relative_position_index'
    swin = {table: torch.ones(9, 2), index: torch.zeros(4, 4)}
    torch.save({'state_dict': swin}, root / 'swin.pth')
    torch.save({'state_dict': {**swin, table: torch.ones(8, 2)}}, root / 'odd_swin.pth')


def write_data(root):
    """Write image folders, of which ``data`` alone is good."""
    good = write_image_folder(root / 'data')
    (root / 'empty').mkdir()
    (root / 'file').write_text('no folder\n')

    def copy(name):
        return shutil.copytree(good, root / name)

    (copy('no_list') / 'meta/train.txt').unlink()
    lists = {
        'list_word': 'n00000000/train_0.JPEG zero\n',
        'list_short': 'n00000000/train_0.JPEG\n',
        'list_high': 'n00000000/train_0.JPEG 7\n',
        'list_negative': 'n00000000/train_0.JPEG -1\n',
        'list_lost': 'n00000000/nowhere.JPEG 0\n',
        'list_blank': '',
    }
    for name, line in lists.items():
        path = copy(name) / 'meta/train.txt'
        path.write_text(line + path.read_text() if line else '')
    for picture in (copy('empty_class') / 'train/n00000002').iterdir():
        picture.unlink()
    (copy('no_class') / 'train/n00000002').rename(root / 'no_class/n00000002')
    for split in ('train', 'val'):
        for name, content in (
            ('image_text', b'no picture\n'),
            ('image_zero', b''),
            ('image_torn', None),
        ):
            folder = root / name
            if not folder.exists():
                copy(name)
            if split == 'val':
                continue
            for picture in sorted((folder / split).glob('*/*.JPEG')):
                whole = picture.read_bytes()
                picture.write_bytes(whole[:200] if content is None else content)
    (root / 'cifar_torn/cifar-100-python').mkdir(parents=True)
    for name in ('train', 'test', 'meta'):
        (root / 'cifar_torn/cifar-100-python' / name).write_bytes(b'\x80\x04 no archive')


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """A folder with small configs, data and checkpoints, good ones and bad ones."""
    root = tmp_path_factory.mktemp('world')
    for name, body in CONFIGS.items():
        (root / name).write_text(body)
    (root / 'no_python.py').write_text('model = dict(\n')
    (root / 'raises.py').write_text('model = 1 / 0\n')
    (root / 'circle.py').write_text("_base_ = './circle.py'\n")
    (root / 'words.txt').write_text('model\n')
    (root / 'empty.py').write_text('')
    runs = root / 'other_runs/resnet20_1xb64_digits'
    runs.mkdir(parents=True)
    (runs / 'seed0.py').write_text('model = dict()\n')
    model = MODELS.build(Config.fromfile(root / 'plain.py').model)
    write_checkpoints(root, model.state_dict())
    pair = MODELS.build(Config.fromfile(root / 'minlogit.py').model)
    torch.save({'state_dict': pair.state_dict(), 'meta': {}}, root / 'pair.pth')
    write_data(root)
    # What a run left behind, which must stay as it is.
    (root / 'work').mkdir()
    shutil.copy(root / 'plain.pth', root / 'work/epoch_1.pth')
    (root / 'work/last_checkpoint').write_text(str(root / 'work/epoch_1.pth'))
    (root / 'torn_work').mkdir()
    shutil.copy(root / 'torn.pth', root / 'torn_work/epoch_1.pth')
    (root / 'torn_work/last_checkpoint').write_text(str(root / 'torn_work/epoch_1.pth'))
    (root / 'lost_work').mkdir()
    (root / 'lost_work/last_checkpoint').write_text(str(root / 'lost_work/epoch_1.pth'))
    return root


def run_in_process(command, capsys):
    """Run a tool as its command line would; return exit code and output."""
    name, *arguments = shlex.split(command)
    tool = load_tool(name)
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    argv = sys.argv
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, 'argv', [f'tools/{TOOLS[name]}', *arguments])
        try:
            tool.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
    assert argv is sys.argv
    assert before == {s: signal.getsignal(s) for s in before}
    said = capsys.readouterr()
    text = said.out + said.err
    if isinstance(code, str):
        text, code = f'{text}{code}\n', 1
    return SimpleNamespace(code=code, text=text)


def row(id_, command, sentence, config='', code=1, writes=()):
    return pytest.param(command, sentence, config, code, writes, id=id_)


SET = '--cfg-options'


HEAD = 'model.head'
# ruff: noqa: E501
ROWS = [
    # BAKE
    row('omega-one', 'train bake.py --cfg-options model.head.omega=1.0', '.'),
    row('omega-negative', 'train bake.py --cfg-options model.head.omega=-0.1', '.'),
    row('omega-nan', 'train bake.py --cfg-options model.head.omega=nan', '.'),
    row('omega-text', 'train row.py', '.', "_base_='bake.py'\nmodel=dict(head=dict(omega='0.5'))"),
    row('omega-none', 'train row.py', '.', "_base_='bake.py'\nmodel=dict(head=dict(omega=None))"),
    row('bake-T-zero', 'train bake.py --cfg-options model.head.temperature=0', '.'),
    row('bake-T-inf', 'train bake.py --cfg-options model.head.temperature=inf', '.'),
    row('bake-T-text', 'train row.py', '.', "_base_='bake.py'\nmodel=dict(head=dict(temperature='4'))"),
    row('bake-weight-negative', 'train bake.py --cfg-options model.head.loss_weight=-1', '.'),
    row('bake-weight-nan', 'train bake.py --cfg-options model.head.loss_weight=nan', '.'),
    row('bake-weight-text', 'train row.py', '.', "_base_='bake.py'\nmodel=dict(head=dict(loss_weight='1'))"),
    row('gather', 'train bake.py --cfg-options model.head.gather=globl', '.'),
    row('head-option', 'train bake.py --cfg-options model.head.omga=0.5', '.'),
    row('head-type', 'train bake.py --cfg-options model.head.type=kd_mm.BAKEHed', '.'),
    row('head-in_channels', 'train bake.py --cfg-options model.head.in_channels=32', '.'),
    row('num_classes-text', 'train row.py', '.', "_base_='bake.py'\nmodel=dict(head=dict(num_classes='10'))"),
    row('num_classes-zero', 'train bake.py --cfg-options model.head.num_classes=0', '.'),
    row('num_classes-few', 'train bake.py --cfg-options model.head.num_classes=9', '.'),
    row('head-missing', 'train row.py', '.', "_base_='bake.py'\nmodel=dict(head=None)"),
    # sampler
    row('instances-0', 'train bake.py --cfg-options train_dataloader.sampler.num_instances=0', '.'),
    row('instances-1', 'train bake.py --cfg-options train_dataloader.sampler.num_instances=1', '.'),
    row('instances-3', 'train bake.py --cfg-options train_dataloader.sampler.num_instances=3', '.'),
    row('instances-true', 'train bake.py --cfg-options train_dataloader.sampler.num_instances=True', '.'),
    row('instances-float', 'train bake.py --cfg-options train_dataloader.sampler.num_instances=2.0', '.'),
    row('instances-missing', 'train row.py', '.', "_base_='bake.py'\ntrain_dataloader=dict(sampler=dict(_delete_=True,type='kd_mm.ClassInstanceSampler'))"),
    row('epoch_length', 'train bake.py --cfg-options train_dataloader.sampler.epoch_length=image', '.'),
    row('sampler-seed', 'train row.py', '.', "_base_='bake.py'\ntrain_dataloader=dict(sampler=dict(seed='a'))"),
    row('sampler-type', 'train plain.py --cfg-options train_dataloader.sampler.type=DefaltSampler', '.'),
    row('sampler-none', 'train row.py', '.', "_base_='plain.py'\ntrain_dataloader=dict(sampler=None)"),
    # loaders
    row('batch-0', 'train plain.py --cfg-options train_dataloader.batch_size=0', '.'),
    row('batch-negative', 'train bake.py --cfg-options train_dataloader.batch_size=-2', '.'),
    row('batch-none', 'train bake.py --cfg-options train_dataloader.batch_size=None', '.'),
    row('batch-text', 'train row.py', '.', "_base_='plain.py'\ntrain_dataloader=dict(batch_size='32')"),
    row('batch-float', 'train plain.py --cfg-options train_dataloader.batch_size=32.0', '.'),
    row('batch-missing', 'train row.py', '.', "_base_='plain.py'\ntrain_dataloader=dict(_delete_=True, num_workers=0, dataset=dict(type='kd_mm.Digits',split='train',pipeline=_base_.train_pipeline))"),
    row('val-batch-0', 'train plain.py --cfg-options val_dataloader.batch_size=0', '.'),
    row('workers-negative', 'train plain.py --cfg-options train_dataloader.num_workers=-1', '.'),
    row('workers-text', 'train row.py', '.', "_base_='plain.py'\ntrain_dataloader=dict(num_workers='2')"),
    row('loader-option', 'train plain.py --cfg-options train_dataloader.bach_size=4', '.'),
    row('loader-none', 'train row.py', '.', "_base_='plain.py'\ntrain_dataloader=None"),
    row('dataset-none', 'train row.py', '.', "_base_='plain.py'\ntrain_dataloader=dict(dataset=None)"),
    row('drop_last-empty', 'train plain.py --cfg-options train_dataloader.drop_last=True train_dataloader.batch_size=128', '.'),
    row('collate', 'train plain.py --cfg-options train_dataloader.collate_fn.type=defalt_collate', '.'),
    row('digits-split', 'train plain.py --cfg-options train_dataloader.dataset.split=val', '.'),
    row('digits-indices', 'train plain.py --cfg-options train_dataloader.dataset.indices=0', '.'),
    row('pipeline-empty', 'train row.py', '.', "_base_='plain.py'\ntrain_dataloader=dict(dataset=dict(pipeline=[]))"),
    row('pipeline-no-pack', 'train row.py', '.', "_base_='plain.py'\ntrain_dataloader=dict(dataset=dict(pipeline=[dict(type='Resize',scale=16)]))"),
    row('pipeline-no-load', 'train row.py', '.', "_base_='images.py'\ntrain_dataloader=dict(dataset=dict(pipeline=[dict(type='Resize',scale=16),dict(type='PackInputs')]))"),
    row('pipeline-option', 'train plain.py --cfg-options train_dataloader.dataset.pipeline.1.paddings=1', '.'),
    row('pipeline-crop', 'train plain.py --cfg-options train_dataloader.dataset.pipeline.1.crop_size=99', '.'),
    row('num_batch_per_epoch', 'train bake.py --cfg-options train_dataloader.num_batch_per_epoch=9', '.'),
    # cohorts
    row('target', 'train minlogit.py --cfg-options model.target=minlogit', '.'),
    row('target-none', 'train minlogit.py --cfg-options model.target=None', '.'),
    row('target-list', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(target=['naive'])"),
    row('kdcl-T-zero', 'train naive.py --cfg-options model.temperature=0', '.'),
    row('kdcl-T-nan', 'train linear.py --cfg-options model.temperature=nan', '.'),
    row('kdcl-T-text', 'train row.py', '.', "_base_='linear.py'\nmodel=dict(temperature='2')"),
    row('kdcl-weight-negative', 'train naive.py --cfg-options model.loss_weight=-1', '.'),
    row('kdcl-weight-nan', 'train linear.py --cfg-options model.loss_weight=nan', '.'),
    row('kdcl-weight-text', 'train row.py', '.', "_base_='linear.py'\nmodel=dict(loss_weight='1')"),
    row('dml-weight-negative', 'train dml.py --cfg-options model.loss_weight=-1', '.'),
    row('dml-weight-inf', 'train dml.py --cfg-options model.loss_weight=inf', '.'),
    row('dml-T-inf', 'train dml.py --cfg-options model.temperature=inf', '.'),
    row('dml-one', 'train row.py', '.', "_base_='dml.py'\nmodel=dict(students=dict(_delete_=True,resnet20=_base_.model.students.resnet20))"),
    row('students-empty', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(_delete_=True), deploy=None)"),
    row('students-none', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=None)"),
    row('students-list', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=[_base_.model.students.resnet20])"),
    row('students-missing', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(_delete_=True,type='kd_mm.KDCL')"),
    row('student-none', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=None))"),
    row('student-dot', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students={'a.b': _base_.model.students.resnet20})"),
    row('student-reserved', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(ensemble=_base_.model.students.resnet20))"),
    row('student-empty-name', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students={'': _base_.model.students.resnet20})"),
    row('student-method-name', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(keys=_base_.model.students.resnet20))"),
    row('student-slash-name', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students={'a/b': _base_.model.students.resnet20})"),
    row('student-int-name', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students={1: _base_.model.students.resnet20})"),
    row('student-headless', 'train minlogit.py --cfg-options model.students.wrn16_1.head=None', '.'),
    row('student-no-neck', 'train minlogit.py --cfg-options model.students.wrn16_1.neck=None', '.'),
    row('student-head-scoreless', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(head=dict(_delete_=True,type='ArcFaceClsHead',num_classes=10,in_channels=64))))"),
    row('student-type', 'train minlogit.py --cfg-options model.students.wrn16_1.type=ImageClasifier', '.'),
    row('student-not-classifier', 'train minlogit.py --cfg-options model.students.wrn16_1.type=SimCLR', '.'),
    row('student-no-type', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(_delete_=True, backbone=dict(type='ResNet', depth=18))))"),
    row('student-backbone-type', 'train minlogit.py --cfg-options model.students.wrn16_1.backbone.type=kd_mm.WideResNet', '.'),
    row('student-backbone-depth', 'train minlogit.py --cfg-options model.students.wrn16_1.backbone.depth=11', '.'),
    row('student-classes', 'train minlogit.py --cfg-options model.students.wrn16_1.head.num_classes=12', '.'),
    row('student-channels', 'train minlogit.py --cfg-options model.students.wrn16_1.head.in_channels=12', '.'),
    row('student-cfg_path', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(_delete_=True,cfg_path='mmpretrain::resnet/resnet19.py')))"),
    row('student-cfg_path-file', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(_delete_=True,cfg_path='nowhere.py')))"),
    row('student-cfg_path-package', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(_delete_=True,cfg_path='mmpretrian::resnet/resnet18_8xb32_in1k.py')))"),
    row('student-cfg_path-key', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(_delete_=True,cfg_path='plain.py',haed=dict(num_classes=10))))"),
    row('student-cfg_path-no-model', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(_delete_=True,cfg_path='empty.py')))"),
    row('student-cfg_path-int', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(_delete_=True,cfg_path=1)))"),
    row('student-train_cfg', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(train_cfg=dict(augments=dict(type='Mixup',alpha=0.2)))))"),
    row('student-init_cfg', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(init_cfg=dict(type='Pretrained',checkpoint='nowhere.pth'))))"),
    row('student-init_cfg-other', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(init_cfg=dict(type='Pretrained',checkpoint='other.pth'))))"),
    row('student-init_cfg-no-path', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(students=dict(wrn16_1=dict(init_cfg=dict(type='Pretrained'))))"),
    row('plain-init_cfg', 'train row.py', '.', "_base_='plain.py'\nmodel=dict(backbone=dict(init_cfg=dict(type='Pretrained',checkpoint='nowhere.pth')))"),
    row('plain-init_cfg-other', 'train row.py', '.', "_base_='plain.py'\nmodel=dict(init_cfg=dict(type='Pretrained',checkpoint='other.pth'))"),
    row('plain-init_cfg-bomb', 'train row.py', '.', "_base_='plain.py'\nmodel=dict(init_cfg=dict(type='Pretrained',checkpoint='bomb.pth'))"),
    row('deploy', 'train minlogit.py --cfg-options model.deploy=resnet50', '.'),
    row('deploy-int', 'train minlogit.py --cfg-options model.deploy=1', '.'),
    row('deploy-list', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(deploy=['resnet20'])"),
    row('views', 'train minlogit.py --cfg-options model.views=per-student', '.'),
    row('views-count', 'train minlogit.py --cfg-options train_dataloader.dataset.pipeline.1.num_views=3', '.'),
    row('views-shared', 'train minlogit.py --cfg-options model.views=shared', '.'),
    row('views-none', 'train dml.py --cfg-options model.views=per_student', '.'),
    row('views-list', 'train row.py', '.', "_base_='minlogit.py'\ntrain_dataloader=dict(dataset=dict(pipeline=[dict(type='MultiView',num_views=[1,1],transforms=[[dict(type='Resize',scale=16)]]),dict(type='PackInputs')]))"),
    row('with_cp', 'train row.py', '.', "_base_='minlogit.py'\nmodel=dict(with_cp='yes')"),
    row('cohort-option', 'train minlogit.py --cfg-options model.temprature=2', '.'),
    row('cohort-type', 'train minlogit.py --cfg-options model.type=kd_mm.KDLC', '.'),
    row('cohort-no-prefix', 'train minlogit.py --cfg-options model.type=KDCL', '.'),
    row('cohort-preprocessor', 'train row.py', '.', "_base_='minlogit.py'\ndata_preprocessor=dict(mean=[0.0],std=[1.0,1.0])"),
    row('cohort-augment', 'train row.py', '.', "_base_='dml.py'\nmodel=dict(train_cfg=dict(augments=dict(type='Mixupp',alpha=0.2)))"),
    row('cohort-augment-alpha', 'train row.py', '.', "_base_='dml.py'\nmodel=dict(train_cfg=dict(augments=dict(type='Mixup',alpha=-1.0)))"),
    # FFSD
    row('leader', 'train ffsd.py --cfg-options model.leader=ledaer', '.'),
    row('leader-list', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(leader=['leader'])"),
    row('diversity', 'train ffsd.py --cfg-options model.diversity=atention', '.'),
    row('diversity-list', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(diversity=['l2'])"),
    row('self_distillation', 'train ffsd.py --cfg-options model.self_distillation=all', '.'),
    row('fusion-text', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(fusion='no')"),
    row('diversity_weight', 'train ffsd.py --cfg-options model.diversity_weight=-1e-5', '.'),
    row('fusion_weight-nan', 'train ffsd.py --cfg-options model.fusion_weight=nan', '.'),
    row('fusion_weight-text', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(fusion_weight='10')"),
    row('ffsd-T', 'train ffsd.py --cfg-options model.temperature=-2', '.'),
    row('ffsd-two', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(students=dict(_delete_=True,student1=_base_.model.students.student1,leader=_base_.model.students.leader))"),
    row('out_indices-single', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(students=dict(leader=dict(backbone=dict(out_indices=(2,)))))"),
    row('out_indices-int', 'train ffsd.py --cfg-options model.students.leader.backbone.out_indices=2', '.'),
    row('out_indices-range', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(students=dict(leader=dict(backbone=dict(out_indices=(1,2,5)))))"),
    row('out_indices-halve', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(students=dict(leader=dict(backbone=dict(out_indices=(0,2)))))"),
    row('out_indices-resnet', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(students=dict(leader=dict(head=dict(in_channels=512),backbone=dict(_delete_=True,type='ResNet',depth=18,out_indices=(3,4)))))"),
    row('deepest', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(students=dict(student1=dict(backbone=dict(out_indices=(1,)))))"),
    row('img_size-small', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(img_size=0)"),
    row('img_size-text', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(img_size='32')"),
    row('norm_cfg', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(norm_cfg=dict(type='BatchNorm'))"),
    row('norm_cfg-none', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(norm_cfg=None)"),
    row('norm_cfg-GN', 'train row.py', '.', "_base_='ffsd.py'\nmodel=dict(norm_cfg=dict(type='GN',num_groups=7))"),
    # General
    row('hold-out-0', 'train general.py --cfg-options train_dataloader.dataset.num_per_class=0', '.'),
    row('hold-out-all', 'train general.py --cfg-options train_dataloader.dataset.num_per_class=99', '.'),
    row('hold-out-float', 'train general.py --cfg-options train_dataloader.dataset.num_per_class=2.0', '.'),
    row('hold-out-part', 'train general.py --cfg-options train_dataloader.dataset.part=test', '.'),
    row('hold-out-no-dataset', 'train row.py', '.', "_base_='general.py'\ntrain_dataloader=dict(dataset=dict(dataset=None))"),
    row('general-no-hook', 'train minlogit.py --cfg-options model.target=general', '.'),
    row('general-no-hold-out', 'train row.py', '.', "_base_='general.py'\ntrain_dataloader=dict(dataset=dict(_delete_=True,type='kd_mm.Digits',pipeline=_base_.train_pipeline))"),
    row('general-pipeline-views', 'train row.py', '.', "_base_='general.py'\ndefault_hooks=dict(generalization_weights=dict(pipeline=_base_.train_pipeline))"),
    row('general-pipeline-type', 'train row.py', '.', "_base_='general.py'\ndefault_hooks=dict(generalization_weights=dict(pipeline=[dict(type='Resise',scale=16)]))"),
    row('general-pipeline-no-pack', 'train row.py', '.', "_base_='general.py'\ndefault_hooks=dict(generalization_weights=dict(pipeline=[dict(type='Resize',scale=16)]))"),
    row('general-neither', 'train row.py', '.', "_base_='general.py'\ndefault_hooks=dict(generalization_weights=dict(pipeline=None))"),
    row('general-hook-elsewhere', 'train row.py', '.', "_base_='general.py'\nmodel=dict(target='naive')"),
    row('general-by-iter', 'train row.py', '.', "_base_='general.py'\ntrain_cfg=dict(_delete_=True,by_epoch=False,max_iters=2)"),
    # hooks
    row('ramp-nothing', 'train row.py', '.', "_base_='ffsd.py'\ncustom_hooks=[dict(type='kd_mm.LossWeightRampHook',names=['fusion_wieght'])]"),
    row('ramp-epochs', 'train row.py', '.', "_base_='ffsd.py'\ncustom_hooks=[dict(type='kd_mm.LossWeightRampHook',names=['fusion_weight'],ramp_epochs=-1)]"),
    row('ramp-names', 'train row.py', '.', "_base_='ffsd.py'\ncustom_hooks=[dict(type='kd_mm.LossWeightRampHook',names='fusion_weight')]"),
    row('ramp-by-iter', 'train row.py', '.', "_base_='dml.py'\ntrain_cfg=dict(_delete_=True,by_epoch=False,max_iters=2)\ncustom_hooks=[dict(type='kd_mm.LossWeightRampHook',names=['loss_weight'])]"),
    row('guard', 'train row.py', '.', "_base_='plain.py'\ncustom_hooks=[dict(type='kd_mm.LossGuardHook',on_nonfinite='ignore')]"),
    row('guard-skips', 'train row.py', '.', "_base_='plain.py'\ncustom_hooks=[dict(type='kd_mm.LossGuardHook',max_consecutive_skips=0)]"),
    row('hook-type', 'train row.py', '.', "_base_='plain.py'\ncustom_hooks=[dict(type='kd_mm.LossGardHook')]"),
    row('hook-option', 'train row.py', '.', "_base_='plain.py'\ncustom_hooks=[dict(type='kd_mm.ExportHook',out='a')]"),
    row('hook-mmengine-option', 'train plain.py --cfg-options default_hooks.checkpoint.intervall=1', '.'),
    row('hook-priority', 'train row.py', '.', "_base_='plain.py'\ncustom_hooks=[dict(type='kd_mm.ExportHook',priority='LOWST')]"),
    row('hooks-dict', 'train row.py', '.', "_base_='plain.py'\ncustom_hooks=dict(type='kd_mm.ExportHook')"),
    # optimizer and schedule
    row('optim-type', 'train plain.py --cfg-options optim_wrapper.optimizer.type=SDG', '.'),
    row('optim-lr', 'train plain.py --cfg-options optim_wrapper.optimizer.lr=-1', '.'),
    row('optim-lr-text', 'train row.py', '.', "_base_='plain.py'\noptim_wrapper=dict(optimizer=dict(lr='0.1'))"),
    row('optim-option', 'train plain.py --cfg-options optim_wrapper.optimizer.weight_deacy=0', '.'),
    row('optim-none', 'train row.py', '.', "_base_='plain.py'\noptim_wrapper=None"),
    row('optim-missing', 'train row.py', '.', "_base_='plain.py'\noptim_wrapper=dict(_delete_=True)"),
    row('parts-empty', 'train row.py', '.', "_base_='ffsd.py'\noptim_wrapper=dict(parts=dict(_delete_=True))"),
    row('parts-orphan', 'train ffsd.py --cfg-options optim_wrapper.parts.networks.prefix=students', '.'),
    row('parts-twice', 'train row.py', '.', "_base_='ffsd.py'\noptim_wrapper=dict(parts=dict(leader=dict(optimizer=dict(type='SGD',lr=0.1),prefix='students.leader')))"),
    row('parts-nobody', 'train ffsd.py --cfg-options optim_wrapper.parts.fusion.prefix=fussion', '.'),
    row('parts-no-optimizer', 'train ffsd.py --cfg-options optim_wrapper.parts.fusion.optimizer=None', '.'),
    row('parts-option', 'train ffsd.py --cfg-options optim_wrapper.parts.fusion.accumulative_counts=2', '.'),
    row('parts-both', 'train row.py', '.', "_base_='ffsd.py'\noptim_wrapper=dict(optimizer=dict(type='SGD',lr=0.1))"),
    row('parts-list', 'train row.py', '.', "_base_='ffsd.py'\noptim_wrapper=dict(parts=[dict(optimizer=dict(type='SGD',lr=0.1))])"),
    row('parts-no-constructor', 'train row.py', '.', "_base_='ffsd.py'\noptim_wrapper=dict(constructor='DefaultOptimWrapperConstructor')"),
    row('constructor', 'train row.py', '.', "_base_='ffsd.py'\noptim_wrapper=dict(constructor='kd_mm.JointOptimWraperConstructor')"),
    row('schedule-part', 'train row.py', '.', "_base_='ffsd.py'\nparam_scheduler=dict(_delete_=True,networks=[],fusion=[],self_distilation=[])"),
    row('schedule-type', 'train row.py', '.', "_base_='plain.py'\nparam_scheduler=[dict(type='CosineLR')]"),
    row('schedule-option', 'train row.py', '.', "_base_='plain.py'\nparam_scheduler=[dict(type='MultiStepLR',milestone=[1])]"),
    row('schedule-lacks', 'train row.py', '.', "_base_='plain.py'\nparam_scheduler=[dict(type='MultiStepLR')]"),
    row('schedule-range', 'train row.py', '.', "_base_='plain.py'\nparam_scheduler=[dict(type='LinearLR',start_factor=2.0,end=1)]"),
    row('epochs-0', 'train plain.py --cfg-options train_cfg.max_epochs=0', '.'),
    row('epochs-negative', 'train plain.py --cfg-options train_cfg.max_epochs=-1', '.'),
    row('epochs-text', 'train row.py', '.', "_base_='plain.py'\ntrain_cfg=dict(max_epochs='3')"),
    row('epochs-missing', 'train row.py', '.', "_base_='plain.py'\ntrain_cfg=dict(_delete_=True,by_epoch=True)"),
    row('val_interval-0', 'train plain.py --cfg-options train_cfg.val_interval=0', '.'),
    row('train_cfg-none', 'train row.py', '.', "_base_='plain.py'\ntrain_cfg=None"),
    row('train_cfg-option', 'train plain.py --cfg-options train_cfg.epochs=3', '.'),
    row('checkpoint-interval-0', 'train plain.py --cfg-options default_hooks.checkpoint.interval=0', '.'),
    row('ema-momentum', 'train row.py', '.', "_base_='plain.py'\ncustom_hooks=[dict(type='EMAHook',momentum=2.0)]"),
    # evaluation
    row('evaluator', 'train plain.py --cfg-options val_evaluator.type=Acuracy', '.'),
    row('evaluator-cohort', 'train plain.py --cfg-options val_evaluator.type=kd_mm.CohortAccuracy', '.'),
    row('evaluator-topk', 'train row.py', '.', "_base_='minlogit.py'\nval_evaluator=dict(topk=(0,))"),
    row('evaluator-topk-high', 'train row.py', '.', "_base_='minlogit.py'\nval_evaluator=dict(topk=(1,11))"),
    row('evaluator-topk-text', 'train row.py', '.', "_base_='minlogit.py'\nval_evaluator=dict(topk='1')"),
    row('evaluator-none', 'train row.py', '.', "_base_='plain.py'\nval_evaluator=None"),
    row('save_best', 'train plain.py --cfg-options default_hooks.checkpoint.save_best=accuracy/top2', '.'),
    row('save_best-student', 'train minlogit.py --cfg-options default_hooks.checkpoint.save_best=resnet50/accuracy/top1', '.'),
]
ROWS += [
    # data
    row('root-missing', 'train images.py --cfg-options train_dataloader.dataset.data_root=nowhere', '.'),
    row('root-empty', 'train images.py --cfg-options train_dataloader.dataset.data_root=empty', '.'),
    row('root-file', 'train images.py --cfg-options train_dataloader.dataset.data_root=file', '.'),
    row('root-none', 'train images.py --cfg-options train_dataloader.dataset.data_root=None', '.'),
    row('root-val', 'train images.py --cfg-options val_dataloader.dataset.data_root=nowhere', '.'),
    row('split', 'train images.py --cfg-options train_dataloader.dataset.split=trian', '.'),
    row('list-missing', 'train images.py --cfg-options train_dataloader.dataset.ann_file=meta/nothing.txt', '.'),
    row('prefix-missing', 'train folders.py --cfg-options train_dataloader.dataset.data_prefix=trian', '.'),
    *(row(n, f'train images.py --cfg-options train_dataloader.dataset.data_root={n} train_dataloader.dataset.ann_file=meta/train.txt', '.')
      for n in ('list_word', 'list_short', 'list_high', 'list_negative', 'list_lost', 'list_blank')),
    row('list-high-list-of-cohort', 'train row.py', '.', "_base_='images.py'\ntrain_dataloader=dict(dataset=dict(data_root='list_high',ann_file='meta/train.txt'))\nmodel=dict(head=dict(num_classes=1000))"),
    row('empty_class', 'train folders.py --cfg-options train_dataloader.dataset.data_root=empty_class', '.'),
    row('empty_class-sampler', 'train row.py', '.', "_base_='folders.py'\ntrain_dataloader=dict(dataset=dict(data_root='empty_class'),sampler=dict(_delete_=True,type='kd_mm.ClassInstanceSampler',num_instances=2))"),
    row('no_class', 'train folders.py --cfg-options train_dataloader.dataset.data_root=no_class', '.'),
    *(row(f'{n}-{d}', f'{t} images.py --cfg-options train_dataloader.dataset.data_root={n}', '.')
      for n in ('image_text', 'image_zero', 'image_torn') for t, d in (('train', 'train'), ('doctor', 'doctor'))),
    row('image-preprocessor', 'train images.py --cfg-options data_preprocessor.mean=0', '.'),
    row('cifar-missing', 'train cifar.py', '.'),
    row('cifar-torn', 'train cifar.py --cfg-options train_dataloader.dataset.data_root=cifar_torn', '.'),
    row('cifar-root-file', 'train cifar.py --cfg-options train_dataloader.dataset.data_root=file', '.'),
    row('dataset-type', 'train images.py --cfg-options train_dataloader.dataset.type=ImagNet', '.'),
    row('dataset-option', 'train images.py --cfg-options train_dataloader.dataset.root=data', '.'),
    row('cub', 'train row.py', '.', "_base_='images.py'\ntrain_dataloader=dict(dataset=dict(_delete_=True,type='CUB',data_root='data',split='train',pipeline=_base_.steps))"),
    row('dogs', 'train row.py', '.', "_base_='images.py'\ntrain_dataloader=dict(dataset=dict(_delete_=True,type='kd_mm.StanfordDogs',data_root='data',split='train',pipeline=_base_.steps))"),
    row('tiny', 'train row.py', '.', "_base_='images.py'\ntrain_dataloader=dict(dataset=dict(_delete_=True,type='kd_mm.TinyImageNet',data_root='data',split='train',pipeline=_base_.steps))"),
    # checkpoints
    *(row(f'load-{n}', f'train plain.py --cfg-options load_from={n}', '.')
      for n in ('nowhere.pth', 'torn.pth', 'zero.pth', 'text.pth', 'text.safetensors', 'bomb.pth', 'other.pth', 'prefix.pth', 'tensor.pth', 'list.pth', 'weights_list.pth', 'no_weights.pth', 'no_state_dict.pth', 'text_weight.pth', 'shape.pth', 'data', 'http://127.0.0.1:9/a.pth', 's3x://a/b.pth', 'pair.pth')),
    *(row(f'test-{n}', f'test plain.py {n}', '.')
      for n in ('nowhere.pth', 'torn.pth', 'zero.pth', 'text.pth', 'bomb.pth', 'other.pth', 'prefix.pth', 'tensor.pth', 'weights_list.pth', 'no_weights.pth', 'text_weight.pth', 'shape.pth', 'data', 'http://127.0.0.1:9/a.pth', 'headless.pth', 'pair.pth')),
    row('test-cohort-plain', 'test minlogit.py plain.pth', '.'),
    row('test-kdcl-on-general', 'test general.py pair.pth', '.'),
    *(row(f'resume-{n}', f'train plain.py --resume {n}', '.')
      for n in ('nowhere.pth', 'torn.pth', 'bomb.pth', 'other.pth', 'shape.pth', 'plain.pth', 'no_weights.pth', 'work')),
    row('resume-auto-torn', 'train plain.py --resume --work-dir torn_work', '.'),
    row('resume-auto-lost', 'train plain.py --resume --work-dir lost_work', '.'),
    *(row(f'export-{n}', f'export plain.py {n} --out out', '.')
      for n in ('nowhere.pth', 'torn.pth', 'zero.pth', 'bomb.pth', 'other.pth', 'prefix.pth', 'tensor.pth', 'weights_list.pth', 'no_weights.pth', 'no_state_dict.pth', 'text_weight.pth', 'shape.pth', 'headless.pth', 'nan.pth', 'pair.pth')),
    # configs
    *(row(f'{t}-config-{n}', f'{t} {n} {rest}', '.')
      for t, rest in (('train', ''), ('test', 'plain.pth'), ('doctor', ''), ('export', 'plain.pth --out out'), ('benchmark', ''))
      for n in ('nowhere.py', 'no_python.py', 'raises.py', 'circle.py', 'words.txt', 'data', 'empty.py')),
    row('base-missing', 'train row.py', '.', "_base_ = './nowhere.py'"),
    row('base-kd_mm', 'train row.py', '.', "_base_ = 'kd_mm::bake/swin-x_8xb128_in1k.py'"),
    row('base-package', 'train row.py', '.', "_base_ = 'kdmm::bake/swin-t_8xb128_in1k.py'"),
    row('base-int', 'train row.py', '.', '_base_ = 1'),
    row('base-variable', 'train row.py', '.', "_base_ = 'plain.py'\nmodel = _base_.modl"),
    row('base-two', 'train row.py', '.', "_base_ = ['plain.py', 'bake.py']"),
    row('base-type-conflict', 'train row.py', '.', "_base_ = 'plain.py'\nmodel = dict(backbone=1)"),
    row('base-dict-over-list', 'train row.py', '.', "_base_ = 'plain.py'\nparam_scheduler = dict(type='CosineAnnealingLR')"),
    row('name-error', 'train row.py', '.', "_base_ = 'plain.py'\nmodel = dict(head=dict(num_classes=TEN))"),
    row('import-error', 'train row.py', '.', "_base_ = 'plain.py'\ncustom_imports = dict(imports=['nowhere'], allow_failed_imports=False)"),
    row('import-option', 'train row.py', '.', "_base_ = 'plain.py'\ncustom_imports = dict(import_=['nowhere'])"),
    row('model-none', 'train row.py', '.', "_base_ = 'plain.py'\nmodel = None"),
    row('model-text', 'train row.py', '.', "_base_ = 'plain.py'\nmodel = 'ResNet'"),
    row('model-no-type', 'train row.py', '.', "_base_ = 'plain.py'\nmodel = dict(_delete_=True)"),
    row('scope', 'train row.py', '.', "_base_ = 'plain.py'\ndefault_scope = 'mmpretrian'"),
    row('randomness', 'train row.py', '.', "_base_ = 'plain.py'\nrandomness = dict(seed='a')"),
    row('seed-negative', 'train plain.py --cfg-options randomness.seed=-1', '.'),
    row('visualizer', 'train plain.py --cfg-options visualizer.type=Visualiser', '.'),
    row('log_level', 'train plain.py --cfg-options log_level=LOUD', '.'),
    row('backend', 'train plain.py --cfg-options env_cfg.mp_cfg.mp_start_method=frok', '.'),
    row('backbone-depth', 'train plain.py --cfg-options model.backbone.depth=21', '.'),
    row('backbone-depth-text', 'train row.py', '.', "_base_ = 'plain.py'\nmodel = dict(backbone=dict(depth='20'))"),
    row('backbone-option', 'train plain.py --cfg-options model.backbone.dept=20', '.'),
    row('backbone-resnet-depth', 'train row.py', '.', "_base_ = 'plain.py'\nmodel = dict(backbone=dict(_delete_=True, type='ResNet', depth=19))"),
    row('neck', 'train plain.py --cfg-options model.neck.type=GlobalAveragePoling', '.'),
    row('loss', 'train plain.py --cfg-options model.head.loss.type=CrossEntropy', '.'),
    row('key-of-ours', 'train plain.py --cfg-options trian_cfg.max_epochs=3', '.'),
    # command lines
    row('options-no-equals', 'train plain.py --cfg-options model.head.num_classes', '.'),
    row('options-empty-key', 'train plain.py --cfg-options =1', '.'),
    row('options-into-number', 'train plain.py --cfg-options train_cfg.max_epochs.a=1', '.'),
    row('options-into-list', 'train plain.py --cfg-options train_dataloader.dataset.pipeline.9.scale=1', '.'),
    row('options-list-key', 'train plain.py --cfg-options train_dataloader.dataset.pipeline.first.scale=1', '.'),
    row('options-bracket', 'train plain.py --cfg-options "model.head.topk=[1,5"', '.'),
    *(row(f'{t}-options-bracket', f'{t} plain.py {r} --cfg-options "model.head.topk=(1,5"', '.') for t, r in (('test', 'plain.pth'), ('doctor', ''))),
    *(row(f'{t}-options-into-number', f'{t} plain.py {r} --cfg-options train_cfg.max_epochs.a=1', '.') for t, r in (('test', 'plain.pth'), ('doctor', ''))),
    *(row(f'{t}-flag', f'{t} plain.py --omega 1', '.') for t in TOOLS),
    *(row(f'{t}-nothing', f'{t}', '.') for t in TOOLS if t != 'doctor'),
    row('launcher', 'train plain.py --launcher mpx', '.'),
    row('launcher-pytorch', 'train plain.py --launcher pytorch', '.'),
    row('test-launcher-pytorch', 'test plain.py plain.pth --launcher pytorch', '.'),
    row('work-file', 'train plain.py --work-dir file', '.'),
    row('work-under-file', 'train plain.py --work-dir file/work', '.'),
    row('work-locked', 'train plain.py --work-dir /proc/work', '.'),
    row('test-work-file', 'test plain.py plain.pth --work-dir file', '.'),
    row('amp', 'train plain.py --amp', '.'),
    row('amp-ffsd', 'train ffsd.py --amp', '.'),
    row('auto-scale-lr', 'train row.py --auto-scale-lr', '.', "_base_ = 'plain.py'\nauto_scale_lr = None"),
    row('auto-scale-lr-missing', 'train row.py --auto-scale-lr', '.', "_base_ = 'plain.py'\nauto_scale_lr = dict(_delete_=True)"),
    row('test-out-ending', 'test plain.py plain.pth --out out.txt', '.'),
    row('test-out-folder', 'test plain.py plain.pth --out data', '.'),
    row('test-out-nowhere', 'test plain.py plain.pth --out nowhere/out.pkl', '.'),
    row('test-out-item', 'test plain.py plain.pth --out-item metrics', '.'),
    row('test-out-metrics-ending', 'test plain.py plain.pth --out out.txt --out-item metrics', '.'),
    row('test-show-dir', 'test plain.py plain.pth --show-dir file', '.'),
    row('test-interval', 'test plain.py plain.pth --show-dir shown --interval 0', '.'),
    row('test-amp', 'test plain.py plain.pth --amp', '.'),
    row('test-no-loader', 'test row.py plain.pth', '.', "_base_ = 'plain.py'\ntest_dataloader = None\ntest_cfg=None\ntest_evaluator=None"),
    row('test-tta', 'test row.py plain.pth --tta', '.', "_base_ = 'plain.py'\ntta_model = dict(type='AverageTTA')"),
    # export, resize
    row('export-student', 'export minlogit.py pair.pth --out out --student resnet50', '.'),
    row('export-student-plain', 'export plain.py plain.pth --out out --student resnet20', '.'),
    row('export-config', 'export ffsd.py pair.pth --out out', '.'),
    row('export-ema', 'export plain.py plain.pth --out out --ema', '.'),
    row('export-format', 'export plain.py plain.pth --out out --format tf', '.'),
    row('export-out-file', 'export plain.py plain.pth --out file', '.'),
    row('export-out-under-file', 'export plain.py plain.pth --out file/out', '.'),
    row('export-out-locked', 'export plain.py plain.pth --out /proc/out', '.'),
    row('export-ema-torn', 'export plain.py bad_ema.pth --out out --ema', '.'),
    row('export-bad-model', 'export row.py plain.pth --out out', '.', "_base_ = 'plain.py'\nmodel = dict(head=dict(type='LinearHead'))"),
    row('resize-resnet', 'resize plain.pth out.pth --window-size 12', '.'),
    row('resize-zero', 'resize swin.pth out.pth --window-size 0', '.'),
    row('resize-text', 'resize swin.pth out.pth --window-size a', '.'),
    row('resize-table', 'resize odd_swin.pth out.pth --window-size 3', '.'),
    row('resize-out', 'resize swin.pth nowhere/out.pth --window-size 3', '.'),
    row('resize-out-folder', 'resize swin.pth data --window-size 3', '.'),
    row('resize-missing', 'resize nowhere.pth out.pth --window-size 3', '.'),
    row('resize-list', 'resize weights_list.pth out.pth --window-size 3', '.'),
    # benchmark
    row('benchmark-batch', 'benchmark plain.py --batch-size 0', '.'),
    row('benchmark-batch-text', 'benchmark plain.py --batch-size a', '.'),
    row('benchmark-steps', 'benchmark plain.py --steps 0', '.'),
    row('benchmark-warmup', 'benchmark plain.py --warmup -1', '.'),
    row('benchmark-img-size', 'benchmark plain.py --img-size 0', '.'),
    row('benchmark-classes', 'benchmark plain.py --num-classes -3', '.'),
    row('benchmark-device', 'benchmark plain.py --device tpu', '.'),
    row('benchmark-cuda', 'benchmark plain.py --device cuda', '.'),
    row('benchmark-amp', 'benchmark plain.py --amp', '.'),
    row('benchmark-threads', 'benchmark plain.py --threads -1', '.'),
    row('benchmark-against', 'benchmark minlogit.py --against nowhere.py', '.'),
    row('benchmark-json', 'benchmark plain.py --batch-size 2 --steps 2 --warmup 0 --json nowhere/a.json', '.'),
    row('benchmark-bad-model', 'benchmark row.py', '.', "_base_ = 'plain.py'\nmodel = dict(head=dict(type='LinearHead'))"),
    row('benchmark-omega', 'benchmark row.py', '.', "_base_ = 'bake.py'\nmodel = dict(head=dict(omega=1.0))"),
    row('benchmark-instances', 'benchmark bake.py --batch-size 3 --steps 2 --warmup 0', '.'),
    row('benchmark-parts', 'benchmark row.py', '.', "_base_='ffsd.py'\noptim_wrapper=dict(parts=dict(_delete_=True))"),
    # reproduce
    row('reproduce-table', 'reproduce bake-cifar10', '.'),
    row('reproduce-rows', 'reproduce digits --rows resnet20', '.'),
    row('reproduce-seeds', 'reproduce digits --seeds 0', '.'),
    row('reproduce-epochs', 'reproduce digits --epochs 0', '.'),
    row('reproduce-subset-small', 'reproduce digits --subset 3 --rows resnet20_1xb64_digits', '.'),
    row('reproduce-subset-zero', 'reproduce digits --subset 0 --rows resnet20_1xb64_digits', '.'),
    row('reproduce-jobs', 'reproduce digits --jobs 0 --rows resnet20_1xb64_digits', '.'),
    row('reproduce-work-dir', 'reproduce digits --work-dir other_runs --seeds 1 --rows resnet20_1xb64_digits', '.'),
    row('reproduce-work-file', 'reproduce digits --work-dir file --seeds 1 --rows resnet20_1xb64_digits', '.'),
    row('reproduce-data', 'reproduce bake-cifar100 --data nowhere --subset 100 --seeds 1 --rows resnet18_1xb128_cifar100', '.'),
    row('reproduce-data2', 'reproduce bake-in1k --data nowhere --seeds 1 --rows resnet50_8xb64_in1k', '.'),
    row('reproduce-out', 'reproduce digits --out file --seeds 1 --rows resnet20_1xb64_digits', '.'),
    # doctor
    row('doctor-target', 'doctor minlogit.py --cfg-options model.target=minlogit', '.'),
    row('doctor-channels', 'doctor plain.py --cfg-options model.head.in_channels=12', '.'),
    row('doctor-save_best', 'doctor plain.py --cfg-options default_hooks.checkpoint.save_best=accuracy/top2', '.'),
    row('doctor-evaluator', 'doctor plain.py --cfg-options val_evaluator.type=kd_mm.CohortAccuracy', '.'),
    row('doctor-ramp', 'doctor row.py', '.', "_base_='ffsd.py'\ncustom_hooks=[dict(type='kd_mm.LossWeightRampHook',names=['fusion_wieght'])]"),
    row('doctor-load', 'doctor plain.py --cfg-options load_from=bomb.pth', '.'),
    row('doctor-nan', 'doctor plain.py --cfg-options load_from=nan.pth', '.'),
    row('doctor-lr', 'doctor plain.py --cfg-options optim_wrapper.optimizer.lr=-1', '.'),
    row('doctor-work', 'doctor plain.py --work-dir file', '.'),
]


@pytest.fixture
def quiet():
    """Leave no scope and no level of logging behind."""
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(('command', 'sentence', 'config', 'code', 'writes'), ROWS)
def test_wrong_input(command, sentence, config, code, writes, world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    (world / 'row.py').write_text(config)
    before = tree(world)
    done = run_in_process(command, capsys)
    after = tree(world)
    assert before == after
    assert done.code == code
    assert re.search(sentence, done.text)
