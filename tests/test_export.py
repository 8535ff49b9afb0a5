"""Export: the same network, without a word of distillation, or nothing at all."""

import json
import re
import sys
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    METRICS,
    MODELS,
    Registry,
    init_default_scope,
)
from mmengine.utils import digit_version
from mmpretrain.evaluation import Accuracy
from mmpretrain.models.backbones import LeNet5
from mmpretrain.models.heads import LinearClsHead

from kd_mm import export
from kd_mm.checkpoint import load_checkpoint
from kd_mm.export import (
    choose_weights,
    export_student,
    plain_cfg,
    plain_part,
    shipped_names,
    student_names,
)
from kd_mm.plain import Replaceable
from tests.conftest import REPO, run
from tests.hostile import call_tool


def config(head=None, **kwargs):
    return Config(
        {
            'default_scope': 'mmpretrain',
            'custom_imports': {'imports': ['kd_mm'], 'allow_failed_imports': False},
            'data_preprocessor': {'mean': [0.0], 'std': [1.0], 'to_rgb': False},
            'model': {
                'type': 'ImageClassifier',
                'backbone': {'type': 'LeNet5'},
                'neck': {'type': 'GlobalAveragePooling'},
                'head': {
                    'type': 'kd_mm.BAKEHead',
                    'num_classes': 3,
                    'in_channels': 120,
                    'omega': 0.9,
                    **(head or {}),
                },
            },
            'train_dataloader': {
                'batch_size': 4,
                'sampler': {'type': 'kd_mm.ClassInstanceSampler', 'num_instances': 2},
            },
            'test_dataloader': {'dataset': {'pipeline': [{'type': 'Resize', 'scale': (32, 32)}]}},
            'custom_hooks': [{'type': 'kd_mm.ExportHook'}, {'type': 'EMAHook', 'momentum': 0.1}],
            'work_dir': 'w',
            'load_from': 'a.pth',
            'resume': True,
            'launcher': 'pytorch',
            **kwargs,
        }
    )


def weights(cfg):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    return MODELS.build(cfg.model).state_dict()


def test_plain_config_has_no_word_of_kd_mm():
    cfg = config()
    before = cfg.to_dict()
    plain = plain_cfg(cfg)
    assert cfg.to_dict() == before
    assert 'kd_mm' not in plain.pretty_text
    assert plain.model.head == {'type': 'LinearClsHead', 'num_classes': 3, 'in_channels': 120}
    assert plain.train_dataloader.sampler == {'type': 'DefaultSampler', 'shuffle': True}
    assert plain.custom_hooks == [{'type': 'EMAHook', 'momentum': 0.1}]
    assert (plain.launcher, plain.load_from, plain.resume) == ('none', None, False)
    assert 'work_dir' not in plain
    assert 'custom_imports' not in plain


def test_imports_of_others_and_of_backbones_of_ours_stay():
    cfg = config()
    cfg.custom_imports.imports = ['kd_mm', 'another']
    assert plain_cfg(cfg).custom_imports.imports == ['another']
    cfg.model.backbone.type = 'kd_mm.CIFARResNet'
    assert plain_cfg(cfg).custom_imports.imports == ['kd_mm', 'another']


def test_a_head_that_distils_becomes_mmpretrains():
    head = {'type': 'kd_mm.BAKEHead', 'gather': 'local', 'group_size': None, 'topk': (1, 5)}
    plain = {'a': [{'type': 'LinearClsHead', 'topk': (1, 5)}]}
    assert plain_part({'a': [head]}) == plain


