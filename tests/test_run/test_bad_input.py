"""Each wrong input ends in one sentence that names it and the fix, and nothing is written.

A row is a command line in a small world of configs, data and checkpoints. Where it needs a config
of its own, the row ends in its body, and ``row.py`` in the command is that file. Tools run inside
this process: a process of its own would take six seconds for each row.
"""

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
from kd_mm.run.rehearsal import check_config
from tests import hostile
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
    'views': 'visualization/vis_views.py',
}
SMALL = """
_base_ = {!r}
model = {}
train_dataloader = dict(batch_size=32, dataset=dict({}))
val_dataloader = dict(dataset=dict(indices=64))
test_dataloader = dict(dataset=dict(indices=64))
train_cfg = dict(max_epochs=1)
"""
ONE = 'dict(backbone=dict(depth=8))'
PAIR = f'dict(students=dict(resnet20={ONE}, wrn16_1=dict(backbone=dict(depth=10))))'
HELD_OUT = 'num_per_class=2, dataset=dict(indices=64)'
THREE = f"dict(students={{n: {ONE} for n in ('student1', 'student2', 'leader')}})"
CONFIGS = {
    name: SMALL.format(str(REPO / f'configs/{path}_1xb64_digits.py'), model, indices)
    for name, path, model, indices in (
        ('bake', 'bake/resnet20', ONE, 'indices=64'),
        ('plain', 'vanilla/vanilla_resnet20', ONE, 'indices=64'),
        ('minlogit', 'kdcl/kdcl-minlogit_resnet20-wrn16-1', PAIR, 'indices=64'),
        ('general', 'kdcl/kdcl-general_resnet20-wrn16-1', PAIR, HELD_OUT),
        ('ffsd', 'ffsd/ffsd_resnet20', THREE, 'indices=64'),
    )
}
# Images in folders, by a list.
CONFIGS['images'] = """
_base_ = './plain.py'
model = dict(head=dict(num_classes=4, topk=(1,)))
data_preprocessor = dict(num_classes=4)
steps = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(16, 16)),
    dict(type='PackInputs'),
]
of = dict(_delete_=True, type='CustomDataset', data_root='data', pipeline=steps)
train_dataloader = dict(
    batch_size=4, dataset=dict(data_prefix='train', ann_file='meta/train.txt', **of)
)
val_dataloader = dict(batch_size=4, dataset=dict(data_prefix='val', **of))
test_dataloader = val_dataloader
"""


@cache
def load_tool(name):
    return hostile.load_tool(TOOLS[name])


