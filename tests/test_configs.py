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
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.dataset import Compose
from mmengine.hub import get_config
from mmengine.registry import DefaultScope, Registry
from mmengine.runner.checkpoint import load_checkpoint
from mmpretrain.structures import DataSample

from kd_mm.utils import register_all_modules
from kd_mm.utils.preflight import check_types

from .conftest import REPO, run_tool

CONFIGS = REPO / 'configs'
PATHS = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.glob('[!_]*/*.py'))
BAKE = [path for path in PATHS if path.startswith('bake/')]
VANILLA = [path for path in PATHS if path.startswith('vanilla/')]

NAME = re.compile(
    r'(?:vanilla_)?(?P<network>[a-z0-9-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)_(?P<data>[a-z0-9]+)'
    r'(?:-(?P<px>\d+)px)?\.py'
)
# What a name stands for: the backbone's settings.
SMALL_PX = ('cifar100', 'tinyimagenet')
NETWORKS = {
    'swin-t': dict(type='SwinTransformer', arch='tiny', drop_path_rate=0.2),
    'swin-s': dict(type='SwinTransformer', arch='small', drop_path_rate=0.3),
    'swin-b': dict(type='SwinTransformer', arch='base', drop_path_rate=0.5),
    'resnet20': dict(type='kd_mm.CIFARResNet', depth=20),
    'resnet18': dict(type='ResNet', depth=18),
    'resnet18 small': dict(type='ResNet_CIFAR', depth=18),
    'resnet50': dict(type='ResNet', depth=50),
    'resnet101': dict(type='ResNet', depth=101),
    'resnet152': dict(type='ResNet', depth=152),
    'resnest50': dict(type='ResNeSt', depth=50),
    'resnest101': dict(type='ResNeSt', depth=101),
    'resnext101-32x4d': dict(type='ResNeXt', depth=101, groups=32, width_per_group=4),
    'resnext152-32x4d': dict(type='ResNeXt', depth=152, groups=32, width_per_group=4),
    'mobilenet-v2': dict(type='MobileNetV2', widen_factor=1.0),
    'efficientnet-b0': dict(type='EfficientNet', arch='b0'),
    'densenet121': dict(type='DenseNet', arch='121'),
    'densenet121 small': dict(type='kd_mm.DenseNet_CIFAR', arch='121'),
}
# Millions of parameters in mmpretrain's model zoo, with 1,000 classes.
PARAMETERS = {
    'swin-t': 28.29,
    'swin-s': 49.61,
    'swin-b': 87.77,
    'swin-b 384': 87.90,
    'resnet50': 25.56,
    'resnet101': 44.55,
    'resnet152': 60.19,
    'resnest50': 27.48,
    'resnest101': 48.28,
    'resnext101-32x4d': 44.18,
    'resnext152-32x4d': 59.95,
    'mobilenet-v2': 3.50,
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
    return mmengine_registry.MODELS.build(cfg.model)


# The set


def test_every_row_of_the_paper_has_a_config():
    rows = {(parse(path)[0], parse(path)[3], parse(path)[4]) for path in BAKE}
    imagenet = {(name, 'in1k', None) for name in PARAMETERS if name != 'swin-b 384'}
    small = {
        (network, data, None)
        for network in ('resnet18', 'densenet121')
        for data in ('cifar100', 'tinyimagenet', 'cub', 'dogs', 'mit67')
    }
    assert rows == imagenet | small | {('swin-b', 'in1k', '384'), ('resnet20', 'digits', None)}


def test_base_names_are_unique_and_plain():
    stems = [Path(path).stem for path in PATHS]
    assert len(set(stems)) == len(stems)
    assert not any('.' in stem for stem in stems)
    assert not any('-' in Path(path).parent.name for path in PATHS)


# Each config


@pytest.mark.parametrize('path', PATHS)
def test_types_of_ours_have_the_prefix_and_resolve(path):
    cfg = load(path).to_dict()
    registries = [r for r in vars(mmengine_registry).values() if isinstance(r, Registry)]
    ours = {node['type'] for _, node in typed(cfg) if node['type'].startswith('kd_mm.')}
    assert {'kd_mm.LearningCurveHook', 'kd_mm.ExportHook'} <= ours
    for name in ours:
        assert any(registry.get(name) for registry in registries), name
    check_types(cfg)  # unprefixed types of ours, unknown options


@pytest.mark.parametrize('path', PATHS)
def test_name_agrees_with_contents(path):
    cfg = load(path)
    network, gpus, batch, data, px = parse(path)
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    assert 'enable' not in cfg.auto_scale_lr

    backbone = NETWORKS[
        f'{network} small' if f'{network} small' in NETWORKS and data in SMALL_PX else network
    ]
    assert {key: cfg.model.backbone[key] for key in backbone} == backbone
    if network.startswith('swin'):
        assert cfg.model.backbone.img_size == int(px or 224)

    dataset, num_classes, folder, _, _ = DATA[data]
    for name in LOADERS:
        assert cfg[name].dataset.type == dataset
        assert cfg[name].dataset.data_root.rstrip('/') == folder
    assert cfg.train_dataloader.dataset.split == 'train'
    assert cfg.val_dataloader.dataset.split == cfg.test_dataloader.dataset.split
    assert cfg.val_dataloader.dataset.split in ('val', 'test')
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == num_classes


@pytest.mark.parametrize('path', PATHS)
def test_recipe_is_the_published_one(path):
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


@pytest.mark.parametrize('path', BAKE)
def test_bake_settings_are_the_published_ones(path):
    cfg = load(path)
    network, _, batch, data, _ = parse(path)
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
        'images' if network.startswith('swin') else 'anchors'
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
    if network.startswith('swin'):
        expected |= {'train_dataloader.sampler.epoch_length'}
    if px:
        expected |= {'load_from'}
    assert changed == expected


@pytest.mark.parametrize('path', PATHS)
def test_loaders_take_overrides_one_by_one(path):
    cfg = load(path)
    cfg.merge_from_dict(
        {'train_dataloader.dataset.data_root': 'elsewhere', 'val_dataloader.batch_size': 7}
    )
    assert cfg.train_dataloader.dataset.data_root == 'elsewhere'
    assert cfg.val_dataloader.dataset.data_root != 'elsewhere'
    assert cfg.val_dataloader.batch_size == 7
    assert cfg.test_dataloader.batch_size != 7


@pytest.mark.parametrize('path', PATHS)
def test_types_keep_their_meaning_where_another_project_inherits(path):
    """MMEngine gives what is inherited by `kd_mm::` the scope kd_mm, if it has none.

    There, a type of mmpretrain is found by its prefix only.
    """
    scoped = []
    for where, node in typed(settings(load(path))):
        if any(where[: len(outer)] == outer for outer in scoped):
            continue
        if node.get('_scope_') == 'mmpretrain':
            scoped.append(where)
        else:
            assert '.' in node['type'], f'{where}: {node["type"]} needs a prefix or a scope'


@pytest.mark.parametrize('path', ['bake/swin-t_8xb128_in1k.py', 'bake/resnet20_1xb64_digits.py'])
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
    if data == 'in1k':
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert round(millions, 2) == PARAMETERS[f'{network} {px}' if px else network]


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
    # Nothing has been trained: no results or weights that a tool would show as ours.
    assert not {'Results', 'Weights'} & model.keys()


def test_mmengine_finds_each_config_by_its_metafile(tmp_path):
    (tmp_path / '.mim').symlink_to(REPO, target_is_directory=True)
    for path in PATHS:
        assert _get_cfg_metainfo(str(tmp_path), path)['Config'] == f'configs/{path}'


def test_modelindex_reads_the_index():
    from modelindex.load_model_index import load as load_index

    index = load_index(str(REPO / 'model-index.yml'))
    index.build_models_with_collections()
    assert sorted(model.config for model in index.models) == [f'configs/{p}' for p in PATHS]


def readme_rows(folder):
    """Return {config: its row in the README's tables}."""
    rows = {}
    for line in (CONFIGS / folder / 'README.md').read_text().splitlines():
        if line.startswith('|'):
            for stem, link in re.findall(r'\[([^]]+)\]\(([^)]+\.py)\)', line):
                assert Path(link).stem == stem
                rows[(CONFIGS / folder / link).resolve().relative_to(CONFIGS).as_posix()] = line
    return rows


@pytest.mark.parametrize('folder', ['bake', 'vanilla'])
def test_readme_lists_each_config_with_its_published_number(folder):
    rows = readme_rows(folder)
    assert {path for path in PATHS if path.startswith(folder)} <= rows.keys()
    assert set(rows) <= set(PATHS)
    for model in metafiles()[f'configs/{folder}/metafile.yml']['Models']:
        for key, value in model['Metadata'].items():
            if key.startswith('Published'):
                digits = 2 if key.endswith('Error') else 1
                row = rows[model['Config'].removeprefix('configs/')]
                assert f'| {value:.{digits}f} |' in row


def test_readme_recipe_is_four_settings_and_works(tmp_path, no_initialisation):
    (text,) = re.findall(r'```python\n(.*?)```', (CONFIGS / 'bake/README.md').read_text(), re.S)
    assert len(ast.parse(text).body) == 4
    (tmp_path / 'mine.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'mine.py')
    check_types(cfg.to_dict())
    assert type(build_model(cfg).head).__name__ == 'BAKEHead'
    assert cfg.train_dataloader.sampler.num_instances == 2
    assert cfg.train_dataloader.batch_size % 2 == 0