def test_writes_weights_that_load_without_trust_and_answer_alike(tmp_path):
    cfg = config()
    state = weights(cfg)
    done = export_student(cfg, state, tmp_path, {'dataset_meta': {'classes': ('a', 'b', 'c')}})
    assert done.difference == 0
    saved = torch.load(done.weights, weights_only=True)
    assert saved['meta']['dataset_meta']['classes'] == ('a', 'b', 'c')
    model = MODELS.build(Config.fromfile(done.config).model)
    model.load_state_dict(saved['state_dict'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.py', 'model.pth']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: {f'module.{k}': v for k, v in s.items()}, 'none of the .* names'),
        (lambda s: {k: v for k, v in s.items() if 'head' not in k}, r'Missing key.*head\.fc'),
        (lambda s: s | {'decoder.weight': torch.ones(1)}, r'Unexpected key.*decoder\.weight'),
    ],
)
def test_weights_that_do_not_fit_write_nothing(tmp_path, change, message):
    cfg = config()
    with pytest.raises(ValueError, match=f'(?s){message}'):
        export_student(cfg, change(weights(cfg)), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_network_that_answers_otherwise_writes_nothing(tmp_path, monkeypatch):
    cfg = config()
    state = weights(cfg)

    loaded = []

    def load_and_spoil_the_second(model, state_dict):
        model.load_state_dict(state_dict)
        loaded.append(model)
        if len(loaded) == 2:
            model.head.fc.bias.data.add_(1e-3)

    monkeypatch.setattr(export, '_load', load_and_spoil_the_second)
    with pytest.raises(ValueError, match='nothing was written'):
        export_student(cfg, state, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def cohort():
    """Two students, one of them with BAKE, each with its own optimizer and schedule."""
    students = {
        'b': config().model.to_dict(),
        'a': {
            **config().model.to_dict(),
            'head': {**config().model.head, 'type': 'LinearClsHead'},
        },
    }
    del students['a']['head']['omega']
    return config(
        model={'type': 'kd_mm.KDCL', 'students': students, 'deploy': 'a'},
        optim_wrapper={
            'constructor': 'kd_mm.JointOptimWrapperConstructor',
            'parts': {
                'a': {'optimizer': {'type': 'SGD', 'lr': 0.1}, 'prefix': 'students.a'},
                'b': {'optimizer': {'type': 'SGD', 'lr': 0.2}},
            },
        },
        param_scheduler={'a': [{'type': 'MultiStepLR'}], 'b': [{'type': 'StepLR'}]},
        train_dataloader={
            'dataset': {
                'type': 'kd_mm.HoldOut',
                'num_per_class': 1,
                'dataset': {
                    'type': 'MNIST',
                    'pipeline': [
                        {
                            'type': 'mmpretrain.MultiView',
                            'num_views': 2,
                            'transforms': [[{'type': 'RandomFlip'}]],
                        },
                        {'type': 'PackInputs'},
                    ],
                },
            }
        },
        val_evaluator={'type': 'kd_mm.CohortAccuracy', 'topk': (1, 5)},
    )


def test_plain_config_of_a_student_is_that_of_a_plain_training():
    cfg = cohort()
    before = cfg.to_dict()
    plain = plain_cfg(cfg, 'b')
    assert cfg.to_dict() == before
    assert 'kd_mm' not in plain.pretty_text
    assert plain.model.head.type == 'LinearClsHead'
    assert plain.optim_wrapper == {'optimizer': {'type': 'SGD', 'lr': 0.2}}
    assert plain.param_scheduler == [{'type': 'StepLR'}]
    assert plain.val_evaluator == {'type': 'Accuracy', 'topk': (1, 5)}
    pipeline = [{'type': 'RandomFlip'}, {'type': 'PackInputs'}]
    assert plain.train_dataloader.dataset == {'type': 'MNIST', 'pipeline': pipeline}
    assert 'prefix' not in plain_cfg(cfg, 'a').optim_wrapper


def test_each_student_is_exported_alone(tmp_path):
    cfg = cohort()
    state = weights(cfg)
    assert student_names(cfg) == ['a', 'b']  # the deployed one first
    assert student_names(config()) == []
    for name in (None, 'b'):
        done = export_student(cfg, state, tmp_path / str(name), student=name)
        saved = torch.load(done.weights, weights_only=True)['state_dict']
        prefix = f'students.{name or "a"}.'
        expected = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[key], value) for key, value in expected.items())


MEAN = {'mean': [1.0], 'std': [2.0], 'to_rgb': False}
MIXUP = {'augments': [{'type': 'Mixup', 'alpha': 0.8}]}


