"""Every shipped config: its name, its contents, its vanilla twin, its model, its loss step.

Expected numbers are the paper's and its released code's settings, and the sizes in mmpretrain's
model zoo, written out here by hand.
"""

import ast
import math
import re
import runpy
from copy import deepcopy
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine import registry as mmengine_registry
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.dataset import Compose
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope, Registry
from mmengine.runner.checkpoint import load_checkpoint
from mmpretrain.structures import DataSample

import kd_mm.registry
from kd_mm.engine.hooks import DistillerHook
from kd_mm.export import our_types, plain_cfg, student_names
from kd_mm.methods import FFSD as FFSDMethod
from kd_mm.methods.ffsd import DIVERSITIES, SELF_DISTILLATIONS
from kd_mm.models.networks import student_cfg
from kd_mm.run.dry_run import set_last_epoch
from kd_mm.run.preflight import check_types
from kd_mm.utils import register_all_modules

from .conftest import REPO, run_tool

CONFIGS = REPO / 'configs'
PATHS = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.glob('[!_]*/*.py'))
BAKE = [path for path in PATHS if path.startswith('bake/')]
# DML is a baseline of both papers: its configs are tested with those of the paper's method.
DML_OF_FFSD = [
    'dml/dml_2xresnet32_1xb128-300e_cifar100.py',
    'dml/dml_2xwrn16-2_1xb128-300e_cifar100.py',
]
DML_OF_KDCL = [p for p in PATHS if p.startswith('dml/') and p not in DML_OF_FFSD]
KDCL = [path for path in PATHS if path.startswith('kdcl/')] + DML_OF_KDCL
FFSD = [path for path in PATHS if path.startswith('ffsd/')] + DML_OF_FFSD
COHORTS = KDCL + FFSD
VANILLA = [path for path in PATHS if path.startswith('vanilla/')]
# Another loader for a recipe of another folder, whose name and settings tell the rest.
IN_MEMORY = [path for path in PATHS if path.startswith('in_memory/')]
RECIPE_PATHS = [path for path in PATHS if path not in IN_MEMORY]

NAME = re.compile(
    r'(?:(?P<method>vanilla|dml|kdcl-[a-z-]+|ffsd(?:-[a-z0-9-]+)?)_)?(?P<network>[a-z0-9-]+)'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?:-(?P<epochs>\d+)e)?_(?P<data>[a-z0-9]+)'
    r'(?:-(?P<px>\d+)px)?(?P<loader>-in-memory)?\.py'
)
# What a name stands for: the backbone's settings.
SMALL_PX = ('cifar100', 'tinyimagenet')
NETWORKS = {
    'swin-t': dict(type='SwinTransformer', arch='tiny', drop_path_rate=0.2),
    'swin-s': dict(type='SwinTransformer', arch='small', drop_path_rate=0.3),
    'swin-b': dict(type='SwinTransformer', arch='base', drop_path_rate=0.5),
    'resnet20': dict(type='kd_mm.CIFARResNet', depth=20),
    'resnet32': dict(type='kd_mm.CIFARResNet', depth=32),
    'resnet56': dict(type='kd_mm.CIFARResNet', depth=56),
    'wrn16-1': dict(type='kd_mm.CIFARWideResNet', depth=16, widen_factor=1),
    'wrn16-2': dict(type='kd_mm.CIFARWideResNet', depth=16, widen_factor=2),
    'wrn40-2': dict(type='kd_mm.CIFARWideResNet', depth=40, widen_factor=2),
    'googlenet': dict(type='kd_mm.CIFARGoogLeNet'),
    'densenet40-12': dict(type='kd_mm.CIFARDenseNet', depth=40, growth_rate=12),
    'resnet18': dict(type='ResNet', depth=18),
    'resnet18 small': dict(type='ResNet_CIFAR', depth=18),
    'resnet34': dict(type='ResNet', depth=34),
    'resnet50': dict(type='ResNet', depth=50),
    'resnet101': dict(type='ResNet', depth=101),
    'resnet152': dict(type='ResNet', depth=152),
    'resnest50': dict(type='ResNeSt', depth=50),
    'resnest101': dict(type='ResNeSt', depth=101),
    'resnext101-32x4d': dict(type='ResNeXt', depth=101, groups=32, width_per_group=4),
    'resnext152-32x4d': dict(type='ResNeXt', depth=152, groups=32, width_per_group=4),
    'mobilenet-v2': dict(type='MobileNetV2', widen_factor=1.0),
    'mobilenet-v2-x05': dict(type='MobileNetV2', widen_factor=0.5),
    'efficientnet-b0': dict(type='EfficientNet', arch='b0'),
    'densenet121': dict(type='DenseNet', arch='121'),
    'densenet121 small': dict(type='kd_mm.DenseNet_CIFAR', arch='121'),
}
# Millions of parameters in mmpretrain's model zoo (torchvision's, with half the width), with 1,000
# classes.
PARAMETERS = {
    'swin-t': 28.29,
    'swin-s': 49.61,
    'swin-b': 87.77,
    'swin-b 384': 87.90,
    'resnet18': 11.69,
    'resnet34': 21.80,
    'resnet50': 25.56,
    'resnet101': 44.55,
    'resnet152': 60.19,
    'resnest50': 27.48,
    'resnest101': 48.28,
    'resnext101-32x4d': 44.18,
    'resnext152-32x4d': 59.95,
    'mobilenet-v2': 3.50,
    'mobilenet-v2-x05': 1.97,
    'efficientnet-b0': 5.29,
}
# What a name stands for: type, classes, folder, title, and the paper's (M, omega).
DATA = {
    'in1k': ('ImageNet', 1000, 'data/imagenet', 'ImageNet-1k', (1, 0.5)),
    'cifar100': ('CIFAR100', 100, 'data/cifar100', 'CIFAR-100', (3, 0.5)),
    'tinyimagenet': (
        'kd_mm.TinyImageNet',
        200,
        'data/tiny-imagenet-200',
        'TinyImageNet',
        (1, 0.9),
    ),
    'cub': ('CUB', 200, 'data/CUB_200_2011', 'CUB-200-2011', (3, 0.5)),
    'dogs': ('kd_mm.StanfordDogs', 120, 'data/stanford_dogs', 'Stanford Dogs', (1, 0.9)),
    'mit67': ('kd_mm.MITIndoor67', 67, 'data/mit67', 'MIT67', (1, 0.9)),
    'digits': ('kd_mm.Digits', 10, '', 'Digits (scikit-learn)', (1, 0.5)),
}
# Learning rate with BAKE, weight decay, epochs.
RECIPES = {
    'swin': (1e-3, 0.05, 300),
    'swin 384': (4e-5, 1e-8, 30),
    'resnet': (0.4, 5e-5, 100),
    'resnest': (0.4, 5e-5, 100),
    'resnext': (0.4, 5e-5, 100),
    'mobilenet': (0.1, 4e-5, 100),
    'efficientnet': (0.8, 1e-5, 100),
    'small data': (0.1, 1e-4, 200),
    'digits': (0.1, 5e-4, 20),
}
# Of KDCL's paper: steps of the LR by network and length.
STEPS = {
    ('resnet', 200): [60, 120, 180],
    ('resnet', 100): [30, 60, 90],
    ('mobilenet', 300): [90, 180, 270],
}
TARGETS = {'naive': 'naive', 'linear': 'linear', 'minlogit': 'min_logit', 'general': 'general'}
# What a word in the name of an FFSD config stands for: how students are kept apart, who has a neck
# of self-distillation, whether features are fused.
ABLATIONS = {
    '': ('attention', ('student2', 'leader'), True),
    'l2-diversity': ('l2', ('student2', 'leader'), True),
    'no-diversity': (None, ('student2', 'leader'), True),
    'no-sd': ('attention', (), True),
    'sd-common': ('attention', ('student2',), True),
    'sd-leader': ('attention', ('leader',), True),
    'no-fusion': ('attention', ('student2', 'leader'), False),
    'no-leader': ('attention', ('student2',), True),
    'dml': (None, (), True),
    '3students': ('attention', ('student2', 'student3', 'leader'), True),
    '4students': ('attention', ('student2', 'student3', 'student4', 'leader'), True),
    '5students': ('attention', (*(f'student{i}' for i in range(2, 6)), 'leader'), True),
    '6students': ('attention', (*(f'student{i}' for i in range(2, 7)), 'leader'), True),
}
HELD_OUT = {'in1k': 20, 'cifar100': 50, 'digits': 10}
# What BAKE may change in a vanilla config.
HEAD = {f'model.head.{key}' for key in ('type', 'omega', 'temperature', 'loss_weight')}
SAMPLER = {
    f'train_dataloader.sampler.{key}' for key in ('type', 'num_instances', 'shuffle', '_scope_')
}
LARGER_BATCH = {
    'train_dataloader.batch_size',
    'optim_wrapper.optimizer.lr',
    'auto_scale_lr.base_batch_size',
    'sync_bn',
}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@pytest.fixture(scope='module', autouse=True)
def mmpretrain_scope():
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@cache
def _load(path):
    return Config.fromfile(CONFIGS / path)


