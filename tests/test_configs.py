"""Every shipped config: its name and contents, its vanilla config, its model, its loss step."""

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
from mmengine import registry
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample

from kd_mm.analysis.reproduction import load_table
from kd_mm.config import read_config
from kd_mm.export import plain_cfg, student_names
from kd_mm.methods.base import Clock
from kd_mm.models.networks import student_cfg
from kd_mm.run.check_types import check_types

from .conftest import REPO

CONFIGS = REPO / 'configs'
PATHS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('[!_]*/*.py'))
RECIPES = [path for path in PATHS if not path.startswith('in_memory')]
FOLDERS = sorted({path.split('/')[0] for path in PATHS})
COHORTS = [path for path in PATHS if path.startswith(('kdcl', 'dml', 'ffsd'))]
TABLES = yaml.safe_load((CONFIGS / 'tables.yml').read_text())
ROWS = {row.name: row for table in TABLES for row in load_table(table, CONFIGS)}
NAME = re.compile(
    r'(?:(?P<method>vanilla|dml|kdcl-[a-z-]+|ffsd(?:-[a-z0-9-]+)?)_)?(?P<network>[a-z0-9-]+)'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?:-(?P<epochs>\d+)e)?_(?P<data>[a-z0-9]+)'
    r'(?:-(?P<px>\d+)px)?(?P<loader>-in-memory)?'
)
# Millions of parameters in mmpretrain's model zoo (torchvision's, with half the width).
ZOO = """swin-t 28.29, swin-s 49.61, swin-b 87.77, resnet18 11.69, resnet34 21.80, resnet50 25.56,
resnet101 44.55, resnet152 60.19, resnest50 27.48, resnest101 48.28, resnext101-32x4d 44.18,
resnext152-32x4d 59.95, mobilenet-v2 3.50, mobilenet-v2-x05 1.97, efficientnet-b0 5.29"""
MILLIONS = {name: float(size) for name, size in re.findall(r'(\S+) ([\d.]+)', ZOO)}
# What a name stands for: type, classes, folder, pixels.
DATA = {
    'in1k': ('ImageNet', 1000, 'data/imagenet', 224),
    'cifar100': ('CIFAR100', 100, 'data/cifar100', 32),
    'tinyimagenet': ('kd_mm.TinyImageNet', 200, 'data/tiny-imagenet-200', 32),
    'cub': ('CUB', 200, 'data/CUB_200_2011', 224),
    'dogs': ('kd_mm.StanfordDogs', 120, 'data/stanford_dogs', 224),
    'mit67': ('kd_mm.MITIndoor67', 67, 'data/mit67', 224),
    'digits': ('kd_mm.Digits', 10, '', 16),
}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@cache
def _load(path):
    return Config.fromfile(CONFIGS / path)


def load(path):
    """Return a copy of a config, read once."""
    return deepcopy(_load(path))


def parse(path):
    match = NAME.fullmatch(Path(path).stem)
    assert match, f'{path} is not named [<method>_]<network>_<GPUs>xb<batch>_<data>.py'
    return match


def networks_of(path):
    """Return (name of the network, config of the classifier) by student; alone, under ''."""
    cfg, name = load(path), parse(path)['network']
    if 'students' not in cfg.model:
        return {'': (name, cfg.model)}
    equal = re.sub(r'^\dx', '', name)
    names = {student: student.replace('_', '-') for student in cfg.model.students}
    if '-'.join(names.values()) != name:  # equal networks
        names = dict.fromkeys(names, equal)
        assert name == equal or name.startswith(f'{len(names)}x')
    return {n: (names[n], student_cfg(student)) for n, student in cfg.model.students.items()}


def inner(dataset):
    """Return the data set inside our wrappers."""
    while dataset.type in ('kd_mm.HoldOut', 'kd_mm.InMemory'):
        dataset = dataset.dataset
    return dataset


def flatten(node, prefix=''):
    """Return {'a.b.0.c': value}, without the scopes that inheritance adds."""
    node, flat = node.to_dict() if isinstance(node, Config) else node, {}
    if not isinstance(node, (dict, list, tuple)):
        return {prefix: node}
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key != '_scope_':
            flat.update(flatten(value, f'{prefix}.{key}'))
    return flat