@pytest.mark.parametrize('place', ['of the student', 'of the model'])
def test_one_network_alone_becomes_the_plain_one(tmp_path, place):
    """A recipe of mmpretrain's, which ``kd_mm.BAKE`` takes as its student."""
    recipe = config(head={'type': 'LinearClsHead'}).model.to_dict()
    del recipe['head']['omega']
    more = {'train_cfg': MIXUP, 'data_preprocessor': MEAN}
    student, own = ({**recipe, **more}, {}) if place == 'of the student' else (recipe, more)
    cfg = config(model={'type': 'kd_mm.BAKE', 'omega': 0.9, 'student': student, **own})
    cfg.pop('data_preprocessor')
    state = weights(cfg)
    assert student_names(cfg) == shipped_names(cfg) == []
    done = export_student(cfg, state, tmp_path)
    assert (done.difference, done.needs) == (0, ())
    plain = Config.fromfile(done.config)
    assert 'kd_mm' not in plain.pretty_text
    assert plain.model.to_dict() == {**recipe, **more}
    saved = torch.load(done.weights, weights_only=True)['state_dict']
    MODELS.build({**plain.model, '_scope_': 'mmpretrain'}).load_state_dict(saved)
    assert all(torch.equal(saved[key], value) for key, value in state.items())
    with pytest.raises(ValueError, match="trains one network, so there is no student 'student'"):
        export_student(cfg, state, tmp_path, student='student')


def test_the_preprocessor_of_one_network_is_that_of_its_training():
    """Its own, changed by the model's, or by the one that the run gives."""
    recipe = {**config().model.to_dict(), 'data_preprocessor': {**MEAN, 'num_classes': 3}}
    model = {'type': 'kd_mm.Distiller', 'student': recipe}
    given = {'mean': [5.0]}
    for cfg in (
        config(model={**model, 'data_preprocessor': given}),
        config(model=model, data_preprocessor=given),
    ):
        trained = {'data_preprocessor': cfg.data_preprocessor, **cfg.model}
        preprocessor = MODELS.build(trained).data_preprocessor
        plain = plain_cfg(cfg).model
        assert plain.data_preprocessor == {**MEAN, **given, 'num_classes': 3}
        found = MODELS.build({**plain, '_scope_': 'mmpretrain'}).data_preprocessor
        assert (found.mean.item(), found.std.item()) == (5.0, 2.0)
        assert (preprocessor.mean.item(), preprocessor.std.item()) == (5.0, 2.0)


def test_the_preprocessor_of_a_cohort_is_that_of_its_students():
    cfg = cohort()
    crop = {'type': 'kd_mm.BatchRandomCrop', 'crop_size': 28, 'padding': 2}
    cfg.model.data_preprocessor = {'type': 'kd_mm.CohortDataPreprocessor', **MEAN}
    cfg.model.data_preprocessor.augments = [crop]
    cfg.model.train_cfg = MIXUP
    cfg.model.students.a.data_preprocessor = {'mean': [9.0]}  # which training leaves aside
    cfg.train_dataloader.dataset.dataset.pipeline.pop(0)
    plain = plain_cfg(cfg, 'a')
    assert 'kd_mm' not in plain.pretty_text
    assert plain.model.data_preprocessor == MEAN
    assert plain.model.train_cfg == MIXUP
    steps = plain.train_dataloader.dataset.pipeline
    assert [step.type for step in steps] == ['RandomCrop', 'PackInputs']


# A project of its own that extends kd_mm, under its own prefix.
PROJECT = {
    root.name: Registry(root.name, parent=root, scope='kd_project')
    for root in (MODELS, DATA_SAMPLERS, METRICS)
}


class Plainly(Replaceable):
    """Names what takes its place, without its own option."""

    @classmethod
    def plain(cls, cfg):
        kept = {key: value for key, value in cfg.items() if key != 'strength'}
        return {**kept, 'type': cls.__bases__[1].__name__}


@PROJECT['model'].register_module()
class Head(Plainly, LinearClsHead):
    def __init__(self, strength, **kwargs):
        super().__init__(**kwargs)