def load(path):
    """Return a copy of a config, read once."""
    return deepcopy(_load(path))


def parse(path):
    """Return network, number of GPUs, batch per GPU, data and pixels by a config's name."""
    match = NAME.fullmatch(Path(path).name)
    assert match, f'{path} is not named <network>_<GPUs>xb<batch>_<data>.py'
    return match['network'], int(match['gpus']), int(match['batch']), match['data'], match['px']


def ffsd_recipe(path):
    """Tell whether a config trains as FFSD's paper does."""
    return path.startswith('ffsd/') or NAME.fullmatch(Path(path).name)['epochs'] in ('90', '300')


def reads_each_image_once(path):
    """Tell whether an epoch with BAKE is as long as a plain one, about."""
    return parse(path)[0].startswith('swin') or ffsd_recipe(path)


def kdcl_recipe(path):
    """Tell whether a config trains as KDCL's paper does."""
    if ffsd_recipe(path):
        return False
    network, _, batch, data, px = parse(path)
    mixed = px or network.startswith('swin')
    of_small = data == 'cifar100' and network not in ('resnet18', 'densenet121')
    return path in KDCL or (data == 'in1k' and batch == 256 and not mixed) or of_small


def ablation(path):
    """Return what follows ffsd in a config's name; None of a config that is no FFSD."""
    method, _, rest = NAME.fullmatch(Path(path).name)['method'].partition('-')
    return rest if method == 'ffsd' else None


def leaderless(path):
    return ablation(path) in ('no-leader', None)


def num_common(path):
    """Return how many common students a config's name tells of: two, if it tells nothing."""
    more = re.fullmatch(r'(\d)students', ablation(path) or '')
    return int(more[1]) if more else 2


def students_of(path):
    """Return the networks that a cohort's name lists, by the name of the student."""
    name = parse(path)[0]
    equal = re.fullmatch(r'(\d)x(.+)', name)
    if path in FFSD:
        network = equal[2] if equal else name
        students = (
            ['student1', 'student2'] if leaderless(path) else ['student1', 'student2', 'leader']
        )
        students += [f'student{i}' for i in range(3, num_common(path) + 1)]
        return dict.fromkeys(students, network)
    if equal:
        return {f'{equal[2]}_{i + 1}': equal[2] for i in range(int(equal[1]))}
    longest_first = sorted((n for n in NETWORKS if ' ' not in n), key=len, reverse=True)
    found = re.findall('|'.join(map(re.escape, longest_first)), name)
    assert '-'.join(found) == name
    return {network.replace('-', '_'): network for network in found}


def networks_of(path):
    """Return {(student, network of the name): its classifier's config}."""
    cfg = load(path)
    if path not in COHORTS:
        return {('', parse(path)[0]): cfg.model}
    students = students_of(path)
    assert list(cfg.model.students) == list(students)
    return {(n, network): student_cfg(cfg.model.students[n]) for n, network in students.items()}


def unwrapped(dataset):
    """Return the data set inside of our wrappers."""
    while dataset.type in ('kd_mm.HoldOut', 'kd_mm.InMemory'):
        dataset = dataset.dataset
    return dataset


def one_view(dataset):
    """Return the data set of a student: without a hold-out, and with its own view."""
    dataset = unwrapped(dataset)
    pipeline = []
    for transform in dataset.pipeline:
        pipeline += transform.transforms[0] if transform.type == 'MultiView' else [transform]
    return {**dataset, 'pipeline': pipeline}


