"""Each wrong input ends in one sentence that names it and the fix, and nothing is written.

A row is a command line in a small world of configs, data and checkpoints. Where it needs a config
of its own, the row ends in its body, and ``row.py`` in the command is that file. Tools run inside
this process: a process of its own would take six seconds for each row.
"""

import importlib.util
import pickle
import re
import shlex
import shutil
import signal
import sys
import warnings
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from kd_mm.config import read_config
from kd_mm.registry import MODELS
from kd_mm.run.preflight import check_config
from tests.conftest import REPO, write_image_folder

TOOLS = {
    'train': 'train.py',
    'test': 'test.py',
    'doctor': 'misc/doctor.py',
    'export': 'model_converters/export_student.py',
    'resize': 'model_converters/resize_swin_windows.py',
    'benchmark': 'analysis_tools/benchmark.py',
    'loader': 'analysis_tools/benchmark_loader.py',
    'reproduce': 'reproduce.py',
    'attention': 'visualization/vis_attention.py',
    'predictions': 'visualization/vis_predictions.py',
    'affinity': 'visualization/vis_affinity.py',
    'views': 'visualization/vis_views.py',
}
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
_base_ = {str(REPO / f'configs/{config}_resnet20-wrn16-1_1xb64_digits.py')!r}
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
            ('naive', 'kdcl/kdcl-naive', 'indices=64'),
            ('linear', 'kdcl/kdcl-linear', 'indices=64'),
            ('minlogit', 'kdcl/kdcl-minlogit', 'indices=64'),
            ('general', 'kdcl/kdcl-general', 'num_per_class=2, dataset=dict(indices=64)'),
            ('dml', 'dml/dml', 'indices=64'),
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
        Config.fromfile(root / name).dump(root / name)  # inheriting from one file is faster
    (root / 'no_python.py').write_text('model = dict(\n')
    (root / 'raises.py').write_text('model = 1 / 0\n')
    (root / 'circle.py').write_text("_base_ = './circle.py'\n")
    (root / 'words.txt').write_text('model\n')
    (root / 'empty.py').write_text('')
    runs = root / 'other_runs/resnet20_1xb64_digits'
    runs.mkdir(parents=True)
    (runs / 'seed0.py').write_text('model = dict()\n')
    (runs / 'seed0').mkdir()
    (runs / 'seed0/epoch_1.pth').touch()
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


FILE = "_base_ = '{}.py'\n{}\n"


def row(id_, command, sentence, base=None, body=''):
    """A command, its sentence, and what row.py holds where the command names it."""
    return pytest.param(command, sentence, FILE.format(base, body) if base else body, id=id_)


SET = '--cfg-options'
NO_BATCH = 'train_dataloader = dict(dataset=dict(pipeline={}))'
OTHER = 'model = dict(students=dict(wrn16_1=dict({})))'
INIT = "init_cfg=dict(type='Pretrained', checkpoint={!r})"
NUMBER = r'must be an integer of at least {}, but got {}$'
FINITE = r'{} must be finite and at least 0, but got {}; 0 leaves the loss out'
HOT = 'temperature must be positive and finite, but got {}; 1 leaves logits as they are'
UNSAFE = '{} is not a checkpoint that can be read safely: .*Use the file as training wrote it'
FITS_NOTHING = 'but none of the {} names in {} .* belongs to another model, or its names carry'
CANNOT = r'error: +{} cannot be read \({}.*\); {}'
MEANT = r"(\. Did you mean '\w+'\?)?"  # as Python 3.13 adds
LIST = r'look at its options, its data_root, and the lines of its ann_file'
MEND = 'mend this file or one that it inherits'
TOGETHER = '{} belong together, but {} is not set; give all of them'
FAILS = r'the model fails on two {} \(\w+: .*\); make backbone, neck and head fit each other'