@PROJECT['data sampler'].register_module()
class Sampler(Plainly, DefaultSampler):
    pass


@PROJECT['metric'].register_module()
class Metric(Plainly, Accuracy):
    pass


@PROJECT['model'].register_module()
class OwnBackbone(LeNet5):
    pass


def test_what_a_project_derives_from_ours_is_replaced_too(tmp_path):
    for model in (
        config().model,
        {'type': 'kd_mm.BAKE', 'student': config().model},
        {'type': 'kd_mm.DML', 'students': {'a': config().model, 'b': config().model}},
    ):
        cfg = config(model=model)
        students = cfg.model.get('students') or {'': cfg.model.get('student') or cfg.model}
        for student in students.values():
            del student.head['omega']
            student.head.update(type='kd_project.Head', strength=3)
        cfg.train_dataloader.sampler = {'type': 'kd_project.Sampler', 'strength': 1, 'seed': 5}
        cfg.val_evaluator = cfg.test_evaluator = {'type': 'kd_project.Metric', 'topk': (1, 2)}
        done = export_student(cfg, weights(cfg), tmp_path)
        assert (done.difference, done.needs) == (0, ())
        plain = Config.fromfile(done.config)
        assert 'kd_' not in plain.pretty_text
        head = {'type': 'LinearClsHead', 'num_classes': 3, 'in_channels': 120}
        assert plain.model.head == head
        assert plain.train_dataloader.sampler == {'type': 'DefaultSampler', 'seed': 5}
        accuracy = {'type': 'Accuracy', 'topk': (1, 2)}
        assert plain.val_evaluator == plain.test_evaluator == accuracy


def test_what_a_project_does_not_replace_stays(tmp_path):
    cfg = config()
    cfg.model.backbone.type = 'kd_project.OwnBackbone'
    done = export_student(cfg, weights(cfg), tmp_path)
    assert Config.fromfile(done.config).model.backbone == {'type': 'kd_project.OwnBackbone'}


def test_a_student_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="student must be one of a, b, but got 'c'"):
        export_student(cohort(), {}, tmp_path, student='c')
    with pytest.raises(ValueError, match="trains one network, so there is no student 'c'"):
        export_student(config(), {}, tmp_path, student='c')


def test_plain_config_has_none_of_a_cohorts_hooks_and_metrics():
    cfg = cohort()
    cfg.default_hooks = {
        'timer': {'type': 'IterTimerHook'},
        'distiller': {'type': 'kd_mm.DistillerHook'},
        'checkpoint': {'type': 'CheckpointHook', 'save_best': 'a/accuracy/top1'},
    }
    cfg.val_evaluator['any_right'] = True
    plain = plain_cfg(cfg)
    assert plain.default_hooks == {
        'timer': {'type': 'IterTimerHook'},
        'checkpoint': {'type': 'CheckpointHook', 'save_best': 'auto'},
    }
    assert plain.val_evaluator == {'type': 'Accuracy', 'topk': (1, 5)}


def test_plain_config_trains_in_bfloat16_by_mmengines_wrapper():
    cfg = cohort()
    cfg.optim_wrapper = {
        'type': 'kd_mm.Bfloat16OptimWrapper',
        'optimizer': {'type': 'SGD', 'lr': 0.1},
    }
    wrapper = plain_cfg(cfg).optim_wrapper
    assert (wrapper.type, wrapper.dtype) == ('AmpOptimWrapper', 'bfloat16')
    assert cfg.optim_wrapper.type == 'kd_mm.Bfloat16OptimWrapper'


NORMED = {
    'type': 'SwinTransformer',
    'arch': {'embed_dims': 8, 'depths': [1, 1, 1, 1], 'num_heads': [1, 1, 2, 2]},
    'window_size': 2,
    'pad_small_map': True,
    'in_channels': 1,
    'out_indices': (0, 1, 2, 3),
}


CONVNEXT = {
    'type': 'ConvNeXt',
    'arch': {'depths': [1, 1, 1, 1], 'channels': [8, 16, 32, 64]},
    'in_channels': 1,
    'gap_before_final_norm': False,
    'out_indices': (0, 1, 2, 3),
}


