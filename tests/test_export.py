"""Export: the same network, without a word of distillation, or nothing at all."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from kd_mm import export
from kd_mm.export import (
    export_student,
    plain_cfg,
    plain_model_cfg,
    shipped_names,
    student_names,
)


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


@pytest.mark.parametrize(
    ('ours', 'plain'),
    [
        ('BAKEHead', 'LinearClsHead'),
        ('BAKEStackedLinearClsHead', 'StackedLinearClsHead'),
        ('BAKEVisionTransformerClsHead', 'VisionTransformerClsHead'),
        ('BAKEVigClsHead', 'VigClsHead'),
        ('BAKEEfficientFormerClsHead', 'EfficientFormerClsHead'),
        ('BAKELeViTClsHead', 'LeViTClsHead'),
    ],
)
def test_each_head_becomes_mmpretrains(ours, plain):
    nested = {'a': [{'type': f'kd_mm.{ours}', 'gather': 'local', 'topk': (1, 5)}]}
    assert plain_model_cfg(nested) == {'a': [{'type': plain, 'topk': (1, 5)}]}


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


def test_a_student_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="student must be one of a, b, but got 'c'"):
        export_student(cohort(), {}, tmp_path, student='c')
    with pytest.raises(ValueError, match="trains one network, so there is no student 'c'"):
        export_student(config(), {}, tmp_path, student='c')


def test_plain_config_has_none_of_a_cohorts_hooks_and_metrics():
    cfg = cohort()
    cfg.default_hooks = {
        'timer': {'type': 'IterTimerHook'},
        'ramp': {'type': 'kd_mm.LossWeightRampHook', 'names': ['loss_weight']},
        'checkpoint': {'type': 'CheckpointHook', 'save_best': 'a/accuracy/top1'},
    }
    cfg.val_evaluator['any_right'] = True
    plain = plain_cfg(cfg)
    assert plain.default_hooks == {
        'timer': {'type': 'IterTimerHook'},
        'checkpoint': {'type': 'CheckpointHook', 'save_best': 'auto'},
    }
    assert plain.val_evaluator == {'type': 'Accuracy', 'topk': (1, 5)}


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
                'fusion': {'prefix': 'fusion', 'optimizer': {'type': 'SGD', 'lr': 0.2}},
                'networks': {'prefix': ['students', 'decoder'], 'optimizer': sgd},
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
    assert {key.split('.')[0] for key in beside} == {'fusion', 'decoder', 'self_distillation'}
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
    cfg.optim_wrapper.parts.networks.prefix = ['students.leader', 'decoder']
    with pytest.raises(ValueError, match='must train student student1'):
        plain_cfg(cfg, 'student1')