BAKE = [
    row(
        'omega-1', f'train bake.py {SET} model.head.omega=1.0', r'in \[0, 1\), but got 1\.0; at 1'
    ),
    row('omega-nan', f'train bake.py {SET} model.head.omega=nan', r'in \[0, 1\), but got nan'),
    row(
        'omega-text',
        'train row.py',
        r"omega must lie in \[0, 1\), but got '0\.5'; ",
        'bake',
        "model = dict(head=dict(omega='0.5'))",
    ),
    row('bake-cold', f'train bake.py {SET} model.head.temperature=0', HOT.format(0)),
    row('bake-hot', f'train bake.py {SET} model.head.temperature=inf', HOT.format('inf')),
    row(
        'bake-weight-nan',
        f'train bake.py {SET} model.head.loss_weight=nan',
        FINITE.format('loss_weight', 'nan'),
    ),
    row(
        'bake-weight-text',
        'train row.py',
        FINITE.format('loss_weight', "'1'"),
        'bake',
        "model = dict(head=dict(loss_weight='1'))",
    ),
    row(
        'gather', f'train bake.py {SET} model.head.gather=globl', r"or 'local' .* but got 'globl'"
    ),
    row(
        'option', f'train bake.py {SET} model.head.omga=0.5', 'no option omga; did you mean omega'
    ),
    row(
        'head-type',
        f'train bake.py {SET} model.head.type=kd_mm.BAKEHed',
        r'model\.head: kd_mm has no BAKEHed; did you mean BAKEHead\?',
    ),
    row(
        'in_channels',
        f'train bake.py {SET} model.head.in_channels=32',
        FAILS.format('training images'),
    ),
    row(
        'num_classes',
        f'train bake.py {SET} model.head.num_classes=9',
        r'exceed every label, but got 9 and the label 9 .*set head\.num_classes=10 or more',
    ),
    row(
        'headless',
        'train row.py',
        FAILS.format('training images'),
        'bake',
        'model = dict(head=None)',
    ),
    row('depth', f'train plain.py {SET} model.backbone.depth=21', r'got depth=21\. Try 20 or 26'),
    row(
        'depth-of-theirs',
        'train row.py',
        r'the model cannot be built \(KeyError: .*19.*\); look at the options of model',
        'plain',
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=19))",
    ),
]
LOADERS = [
    row(
        f'instances-{value}',
        f'train bake.py {SET} train_dataloader.sampler.num_instances={value}',
        sentence,
    )
    for value, sentence in (
        ('0', r'at least 2: .* got 0\. Use DefaultSampler'),
        ('3', 'multiple of sampler.num_instances.* got 32 and 3; the nearest are 30 and 33'),
        ('True', 'must be an integer: the anchor and its partners, M . 1; got True'),
        ('2.0', 'must be an integer: the anchor and its partners, M . 1; got 2.0'),
    )
]
LOADERS += [
    row(
        'instances-missing',
        'train row.py',
        r"train_dataloader.sampler cannot be built \(.*missing.*'num_instances'\); look at its",
        'bake',
        'train_dataloader = dict(\n'
        "    sampler=dict(_delete_=True, type='kd_mm.ClassInstanceSampler')\n)",
    ),
    row(
        'epoch_length',
        f'train bake.py {SET} train_dataloader.sampler.epoch_length=image',
        "must be 'anchors' or 'images'; got 'image'",
    ),
    row(
        'sampler-seed',
        'train row.py',
        "seed must be an integer of at least 0, or None; got 'a'",
        'bake',
        "train_dataloader = dict(sampler=dict(seed='a'))",
    ),
    *(
        row(
            f'{name}-{value}',
            f'train plain.py {SET} {loader}_dataloader.{name}={value}',
            f'{loader}_dataloader.{name} ' + NUMBER.format(least, value),
        )
        for loader, name, value, least in (
            ('train', 'batch_size', 0, 1),
            ('train', 'batch_size', None, 1),
            ('train', 'batch_size', 32.0, 1),
            ('val', 'batch_size', -1, 1),
            ('train', 'num_workers', -1, 0),
        )
    ),
    row(
        'batch_size-text',
        'train row.py',
        'batch_size ' + NUMBER.format(1, "'32'"),
        'plain',
        "train_dataloader = dict(batch_size='32')",
    ),
    row(
        'loader-option',
        f'train plain.py {SET} train_dataloader.bach_size=4',
        rf"train_dataloader cannot be built \(.*'bach_size'{MEANT}\); look at its options",
    ),
    row(
        'loader-none',
        'train row.py',
        TOGETHER.format('train_dataloader, train_cfg, optim_wrapper', 'train_dataloader'),
        'plain',
        'train_dataloader = None',
    ),
    row(
        'dataset-none',
        'train row.py',
        'train_dataloader.dataset must be a dict with a type, but got None',
        'plain',
        'train_dataloader = dict(dataset=None)',
    ),
    row(
        'drop_last',
        f'train plain.py {SET} train_dataloader.drop_last=True train_dataloader.batch_size=128',
        'must have a batch, but train_dataloader has 64 images, batches of 128 .*; lower',
    ),
    row('split', f'train plain.py {SET} train_dataloader.dataset.split=val', "'test'; got 'val'"),
    row(
        'indices',
        f'train plain.py {SET} train_dataloader.dataset.indices=0',
        CANNOT.format('train_dataloader.dataset', 'ValueError', LIST),
    ),
    row(
        'pipeline-empty',
        'train row.py',
        'must end in PackInputs, .* but it gives img, gt_label, sample_idx$',
        'plain',
        NO_BATCH.format('[]'),
    ),
    row(
        'pipeline-no-pack',
        'train row.py',
        'must end in PackInputs, .* but it gives img, gt_label, ',
        'plain',
        NO_BATCH.format("[dict(type='Resize', scale=16)]"),
    ),
    row(
        'pipeline-option',
        f'train plain.py {SET} train_dataloader.dataset.pipeline.1.paddings=1',
        r'pipeline\[1\]: RandomCrop has no option paddings; did you mean padding\?',
    ),
]
COHORTS = [
    row(
        'target',
        f'train minlogit.py {SET} model.target=minlogit',
        "one of 'naive', 'linear', 'min_logit', 'general', but got 'minlogit'",
    ),
    row('naive-cold', f'train naive.py {SET} model.temperature=0', HOT.format(0)),
    row('linear-nan', f'train linear.py {SET} model.temperature=nan', HOT.format('nan')),
    row(
        'minlogit-text',
        'train row.py',
        HOT.format("'2'"),
        'minlogit',
        "model = dict(temperature='2')",
    ),
    row('dml-hot', f'train dml.py {SET} model.temperature=inf', HOT.format('inf')),
    *(
        row(
            f'{config}-weight-{value}',
            f'train {config}.py {SET} model.loss_weight={value}',
            FINITE.format('loss_weight', value),
        )
        for config, value in (('naive', -1), ('linear', 'nan'), ('dml', -1), ('dml', 'inf'))
    ),
    row(
        'dml-one',
        'train row.py',
        'at least two students, but got resnet20; add one to model.students',
        'dml',
        'model = dict(\n'
        '    students=dict(_delete_=True, resnet20=_base_.model.students.resnet20)\n)',
    ),
    row(
        'students-empty',
        'train row.py',
        r'students=dict\(name=dict\(...\), ...\), but students is empty',
        'minlogit',
        'model = dict(students=dict(_delete_=True), deploy=None)',
    ),
    row(
        'students-list',
        'train row.py',
        r'students=dict\(name=dict\(...\), ...\), but students is \[',
        'minlogit',
        'model = dict(students=[_base_.model.students.resnet20])',
    ),
    row(
        'student-none',
        'train row.py',
        'students.wrn16_1 must be the config of a classifier, with its type .* but got None',
        'minlogit',
        'model = dict(students=dict(wrn16_1=None))',
    ),
    *(
        row(
            f'student-named-{name}',
            'train row.py',
            sentence.format(name),
            'minlogit',
            f'model = dict(students={{{name!r}: _base_.model.students.resnet20}})',
        )
        for name, sentence in (
            ('a.b', "must be a word without dots, but got '{}'; it is part of keys"),
            ('', "must be a word without dots, but got '{}'; it is part of keys"),
            ('ensemble', "as the metric calls its own rows, but got '{}'"),
            ('keys', "must not have the name of .* but got '{}'; choose another name"),
        )
    ),
    row(
        'student-headless',
        f'train minlogit.py {SET} model.students.wrn16_1.head=None',
        'the head of wrn16_1 must compute .* but there is none; use LinearClsHead',
    ),
    row(
        'student-without-logits',
        'train row.py',
        'head of wrn16_1 must .* but ArcFaceClsHead has a way of its own; use LinearClsHead',
        'minlogit',
        OTHER.format(
            "head=dict(_delete_=True, type='ArcFaceClsHead', num_classes=10, in_channels=64)"
        ),
    ),
    row(
        'student-type',
        f'train minlogit.py {SET} model.students.wrn16_1.type=ImageClasifier',
        r'students\.wrn16_1: no ImageClasifier .* did you mean ImageClassifier\?',
    ),
    row(
        'student-of-another-kind',
        f'train minlogit.py {SET} model.students.wrn16_1.type=SimCLR',
        'must be classifiers, .* but wrn16_1 is a SimCLR; set model.students.wrn16_1',
    ),
    row(
        'student-classes',
        f'train minlogit.py {SET} model.students.wrn16_1.head.num_classes=12',
        r'same number of classes, but got resnet20: 10, wrn16_1: 12; set model\.students',
    ),
    row(
        'student-channels',
        f'train minlogit.py {SET} model.students.wrn16_1.head.in_channels=12',
        FAILS.format('training images'),
    ),
    *(
        row(
            f'cfg_path-{name}',
            'train row.py',
            sentence,
            'minlogit',
            OTHER.format(f'_delete_=True, cfg_path={path!r}{more}'),
        )
        for name, path, more, sentence in (
            ('file', 'nowhere.py', '', 'no config at nowhere.py; check the path'),
            (
                'name',
                'mmpretrain::resnet/resnet19.py',
                '',
                'a recipe that is installed, .*resnet19',
            ),
            (
                'package',
                'mmpretrian::resnet/a.py',
                '',
                "installed, .* got 'mmpretrian::resnet/a.py'",
            ),
            ('empty', 'empty.py', '', 'must have a model, .* that of empty.py is None; mend'),
            (
                'key',
                'plain.py',
                ', haed=dict(a=1)',
                r'wrn16_1: .* no option haed; did you mean head\?',
            ),
        )
    ),
    row(
        'student-augments',
        'train row.py',
        "same for all students, but students.wrn16_1.train_cfg is .*'Mixup'.*; set it to None",
        'minlogit',
        OTHER.format("train_cfg=dict(augments=dict(type='Mixup', alpha=0.2))"),
    ),
    row(
        'student-start-missing',
        'train row.py',
        'no checkpoint at nowhere.pth; check the path',
        'minlogit',
        OTHER.format(INIT.format('nowhere.pth')),
    ),
    row(
        'student-start-other',
        'train row.py',
        FITS_NOTHING.format(1, 'other.pth of students.wrn16_1'),
        'minlogit',
        OTHER.format(INIT.format('other.pth')),
    ),
    row('deploy', f'train minlogit.py {SET} model.deploy=a', "resnet20, wrn16_1, but got 'a'"),
    row(
        'views',
        f'train minlogit.py {SET} model.views=each',
        "'shared', 'per_student' or a number of at least 2, but got 'each'",
    ),
    row(
        'views-three',
        f'train minlogit.py {SET} train_dataloader.dataset.pipeline.1.num_views=3',
        'with 2 students needs 2 views per sample, but the pipeline gives 3 views; use dict',
    ),
    row(
        'views-missing',
        f'train dml.py {SET} model.views=per_student',
        'needs 2 views per sample, but the pipeline gives one image; use dict',
    ),
    row(
        'with_cp',
        'train row.py',
        "True or False, but got 'yes'",
        'dml',
        "model = dict(with_cp='yes')",
    ),
    row('cohort-option', f'train dml.py {SET} model.temprature=2', 'did you mean temperature'),
    row(
        'prefix',
        f'train naive.py {SET} model.type=KDCL',
        "write type='kd_mm.KDCL' instead of 'KDCL'",
    ),
    row(
        'mean',
        'train row.py',
        FAILS.format('training images'),
        'minlogit',
        'data_preprocessor = dict(mean=[0.0], std=[1.0, 1.0])',
    ),
    row(
        'mixup',
        'train row.py',
        r'the model cannot be built \(AssertionError: .*alpha > 0\); look at the options of model',
        'dml',
        "model = dict(train_cfg=dict(augments=dict(type='Mixup', alpha=-1.0)))",
    ),
]
LEADER = 'model = dict(students=dict(leader=dict(backbone=dict(out_indices={}))))'
HELD = 'default_hooks = dict(distiller=dict(held_out_pipeline={}))'
FFSD = [
    row(
        'leader',
        f'train ffsd.py {SET} model.leader=a',
        "leader, student1, student2, but got 'a'; add",
    ),
    row(
        'diversity',
        f'train ffsd.py {SET} model.diversity=atention',
        "'l2', None, but got 'atention'",
    ),
    row(
        'self', f'train ffsd.py {SET} model.self_distillation=all', "'leader', None, but got 'all'"
    ),
    row(
        'fusion',
        'train row.py',
        "True or False, but got 'no'",
        'ffsd',
        "model = dict(fusion='no')",
    ),
    *(
        row(
            f'{name}-{value}',
            f'train ffsd.py {SET} model.{name}={value}',
            FINITE.format(name, value),
        )
        for name, value in (('diversity_weight', -1), ('fusion_weight', 'nan'))
    ),
    row(
        'ffsd-two',
        'train row.py',
        'at least two next to the leader, but got student1; add one to model.students',
        'ffsd',
        'model = dict(\n    students=dict(\n        _delete_=True,\n'
        '        student1=_base_.model.students.student1,\n'
        '        leader=_base_.model.students.leader,\n    )\n)',
    ),
    row('map-one', 'train row.py', 'student leader gives one; set', 'ffsd', LEADER.format('(2,)')),
    row('map-int', 'train row.py', r'such as \(2, \), got 2', 'ffsd', LEADER.format(2)),
    row('map-beyond', 'train row.py', r'0, 1, 2, got \(1, 5\)', 'ffsd', LEADER.format('(1, 5)')),
    row(
        'map-quarter',
        'train row.py',
        'must halve .* those of leader are 32 x 32, 8 x 8; choose other out_indices',
        'ffsd',
        LEADER.format('(0, 2)'),
    ),
    row(
        'img_size',
        f'train ffsd.py {SET} model.img_size=0',
        'img_size must be an integer of at least 1, but got 0',
    ),
    row(
        'norm_cfg',
        'train row.py',
        r"norm_cfg must be a dict such as dict\(type='BN'\), but got None",
        'ffsd',
        'model = dict(norm_cfg=None)',
    ),
    row(
        'norm_cfg-type',
        f'train ffsd.py {SET} model.norm_cfg.type=BatchNorm',
        r'model\.norm_cfg: no BatchNorm is registered; did you mean',
    ),
]
SCHEDULES = [
    row(f'ramp-{name}', f'train {config} {SET} {change}', sentence)
    for name, config, change, sentence in (
        (
            'epochs',
            'ffsd.py',
            'model.fusion_weight.epochs=-1',
            'epochs must be an integer of at least 1, but got -1',
        ),
        (
            'value',
            'ffsd.py',
            'model.fusion_weight.value=-1',
            'value must be finite and at least 0, but got -1',
        ),
        (
            'type',
            'ffsd.py',
            'model.fusion_weight.type=kd_mm.SigmoidRampp',
            r'model\.fusion_weight: kd_mm has no SigmoidRampp; did you mean SigmoidRamp\?',
        ),
        (
            'other',
            'ffsd.py',
            'model.fusion_weight.type=kd_mm.KDCL',
            r'model\.fusion_weight: kd_mm\.KDCL has no option epochs; there are',
        ),
    )
]
GENERAL = [
    *(
        row(
            f'hold-out-{value}',
            f'train general.py {SET} train_dataloader.dataset.num_per_class={value}',
            sentence,
        )
        for value, sentence in (
            (0, 'at least 1, but got 0; to hold nothing out, use the data set itself'),
            (99, 'num_per_class=99 empties 10 of 10 classes: .*; lower num_per_class'),
            (2.0, r'num_per_class must be an integer, but got 2\.0'),
        )
    ),
    row(
        'general-no-hold-out',
        f'train minlogit.py {SET} model.target=general',
        r"must be dict\(type='kd_mm.HoldOut', part='train', .* but got \{'type': 'kd_mm.Digits'\}",
    ),
    row(
        'general-views',
        'train row.py',
        'must give one image per sample, but got 2 views; leave MultiView out',
        'general',
        HELD.format('_base_.train_pipeline'),
    ),
    row(
        'general-no-pack',
        'train row.py',
        'the held-out images must end in PackInputs, .* but it gives img, ',
        'general',
        HELD.format("[dict(type='Resize', scale=16)]"),
    ),
    row(
        'general-both',
        'train row.py',
        'either a held_out_pipeline or a held_out_dataloader, but got both; leave one of them out',
        'general',
        HELD.format('[], held_out_dataloader=dict()'),
    ),
    row(
        'general-by-iteration',
        'train row.py',
        'acts on held-out images after each epoch, but .* IterBasedTrainLoop; use train_cfg=dict',
        'general',
        'train_cfg = dict(_delete_=True, by_epoch=False, max_iters=2)',
    ),
]
HOOKS = [
    row(name, 'train row.py', sentence, config, f'custom_hooks = [dict(type={type_!r}{more})]')
    for name, config, type_, more, sentence in (
        (
            'guard',
            'plain',
            'kd_mm.LossGuardHook',
            ", on_nonfinite='ignore'",
            "on_nonfinite must be one of stop, skip, but got 'ignore'",
        ),
        ('hook', 'plain', 'kd_mm.LossGardHook', '', 'did you mean LossGuardHook'),
        (
            'priority',
            'plain',
            'kd_mm.ExportHook',
            ", priority='LOWST'",
            r"custom_hooks\[0\] cannot be built \(KeyError: 'LOWST'\); look at the options",
        ),
        (
            'ema',
            'plain',
            'EMAHook',
            ', momentum=2.0',
            r'custom_hooks\[0\] cannot be built \(.*got 2\.0\); look at the options of EMAHook',
        ),
    )
]
RUNS = [
    row(
        'hook-option',
        f'train plain.py {SET} default_hooks.checkpoint.intervall=1',
        'CheckpointHook has no option intervall; did you mean interval',
    ),
    row(
        'lr',
        f'train plain.py {SET} optim_wrapper.optimizer.lr=-1',
        r'the optimizer cannot be built \(.*: -1\); look at optim_wrapper',
    ),
    row(
        'optimizer-option',
        f'train plain.py {SET} optim_wrapper.optimizer.weight_deacy=0',
        rf"the optimizer cannot be built \(.*'weight_deacy'{MEANT}\); look at optim_wrapper",
    ),
    row(
        'optimizer-missing',
        'train row.py',
        r"must have an optimizer, such as dict\(type='SGD', lr=0.1\), but has nothing",
        'plain',
        'optim_wrapper = dict(_delete_=True)',
    ),
    *(
        row(f'parts-{name}', 'train row.py', sentence, 'ffsd', f'optim_wrapper = dict({body})')
        for name, body, sentence in (
            (
                'empty',
                'parts=dict(_delete_=True)',
                'parts must give the optimizer of each .* got {}',
            ),
            ('list', 'parts=[dict()]', r'must be a dict with settings .* but got \[{}\]'),
            (
                'orphan',
                "parts=dict(networks=dict(prefix='students'))",
                r'exactly one of .* but methods\.ffsd\.decoder.* are in none; add a part, such as',
            ),
            (
                'twice',
                "parts=dict(a=dict(optimizer=dict(type='SGD', lr=1), prefix='students.leader'))",
                'exactly one of .* are in networks and a; give the parts prefixes',
            ),
            (
                'nobody',
                "parts=dict(fusion=dict(prefix='fussion'))",
                "but got 'fussion'; did you mean methods.ffsd.fusion",
            ),
            (
                'no-optimizer',
                'parts=dict(fusion=dict(optimizer=None))',
                "parts.fusion must be a dict with an optimizer, but got .*'optimizer': None",
            ),
            (
                'no-constructor',
                "constructor='DefaultOptimWrapperConstructor'",
                "needs constructor='kd_mm.Joint.*, but got 'DefaultOptimWrapperConstructor'",
            ),
        )
    ),
    row(
        'schedule-part',
        'train row.py',
        'param_scheduler has networks, fusio and .* has fusion, networks, self_distillation',
        'ffsd',
        'param_scheduler = dict(_delete_=True, networks=[], fusio=[])',
    ),
    *(
        row(
            f'schedule-{name}',
            'train row.py',
            sentence,
            'plain',
            f'param_scheduler = [dict({body})]',
        )
        for name, body, sentence in (
            (
                'type',
                "type='CosineLR'",
                r'param_scheduler\[0\]: no CosineLR is registered; did you',
            ),
            (
                'option',
                "type='MultiStepLR', milestone=[1]",
                rf"\[0\] cannot be built \(.*'milestone'{MEANT}\); "
                'look at the options of MultiStepLR',
            ),
            (
                'range',
                "type='LinearLR', start_factor=2.0, end=1",
                r'\[0\] cannot be built \(.*between 0 and 1.*\); look at the options of LinearLR',
            ),
        )
    ),
    *(
        row(
            f'{key}-{value}',
            f'train plain.py {SET} train_cfg.{key}={value}',
            f'train_cfg.{key} ' + NUMBER.format(1, value),
        )
        for key, value in (('max_epochs', 0), ('max_epochs', 'a'), ('val_interval', 0))
        if value != 'a'
    ),
    row(
        'train_cfg', f'train plain.py {SET} train_cfg.epochs=3', 'epochs; did you mean max_epochs'
    ),
    row(
        'evaluator', f'train plain.py {SET} val_evaluator.type=Acuracy', r'did you mean Accuracy\?'
    ),
    row(
        'evaluator-cohort',
        f'train plain.py {SET} val_evaluator.type=kd_mm.CohortAccuracy',
        "needs the student_scores .* measure a single classifier with type='Accuracy'",
    ),
    row(
        'topk',
        f'train minlogit.py {SET} val_evaluator.topk=11',
        'topk must not exceed the number of classes, 10, but got 11',
    ),
    row(
        'save_best',
        f'train minlogit.py {SET} default_hooks.checkpoint.save_best=resnet50/accuracy/top1',
        "got 'resnet50/accuracy/top1'; did you mean 'resnet20/accuracy/top1'",
    ),
    row(
        'evaluator-none',
        'train row.py',
        TOGETHER.format('val_dataloader, val_cfg, val_evaluator', 'val_evaluator'),
        'plain',
        'val_evaluator = None',
    ),
    row('seed', f'train plain.py {SET} randomness.seed=-1', 'seed ' + NUMBER.format(0, -1)),
    row('log_level', f'train plain.py {SET} log_level=LOUD', "such as 'INFO', but got 'LOUD'"),
    row('scope', f'train plain.py {SET} default_scope=a', "installed, but got 'a'; kd_mm's own"),
]
ROOT = 'train_dataloader.dataset.data_root'
ANN = 'train_dataloader.dataset.ann_file'
DATA = [
    *(
        row(f'root-{name}', f'train images.py {SET} {ROOT}={name}', sentence)
        for name, sentence in (
            ('nowhere', f'the data folder nowhere does not exist; put .* {ROOT}=FOLDER'),
            ('empty', f'the data folder empty is empty; put .* {ROOT}=FOLDER'),
            ('file', f'the data folder file is a file; put .* {ROOT}=FOLDER'),
        )
    ),
    row(
        'list-missing',
        f'train images.py {SET} {ANN}=meta/a.txt',
        CANNOT.format('train_dataloader.dataset', '.*meta/a.txt', LIST),
    ),
    *(
        row(
            name,
            f'train images.py {SET} {ROOT}={name} {ANN}=meta/train.txt',
            sentence,
        )
        for name, sentence in (
            ('list_word', CANNOT.format('train_dataloader.dataset', ".*'zero'", LIST)),
            ('list_short', CANNOT.format('train_dataloader.dataset', 'ValueError', LIST)),
            ('list_blank', CANNOT.format('train_dataloader.dataset', 'ValueError', LIST)),
            ('list_high', r'but got 4 and the label 7 .*; set head\.num_classes=8 or more'),
            ('list_negative', 'at least 0, but train_dataloader has the label -1; mend'),
            ('list_lost', CANNOT.format(r'item 0 .*\(.*nowhere.JPEG\)', '.*', 'replace the file')),
        )
    ),
    row(
        'empty_class',
        'train row.py',
        r"1 of 4 have none: 'n00000002'\. Add the missing images, or remove the empty class",
        'folders',
        "train_dataloader = dict(\n    dataset=dict(data_root='empty_class'),\n    sampler=dict(\n"
        "        _delete_=True, type='kd_mm.ClassInstanceSampler', num_instances=2\n    ),\n)",
    ),
    *(
        row(
            f'{name}-{tool}',
            f'{tool} images.py {SET} {ROOT}={name}',
            CANNOT.format(
                rf'item 0 .*\({name}/train/n00000000/\w+.JPEG\)', '.*', 'replace the file'
            ),
        )
        for name, tool in (
            ('image_text', 'train'),
            ('image_zero', 'train'),
            ('image_torn', 'train'),
            ('image_torn', 'doctor'),
        )
    ),
    row('cifar-missing', 'train cifar.py', f'data folder cifar does not exist; .*{ROOT}=FOLDER'),
    row(
        'cifar-torn',
        f'train cifar.py {SET} {ROOT}=cifar_torn',
        CANNOT.format('train_dataloader.dataset', '.*Cannot find CIFAR100.*', LIST),
    ),
]
CHECKPOINTS = [
    *(
        row(f'{tool.split()[0]}-{name}', f'{tool.format(name)}', sentence)
        for name, sentence in (
            ('nowhere.pth', 'no checkpoint at nowhere.pth; check the path'),
            ('torn.pth', UNSAFE.format('torn.pth')),
            ('bomb.pth', UNSAFE.format('bomb.pth')),
            ('other.pth', FITS_NOTHING.format(1, '(other.pth|the checkpoint)')),
            ('weights_list.pth', 'weights by name, but that of weights_list.pth is a list; use'),
        )
        for tool in (
            f'train plain.py {SET} load_from={{}}',
            'test plain.py {}',
            'export plain.py {} --out out',
        )
    ),
    row('zero', 'test plain.py zero.pth', UNSAFE.format('zero.pth')),
    row('text', 'test plain.py text.pth', UNSAFE.format('text.pth')),
    row('tensor', 'test plain.py tensor.pth', 'must be a dict .* but tensor.pth holds a Tensor'),
    row('prefix-only', 'test plain.py prefix.pth', FITS_NOTHING.format(44, 'prefix.pth')),
    row('no-weights', 'test plain.py no_weights.pth', FITS_NOTHING.format(0, 'no_weights.pth')),
    row('text-weight', 'test plain.py text_weight.pth', 'head.fc.bias of .* is a str; write'),
    row(
        'shape', 'test plain.py shape.pth', r'is \(3, 64\) in shape.pth and \(10, 64\) .*; use the'
    ),
    row(
        'headless-file', 'test plain.py headless.pth', r'lacks 2 of 23 \(head.fc.weight.*; use the'
    ),
    row('plain-for-cohort', 'test minlogit.py plain.pth', FITS_NOTHING.format(44, 'plain.pth')),
    row('folder', 'test plain.py data', 'no checkpoint at data; check the path'),
    row('dead', 'test plain.py http://127.0.0.1:9/a.pth', r'check the address \(.*refused'),
    row('resume-lost', 'train plain.py --resume nowhere.pth', 'no checkpoint at nowhere.pth'),
    row(
        'resume-torn-folder',
        'train plain.py --resume --work-dir torn_work',
        'holds none: .*torn_work/epoch_1.pth is not a checkpoint .*Resume from another one with',
    ),
    row('resume-torn', 'train plain.py --resume torn.pth', UNSAFE.format('torn.pth')),
    row(
        'resume-weights',
        'train plain.py --resume plain.pth',
        'plain.pth has no message_hub; to start from its weights .* load_from=plain.pth',
    ),
    row(
        'start-other',
        'train row.py',
        FITS_NOTHING.format(1, 'other.pth of the model'),
        'plain',
        f'model = dict({INIT.format("other.pth")})',
    ),
    row(
        'start-missing',
        'train row.py',
        'no checkpoint at nowhere.pth; check the path',
        'plain',
        f'model = dict(backbone=dict({INIT.format("nowhere.pth")}))',
    ),
]
CONFIG_FILES = [
    row(f'{tool.split()[0]}-{name}', tool.format(name), sentence)
    for name, sentence in (
        ('nowhere.py', 'no config at nowhere.py; check the path'),
        ('kd_mm::bake/x.py', "inherit a package's config: write _base_ = 'kd_mm::bake/x.py' into"),
        ('no_python.py', CANNOT.format('no_python.py', 'SyntaxError: ', MEND)),
        ('raises.py', CANNOT.format('raises.py', 'ZeroDivisionError: ', MEND)),
        ('empty.py', f'must have a model, .* that of empty.py is None; {MEND}'),
    )
    for tool in (
        'train {}',
        'test {} plain.pth',
        'doctor {}',
        'export {} plain.pth --out out',
        'benchmark {}',
    )
]
CONFIG_FILES += [
    row('circle', 'train circle.py', f'circle.py inherits itself through _base_; {MEND}'),
    row(
        'two-hook-lists',
        'train row.py',
        r"Duplicate keys: \{'custom_hooks'\}\"\); inherit one of them and add what the other has",
        body="_base_ = ['mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', "
        "'kd_mm::_base_/kd_mm_runtime.py']",
    ),
    row('words', 'train words.txt', r'a file in \.py, .*, but got words\.txt'),
    row(
        'base', 'train row.py', CANNOT.format('row.py', '.*a.py', MEND), None, "_base_ = './a.py'"
    ),
    row(
        'base-kd_mm',
        'train row.py',
        CANNOT.format('row.py', 'FileNotFoundError: ', MEND),
        None,
        "_base_ = 'kd_mm::bake/swin-x.py'",
    ),
    row(
        'base-package',
        'train row.py',
        CANNOT.format('row.py', '.*kdmm', MEND),
        None,
        "_base_ = 'kdmm::bake/swin-t_8xb128_in1k.py'",
    ),
    row(
        'name',
        'train row.py',
        CANNOT.format('row.py', "NameError: name 'TEN' is not defined", MEND),
        'plain',
        'model = dict(head=dict(num_classes=TEN))',
    ),
    row(
        'import',
        'train row.py',
        CANNOT.format('row.py', 'ImportError: .*nowhere', MEND),
        'plain',
        "custom_imports = dict(imports=['nowhere'], allow_failed_imports=False)",
    ),
]
SIZE = 'benchmark plain.py --steps 2 --warmup 0'
COMMANDS = [
    row('no-equals', f'train plain.py {SET} model.a', "pairs such as a.b=1, but got 'model.a'"),
    row('no-key', f'train plain.py {SET} =1', "pairs such as a.b=1, but got '=1'"),
    row(
        'dict',
        f"train plain.py {SET} custom_hooks=[dict(type='kd_mm.DiagnosticsHook')]",
        r'takes no dicts, but custom_hooks=\[dict\(type=.* holds one; set its keys one',
    ),
    row(
        'braces',
        f'train plain.py {SET} "train_cfg={{\'max_epochs\': 2}}"',
        r"takes no dicts, but train_cfg=\{'max_epochs': 2\} holds one; set its keys one",
    ),
    row('bracket', f'test plain.py plain.pth {SET} a=(1,5', r'cannot read a=\(1,5: '),
    row(
        'into-number',
        f'doctor plain.py {SET} train_cfg.max_epochs.a=1',
        'train_cfg.max_epochs.a=1 does not fit plain.py .*; dots join keys of dicts',
    ),
    row(
        'into-list',
        f'train plain.py {SET} train_dataloader.dataset.pipeline.9.scale=1',
        'pipeline.9.scale=1 does not fit plain.py .*; dots join keys of dicts',
    ),
    row(
        'nearly-a-key',
        f'train plain.py {SET} trian_cfg.max_epochs=3',
        r'the config has no trian_cfg; did you mean train_cfg\?',
    ),
    *(
        row(f'{tool}-flag', f'{tool} plain.py --omega 1', 'error: ')
        for tool in ('train', 'doctor')
    ),
    *(
        row(f'{tool}-nothing', tool, 'error: the following arguments are required')
        for tool in TOOLS
        if tool != 'doctor'
    ),
    row(
        'launcher', 'train plain.py --launcher pytorch', 'needs RANK, .* start it by tools/dist_t'
    ),
    row('work-file', 'train plain.py --work-dir file', 'but .*/file is a file; choose another'),
    row('amp', 'train plain.py --amp', 'needs a GPU, but got AmpOptimWrapper .*; leave out --amp'),
    row(
        'auto-scale-lr',
        'train row.py --auto-scale-lr',
        'needs auto_scale_lr.base_batch_size, .* but the config has None; leave the flag out',
        'plain',
        'auto_scale_lr = None',
    ),
    row('out-ending', 'test plain.py plain.pth --out a.txt', r'end in \.pkl, .*, but got a\.txt'),
    row(
        'out-folder',
        'test plain.py plain.pth --out plain.py/a.pkl',
        r'the folder of --out must be a folder, but .*/plain\.py is a file',
    ),
    row(
        'show-folder',
        'test plain.py plain.pth --show-dir plain.py/pictures',
        r'the folder of --show-dir must be a folder, but .*/plain\.py is a file',
    ),
    row(
        'classes-of-others',
        'train row.py',
        r"subfolders \(4\) doesn't match .* \(1000\).*; a folder with other classes than "
        "ImageNet's is a CustomDataset",
        'images',
        "train_dataloader = dict(dataset=dict(split='', data_prefix='train'))",
    ),
    row('loader-rounds', 'loader plain.py --rounds 0', '--rounds: must be .* 1, but got 0'),
    row('loader-config', 'loader nowhere.py', 'no config at nowhere.py; check the path'),
    row('out-item', 'test plain.py plain.pth --out-item metrics', '--out-item needs --out'),
    row('show-dir', 'test plain.py plain.pth --show-dir file', 'a folder, but file is a file'),
    row('tta-show', 'test plain.py plain.pth --tta --show-dir pictures', '--show-dir take none; '),
    row(
        'interval',
        'test plain.py plain.pth --interval 0',
        '--interval must be at least 1, but got 0',
    ),
    row(
        'test-nothing-to-test',
        'test row.py plain.pth',
        'test_evaluator belong together, but .* are not set; give all',
        'plain',
        'test_dataloader = test_cfg = test_evaluator = None',
    ),
    row(
        'student',
        'export minlogit.py pair.pth --out out --student a',
        "resnet20, wrn16_1, but got 'a'",
    ),
    row(
        'plain-student',
        'export plain.py plain.pth --out out --student a',
        "no student 'a'; leave it",
    ),
    row(
        'of-another',
        'export ffsd.py pair.pth --out out',
        FITS_NOTHING.format(90, 'the checkpoint'),
    ),
    row(
        'ema-missing',
        'export plain.py plain.pth --out out --ema',
        'ema_state_dict, .* leave --ema out',
    ),
    row('format', 'export plain.py plain.pth --out out --format tf', "invalid choice: 'tf'"),
    row('out-file', 'export plain.py plain.pth --out file', 'needs a folder, but file is a file'),
    row(
        'out-shape',
        'export plain.py shape.pth --out out',
        'exactly the weights of the config; use',
    ),
    row('out-nan', 'export plain.py nan.pth --out out', 'differs by nan; nothing was written'),
    row(
        'out-model',
        'export row.py plain.pth --out out',
        r'the model cannot be built \(KeyError: .*LinearHead.*\); use the config',
        'plain',
        "model = dict(head=dict(type='LinearHead'))",
    ),
    row('resnet', 'resize plain.pth out.pth --window-size 3', 'of a Swin Transformer, but has no'),
    row('window', 'resize swin.pth out.pth --window-size 0', 'at least 2 tokens, but got 0'),
    row(
        'window-odd',
        'resize odd_swin.pth out.pth --window-size 3',
        r'shape \(8, 2\); the checkpoint',
    ),
    row('resize-out', 'resize swin.pth no/out.pth --window-size 3', 'exists, but got no/out.pth'),
    row('batch-size', f'{SIZE} --batch-size 0', r'must be positive, got \(0, None, None\)'),
    row('steps', 'benchmark plain.py --steps 0', 'steps must be at least 2 .* got 0 and 5'),
    row('device', f'{SIZE} --device tpu', "invalid choice: 'tpu'"),
    row('benchmark-amp', f'{SIZE} --amp', "amp needs device 'cuda'"),
    row('threads', f'{SIZE} --threads -1', '--threads must be at least 1, but got -1'),
    row('json', f'{SIZE} --json no/a.json', 'in a folder that exists, but got no/a.json'),
    row('against', f'{SIZE} --against nowhere.py', 'no config at nowhere.py; check the path'),
    row(
        'benchmark-omega',
        'benchmark row.py',
        r'omega must lie in \[0, 1\), but got 1\.0',
        'bake',
        'model = dict(head=dict(omega=1.0))',
    ),
    row(
        'table',
        'reproduce bake-cifar10',
        "one of digits, bake-cifar100, .* but got 'bake-cifar10'",
    ),
    *(
        row(name, f'reproduce digits --rows resnet20_1xb64_digits {flags}', sentence)
        for name, flags, sentence in (
            ('rows', '--rows a', '--rows must be among vanilla_resnet20.*, but got a'),
            ('seeds', '--seeds 0', '--seeds must be at least 1, but got 0'),
            ('epochs', '--epochs 0', '--epochs must be at least 1, but got 0'),
            ('subset', '--subset 3', 'the first 3 hold 3 of 10; use a larger --subset'),
            ('jobs', '--jobs 0 --seeds 1', '--jobs must be at least 1, but got 0'),
            (
                'settings',
                '--seeds 1 --work-dir other_runs',
                'seed0 holds a run with other settings, .*; choose another --work-dir',
            ),
            (
                'runs-file',
                '--seeds 1 --work-dir file',
                '/file is a file; choose another --work-dir',
            ),
            ('table-file', '--seeds 1 --out file', '/file is a file; choose another --out'),
            ('data-file', '--seeds 1 --data file', '--data must be a folder, but file is a file'),
        )
    ),
]
SAVE_PATH = r'--save-path must be a file in \.png, .*, but got {}'
PICTURES = [
    *(
        row(f'{tool}-{name}', f'{tool} bake.py {file}', sentence)
        for tool in ('attention', 'predictions', 'affinity')
        for name, file, sentence in (
            ('no-checkpoint', 'nowhere.pth', 'no checkpoint at nowhere.pth; check the path'),
            ('bomb-checkpoint', 'bomb.pth', UNSAFE.format('bomb.pth')),
            ('other-checkpoint', 'other.pth', FITS_NOTHING.format(1, 'other.pth')),
            ('number', 'plain.pth --number 0', '--number must be at least 1, but got 0'),
        )
    ),
    row(
        'attention-ending', 'attention plain.py a.pth --save-path a.txt', SAVE_PATH.format('a.txt')
    ),
    row(
        'attention-device',
        'attention plain.py a.pth --device tpu',
        'one that torch has here, .* tpu',
    ),
    row('attention-extra', 'attention plain.py pair.pth', FITS_NOTHING.format(r'\d+', 'pair.pth')),
    row('attention-layer', 'attention plain.py plain.pth --target-layers a', 'network has no a'),
    row('attention-image', 'attention plain.py plain.pth a.png', 'no image at a.png; check'),
    row('attention-text', 'attention plain.py plain.pth words.txt', 'words.txt cannot be read'),
    row(
        'predictions-topk', 'predictions plain.py plain.pth --topk 0', '--topk must be at least 1'
    ),
    row(
        'affinity-plain',
        'affinity plain.py plain.pth',
        'affinities need a method by which images learn from each other, but Image',
    ),
    row('affinity-index', 'affinity bake.py plain.pth --index 16', 'shown, 0 to 15, but got 16'),
    row('views-seed', 'views bake.py --seed -1', '--seed must be at least 0, but got -1'),
    row('views-number', 'views bake.py -n 0', '--number must be at least 1, but got 0'),
    row('views-save-path', 'views bake.py --save-path data', SAVE_PATH.format('data')),
    row(
        'views-data',
        f'views images.py {SET} {ROOT}=nowhere',
        f'the data folder nowhere does not exist; put .* {ROOT}=FOLDER',
    ),
]
ROWS = [
    *BAKE,
    *LOADERS,
    *COHORTS,
    *FFSD,
    *GENERAL,
    *SCHEDULES,
    *HOOKS,
    *RUNS,
    *DATA,
    *CHECKPOINTS,
    *CONFIG_FILES,
    *COMMANDS,
    *PICTURES,
]


@pytest.mark.parametrize(('command', 'sentence', 'config'), ROWS)
def test_wrong_input_ends_in_one_sentence(command, sentence, config, world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    (world / 'row.py').write_text(config)
    before = tree(world)
    done = run_in_process(command, capsys)
    assert tree(world) == before
    assert done.code in (1, 2), done.text
    assert 'Traceback' not in done.text
    told = [line for line in done.text.splitlines() if re.match(r'(\w+\.py: )?error: ', line)]
    assert len(told) == 1, done.text
    assert re.search(sentence, told[0]), done.text


def test_rows_have_names_of_their_own():
    names = [one.id for one in ROWS]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize('config', [name.removesuffix('.py') for name in CONFIGS])
def test_right_input_passes(config, world, monkeypatch):
    """What the rows make wrong is right without them."""
    monkeypatch.chdir(world)
    before = tree(world)
    if config != 'cifar':  # whose folder is not there
        check_config(read_config(f'{config}.py'), ('train_dataloader', 'val_dataloader'))
    assert tree(world) == before