def ffsd(backbone, width, **settings):
    """An FFSD cohort whose optimizer parts hold several modules."""
    student = {
        'type': 'ImageClassifier',
        'backbone': backbone,
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': 3, 'in_channels': width},
    }
    students = dict.fromkeys(('student1', 'student2', 'leader'), student)
    sgd = {'type': 'SGD', 'lr': 0.1}
    return config(
        model={'type': 'kd_mm.FFSD', 'students': students, **settings},
        optim_wrapper={
            'constructor': 'kd_mm.JointOptimWrapperConstructor',
            'parts': {
                'fusion': {
                    'prefix': 'methods.ffsd.fusion',
                    'optimizer': {'type': 'SGD', 'lr': 0.2},
                },
                'networks': {'prefix': ['students', 'methods.ffsd.decoder'], 'optimizer': sgd},
            },
        },
        param_scheduler={'networks': [{'type': 'StepLR'}], 'fusion': [{'type': 'ConstantLR'}]},
    )


@pytest.mark.parametrize('name', [None, 'student2'])
@pytest.mark.parametrize(
    ('backbone', 'width'),
    [
        (
            {'type': 'kd_mm.CIFARResNet', 'depth': 8, 'in_channels': 1, 'out_indices': (0, 1, 2)},
            64,
        ),
        (NORMED, 64),
        (CONVNEXT, 64),
    ],
    ids=['resnet', 'swin', 'convnext'],
)
def test_a_leader_leaves_all_that_helped_it_behind(tmp_path, backbone, width, name):
    """The weights fit the stock network, which gives one map and has one norm for it."""
    cfg = ffsd(backbone, width)
    state = weights(cfg)
    assert student_names(cfg) == ['leader', 'student1', 'student2']
    assert shipped_names(cfg) == ['leader']
    done = export_student(cfg, state, tmp_path, student=name)
    plain = Config.fromfile(done.config)
    assert plain.optim_wrapper == {'optimizer': {'type': 'SGD', 'lr': 0.1}}
    assert plain.param_scheduler == [{'type': 'StepLR'}]
    stock = {k: v for k, v in backbone.items() if k != 'out_indices'}
    stock = MODELS.build({**plain.model, 'backbone': stock, '_scope_': 'mmpretrain'})
    saved = torch.load(done.weights, weights_only=True)['state_dict']
    stock.load_state_dict(saved)  # strict
    prefix = f'students.{name or "leader"}.'
    assert all(torch.equal(value, state[prefix + key]) for key, value in saved.items())
    beside = [key for key in state if not key.startswith('students.')]
    necks = {f'methods.ffsd.{name}' for name in ('fusion', 'decoder', 'self_distillation')}
    assert {'.'.join(key.split('.')[:3]) for key in beside} == necks
    assert not any('fusion' in key or 'decoder' in key or 'distill' in key for key in saved)


def test_an_ffsd_cohort_without_a_leader_ships_its_students():
    cfg = ffsd(
        {'type': 'kd_mm.CIFARResNet', 'depth': 8, 'in_channels': 1, 'out_indices': (0, 1, 2)}, 64
    )
    del cfg.model.students['leader']
    cfg.model.leader = None
    assert shipped_names(cfg) == ['student1', 'student2']
    assert shipped_names(config()) == []


def test_a_student_that_no_part_trains_is_refused():
    cfg = ffsd(
        {'type': 'kd_mm.CIFARResNet', 'depth': 8, 'in_channels': 1, 'out_indices': (0, 1, 2)}, 64
    )
    cfg.optim_wrapper.parts.networks.prefix = ['students.leader', 'methods.ffsd.decoder']
    with pytest.raises(ValueError, match='must train student student1'):
        plain_cfg(cfg, 'student1')