def typed(node, path=()):
    """Yield (path, dict) for each dict with a type, outermost first."""
    if isinstance(node, dict):
        if isinstance(node.get('type'), str):
            yield path, node
        for key, value in node.items():
            yield from typed(value, (*path, key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from typed(value, (*path, index))


def settings(cfg):
    """Return what the Runner takes, without the variables that only build it."""
    helpers = {
        'train_pipeline',
        'test_pipeline',
        'dataset_type',
        'data_root',
        'bgr_mean',
        'bgr_std',
    }
    return {key: value for key, value in cfg.to_dict().items() if key not in helpers}


def unscoped(node):
    """Return a config's part without the scopes, which inheritance adds."""
    if isinstance(node, dict):
        return {key: unscoped(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return [unscoped(value) for value in node]
    return node


def flatten(node, prefix=''):
    """Return {'a.b.0.c': value}."""
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return {prefix: node}
    flat = {}
    for key, value in items:
        flat.update(flatten(value, f'{prefix}.{key}' if prefix else str(key)))
    return flat


def build_model(cfg):
    """Build the model as the Runner does."""
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = mmengine_registry.MODELS.build(cfg.model)
    set_last_epoch(model, num_images=1)
    return model


# The set


def test_every_row_of_bakes_paper_has_a_config():
    rows = {(parse(path)[0], parse(path)[3], parse(path)[4]) for path in BAKE}
    others = ('swin-b 384', 'resnet18', 'resnet34', 'mobilenet-v2-x05')  # KDCL's, FFSD's
    imagenet = {(name, 'in1k', None) for name in PARAMETERS if name not in others}
    small = {
        (network, data, None)
        for network in ('resnet18', 'densenet121')
        for data in ('cifar100', 'tinyimagenet', 'cub', 'dogs', 'mit67')
    }
    ours = {('resnet20', 'digits', None), ('resnet20', 'cifar100', None)}
    assert rows == imagenet | small | ours | {('swin-b', 'in1k', '384')}


def test_every_row_of_kdcls_paper_has_a_config():
    targets = ('naive', 'linear', 'minlogit', 'general')
    four = 'resnet50-resnet18-mobilenet-v2-mobilenet-v2-x05'
    expected = {f'kdcl-minlogit_{four}_8xb256_in1k'}
    for pair in (
        'resnet50-resnet18_8xb256_in1k',
        'resnet20-wrn16-1_1xb64_digits',
        '2xresnet20_1xb128-300e_cifar100',
    ):
        expected |= {f'kdcl-{target}_{pair}' for target in targets} | {f'dml_{pair}'}
    for pair in (
        'mobilenet-v2-mobilenet-v2-x05',
        'resnet18-mobilenet-v2-x05',
        'resnet18-mobilenet-v2',
        'resnet50-mobilenet-v2-x05',
    ):
        expected |= {f'kdcl-{target}_{pair}_8xb256_in1k' for target in ('linear', 'minlogit')}
    expected |= {f'kdcl-minlogit_{n}xresnet18_8xb256-100e_in1k' for n in (2, 3, 4, 5)}
    small = 'resnet32-wrn16-2_1xb128_cifar100'
    expected |= {f'kdcl-{target}{icl}_{small}' for target in targets for icl in ('', '-shared')}
    assert {Path(path).stem for path in KDCL} == expected | {f'dml_{small}'}


def test_every_row_of_ffsds_paper_has_a_config():
    small = (
        'resnet20',
        'resnet32',
        'resnet56',
        'wrn16-2',
        'wrn40-2',
        'googlenet',
        'densenet40-12',
    )
    expected = {f'ffsd_{network}_1xb128_cifar100' for network in small}
    expected |= {f'ffsd_resnet{depth}_8xb32_in1k' for depth in (18, 34)}
    expected |= {f'ffsd-{name}_resnet32_1xb128_cifar100' for name in ABLATIONS if name}
    expected |= {f'dml_2x{network}_1xb128-300e_cifar100' for network in ('resnet32', 'wrn16-2')}
    expected |= {'ffsd-dml_wrn16-2_1xb128_cifar100', 'ffsd_resnet20_1xb64_digits'}
    assert {Path(path).stem for path in FFSD} == expected
    baselines = {f'vanilla_{network}_1xb128-300e_cifar100' for network in small}
    baselines |= {f'vanilla_resnet{depth}_8xb32-90e_in1k' for depth in (18, 34)}
    assert {Path(path).stem for path in VANILLA if ffsd_recipe(path)} == baselines


@pytest.mark.parametrize('path', KDCL)
def test_each_student_has_a_vanilla_config_of_the_same_recipe(path):
    cfg = load(path)
    _, gpus, batch, data, _ = parse(path)
    short = NAME.fullmatch(Path(path).name)['epochs']
    longest = 0
    for name, network in students_of(path).items():
        training = f'{gpus}xb{batch}' + (f'-{short}e' if short else '')
        twin = load(f'vanilla/vanilla_{network}_{training}_{data}.py')
        longest = max(longest, twin.train_cfg.max_epochs)

        parts, schedule = cfg.optim_wrapper.get('parts'), cfg.param_scheduler
        mixed = isinstance(schedule, dict) and 'type' not in schedule
        assert mixed == (parts is not None)
        pairs = [
            (student_cfg(cfg.model.students[name]), twin.model),
            (parts[name] if parts else cfg.optim_wrapper, twin.optim_wrapper),
            (schedule[name] if mixed else schedule, twin.param_scheduler),
        ]
        pairs.append(
            (one_view(cfg.train_dataloader.dataset), one_view(twin.train_dataloader.dataset))
        )
        pairs += [(cfg[key], twin[key]) for key in ('val_dataloader', 'test_dataloader')]
        pairs += [(cfg[key], twin[key]) for key in ('data_preprocessor', 'auto_scale_lr')]
        for ours, plain in pairs:
            assert unscoped(ours) == unscoped(plain)
    # Pairs of different lengths: as long as the longest.
    assert cfg.train_cfg.max_epochs == longest


@pytest.mark.parametrize('path', FFSD)
def test_ffsd_trains_each_network_as_its_vanilla_config_does(path):
    cfg = load(path)
    _, gpus, batch, data, _ = parse(path)
    (network,) = set(students_of(path).values())
    training = {'cifar100': '1xb128-300e', 'in1k': '8xb32-90e', 'digits': '1xb64'}[data]
    assert training.startswith(f'{gpus}xb{batch}')
    twin = load(f'vanilla/vanilla_{network}_{training}_{data}.py')
    if data == 'digits':
        twin.model.backbone.shortcut = 'B'
    same = ['param_scheduler', 'train_cfg', 'data_preprocessor', 'auto_scale_lr', *LOADERS]
    if ablation(path) is None:
        same.append('optim_wrapper')
    else:
        # The maps of all stages, which the necks take.
        twin.model.backbone.out_indices = tuple(range(4 if data == 'in1k' else 3))
        plain = unscoped(twin.optim_wrapper.optimizer)
        assert unscoped(cfg.optim_wrapper) == {
            'constructor': 'kd_mm.JointOptimWrapperConstructor',
            'parts': {
                'networks': dict(prefix=['students', 'methods.ffsd.decoder'], optimizer=plain),
                'fusion': dict(
                    prefix='methods.ffsd.fusion', optimizer=dict(plain, weight_decay=1e-5)
                ),
                'self_distillation': dict(
                    prefix='methods.ffsd.self_distillation',
                    optimizer=dict(type='Adam', lr=1e-3, weight_decay=1e-4),
                ),
            },
        }
    for student in networks_of(path).values():
        assert unscoped(student) == unscoped(twin.model)
    for key in same:
        assert unscoped(cfg[key]) == unscoped(twin[key])


ONLY_OURS = {  # what mmpretrain lacks
    *{'kd_mm.CIFARResNet', 'kd_mm.CIFARWideResNet', 'kd_mm.CIFARGoogLeNet'},
    *{'kd_mm.CIFARDenseNet', 'kd_mm.DenseNet_CIFAR', 'kd_mm.Digits', 'kd_mm.TinyImageNet'},
    *{'kd_mm.StanfordDogs', 'kd_mm.MITIndoor67'},
}


@pytest.mark.parametrize('path', PATHS)
def test_exported_config_names_kd_mm_only_for_what_mmpretrain_lacks(path):
    cfg = load(path)
    for name in student_names(cfg) or [None]:
        plain = plain_cfg(cfg, name).to_dict()
        words = set(re.findall(r'[\w.]*kd_mm[\w.:]*', repr(plain)))
        if '_in1k' in path:
            assert not words
        else:
            assert words <= ONLY_OURS | {'kd_mm'}
            assert ('kd_mm' in words) == bool(our_types(plain))


@pytest.mark.parametrize('path', IN_MEMORY)
def test_images_in_memory_are_the_only_difference(path):
    cfg = load(path)
    stem = Path(path).stem.removesuffix('-in-memory')
    (twin_path,) = [p for p in RECIPE_PATHS if Path(p).stem == stem]
    twin = load(twin_path)
    plain, expected = (unscoped(plain_cfg(config).to_dict()) for config in (cfg, twin))
    for key in ('train_dataloader', 'data_preprocessor'):
        for config in (plain, expected):
            for name in ('num_workers', 'persistent_workers', 'collate_fn'):
                config[key].pop(name, None)
        assert plain[key] == expected[key]
    changed = {
        key
        for key, value in settings(cfg).items()
        if unscoped(value) != unscoped(settings(twin)[key])
    }
    assert changed == {'train_dataloader', 'data_preprocessor'}
    assert settings(cfg).keys() == settings(twin).keys()

    ours, theirs = unscoped(cfg.data_preprocessor.to_dict()), twin.data_preprocessor.to_dict()
    assert ours.pop('type') == 'kd_mm.CohortDataPreprocessor'
    augments, num_views = ours.pop('augments'), ours.pop('num_views', None)
    assert ours == unscoped(theirs)

    ours, theirs = (unscoped(c.train_dataloader.to_dict()) for c in (cfg, twin))
    assert ours.pop('collate_fn') == {'type': 'kd_mm.batch_collate'}
    for loader in (ours, theirs):
        loader.pop('num_workers'), loader.pop('persistent_workers', None)
    assert cfg.train_dataloader.num_workers == 0
    assert cfg.train_dataloader.persistent_workers is False
    outer, dataset = ours.pop('dataset'), theirs.pop('dataset')
    assert ours == theirs
    assert outer.pop('type') == 'kd_mm.InMemory'
    # What is drawn is mmpretrain's of the twin, behind what is read once.
    inner = unwrapped(cfg.train_dataloader.dataset)
    transforms = [t for a in augments for t in mmengine_registry.MODELS.build(a).transforms]
    *steps, pack = unscoped(inner.pipeline)
    given = unwrapped(twin.train_dataloader.dataset).pipeline
    views = [t.num_views for t in given if t.type == 'MultiView']
    assert views == ([] if num_views is None else [num_views])
    assert [*steps, *transforms, pack] == unscoped(one_view(twin.train_dataloader.dataset))[
        'pipeline'
    ]
    assert not any('Random' in step['type'] for step in steps)
    # Nor is another image left out.
    bare = [flatten(node) for node in (outer['dataset'], dataset)]
    assert {k: v for k, v in bare[0].items() if 'pipeline' not in k} == {
        k: v for k, v in bare[1].items() if 'pipeline' not in k
    }


def test_base_names_are_unique_and_plain():
    stems = [Path(path).stem for path in PATHS]
    assert len(set(stems)) == len(stems)
    assert not any('.' in stem for stem in stems)
    assert not any('-' in Path(path).parent.name for path in PATHS)


# Each config


@pytest.mark.parametrize('path', PATHS)
def test_types_of_ours_have_the_prefix_and_resolve(path):
    cfg = load(path).to_dict()
    modules = (mmengine_registry, kd_mm.registry)
    registries = [r for m in modules for r in vars(m).values() if isinstance(r, Registry)]
    ours = {node['type'] for _, node in typed(cfg) if node['type'].startswith('kd_mm.')}
    assert {'kd_mm.LossGuardHook', 'kd_mm.LearningCurveHook', 'kd_mm.ExportHook'} <= ours
    for name in ours:
        assert any(registry.get(name) for registry in registries), name
    check_types(cfg)  # unprefixed types of ours, unknown options


@pytest.mark.parametrize('path', PATHS)
def test_a_stopped_run_resumes_exactly_and_no_log_waits_for_the_device(path):
    hooks = _load(path).default_hooks
    assert hooks.runtime_info.type == 'kd_mm.LazyRuntimeInfoHook'
    assert hooks.compile.type == 'kd_mm.CompileHook'
    assert hooks.seed.type == 'kd_mm.SeedHook'
    assert hooks.safe_checkpoints.type == 'kd_mm.SafeCheckpointHook'


@pytest.mark.parametrize('path', RECIPE_PATHS)
def test_name_agrees_with_contents(path):
    cfg = load(path)
    _, gpus, batch, data, px = parse(path)
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    assert 'enable' not in cfg.auto_scale_lr

    dataset, num_classes, folder, _, _ = DATA[data]
    for (_, network), model in networks_of(path).items():
        small = f'{network} small' in NETWORKS and data in SMALL_PX
        backbone = NETWORKS[f'{network} small' if small else network]
        assert {key: model.backbone[key] for key in backbone} == backbone
        if network.startswith('swin'):
            assert model.backbone.img_size == int(px or 224)
        assert model.head.num_classes == cfg.data_preprocessor.num_classes == num_classes

    for name in LOADERS:
        assert unwrapped(cfg[name].dataset).type == dataset
        assert unwrapped(cfg[name].dataset).data_root.rstrip('/') == folder
    assert unwrapped(cfg.train_dataloader.dataset).split == 'train'
    assert cfg.val_dataloader.dataset.split == cfg.test_dataloader.dataset.split
    assert cfg.val_dataloader.dataset.split in ('val', 'test')


@pytest.mark.parametrize(
    'path', [path for path in RECIPE_PATHS if not kdcl_recipe(path) and not ffsd_recipe(path)]
)
def test_recipe_is_bakes(path):
    cfg = load(path)
    network, gpus, batch, data, px = parse(path)
    family = re.match('[a-z]+', network)[0] + (f' {px}' if px else '')
    lr, weight_decay, epochs = RECIPES[
        family if data == 'in1k' else 'digits' if data == 'digits' else 'small data'
    ]
    if data == 'in1k' and not family.startswith('swin'):
        lr *= gpus * batch / 512
        assert cfg.default_hooks.precise_bn.num_samples == 8192
        assert cfg.default_hooks.precise_bn.interval == 1
        assert cfg.model.head.loss == dict(type='CrossEntropyLoss', loss_weight=1.0)
        assert not cfg.model.get('train_cfg')
        assert cfg.get('sync_bn') == ('torch' if path in BAKE else None)
        steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
        assert steps == [
            'LoadImageFromFile',
            'RandomResizedCrop',
            'RandomFlip',
            'Lighting',
            'PackInputs',
        ]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == pytest.approx((lr, weight_decay))
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_cfg.val_interval == 1
    if optimizer.type == 'SGD':
        assert optimizer.momentum == 0.9
        assert optimizer.get('nesterov', False) == (data in ('in1k', 'digits'))


@pytest.mark.parametrize('path', [path for path in VANILLA if kdcl_recipe(path)])
def test_recipe_is_kdcls(path):
    """Of the cohorts by way of their twins."""
    cfg = load(path)
    network, _, _, data, _ = parse(path)
    optimizer = unscoped(cfg.optim_wrapper.optimizer)
    if data == 'cifar100':
        assert optimizer == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)
        assert cfg.param_scheduler.type == 'MultiStepLR'
        assert cfg.param_scheduler.milestones == [100, 150]
        assert cfg.param_scheduler.gamma == 0.1
        assert cfg.train_cfg.max_epochs == 200
        steps = ['RandomCrop', 'RandomFlip']
        crop = cfg.train_dataloader.dataset.pipeline[0]
        assert (crop.crop_size, crop.padding) == (32, 4)
    else:
        assert optimizer.pop('nesterov') is False
        assert optimizer == dict(type='SGD', lr=0.8, momentum=0.9, weight_decay=1e-4)
        family = re.match('[a-z]+', network)[0]
        long = 300 if family == 'mobilenet' else 200
        epochs = int(NAME.fullmatch(Path(path).name)['epochs'] or long)
        assert cfg.train_cfg.max_epochs == epochs
        lrs = lr_by_iteration(cfg, epochs, iterations=4)
        assert lrs[:20] == pytest.approx([0.1 + 0.7 * i / 19 for i in range(20)])
        falls = [0.8 * 0.1 ** sum(e >= s for s in STEPS[family, epochs]) for e in range(5, epochs)]
        assert lrs[20::4] == pytest.approx(falls)
        steps = ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip']
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in pipeline] == [*steps, 'PackInputs']
    assert cfg.model.head.loss == dict(type='CrossEntropyLoss', loss_weight=1.0)
    assert not cfg.model.get('train_cfg')
    assert 'sync_bn' not in cfg


@pytest.mark.parametrize('path', [path for path in VANILLA if ffsd_recipe(path)])
def test_recipe_is_ffsds(path):
    cfg = load(path)
    data = parse(path)[3]
    optimizer = unscoped(cfg.optim_wrapper.optimizer)
    assert optimizer == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    epochs = {'cifar100': 300, 'in1k': 90}[data]
    assert cfg.train_cfg.max_epochs == epochs == int(NAME.fullmatch(Path(path).name)['epochs'])
    pipeline = cfg.train_dataloader.dataset.pipeline
    if data == 'cifar100':
        lrs = lr_by_epoch(cfg, epochs)
        assert lrs == pytest.approx([0.1] * 150 + [0.01] * 75 + [0.001] * 75)
        steps = ['RandomCrop', 'RandomCrop', 'RandomFlip']
        preprocessor = cfg.data_preprocessor
        assert preprocessor.mean == pytest.approx([0.5071 * 255, 0.4865 * 255, 0.4409 * 255])
        assert preprocessor.std == pytest.approx([0.2673 * 255, 0.2564 * 255, 0.2762 * 255])
        assert preprocessor.to_rgb is False
    else:
        lrs = lr_by_iteration(cfg, epochs, iterations=4)[20::4]
        assert lrs == pytest.approx([0.1] * 25 + [0.01] * 30 + [0.001] * 20 + [0.0001] * 10)
        # 1,281,167 images make 5,005 batches of 256.
        lrs = lr_by_iteration(load(path), 5, iterations=5005)
        assert lrs == pytest.approx([0.1 * i / (5 * 5005) for i in range(1, 25026)], rel=2e-3)
        steps = ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip']
    assert [step.type for step in pipeline] == [*steps, 'PackInputs']
    assert cfg.model.head.loss == dict(type='CrossEntropyLoss', loss_weight=1.0)
    assert not cfg.model.get('train_cfg')
    assert 'sync_bn' not in cfg


@pytest.mark.parametrize('path', KDCL)
def test_kdcl_settings_are_the_published_ones(path):
    cfg = load(path)
    method, data = NAME.fullmatch(Path(path).name)['method'], parse(path)[3]
    model, students = cfg.model, students_of(path)
    assert model.deploy == next(iter(students))
    assert model.loss_weight == 1.0
    if method == 'dml':
        assert (model.type, model.temperature) == ('kd_mm.DML', 1.0)
        assert 'target' not in model
    else:
        assert (model.type, model.temperature) == ('kd_mm.KDCL', 2.0)
        assert model.target == TARGETS[method.split('-')[1]]

    shared = method == 'dml' or method.endswith('-shared')
    assert model.views == ('shared' if shared else 'per_student')
    train_set = cfg.train_dataloader.dataset
    views = [t for t in unwrapped(train_set).pipeline if t.type == 'MultiView']
    assert [v.num_views for v in views] == ([] if shared else [len(students)])

    general = 'general' in method
    assert (train_set.type == 'kd_mm.HoldOut') == general
    if general:
        assert (train_set.part, train_set.num_per_class) == ('train', HELD_OUT[data])
        # Prepared as the images of the validation.
        hook = DistillerHook()
        held_out = hook.held_out_cfg(cfg.train_dataloader, cfg.val_dataloader)['dataset']
        assert held_out['part'] == 'held_out'
        pipeline = cfg.val_dataloader.dataset.pipeline
        assert unscoped(unwrapped(ConfigDict(held_out)).pipeline) == unscoped(pipeline)

    for name in ('val_evaluator', 'test_evaluator'):
        assert cfg[name].type == 'kd_mm.CohortAccuracy'
        assert cfg[name].topk == ((1, 5) if data == 'in1k' else (1,))


@pytest.mark.parametrize('path', FFSD)
def test_ffsd_settings_are_the_published_ones(path, no_initialisation):
    cfg, word = load(path), ablation(path)
    model = build_model(cfg)
    (method,) = model.methods.values()
    assert method.temperature == 2.0
    assert model.views == 'shared'
    assert model.deploy == ('student1' if leaderless(path) else 'leader')
    if word is None:
        assert (list(model.methods), cfg.model.get('loss_weight', 1.0)) == (['dml'], 1.0)
    else:
        assert isinstance(method, FFSDMethod)
        assert len(method.common) == num_common(path)
        assert method.leader == (None if leaderless(path) else 'leader')
        assert (method.diversity, method.taught, method.fusion is not None) == ABLATIONS[word]
        assert (method.decoder is None) == (leaderless(path) or word == 'no-fusion')
        weights = {'diversity': 1e-5, 'fusion': 10.0, 'self_distillation': 1000.0}
        for name, value in weights.items():
            ramp = dict(type='kd_mm.SigmoidRamp', value=value, epochs=5)
            assert unscoped(cfg.model[f'{name}_weight']) == ramp
    for name in ('val_evaluator', 'test_evaluator'):
        metric = unscoped(cfg[name])
        assert metric.pop('topk', [1]) == ([1, 5] if parse(path)[3] == 'in1k' else [1])
        assert metric == dict(type='kd_mm.CohortAccuracy', any_right=True)
    best = cfg.default_hooks.checkpoint.get('save_best')
    assert best in (None, f'{model.deploy}/accuracy/top1')


def test_general_trains_on_the_rest_of_the_digits():
    cfg = load('kdcl/kdcl-general_resnet20-wrn16-1_1xb64_digits.py')
    held_out = DistillerHook().held_out_cfg(cfg.train_dataloader, cfg.val_dataloader)
    loaders = (cfg.train_dataloader, held_out)
    sizes = [len(mmengine_registry.DATASETS.build(loader['dataset'])) for loader in loaders]
    assert sizes == [1198 - 10 * 10, 10 * 10]


@pytest.mark.parametrize('path', BAKE)
def test_bake_settings_are_the_published_ones(path):
    cfg = load(path)
    _, _, batch, data, _ = parse(path)
    partners, omega = DATA[data][-1]
    head, sampler = cfg.model.head, cfg.train_dataloader.sampler
    assert (head.type, head.omega, head.temperature, head.loss_weight) == (
        'kd_mm.BAKEHead',
        omega,
        4.0,
        1.0,
    )
    assert sampler.type == 'kd_mm.ClassInstanceSampler'
    assert sampler.num_instances == partners + 1
    assert batch % sampler.num_instances == 0
    assert sampler.get('epoch_length', 'anchors') == (
        'images' if reads_each_image_once(path) else 'anchors'
    )


@pytest.mark.parametrize('path', BAKE)
def test_bake_changes_its_vanilla_config_in_nothing_else(path):
    network, _, _, data, px = parse(path)
    cnn_on_imagenet = data == 'in1k' and not network.startswith('swin')
    twin = f'{network}_8xb32_in1k' if cnn_on_imagenet else Path(path).stem
    bake, vanilla = (flatten(settings(load(p))) for p in (path, f'vanilla/vanilla_{twin}.py'))
    changed = {key for key in bake.keys() | vanilla.keys() if bake.get(key) != vanilla.get(key)}
    expected = HEAD | SAMPLER
    if cnn_on_imagenet:
        expected |= LARGER_BATCH
        ratio = bake['auto_scale_lr.base_batch_size'] / vanilla['auto_scale_lr.base_batch_size']
        lrs = [flat['optim_wrapper.optimizer.lr'] for flat in (bake, vanilla)]
        assert lrs[0] / lrs[1] == pytest.approx(ratio)
    if reads_each_image_once(path):
        expected |= {'train_dataloader.sampler.epoch_length'}
    if px:
        expected |= {'load_from'}
    assert changed == expected


@pytest.mark.parametrize('path', PATHS)
def test_loaders_take_overrides_one_by_one(path):
    cfg = load(path)
    inner, dataset = '', cfg.train_dataloader.dataset
    while dataset is not unwrapped(dataset):
        inner, dataset = f'{inner}.dataset', dataset.dataset
    cfg.merge_from_dict(
        {f'train_dataloader.dataset{inner}.data_root': 'elsewhere', 'val_dataloader.batch_size': 7}
    )
    assert unwrapped(cfg.train_dataloader.dataset).data_root == 'elsewhere'
    assert cfg.val_dataloader.dataset.data_root != 'elsewhere'
    assert cfg.val_dataloader.batch_size == 7
    assert cfg.test_dataloader.batch_size != 7


@pytest.mark.parametrize('path', COHORTS)
def test_students_take_overrides_one_by_one(path):
    cfg, before = load(path), load(path)
    names = list(cfg.model.students)
    # FFSD's parts are all networks and two kinds of necks.
    key, part = 'head.loss.loss_weight', path in KDCL and cfg.optim_wrapper.get('parts')
    changes = {f'model.students.{names[-1]}.{key}': 0.5}
    if part:
        changes[f'optim_wrapper.parts.{names[-1]}.optimizer.lr'] = 0.25
        changes[f'param_scheduler.{names[-1]}.1.gamma'] = 0.5
    cfg.merge_from_dict(changes)
    students = {n: student_cfg(cfg.model.students[n]) for n in names}
    assert students.pop(names[-1]).head.loss.loss_weight == 0.5
    for name, student in students.items():
        assert student == student_cfg(before.model.students[name])
        if part:
            assert cfg.optim_wrapper.parts[name] == before.optim_wrapper.parts[name]
            assert cfg.param_scheduler[name] == before.param_scheduler[name]
    if part:
        assert cfg.optim_wrapper.parts[names[-1]].optimizer.lr == 0.25
        assert cfg.param_scheduler[names[-1]][1].gamma == 0.5


@pytest.mark.parametrize('path', PATHS)
def test_types_keep_their_meaning_where_another_project_inherits(path):
    """MMEngine gives what is inherited by `kd_mm::` the scope kd_mm, if it has none.

    There, a type of mmpretrain is found by its prefix only.
    """
    cfg = load(path)
    for name, student in cfg.model.get('students', {}).items():
        cfg.model.students[name] = student_cfg(student)
    scoped = []
    for where, node in typed(settings(cfg)):
        if any(where[: len(outer)] == outer for outer in scoped):
            continue
        if node.get('_scope_') == 'mmpretrain':
            scoped.append(where)
        else:
            assert '.' in node['type'], f'{where}: {node["type"]} needs a prefix or a scope'


@pytest.mark.parametrize(
    'path',
    [
        'bake/swin-t_8xb128_in1k.py',
        'bake/resnet20_1xb64_digits.py',
        'kdcl/kdcl-general_resnet50-resnet18_8xb256_in1k.py',
    ],
)
def test_config_loads_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Config.fromfile(CONFIGS / path).to_dict() == load(path).to_dict()


@pytest.mark.parametrize('network', ['swin-t', 'swin-s', 'swin-b'])
def test_vanilla_swin_is_the_stock_recipe_on_fewer_gpus(network):
    stock = {'swin-t': 'tiny', 'swin-s': 'small', 'swin-b': 'base'}[network]
    child = Config.fromfile(CONFIGS / f'vanilla/vanilla_{network}_8xb128_in1k.py')
    ours = flatten(settings(child))
    theirs = flatten(
        settings(get_config(f'mmpretrain::swin_transformer/swin-{stock}_16xb64_in1k.py'))
    )
    # Only what is inherited gets a scope.
    ours = {k: v for k, v in ours.items() if not k.endswith('_scope_')}
    assert {k for k in ours if ours[k] != theirs.get(k)} == {
        'train_dataloader.batch_size',
        'custom_imports.imports.0',
        'custom_imports.allow_failed_imports',
        'custom_hooks.0.type',
        'custom_hooks.1.type',
        'custom_hooks.2.type',
        'default_hooks.runtime_info.type',
        'default_hooks.seed.type',
        'default_hooks.safe_checkpoints.type',
        'default_hooks.compile.type',
    }
    assert theirs.keys() <= ours.keys()


# Schedules and pipelines


def lr_by_epoch(cfg, epochs):
    """Step the schedulers of a config that go by epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = cfg.param_scheduler
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    schedulers = [
        mmengine_registry.PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in schedulers
    ]
    lrs = []
    for _ in range(epochs):
        lrs.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return lrs


def lr_by_iteration(cfg, epochs, iterations):
    """Step the schedulers of a config as the Runner does, in epochs of a few iterations."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = []
    for scheduler in cfg.param_scheduler:
        cls = mmengine_registry.PARAM_SCHEDULERS.get(scheduler.pop('type'))
        scheduler.pop('_scope_')
        build = cls
        if scheduler.pop('convert_to_iter_based', False):
            build = cls.build_iter_from_epoch
            scheduler.epoch_length = iterations
        schedulers.append(build(optimizer, **scheduler))
    lrs = []
    for iteration in range(1, epochs * iterations + 1):
        lrs.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % iterations == 0:
                scheduler.step()
    return lrs


def test_cnn_schedule_is_the_released_one():
    lrs = lr_by_epoch(load('bake/resnet50_8xb64_in1k.py'), 100)
    expected = [
        0.4 * (1 + math.cos(math.pi * epoch / 100)) / 2 * min(1, 0.1 + 0.18 * epoch)
        for epoch in range(100)
    ]
    assert lrs == pytest.approx(expected, abs=1e-9)


def test_small_data_schedule_falls_at_half_and_three_quarters():
    lrs = lr_by_epoch(load('bake/resnet18_1xb128_cifar100.py'), 200)
    assert lrs == pytest.approx([0.1] * 100 + [0.01] * 50 + [0.001] * 50)


def test_lighting_does_not_wrap_around(tmp_path):
    cv2.imwrite(str(tmp_path / 'black.png'), np.zeros((8, 8, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'white.png'), np.full((8, 8, 3), 255, np.uint8))
    cfg = load('vanilla/vanilla_resnet50_8xb32_in1k.py')
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    np.random.seed(0)
    values = {
        name: torch.stack(
            [
                pipeline({'img_path': str(tmp_path / f'{name}.png'), 'gt_label': 0})['inputs']
                for _ in range(10)
            ]
        ).float()
        for name in ('black', 'white')
    }
    assert values['black'].std() > 1
    # Six standard deviations of the largest component move a channel by at most 20.
    assert values['black'].abs().max() < 20
    assert (values['white'] - 255).abs().max() < 20


@pytest.mark.parametrize('path', VANILLA)
def test_pipelines_end_in_the_pixels_of_the_recipe(path, tmp_path):
    _, _, _, data, px = parse(path)
    size = {'cifar100': 32, 'digits': 8, 'tinyimagenet': 64}.get(data, 300)
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    expected = {'cifar100': 32, 'tinyimagenet': 32, 'digits': 16}.get(data, int(px or 224))
    cfg = load(path)
    for name in LOADERS:
        sample = {'img_path': str(tmp_path / 'image.png'), 'img': image, 'gt_label': 0}
        packed = Compose(cfg[name].dataset.pipeline)(sample)
        assert packed['inputs'].shape == (3, expected, expected)


def test_crops_of_ffsd_reflect_the_image():
    cfg = load('vanilla/vanilla_resnet32_1xb128-300e_cifar100.py')
    crop = Compose(cfg.train_dataloader.dataset.pipeline[:2])
    # Channel 0 tells the column, channel 1 the row.
    image = np.stack([*np.indices((32, 32))[::-1], np.zeros((32, 32))], axis=-1).astype(np.uint8)
    np.random.seed(0)
    crops = [crop({'img': image.copy()})['img'] for _ in range(400)]
    assert all(c.shape == (32, 32, 3) for c in crops)
    # Mirrored at the first and the last pixel, four to each side: nine places.
    mirrored = [4, 3, 2, 1, *range(32), 30, 29, 28, 27]
    places = {tuple(mirrored[start : start + 32]) for start in range(9)}
    assert {tuple(c[0, :, 0].tolist()) for c in crops} == places
    assert {tuple(c[:, 0, 1].tolist()) for c in crops} == places


@pytest.mark.parametrize('path', COHORTS)
def test_views_are_draws_of_one_image(path, tmp_path):
    cfg = load(path)
    data = parse(path)[3]
    size, px = {'cifar100': (32, 32), 'digits': (8, 16)}.get(data, (300, 224))
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    sample = {'img_path': str(tmp_path / 'image.png'), 'img': image, 'gt_label': 0}
    pipeline = Compose(unwrapped(cfg.train_dataloader.dataset).pipeline)
    np.random.seed(0)
    views = pipeline(dict(sample))['inputs']
    if cfg.model.get('views', 'shared') == 'shared':
        assert views.shape == (3, px, px)
    else:
        assert [tuple(v.shape) for v in views] == [(3, px, px)] * len(cfg.model.students)
        # A crop of the digits has few places, so two views may agree.
        draws = [pipeline(dict(sample))['inputs'] for _ in range(5)]
        for other in range(1, len(views)):
            assert any(not torch.equal(draw[0], draw[other]) for draw in draws)


# Models


@pytest.fixture
def no_initialisation(monkeypatch):
    """Leave weights as the memory is: building a large model is a matter of milliseconds."""
    for name in ('kaiming_uniform_', 'kaiming_normal_', 'uniform_', 'normal_', 'trunc_normal_'):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize('path', PATHS)
def test_model_builds(path, no_initialisation):
    cfg = load(path)
    model = build_model(cfg)
    network, _, _, data, px = parse(path)
    assert model.data_preprocessor.num_classes == DATA[data][1]
    if data == 'in1k' and path in COHORTS:
        for name, student in students_of(path).items():
            millions = sum(p.numel() for p in model.students[name].parameters()) / 1e6
            assert round(millions, 2) == PARAMETERS[student]
    elif data == 'in1k':
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert round(millions, 2) == PARAMETERS[f'{network} {px}' if px else network]


@pytest.mark.parametrize('path', [p for p in VANILLA if ffsd_recipe(p) and 'cifar100' in p])
def test_heads_fit_the_networks_of_ffsd(path):
    model = build_model(load(path))
    assert model(torch.rand(2, 3, 32, 32), mode='tensor').shape == (2, 100)
    size = sum(p.numel() for p in model.parameters())
    assert f'| {size:,} |' in readme_rows('vanilla')[path]


@pytest.mark.parametrize(
    ('path', 'px'),
    [
        ('bake/swin-t_8xb128_in1k.py', 224),
        ('bake/resnet50_8xb64_in1k.py', 64),
        ('bake/resnest50_8xb64_in1k.py', 64),
        ('bake/resnext101-32x4d_8xb64_in1k.py', 64),
        ('bake/mobilenet-v2_8xb64_in1k.py', 64),
        ('bake/efficientnet-b0_8xb64_in1k.py', 64),
        ('bake/resnet18_1xb128_cifar100.py', 32),
        ('bake/densenet121_1xb128_cifar100.py', 32),
        ('bake/densenet121_1xb32_cub.py', 64),
        ('bake/resnet20_1xb64_digits.py', 16),
    ],
)
def test_loss_step_reaches_every_parameter(path, px):
    torch.manual_seed(0)
    np.random.seed(0)
    cfg = load(path)
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 3
    model = build_model(cfg)
    model.init_weights()
    model.train()
    labels = [0, 0, 2, 2]
    data = {
        'inputs': [torch.randint(256, (3, px, px), dtype=torch.uint8) for _ in labels],
        'data_samples': [DataSample().set_gt_label(label) for label in labels],
    }
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    assert {'loss', 'loss_bake'} <= losses.keys()
    assert all(torch.isfinite(losses[key]) for key in ('loss', 'loss_bake'))
    assert losses['loss_bake'] > 0
    (losses['loss'] + losses['loss_bake']).backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())
    ]
    assert not without
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ('path', 'px'),
    [
        ('kdcl-linear_resnet50-resnet18_8xb256_in1k', 64),
        ('kdcl-general_resnet50-resnet18_8xb256_in1k', 64),
        ('kdcl-minlogit_resnet50-resnet18-mobilenet-v2-mobilenet-v2-x05_8xb256_in1k', 64),
        ('kdcl-minlogit_3xresnet18_8xb256-100e_in1k', 64),
        ('kdcl-naive_resnet32-wrn16-2_1xb128_cifar100', 32),
        ('kdcl-naive-shared_resnet32-wrn16-2_1xb128_cifar100', 32),
        ('kdcl-minlogit_resnet20-wrn16-1_1xb64_digits', 16),
        ('dml_resnet20-wrn16-1_1xb64_digits', 16),
    ],
)
def test_cohorts_loss_step_reaches_every_parameter(path, px):
    torch.manual_seed(0)
    np.random.seed(0)
    method = path.split('_')[0].split('-')[0]
    cfg = load(f'{method}/{path}.py')
    names = list(cfg.model.students)
    overrides = {f'model.students.{name}.head.num_classes': 3 for name in names}
    # Of three classes, none has a fifth place.
    overrides |= {f'model.students.{name}.head.topk': (1,) for name in names}
    cfg.merge_from_dict({**overrides, 'data_preprocessor.num_classes': 3})
    model = build_model(cfg)
    model.init_weights()
    model.train()
    labels = [0, 0, 2, 2]
    views = [torch.randint(256, (4, 3, px, px), dtype=torch.uint8) for _ in names]
    data = {
        'inputs': views[0] if cfg.model.views == 'shared' else views,
        'data_samples': [DataSample().set_gt_label(label) for label in labels],
    }
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    distilled = {f'{name}/loss_{method}' for name in names}
    assert losses.keys() == {f'{name}/loss' for name in names} | distilled
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(losses[key] > 0 for key in distilled)
    sum(losses.values()).backward()
    assert all(p.requires_grad for p in model.parameters())
    assert not [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]