def tree(root):
    """What is in a folder: names, sizes and times."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns, path.is_dir())
        for path in sorted(root.rglob('*'))
        if '__pycache__' not in path.parts
    }


def write_checkpoints(root, weights):
    """Write checkpoints, of which plain.pth alone is good."""
    torch.save({'state_dict': weights, 'meta': {'epoch': 1, 'iter': 2}}, root / 'plain.pth')
    whole = (root / 'plain.pth').read_bytes()
    (root / 'torn.pth').write_bytes(whole[: len(whole) // 2])
    attack = {'state_dict': hostile.Attack('exploded')}
    (root / 'bomb.pth').write_bytes(pickle.dumps(attack))
    contents = {
        'other': {'state_dict': {'other.weight': torch.ones(2)}},
        'list': {'state_dict': [1, 2]},
        'text': {'state_dict': {**weights, 'head.fc.bias': 'zero'}},
        'shape': {'state_dict': {**weights, 'head.fc.weight': torch.ones(3, 64)}},
        'headless': {'state_dict': {k: w for k, w in weights.items() if k[:4] != 'head'}},
    }
    for name, content in contents.items():
        torch.save(content, root / f'{name}.pth')
    (root / 'torn_work').mkdir()
    shutil.copy(root / 'torn.pth', root / 'torn_work/epoch_1.pth')
    (root / 'torn_work/last_checkpoint').write_text(str(root / 'torn_work/epoch_1.pth'))


def write_data(root):
    """Write image folders, of which ``data`` alone is good."""
    good = write_image_folder(root / 'data')
    (root / 'file').write_text('no folder\n')
    lists = {
        'high': 'n00000000/train_0.JPEG 7\n',
        'negative': 'n00000000/train_0.JPEG -1\n',
        'lost': 'n00000000/nowhere.JPEG 0\n',
    }
    for name, line in lists.items():
        path = good / f'meta/{name}.txt'
        path.write_text(line + (good / 'meta/train.txt').read_text())
    torn = shutil.copytree(good, root / 'torn_images')
    for picture in torn.glob('train/*/*.JPEG'):
        picture.write_bytes(picture.read_bytes()[:200])
    renamed = shutil.copytree(good, root / 'renamed')
    (renamed / 'val/n00000001').rename(renamed / 'val/n00000009')


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """A folder with small configs, data and checkpoints, good ones and bad ones."""
    root = tmp_path_factory.mktemp('world')
    for name, body in CONFIGS.items():
        (root / f'{name}.py').write_text(body)
        Config.fromfile(root / f'{name}.py').dump(root / f'{name}.py')  # one file is faster
    (root / 'no_python.py').write_text('model = dict(\n')
    (root / 'empty.py').write_text('')
    write_checkpoints(root, MODELS.build(Config.fromfile(root / 'plain.py').model).state_dict())
    write_data(root)
    return root


def run_in_process(command, capsys):
    """Run a tool as its command line would; return exit code and output."""
    name, *arguments = shlex.split(command)
    tool = load_tool(name)
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, 'argv', [f'tools/{TOOLS[name]}', *arguments])
        try:
            tool.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
    assert before == {s: signal.getsignal(s) for s in before}
    said = capsys.readouterr()
    text = said.out + said.err
    if isinstance(code, str):
        text, code = f'{text}{code}\n', 1
    return SimpleNamespace(code=code, text=text)


SET = '--cfg-options'
UNSAFE = (
    r'{}\.pth is not a checkpoint that can be read safely: .*Use the file as training wrote it'
)
NOTHING = r'but none of the 1 names in other.pth .* belongs to another model, or its names carry'
BUILT = 'the run cannot be built '
READ = 'train_dataloader cannot be read '
FAILS = r'the model fails on a batch of train_dataloader \(.*\); make backbone, neck and head fit'
FILE = r'{} cannot be read \({}.*\); fix this file, or one of the files in its _base_'
ROOT, ANN = (f'train_dataloader.dataset.{key}' for key in ('data_root', 'ann_file'))
INIT = "init_cfg=dict(type='Pretrained', checkpoint={!r})"

# Name: a setting of a training and the sentence that it ends in.
SETTINGS = {
    'type-ours': (
        'bake model.head.type=kd_mm.BAKEHed',
        r'model\.head: no kd_mm.BAKEHed is registered; did you mean kd_mm.BAKEHead\?',
    ),
    'type-prefix': (
        'minlogit model.type=KDCL',
        r'model: no KDCL is registered; did you mean kd_mm.KDCL\?',
    ),
    'type-theirs': (
        'minlogit model.students.wrn16_1.type=ImageClasifier',
        r'students\.wrn16_1: no ImageClasifier is registered; did you mean ImageClassifier\?',
    ),
    'option-ours': ('bake model.head.omga=1', r'kd_mm\.BAKEHead has no option omga; .* omega\?'),
    'option-theirs': (
        'plain default_hooks.checkpoint.intervall=1',
        r'hooks\.checkpoint: CheckpointHook has no option intervall; did you mean interval\?',
    ),
    'option-by-name': (
        'plain train_dataloader.bach_size=4',
        BUILT + r"\(.*unexpected keyword argument 'bach_size'.*\); look at the settings",
    ),
    'value-ours': ('bake model.head.omega=1.0', r'omega must lie in \[0, 1\), but got 1\.0; at 1'),
    'value-theirs': ('plain optim_wrapper.optimizer.lr=-1', BUILT + r'\(.*: -1\); look at'),
    'hook': (
        'plain custom_hooks.0.type=EMAHook custom_hooks.0.momentum=2.0',
        BUILT + r'\(.*got 2\.0\); look at the settings',
    ),
    'seed': ('plain randomness.seed=-1', BUILT + r'\(ValueError: .*[Ss]eed must be between 0'),
    'channels': ('bake model.head.in_channels=32', FAILS),
    'classes': (
        'bake model.head.num_classes=9',
        r'exceed every label, but got 9 and the label 9 .*set head\.num_classes=10 or more',
    ),
    'groups': (
        'bake train_dataloader.sampler.num_instances=3',
        'multiple of sampler.num_instances.* got 32 and 3; the nearest are 30 and 33',
    ),
    'interval': (
        'plain train_cfg.val_interval=0',
        'val_interval must be an integer of at least 1',
    ),
    'views': (
        'minlogit train_dataloader.dataset.pipeline.1.num_views=3',
        'with 2 students needs 2 views per sample, but the pipeline gives 3 views; use dict',
    ),
    'save-best': (
        'minlogit default_hooks.checkpoint.save_best=resnet50/accuracy/top1',
        "must be a metric .* 'resnet50/accuracy/top1'; did you mean resnet20/accuracy/top1",
    ),
    'metric': (
        'plain val_evaluator.topk=50',
        'what follows the last batch fails .*; look',
    ),
    'no-folder': (
        f'images {ROOT}=nowhere',
        BUILT + rf'\(FileNotFoundError: .*nowhere/.*\); look at .*{ROOT}=FOLDER',
    ),
    'list-high': (f'images {ANN}=meta/high.txt', r'but got 4 and the label 7 .* or correct the'),
    'list-negative': (
        f'images {ANN}=meta/negative.txt',
        'has the label -1; correct them',
    ),
    'list-lost': (f'images {ANN}=meta/lost.txt', READ + r'\(FileNotFoundError: .*nowhere.JPEG'),
    'torn-images': (f'images {ROOT}=torn_images', READ + r'\(.*\); look at its files'),
    'same-classes': (
        f"images {ROOT}=renamed val_dataloader.dataset.data_root=renamed {ANN}=''",
        "must number the same classes, .* only one of them has 'n00000001', 'n00000009'; set cla",
    ),
    'start-missing': ('plain load_from=nowhere.pth', 'no checkpoint at nowhere.pth; check the'),
    'start-torn': ('plain load_from=torn.pth', UNSAFE.format('torn')),
    'start-other': ('plain load_from=other.pth', NOTHING),
    'amp': ('plain optim_wrapper.type=AmpOptimWrapper', BUILT + '.*only available.*gpu'),
    'nearly-a-key': ('plain trian_cfg.epochs=3', r'no trian_cfg; did you mean train_cfg\?'),
    'no-equals': ('plain model.a', "pairs such as a.b=1, but got 'model.a'"),
    'dict': ("plain custom_hooks=[dict(type='A')]", 'takes no dicts, but .* set its keys one by'),
    'into-number': ('plain train_cfg.max_epochs.a=1', r'does not fit plain.py .*; dots join keys'),
}
# Name: a config that changes another one and the sentence that training ends in.
BODIES = {
    'evaluator-none': (
        'plain',
        'val_evaluator = None',
        'val_cfg, and val_evaluator should be either all None',
    ),
    'loader-none': (
        'plain',
        'train_dataloader = None',
        'must have a train_dataloader, but',
    ),
    'pipeline': (
        'plain',
        'train_dataloader = dict(dataset=dict(pipeline=[]))',
        "KeyError: 'inputs'",
    ),
    'no-batch': (
        'plain',
        'param_scheduler = []\ntrain_dataloader = dict(drop_last=True, batch_size=128)',
        'must have a batch, but train_dataloader has 64 images and batches of 128; .* lower the',
    ),
    'module-start': (
        'minlogit',
        f'model = dict(students=dict(wrn16_1=dict({INIT.format("other.pth")})))',
        r'names in other.pth of students.wrn16_1 .* belongs to another model',
    ),
    'cfg_path': (
        'minlogit',
        "model = dict(students=dict(wrn16_1=dict(_delete_=True, cfg_path='nowhere.py')))",
        'no config at nowhere.py; check the path',
    ),
    'parts': (
        'ffsd',
        "optim_wrapper = dict(parts=dict(networks=dict(prefix='students')))",
        r'exactly one of .* but methods\.ffsd\.decoder.* are in none; add a part, such as',
    ),
    'schedule-parts': (
        'ffsd',
        'param_scheduler = dict(_delete_=True, networks=[], fusio=[])',
        'param_scheduler has networks, fusio and .* has fusion, networks, self_distillation',
    ),
    'precise-bn': (
        'minlogit',
        "custom_hooks = [dict(type='PreciseBNHook')]",
        'PreciseBNHook updates the BN statistics of the deployed student alone; leave it out',
    ),
    'no-hold-out': (
        'minlogit',
        "model = dict(target='general')",
        r"must be dict\(type='kd_mm.HoldOut', part='train', .* but got \{'type': 'kd_mm.Digits'\}",
    ),
    'hold-out-views': (
        'general',
        'default_hooks = dict(distiller=dict(held_out_pipeline=_base_.train_pipeline))',
        'must give one image per sample, but got 2 views; leave MultiView out',
    ),
    'base': ('./nowhere', '', FILE.format('row.py', '.*nowhere.py')),
}
ROWS = [
    *(
        pytest.param(
            f'train {setting.replace(" ", f".py {SET} ", 1)}', sentence, '', id=f'set-{name}'
        )
        for name, (setting, sentence) in SETTINGS.items()
    ),
    *(
        pytest.param('train row.py', sentence, f"_base_ = '{base}.py'\n{body}\n", id=f'row-{name}')
        for name, (base, body, sentence) in BODIES.items()
    ),
    *(
        pytest.param(command, sentence, body, id=command.replace(' ', '_'))
        for command, sentence, *body in (
            ('train nowhere.py', 'no config at nowhere.py; check the path'),
            ('train no_python.py', FILE.format('no_python.py', 'SyntaxError')),
            ('train empty.py', 'must have a model with a type, but empty.py has none; fix'),
            ('train file', r'file cannot be read \(OSError: Only py/yml/yaml/json'),
            ('train plain.py --omega 1', 'unrecognized arguments: --omega 1'),
            ('train plain.py --launcher pytorch', 'needs RANK, .* start it by tools/dist_t'),
            ('train plain.py --work-dir file', 'but .*/file is a file; choose another --work-dir'),
            (
                'train row.py --auto-scale-lr',
                'needs auto_scale_lr.base_batch_size, .* but the config has None; leave the flag',
                "_base_ = 'plain.py'\nauto_scale_lr = None",
            ),
            (
                'train plain.py --resume plain.pth',
                'plain.pth has no message_hub; to start from its weights .*load_from=plain.pth',
            ),
            (
                'train plain.py --resume --work-dir torn_work',
                'torn_work/epoch_1.pth is not a checkpoint .*Resume from another one with',
            ),
            ('test plain.py bomb.pth', UNSAFE.format('bomb')),
            ('test plain.py list.pth', 'weights by name, but list.pth holds a list; use'),
            (
                'test plain.py text.pth',
                r'head.fc.bias is str in text.pth and \(10,\) in',
            ),
            (
                'test plain.py shape.pth',
                r'is \(3, 64\) in shape.pth and \(10, 64\) in the',
            ),
            ('test plain.py headless.pth', 'head.fc.weight is missing in headless.pth and'),
            ('test plain.py plain.pth --out a.txt', r'end in \.pkl, .*, but got a\.txt'),
            ('test plain.py plain.pth --out file/a.pkl', r'folder of --out must be .*file is a f'),
            ('test plain.py plain.pth --show-dir file/a', 'folder of --show-dir must be a folder'),
            ('test plain.py plain.pth --out-item metrics', '--out-item needs --out'),
            ('test plain.py plain.pth --tta --show-dir a', '--show-dir take none; leave one out'),
            ('test plain.py plain.pth --interval 0', '--interval must be at least 1, but got 0'),
            (
                'test row.py plain.pth',
                'must have a test_dataloader, but it has none',
                "_base_ = 'plain.py'\ntest_dataloader = test_cfg = test_evaluator = None",
            ),
            (f'doctor images.py {SET} {ROOT}=torn_images', READ),
            ('export plain.py other.pth --out out', 'none of the 1 names in'),
            ('resize plain.pth out.pth --window-size 3', 'of a Swin Transformer, but has no'),
            ('benchmark nowhere.py', 'no config at nowhere.py; check the path'),
            ('loader nowhere.py', 'no config at nowhere.py; check the path'),
            ('reproduce bake-cifar10', "one of digits, bake-cifar100, .* but got 'bake-cifar10'"),
            ('attention plain.py nowhere.pth', 'no checkpoint at nowhere.pth; check the path'),
            (f'views images.py {SET} {ROOT}=nowhere', rf'nowhere/.*\); .*{ROOT}=FOLDER'),
        )
    ),
]


@pytest.mark.parametrize(('command', 'sentence', 'config'), ROWS)
def test_wrong_input_ends_in_one_sentence(command, sentence, config, world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    (world / 'row.py').write_text(''.join(config))
    before = tree(world)
    done = run_in_process(command, capsys)
    assert tree(world) == before
    assert done.code in (1, 2), done.text
    assert 'Traceback' not in done.text
    told = [line for line in done.text.splitlines() if re.match(r'(\w+\.py: )?error: ', line)]
    assert len(told) == 1, done.text
    assert re.search(sentence, told[0]), done.text


@pytest.mark.parametrize('config', CONFIGS)
def test_right_input_passes(config, world, monkeypatch):
    """What the rows make wrong is right without them."""
    monkeypatch.chdir(world)
    before = tree(world)
    cfg = read_config(f'{config}.py')
    unchanged = cfg.to_dict()
    check_config(cfg, ('train_dataloader', 'val_dataloader'))
    assert cfg.to_dict() == unchanged
    assert tree(world) == before