def test_a_config_that_another_project_inherited_has_no_word_of_kd_mm():
    """MMEngine marks each part of a config that comes by ``kd_mm::`` with our scope."""
    cfg = cohort()
    cfg.train_dataloader.dataset.dataset.pipeline[1]['_scope_'] = 'kd_mm'
    cfg.model.students.a.backbone['_scope_'] = 'kd_mm'
    cfg.train_pipeline = [{'type': 'PackInputs', '_scope_': 'kd_mm'}]
    cfg.data_preprocessor.type = 'kd_mm.CohortDataPreprocessor'
    plain = plain_cfg(cfg)
    assert 'kd_mm' not in plain.pretty_text
    assert plain.data_preprocessor == {'mean': [0.0], 'std': [1.0], 'to_rgb': False}
    assert plain.model.backbone == {'type': 'LeNet5'}


def test_meta_is_written_so_that_it_loads_without_trust(tmp_path):
    cfg = config()
    classes = {'classes': ['a', 'b'], 'mean': [np.ones(2)], 'root': Path('x'), 'n': np.int64(3)}
    done = export_student(cfg, weights(cfg), tmp_path, {'dataset_meta': classes})
    assert torch.load(done.weights, weights_only=True)['meta']['dataset_meta'] == {
        **{'classes': ['a', 'b'], 'mean': [[1.0, 1.0]], 'root': 'x', 'n': 3}
    }


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    cfg = config()
    done = export_student(cfg, weights(cfg), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def full_disk(path, content):
        write(path, content[:10])
        if path.name.startswith('config'):
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full_disk)
    with pytest.raises(OSError, match='No space left'):
        export_student(cfg, {k: v + 1 for k, v in weights(cfg).items()}, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert done.weights in before


def test_an_average_that_is_not_there_is_refused(tmp_path, monkeypatch):
    state = {'w': torch.ones(1)}
    assert choose_weights({'state_dict': state}, ema=False) is state
    with pytest.raises(ValueError, match=r'needs a checkpoint with ema_state_dict.* leave --ema'):
        choose_weights({'state_dict': state, 'meta': {}}, ema=True)


@pytest.fixture
def averaged(tmp_path):
    """Command line of the export of a checkpoint with an average; its weights are one more."""
    cfg = config()
    state = weights(cfg)
    average = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    beside = {'steps': torch.tensor(4), **{f'module.{k}': v for k, v in state.items()}}
    meta = {'dataset_meta': {'classes': ('a', 'b', 'c')}}
    content = {'state_dict': average, 'ema_state_dict': beside, 'meta': meta}
    torch.save(content, tmp_path / 'a.pth')
    torch.save({'state_dict': state}, tmp_path / 'b.pth')
    cfg.dump(tmp_path / 'config.py')
    tool = 'model_converters/export_student.py'
    return [tool, tmp_path / 'config.py', tmp_path / 'a.pth', '--out', tmp_path / 'out'], state


@pytest.mark.parametrize(('flag', 'more'), [('--ema', 1), ('--no-ema', 0), (None, 1)])
def test_the_tool_takes_the_average_or_the_weights_without_it(averaged, monkeypatch, flag, more):
    command, state = averaged
    assert call_tool(monkeypatch, *command, *([flag] if flag else [])) is None
    saved = torch.load(command[-1] / 'model.pth', weights_only=True)['state_dict']
    key = 'head.fc.weight'
    torch.testing.assert_close(saved[key], state[key] + more)


def test_the_tool_says_what_it_did(averaged, monkeypatch, capsys):
    command, _ = averaged
    call_tool(monkeypatch, *command)
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0] == 'logits of the plain model differ by at most 0.0e+00'
    assert [line.rpartition('/')[2] for line in lines[1:]] == ['model.pth', 'config.py']
    command[2] = command[2].with_name('b.pth')
    assert call_tool(monkeypatch, *command, '--ema').startswith('error: an average of weights')
    cfg = Config.fromfile(command[1])
    cfg.train_dataloader.dataset = {'type': 'kd_mm.Digits'}
    cfg.dump(command[1])
    call_tool(monkeypatch, *command)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'config.py needs kd_mm installed: mmpretrain has no kd_mm.Digits'