def changed(one, other):
    """Return the keys whose values differ, helpers of the config's own aside."""
    one, other = flatten(one), flatten(other)
    keys = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    return {key[1:] for key in keys if not re.match(r'\.(\w+_pipeline|dataset_type)', key)}


def build_model(cfg):
    """Build a model as the Runner does."""
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    return registry.MODELS.build(cfg.model)


@pytest.fixture
def no_initialisation(monkeypatch):
    """Leave weights as the memory is: building a large model is a matter of milliseconds."""
    for name in ('kaiming_uniform_', 'kaiming_normal_', 'uniform_', 'normal_', 'trunc_normal_'):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


# Each config


def unscoped_types(node, path=()):
    """Yield paths of types that have neither a prefix nor a scope around them."""
    if isinstance(node, dict) and node.get('_scope_') == 'mmpretrain':
        return
    if isinstance(node, dict) and '.' not in str(node.get('type', '.')):
        yield path
    if isinstance(node, (dict, list, tuple)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from unscoped_types(value, (*path, key))


@pytest.mark.parametrize('path', PATHS)
def test_types_resolve_here_and_where_another_project_inherits(path):
    """MMEngine gives what is inherited by `kd_mm::` the scope kd_mm, unless it has one."""
    cfg = load(path)
    check_types(cfg.to_dict())
    hooks = {hook.type for hook in [*cfg.default_hooks.values(), *cfg.custom_hooks]}
    wanted = 'LossGuard LearningCurve Export LazyRuntimeInfo Seed SafeCheckpoint Compile'
    assert {f'kd_mm.{name}Hook' for name in wanted.split()} <= hooks
    for name, student in cfg.model.get('students', {}).items():
        cfg.model.students[name] = student_cfg(student)
    assert not [p for p in unscoped_types(cfg.to_dict()) if not p[0].endswith('_pipeline')]


@pytest.mark.parametrize('path', PATHS)
def test_model_builds_and_the_name_agrees_with_the_contents(path, no_initialisation):
    cfg, name = load(path), parse(path)
    dataset, num_classes, folder, _ = DATA[name['data']]
    assert cfg.train_dataloader.batch_size == int(name['batch'])
    assert cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * int(name['batch'])
    assert name['epochs'] in (None, str(cfg.train_cfg.max_epochs))
    sets = [inner(cfg[loader].dataset) for loader in LOADERS]
    assert {(d.type, d.data_root.rstrip('/')) for d in sets} == {(dataset, folder)}
    assert sets[0].split == 'train' != sets[1].split == sets[2].split

    model = build_model(deepcopy(cfg))
    assert model.data_preprocessor.num_classes == num_classes
    for student, (network, described) in networks_of(path).items():
        assert described.head.num_classes == num_classes
        if name['data'] == 'in1k':
            built = model.students[student] if student else model
            millions = sum(p.numel() for p in built.parameters()) / 1e6
            assert round(millions, 2) == (87.90 if name['px'] else MILLIONS[network])
        else:
            family, *numbers = re.findall(r'[a-z]+|\d+', network)
            backbone = described.backbone
            assert family.replace('wrn', 'wideresnet') in backbone.type.lower()
            sizes = [backbone.get(key) for key in ('depth', 'arch', 'widen_factor', 'growth_rate')]
            assert numbers == [str(size) for size in sizes if size is not None]
    if (name['method'] or '').startswith('kdcl'):
        _, target, *shared = name['method'].split('-')
        assert cfg.model.target == target.replace('minlogit', 'min_logit')
        assert cfg.model.views == ('shared' if shared else 'per_student')


@pytest.mark.parametrize('path', [path for path in PATHS if path.startswith('bake')])
def test_bake_changes_its_vanilla_config_in_nothing_else(path):
    name = parse(path)
    cnn = name['data'] == 'in1k' and not name['network'].startswith('swin')
    twin = f'{name["network"]}_8xb32_in1k' if cnn else Path(path).stem
    bake, vanilla = load(path), load(f'vanilla/vanilla_{twin}.py')
    head = {f'model.head.{key}' for key in ('type', 'omega', 'temperature', 'loss_weight')}
    sampler = {f'train_dataloader.sampler.{key}' for key in ('type', 'num_instances', 'shuffle')}
    allowed = head | sampler | {'load_from', 'train_dataloader.sampler.epoch_length'}
    if cnn:  # twice the batch, twice the LR
        allowed |= {'train_dataloader.batch_size', 'sync_bn'}
        allowed |= {'optim_wrapper.optimizer.lr', 'auto_scale_lr.base_batch_size'}
        assert bake.optim_wrapper.optimizer.lr == 2 * vanilla.optim_wrapper.optimizer.lr
    assert head | sampler <= changed(bake, vanilla) <= allowed
    assert bake.train_dataloader.batch_size % bake.train_dataloader.sampler.num_instances == 0


@pytest.mark.parametrize('path', COHORTS)
def test_each_student_is_trained_as_its_vanilla_config_does(path):
    cfg, name, ffsd = load(path), parse(path), path.startswith('ffsd')
    epochs = {'cifar100': '300', 'in1k': '90'}.get(name['data']) if ffsd else name['epochs']
    training = f'{name["gpus"]}xb{name["batch"]}' + (f'-{epochs}e' if epochs else '')
    parts, longest = cfg.optim_wrapper.get('parts'), 0
    for student, (network, model) in networks_of(path).items():
        twin = load(f'vanilla/vanilla_{network}_{training}_{name["data"]}.py')
        optimizer, schedule = cfg.optim_wrapper, cfg.param_scheduler
        if ffsd:
            optimizer = parts.networks
            model.backbone.pop('out_indices'), twin.model.backbone.pop('out_indices', None)
            twin.model.backbone.update({'shortcut': 'B'} if name['data'] == 'digits' else {})
        elif parts:
            optimizer, schedule = parts[student], schedule[student]
        assert not changed(model, twin.model)
        assert not changed(optimizer.optimizer, twin.optim_wrapper.optimizer)
        assert not changed(schedule, twin.param_scheduler)
        for key in ('val_dataloader', 'test_dataloader', 'data_preprocessor', 'auto_scale_lr'):
            assert not changed(cfg[key], twin[key])
        ours, plain = (inner(c.train_dataloader.dataset) for c in (cfg, twin))
        steps = [s.transforms[0] if s.type == 'MultiView' else [s] for s in ours.pipeline]
        ours.pipeline = [step for part in steps for step in part]
        assert not changed(ours, plain)
        longest = max(longest, twin.train_cfg.max_epochs)
    assert cfg.train_cfg.max_epochs == longest


@pytest.mark.parametrize('path', PATHS)
def test_exported_config_names_kd_mm_only_for_what_mmpretrain_lacks(path):
    cfg = load(path)
    for student in student_names(cfg) or [None]:
        words = set(re.findall(r'kd_mm[\w.]*', repr(plain_cfg(cfg, student).to_dict())))
        words -= {dataset for dataset, *_ in DATA.values()}
        lacking = re.compile(r'kd_mm|kd_mm\.(CIFAR\w+|DenseNet_CIFAR)')
        assert all(map(lacking.fullmatch, words)) if '_in1k' not in path else not words


@pytest.mark.parametrize('path', [path for path in PATHS if path.startswith('in_memory')])
def test_images_in_memory_are_the_only_difference(path):
    (twin,) = [p for p in PATHS if Path(p).stem == Path(path).stem.removesuffix('-in-memory')]
    keys = {key.split('.')[0] for key in changed(load(path), load(twin))}
    assert keys == {'train_dataloader', 'data_preprocessor'}
    # The export turns what is drawn for a whole batch into mmpretrain's transforms.
    keys = {key.split('.')[1] for key in changed(*(plain_cfg(load(p)) for p in (path, twin)))}
    assert keys <= {'num_workers', 'persistent_workers', 'collate_fn'}


# Tables, metafiles and READMEs


@pytest.mark.parametrize('name', [name for name, row in ROWS.items() if row.options])
def test_rows_with_options_build_what_their_name_says(name, no_initialisation):
    row = ROWS[name]
    cfg = read_config(row.config, row.options)
    check_types(cfg.to_dict())
    (method,) = build_model(deepcopy(cfg)).methods.values()
    _, word, *rest = parse(name)['method'].split('-')
    if rest == ['shared']:
        shared = load('kdcl/kdcl-minlogit-shared_resnet32-wrn16-2_1xb128_cifar100.py')
        ours, theirs = (inner(c.train_dataloader.dataset).pipeline for c in (cfg, shared))
        assert not changed(ours, theirs)
        assert (method.target, cfg.model.views) == (word, 'shared')
    elif 'students' in word:
        assert len(method.common) == int(word[0])
        students = cfg.model.students
        assert not any(changed(students[name], students.leader) for name in method.common)
    else:
        both = ('student2', 'leader')
        assert (method.diversity, method.taught, method.fusion is not None) == {
            'dml': (None, (), True),
            'l2-diversity': ('l2', both, True),
            'no-diversity': (None, both, True),
            'no-fusion': ('attention', both, False),
            'no-sd': ('attention', (), True),
            'sd-common': ('attention', ('student2',), True),
            'sd-leader': ('attention', ('leader',), True),
        }['-'.join([word, *rest])]


def test_rows_of_tables_name_vanilla_configs():
    for row in ROWS.values():
        names = row.vanilla.values() if isinstance(row.vanilla, dict) else [row.vanilla]
        assert {f'vanilla/{name}.py' for name in names if name} <= set(PATHS)


def test_mim_finds_each_config_by_its_metafile(tmp_path):
    from modelindex.load_model_index import load as load_index

    index = load_index(str(REPO / 'model-index.yml'))
    index.build_models_with_collections()
    assert sorted(model.config for model in index.models) == [f'configs/{p}' for p in PATHS]
    (tmp_path / '.mim').symlink_to(REPO, target_is_directory=True)
    assert all(_get_cfg_metainfo(str(tmp_path), p)['Config'] == f'configs/{p}' for p in PATHS)
    assert len({Path(path).stem for path in PATHS}) == len(PATHS)  # mim looks for the name alone


READMES = {folder: (CONFIGS / folder / 'README.md').read_text() for folder in FOLDERS}
CODES = {f: re.findall(r'```python\n(.*?)```', text, re.S) for f, text in READMES.items()}


@pytest.mark.parametrize(
    ('folder', 'index'), [(f, i) for f in CODES for i in range(len(CODES[f]))]
)
def test_recipes_of_readmes_build(folder, index, tmp_path, no_initialisation):
    codes = [code.replace('kd_mm::', f'{CONFIGS}/') for code in CODES[folder]]
    (tmp_path / 'mine.py').write_text(codes[0])  # what later ones inherit
    (tmp_path / 'this.py').write_text(codes[index])
    cfg = Config.fromfile(tmp_path / 'this.py')
    check_types(cfg.to_dict())
    model = build_model(cfg)
    lrs = build_optim_wrapper(model, cfg.optim_wrapper).get_lr()
    assert {f'{part}.lr' for part in cfg.optim_wrapper.get('parts', ())} <= lrs.keys()


def test_tables_and_metafiles_are_up_to_date():
    """If this fails, run python tools/misc/update_docs.py."""
    zoo = runpy.run_path(str(REPO / 'tools/misc/model_zoo.py'))
    stale = zoo['updates'](REPO, lambda path: _load(path.relative_to(CONFIGS).as_posix()))
    assert list(stale) == []


@pytest.mark.parametrize('folder', FOLDERS)
def test_readme_lists_each_config(folder):
    linked = set(re.findall(r'\]\(([\w.-]+\.py)\)', READMES[folder]))
    assert {Path(path).name for path in PATHS if path.startswith(f'{folder}/')} <= linked


# Pipelines


@pytest.mark.parametrize('path', [p for p in RECIPES if re.search('cub|tiny|digits|2x', p)])
def test_pipelines_give_each_student_a_view_of_the_recipes_size(path, tmp_path):
    cfg, data = load(path), parse(path)['data']
    shape = (3, DATA[data][3], DATA[data][3])
    size = {'cifar100': 32, 'digits': 8, 'tinyimagenet': 64}.get(data, 300)
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    sample = {'img_path': str(tmp_path / 'image.png'), 'img': image, 'gt_label': 0}
    for loader in ('val_dataloader', 'test_dataloader'):
        assert Compose(cfg[loader].dataset.pipeline)(dict(sample))['inputs'].shape == shape
    pipeline = Compose(inner(cfg.train_dataloader.dataset).pipeline)
    draws = [pipeline(dict(sample))['inputs'] for _ in range(5)]
    if cfg.model.get('views', 'shared') == 'shared':
        assert draws[0].shape == shape
    else:
        assert [view.shape for view in draws[0]] == [shape] * len(cfg.model.students)
        assert any(not torch.equal(first, last) for first, *_, last in draws)


def test_lighting_does_not_wrap_around(tmp_path):
    cv2.imwrite(str(tmp_path / 'white.png'), np.full((8, 8, 3), 255, np.uint8))
    cfg = load('vanilla/vanilla_resnet50_8xb32_in1k.py')
    pipeline, path = Compose(cfg.train_dataloader.dataset.pipeline), str(tmp_path / 'white.png')
    images = [pipeline({'img_path': path, 'gt_label': 0})['inputs'] for _ in range(10)]
    # Six standard deviations of the largest component move a channel by at most 20.
    assert 1 < (torch.stack(images).float() - 255).abs().max() < 20


def test_crops_of_ffsd_reflect_the_image():
    cfg = load('vanilla/vanilla_resnet32_1xb128-300e_cifar100.py')
    crop = Compose(cfg.train_dataloader.dataset.pipeline[:2])
    columns = np.tile(np.arange(32, dtype=np.uint8)[:, None], (32, 1, 3))
    crops = {tuple(crop({'img': columns.copy()})['img'][0, :, 0].tolist()) for _ in range(200)}
    # Mirrored at the first and the last pixel, four to each side: nine places.
    mirrored = [4, 3, 2, 1, *range(32), 30, 29, 28, 27]
    assert crops == {tuple(mirrored[start : start + 32]) for start in range(9)}


# Steps


@pytest.mark.parametrize('path', [p for p in RECIPES if 'digits' in p and 'vanilla' not in p])
def test_loss_step_reaches_every_parameter_and_each_has_an_optimizer(path):
    torch.manual_seed(0)
    cfg, px = load(path), DATA[parse(path)['data']][3]
    model = build_model(cfg)
    model.init_weights()
    model.train()
    model.clock = Clock(9, 10, 9, 10, 1)  # in the last epoch
    views = [torch.randint(256, (4, 3, px, px), dtype=torch.uint8) for _ in range(2)]
    data = {
        'inputs': views if cfg.model.get('views') == 'per_student' else views[0],
        'data_samples': [DataSample().set_gt_label(label) for label in (0, 0, 2, 2)],
    }
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    terms = [loss for key, loss in losses.items() if 'loss' in key]
    assert len(terms) > 1
    sum(terms).backward()
    parameters = list(model.parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    wrappers = wrapper.values() if 'parts' in cfg.optim_wrapper else [wrapper]
    owned = [id(p) for w in wrappers for group in w.param_groups for p in group['params']]
    assert sorted(owned) == sorted(map(id, parameters))


def test_224_px_checkpoint_starts_the_384_px_run(no_initialisation):
    def build_small(path):
        cfg = load(path)
        cfg.model.backbone.arch, cfg.model.head.in_channels = 'tiny', 768
        return build_model(cfg)

    source = build_small('vanilla/vanilla_swin-b_8xb128_in1k.py').state_dict()
    table = 'backbone.stages.0.blocks.1.attn.w_msa.relative_position_bias_table'
    source[table].zero_()  # of the heads: a constant, the offset in columns, the centre alone
    source[table][:, 0] = 3
    source[table][:, 1] = torch.arange(-6.0, 7).repeat(13)
    source[table][84, 2] = 1
    tool = runpy.run_path(str(REPO / 'tools/model_converters/resize_swin_windows.py'))
    model = build_small('bake/swin-b_16xb64_in1k-384px.py')
    model.load_state_dict(tool['resize_windows'](source, 12), strict=True)
    resized = model.state_dict()[table].reshape(23, 23, -1)
    torch.testing.assert_close(resized[..., 0], torch.full((23, 23), 3.0))
    columns = resized[..., 1]
    torch.testing.assert_close(columns, columns[:1].expand(23, 23))
    torch.testing.assert_close(columns, -columns.flip(1))
    assert (columns.diff(dim=1) > 0).all()
    assert (resized[11, 11, 2], resized[..., 2].argmax()) == (1, 11 * 23 + 11)