@pytest.mark.parametrize('path', [p for p in KDCL if 'parts' in _load(p).optim_wrapper])
def test_each_student_of_a_mixed_cohort_has_its_optimizer(path, no_initialisation):
    cfg = load(path)
    model = build_model(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert list(wrapper.keys()) == list(cfg.param_scheduler)
    assert sorted(wrapper.keys()) == list(model.students)
    for name, student in model.students.items():
        (group,) = wrapper[name].param_groups
        assert {id(p) for p in group['params']} == {id(p) for p in student.parameters()}
        assert (group['lr'], group['weight_decay']) == (0.8, 1e-4)


def losses_of_ffsd(path):
    """Return the names of the losses of an FFSD cohort, or of what it is compared with."""
    students, word = list(students_of(path)), ablation(path)
    own = {f'{name}/loss' for name in students}
    if word is None:
        return own | {f'{name}/loss_dml' for name in students}
    diversity, taught, fusion = ABLATIONS[word]
    common = [name for name in students if name != 'leader']
    terms = [(name, 'mutual') for name in common]
    if diversity:
        terms += [(name, 'diversity') for name in common[1:]]
    if 'leader' in students:
        terms += [('leader', term) for term in ('kd', *(('fusion', 'decoder') if fusion else ()))]
    if fusion:
        own |= {'fusion/loss', 'fusion/loss_ensemble'}
    for term in ('self_distillation', 'neck_feature', 'neck_attention'):
        terms += [(name, term) for name in taught]
    return own | {f'{name}/loss_{term}' for name, term in terms}


@pytest.mark.parametrize('path', FFSD)
def test_ffsd_loss_step_reaches_every_parameter_and_its_optimizer(path):
    torch.manual_seed(0)
    cfg = load(path)
    px = {'in1k': 64, 'cifar100': 32, 'digits': 16}[parse(path)[3]]
    if ablation(path) is not None:
        cfg.model.img_size = px
    model = build_model(cfg)
    model.init_weights()
    model.train()
    data = {
        'inputs': list(torch.randint(256, (2, 3, px, px), dtype=torch.uint8)),
        'data_samples': [DataSample().set_gt_label(label) for label in (0, 2)],
    }
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    assert losses.keys() == losses_of_ffsd(path)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    assert all(p.requires_grad for p in parameters.values())
    assert not [
        name
        for name, p in parameters.items()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]

    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    parts = {'students': wrapper}
    if ablation(path) is not None:
        parts = dict(wrapper.items())
        parts['students'] = parts.pop('networks')
    part_of = {
        id(p): part
        for part, optimizer in parts.items()
        for group in optimizer.param_groups
        for p in group['params']
    }
    assert len(part_of) == len(parameters)
    for name, p in parameters.items():
        owner = name.removeprefix('methods.ffsd.').split('.')[0]
        assert part_of[id(p)] == owner.replace('decoder', 'students')


def test_224_px_checkpoint_starts_the_384_px_run(tmp_path, no_initialisation):
    def build_small(path):
        cfg = load(path)
        cfg.model.backbone.arch, cfg.model.head.in_channels = 'tiny', 768
        return build_model(cfg)

    source = build_small('vanilla/vanilla_swin-b_8xb128_in1k.py')
    state_dict = {name: torch.zeros_like(value) for name, value in source.state_dict().items()}
    table = 'backbone.stages.0.blocks.1.attn.w_msa.relative_position_bias_table'
    # Of each head: a constant; the offset in columns; the centre alone.
    state_dict[table][:, 0] = 3
    state_dict[table][:, 1] = torch.arange(-6.0, 7).repeat(13)
    state_dict[table][84, 2] = 1
    torch.save({'state_dict': state_dict}, tmp_path / 'epoch_300.pth')
    done = run_tool(
        'model_converters/resize_swin_windows.py',
        tmp_path / 'epoch_300.pth',
        tmp_path / 'window12.pth',
        '--window-size',
        12,
    )
    assert f'wrote {tmp_path / "window12.pth"}' in done.stdout

    model = build_small('bake/swin-b_16xb64_in1k-384px.py')
    index = model.state_dict()[table.replace('bias_table', 'index')].clone()
    load_checkpoint(model, str(tmp_path / 'window12.pth'), map_location='cpu', strict=True)
    resized = model.state_dict()[table].reshape(23, 23, -1)
    assert torch.equal(model.state_dict()[table.replace('bias_table', 'index')], index)
    torch.testing.assert_close(resized[..., 0], torch.full((23, 23), 3.0))
    columns = resized[..., 1]
    torch.testing.assert_close(columns, columns[:1].expand(23, 23))
    torch.testing.assert_close(columns, -columns.flip(1))
    assert (columns.diff(dim=1) > 0).all()
    assert resized[11, 11, 2] == 1
    assert resized[..., 2].argmax() == 11 * 23 + 11


def test_windows_of_another_network_are_refused():
    tool = runpy.run_path(str(REPO / 'tools/model_converters/resize_swin_windows.py'))
    with pytest.raises(ValueError, match='must be of a Swin Transformer'):
        tool['resize_windows']({'fc.weight': torch.zeros(1)}, 12)


# What describes the configs


@cache
def metafiles():
    index = yaml.safe_load((REPO / 'model-index.yml').read_text())
    return {path: yaml.safe_load((REPO / path).read_text()) for path in index['Import']}


def test_model_index_names_each_metafile():
    found = {p.relative_to(REPO).as_posix() for p in CONFIGS.glob('*/metafile.yml')}
    assert set(metafiles()) == found
    assert {Path(path).parent.name for path in PATHS} == {Path(p).parent.name for p in found}


def test_each_config_is_one_model():
    models = [model for meta in metafiles().values() for model in meta['Models']]
    assert sorted(model['Config'] for model in models) == [f'configs/{path}' for path in PATHS]
    names = [model['Name'] for model in models]
    assert len(set(names)) == len(names)
    for path, meta in metafiles().items():
        collections = {collection['Name'] for collection in meta['Collections']}
        assert {model['In Collection'] for model in meta['Models']} == collections
        for model in meta['Models']:
            assert Path(model['Config']).parent == Path(path).parent


@pytest.mark.parametrize('path', PATHS)
def test_metadata_agrees_with_the_config(path):
    cfg = load(path)
    meta = metafiles()[f'configs/{Path(path).parent}/metafile.yml']
    (model,) = [model for model in meta['Models'] if model['Config'] == f'configs/{path}']
    assert model['Name'] == Path(path).stem
    assert model['Metadata']['Epochs'] == cfg.train_cfg.max_epochs
    assert model['Metadata']['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert model['Metadata']['Training Data'] == DATA[parse(path)[3]][3]
    # What is trained to the end has results (tests/test_analysis/test_model_zoo.py); none is for
    # download.
    assert 'Weights' not in model
    if 'Omega' in model['Metadata']:
        assert model['Metadata']['Omega'] == cfg.model.head.omega
        partners = cfg.train_dataloader.sampler.num_instances - 1
        assert model['Metadata']['Partners'] == partners
    told = model['Metadata'].get('Vanilla', {})
    for name in [told] if isinstance(told, str) else told.values():
        assert f'vanilla/{name}.py' in VANILLA


def test_mmengine_finds_each_config_by_its_metafile(tmp_path):
    (tmp_path / '.mim').symlink_to(REPO, target_is_directory=True)
    for path in PATHS:
        assert _get_cfg_metainfo(str(tmp_path), path)['Config'] == f'configs/{path}'


def test_modelindex_reads_the_index():
    from modelindex.load_model_index import load as load_index

    index = load_index(str(REPO / 'model-index.yml'))
    index.build_models_with_collections()
    assert sorted(model.config for model in index.models) == [f'configs/{p}' for p in PATHS]


def snippets(text):
    return re.findall(r'```python\n(.*?)```', text, re.S)


def readme_rows(folder):
    """Return {config: its row in the README's tables of recipes}."""
    rows = {}
    text = (CONFIGS / folder / 'README.md').read_text()
    text = re.sub(r'<!-- table\nshortened: true.*?<!-- end of table -->', '', text, flags=re.S)
    for line in text.splitlines():
        if line.startswith('|'):
            for stem, link in re.findall(r'\[([^]]+)\]\(([^)]+\.py)\)', line):
                assert Path(link).stem == stem
                rows[(CONFIGS / folder / link).resolve().relative_to(CONFIGS).as_posix()] = line
    return rows


@pytest.mark.parametrize('folder', ['bake', 'dml', 'ffsd', 'in_memory', 'kdcl', 'vanilla'])
def test_readme_lists_each_config_with_its_published_number(folder):
    rows = readme_rows(folder)
    assert {path for path in PATHS if path.startswith(folder)} <= rows.keys()
    assert set(rows) <= set(PATHS)
    text = (CONFIGS / folder / 'metafile.yml').read_text().replace('null', "'-'")
    for model in yaml.load(text, yaml.BaseLoader)['Models']:  # numbers as they are written
        for key, value in model['Metadata'].items():
            if key.startswith('Published'):
                cells = re.split(r'\s*\|\s*', rows[model['Config'].removeprefix('configs/')])
                for number in value.values() if isinstance(value, dict) else [value]:
                    assert number in cells


def test_readme_recipe_is_four_settings_and_works(tmp_path, no_initialisation):
    (text,) = snippets((CONFIGS / 'bake/README.md').read_text())
    assert len(ast.parse(text).body) == 4
    (tmp_path / 'mine.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'mine.py')
    check_types(cfg.to_dict())
    assert type(build_model(cfg).head).__name__ == 'BAKEHead'
    assert cfg.train_dataloader.sampler.num_instances == 2
    assert cfg.train_dataloader.batch_size % 2 == 0


def test_readme_cohorts_work(tmp_path, no_initialisation):
    text = (CONFIGS / 'kdcl/README.md').read_text()
    mine, views, optimizers = snippets(text)
    (tmp_path / 'mine.py').write_text(mine)
    cfgs = []
    for index, code in enumerate((mine, views, optimizers)):
        path = tmp_path / f'{index}.py'
        path.write_text(code)
        cfgs.append(Config.fromfile(path))
        check_types(cfgs[-1].to_dict())
    model = build_model(cfgs[0])
    assert list(model.students) == ['resnet18', 'resnet50']
    assert (model.deploy, model.views) == ('resnet18', 'shared')
    assert cfgs[0].val_evaluator.topk == (1, 5)

    model = build_model(cfgs[1])
    assert model.views == 'per_student'
    image = np.zeros((300, 300, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    pipeline = Compose(cfgs[1].train_dataloader.dataset.pipeline)
    packed = pipeline({'img_path': str(tmp_path / 'image.png'), 'gt_label': 0})
    assert len(packed['inputs']) == len(model.students)

    model = build_model(cfgs[2])
    lrs = build_optim_wrapper(model, cfgs[2].optim_wrapper).get_lr()
    assert lrs == {'resnet50.lr': [0.1], 'resnet18.lr': [0.2]}
    assert {n: s[0].type for n, s in cfgs[2].param_scheduler.items()} == {
        'resnet50': 'MultiStepLR',
        'resnet18': 'CosineAnnealingLR',
    }


def test_readme_ffsd_cohorts_work(tmp_path, no_initialisation):
    text = (CONFIGS / 'ffsd/README.md').read_text()
    codes = dict(zip(('mine', 'parts', 'swin', 'bake'), snippets(text), strict=True))
    models, cfgs = {}, {}
    for name, code in codes.items():
        path = tmp_path / f'{name}.py'
        path.write_text(code)
        cfgs[name] = Config.fromfile(path)
        check_types(cfgs[name].to_dict())
        models[name] = build_model(deepcopy(cfgs[name]))
        assert models[name].deploy == 'leader'
        ffsd = models[name].methods['ffsd']
        assert ffsd.common == ('student1', 'student2')
        assert cfgs[name].val_evaluator.any_right is True
        # Four stages, from each to the one before.
        assert [len(n.blocks) for n in ffsd.self_distillation.values()] == [3, 3]
    widths = {name: model.methods['ffsd'].fusion.fc.in_features for name, model in models.items()}
    assert widths == {'mine': 512, 'parts': 512, 'swin': 768, 'bake': 512}

    wrapper = build_optim_wrapper(models['parts'], cfgs['parts'].optim_wrapper)
    lrs = {'networks.lr': [0.1], 'fusion.lr': [0.1], 'self_distillation.lr': [1e-3]}
    assert wrapper.get_lr() == lrs
    assert models['parts'].methods['ffsd'].fusion_weight.epochs == 5
    assert len(models['swin'].data_preprocessor.batch_augments.augments) == 2
    heads = {n: type(s.head).__name__ for n, s in models['bake'].students.items()}
    plain = 'LinearClsHead'
    assert heads == {'student1': plain, 'student2': plain, 'leader': 'BAKEHead'}
    assert cfgs['bake'].train_dataloader.sampler.num_instances == 2


def test_readme_table_of_ffsd_tells_each_setting():
    text = (CONFIGS / 'ffsd/README.md').read_text()
    for key, choices in (('diversity', DIVERSITIES), ('self_distillation', SELF_DISTILLATIONS)):
        rows = '\n'.join(line for line in text.splitlines() if line.startswith(f'| `{key}='))
        assert set(re.findall(r"'[a-z0-9]+'|None", rows)) == {repr(choice) for choice in choices}


def test_readme_recipe_with_images_in_memory_works(tmp_path, no_initialisation):
    (text,) = snippets((CONFIGS / 'in_memory/README.md').read_text())
    (tmp_path / 'mine.py').write_text(text.replace('kd_mm::', f'{CONFIGS}/'))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    check_types(cfg.to_dict())
    model = build_model(cfg)
    assert model.data_preprocessor.num_views == len(model.students)
    assert model.views == 'per_student'
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    model.check_views(model.data_preprocessor.draw(images))
    (step,) = cfg.train_dataloader.dataset.dataset.pipeline
    assert step.type == 'PackInputs'