def test_safetensors_hold_the_same_and_are_read_by_our_tools(averaged, monkeypatch):
    reader = pytest.importorskip('safetensors.torch', reason='safetensors is not installed')
    command, state = averaged
    assert call_tool(monkeypatch, *command, '--format', 'safetensors') is None
    path = command[-1] / 'model.safetensors'
    assert sorted(p.name for p in path.parent.iterdir()) == ['config.py', path.name]
    network = MODELS.build(Config.fromfile(path.with_name('config.py')).model)
    network.load_state_dict(reader.load_file(path))
    torch.testing.assert_close(network.head.fc.weight.data, state['head.fc.weight'] + 1)
    again = [command[0], path.with_name('config.py'), path, '--out', command[-1] / 'pth']
    assert call_tool(monkeypatch, *again) is None
    saved = torch.load(again[-1] / 'model.pth', weights_only=True)
    assert torch.equal(saved['state_dict']['head.fc.weight'], network.head.fc.weight)
    assert saved['meta'] == {'dataset_meta': {'classes': ['a', 'b', 'c']}}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match='it is damaged'):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ('file_format', 'missing'), [('safetensors', 'safetensors'), ('onnx', 'onnxruntime')]
)
def test_a_missing_package_is_named_before_anything_is_done(
    tmp_path, monkeypatch, file_format, missing
):
    for name in ('onnx', 'onnxscript'):
        monkeypatch.setitem(sys.modules, name, sys)
    monkeypatch.setitem(sys.modules, missing, None)
    command = 'safetensors' if missing == 'safetensors' else 'onnx onnxscript onnxruntime'
    with pytest.raises(ImportError, match=f'needs {missing}, .* Run: pip install {command}$'):
        export_student(config(), {}, tmp_path / 'out', file_format=file_format)
    with pytest.raises(ValueError, match="one of pth, safetensors, onnx, but got 'pt'"):
        export_student(config(), {}, tmp_path / 'out', file_format='pt')


@pytest.fixture
def onnx():
    if digit_version(torch.__version__) < digit_version('2.6'):
        pytest.skip('export to ONNX needs torch 2.6')
    for name in ('onnx', 'onnxscript'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    return pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


SHIFTED = {**NORMED, 'arch': {**NORMED['arch'], 'depths': [2, 1, 1, 1]}, 'window_size': 4}


@pytest.mark.parametrize(
    ('backbone', 'width'), [({'type': 'LeNet5'}, 120), (SHIFTED, 64)], ids=['lenet', 'swin']
)
def test_a_graph_answers_as_the_student_for_any_number_of_images(onnx, tmp_path, backbone, width):
    cfg = cohort()
    cfg.model.students.a.backbone = backbone
    cfg.model.students.a.head.in_channels = width
    state = weights(cfg)
    done = export_student(cfg, state, tmp_path, file_format='onnx')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.py', 'model.onnx']
    assert done.difference <= 1e-4
    session = onnx.InferenceSession(str(done.weights), providers=['CPUExecutionProvider'])
    assert [node.name for node in session.get_inputs()] == ['images']
    whole = MODELS.build(cfg.model).eval()
    whole.load_state_dict(state)
    images = torch.randn(5, 1, 32, 32)
    for count in (1, 5):
        (found,) = session.run(['logits'], {'images': images[:count].numpy()})
        with torch.no_grad():
            expected = whole.students['a'](images[:count])
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


def test_a_graph_that_answers_otherwise_writes_nothing(onnx, tmp_path, monkeypatch):
    run_onnx = export._run_onnx
    monkeypatch.setattr(export, '_run_onnx', lambda graph, images: run_onnx(graph, images) + 1e-3)
    cfg = config()
    with pytest.raises(ValueError, match=r'the ONNX graph must answer .* nothing was written'):
        export_student(cfg, weights(cfg), tmp_path / 'out', file_format='onnx')
    assert not (tmp_path / 'out').exists()


# Run where kd_mm cannot be imported: mmpretrain's test tool and inferencer, and the backbone of
# another project, built as a detector builds it.
DEPLOYED = """
import json, runpy, sys
from pathlib import Path

import torch
from mmengine.registry import MODELS, Registry

try:
    import kd_mm
except ImportError:
    print('without kd_mm')
deploy, image = Path(sys.argv[1]), sys.argv[2]
config, weights = str(deploy / 'config.py'), str(deploy / 'model.pth')

import mmpretrain
from mmpretrain import ImageClassificationInferencer

result = ImageClassificationInferencer(config, pretrained=weights)(image)[0]
print('inferred', result['pred_class'], json.dumps(result['pred_scores'].tolist()))

DETECTOR = Registry('model', parent=MODELS, scope='detector')
backbone = DETECTOR.build(dict(
    type='mmpretrain.ResNet', depth=18, stem_channels=4, base_channels=4, out_indices=(0, 1, 2, 3),
    init_cfg=dict(type='Pretrained', checkpoint=weights, prefix='backbone'),
))
backbone.init_weights()
state = torch.load(sys.argv[3], weights_only=True)
found = {f'backbone.{name}': weight for name, weight in backbone.state_dict().items()}
equal = [torch.equal(found[name], state[name]) for name in found]
print('backbone', all(equal), found.keys() == {name for name in state if 'head' not in name})

tool = Path(mmpretrain.__file__).parent / '.mim/tools/test.py'
sys.argv = ['test.py', config, weights, '--work-dir', 'tested', '--out', 'predictions.pkl']
runpy.run_path(str(tool), run_name='__main__')
"""


@pytest.fixture(scope='module')
def deployed(tmp_path_factory, image_folder):
    """An exported BAKE network, what it is to answer, and what mmpretrain made of it alone."""
    folder = tmp_path_factory.mktemp('deployed')
    cfg = Config.fromfile(REPO / 'configs/bake/resnet50_8xb64_in1k.py')
    cfg.model.backbone.update(depth=18, stem_channels=4, base_channels=4)
    cfg.model.head.update(in_channels=32, num_classes=4, topk=(1,))
    cfg.data_preprocessor.num_classes = 4
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(image_folder), metainfo={'classes': list('abcd')})
    for name in ('val', 'test'):
        cfg[f'{name}_evaluator'] = {'type': 'Accuracy', 'topk': (1,)}
    state = weights(cfg)
    state['head.fc.weight'] *= 30  # answers far apart
    meta = {'dataset_meta': {'classes': list('abcd')}}
    export_student(cfg, state, folder / 'deploy', meta)
    blocked = folder / 'blocked' / 'kd_mm'
    blocked.mkdir(parents=True)
    (blocked / '__init__.py').write_text("raise ImportError('kd_mm is not installed')")
    (folder / 'deployed.py').write_text(DEPLOYED)
    torch.save(state, folder / 'trained.pth')
    image = sorted((image_folder / 'val').rglob('*.JPEG'))[0]
    output = run(
        [sys.executable, 'deployed.py', folder / 'deploy', image, folder / 'trained.pth'],
        cwd=folder,
        PYTHONPATH=str(blocked.parent),
    ).stdout
    return cfg, state, folder, output


def test_exported_folder_runs_in_mmpretrains_inferencer(deployed):
    cfg, state, _, output = deployed
    assert 'without kd_mm' in output
    ((name, scores),) = re.findall(r'inferred (\w+) (\[.*?\])', output)
    scores = json.loads(scores)
    assert name == 'abcd'[scores.index(max(scores))]
    assert scores == pytest.approx(answers(cfg, state)[0].tolist(), abs=1e-5)


def test_exported_folder_runs_in_mmpretrains_test_tool(deployed):
    cfg, state, folder, _ = deployed
    found = [sample['pred_score'] for sample in mmengine.load(folder / 'predictions.pkl')]
    torch.testing.assert_close(torch.stack(found), answers(cfg, state), rtol=0, atol=1e-5)


def test_exported_folder_is_the_pretrained_backbone_of_another_project(deployed):
    assert 'backbone True True' in deployed[-1]


def answers(cfg, state):
    """Scores of the validation images by the trained network itself, in the list's order."""
    init_default_scope('mmpretrain')
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).eval()
    model.load_state_dict(state)
    samples = list(DATASETS.build(cfg.test_dataloader.dataset))
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    return torch.stack([sample.pred_score for sample in model.test_step(batch)])
