"""What a Distiller does, shown on deep mutual learning, its simplest method."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from mmpretrain.structures import DataSample

from kd_mm.analysis import benchmark
from kd_mm.methods import Clock
from kd_mm.models import CohortDataPreprocessor, Distiller, distiller
from kd_mm.models.networks import student_cfg
from kd_mm.registry import MODELS
from tests.references import bake as reference
from tests.test_models.toy_networks import NETWORKS

NUM_CLASSES = 5


def student(backbone='LeNet5', in_channels=120, head='LinearClsHead', **kwargs):
    cfg = {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': f'mmpretrain.{backbone}'},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': {'type': head, 'num_classes': NUM_CLASSES, 'in_channels': in_channels},
        **kwargs,
    }
    cfg['head']['type'] = head if '.' in head else f'mmpretrain.{head}'
    return cfg


def build(students=None, type='kd_mm.DML', seed=0, **kwargs):
    init_default_scope('mmpretrain')
    torch.manual_seed(seed)
    students = students or {'a': student(), 'b': student()}
    model = MODELS.build({'type': type, 'students': students, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def build_one(cfg=None, **kwargs):
    init_default_scope('mmpretrain')
    return MODELS.build({'type': 'kd_mm.BAKE', 'student': cfg or student(), **kwargs})


def draw_weights(model, seed):
    """Draw parameters and statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1, generator=generator)
    return model


def differ(first, second):
    return all(
        not torch.equal(value, second[key])
        for key, value in first.items()
        if value.is_floating_point()
    )


def batch(num_images=4, soft=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 1, 32, 32, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    samples = [DataSample().set_gt_label(label) for label in labels]
    if soft:
        scores = torch.rand(num_images, NUM_CLASSES, generator=generator)
        samples = [
            s.set_gt_score(score / score.sum()) for s, score in zip(samples, scores, strict=True)
        ]
    return images, samples


@pytest.mark.parametrize('soft', [False, True], ids=['hard labels', 'mixed labels'])
def test_each_student_keeps_the_losses_of_its_own_head(soft):
    first = student()
    first['head'] |= {'cal_acc': not soft, 'topk': (1, 3)}
    model = build({'a': first, 'b': student(head='kd_mm.BAKEHead')})
    images, samples = batch(soft=soft)
    losses = model(images, samples, mode='loss')
    accuracies = set() if soft else {'a/accuracy_top-1', 'a/accuracy_top-3'}
    terms = {'a/loss', 'b/loss', 'b/loss_bake', 'a/loss_dml', 'b/loss_dml'}
    assert set(losses) == terms | accuracies
    for name in 'ab':
        alone = model.students[name](images, samples, mode='loss')
        for key, value in alone.items():
            torch.testing.assert_close(losses[f'{name}/{key}'], value)


def test_one_network_has_no_name():
    model = build_one()
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    assert losses.keys() == {'loss', 'loss_bake'}
    plain = MODELS.build(student())
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(losses['loss'], plain(images, samples, mode='loss')['loss'])


def test_a_copy_of_a_model_sees_its_own_networks():
    """As of an exponential moving average."""
    model = build()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    again = build()
    again.load_state_dict(other.state_dict())
    torch.testing.assert_close(
        other(*batch(), mode='loss'), again(*batch(), mode='loss'), rtol=0, atol=0
    )


def test_settings_of_one_network_are_those_of_the_model():
    settings = {'data_preprocessor': {'mean': [1.0], 'std': [2.0], 'num_classes': NUM_CLASSES}}
    mixup = {'augments': {'type': 'Mixup', 'alpha': 0.8}}
    model = build_one(student(train_cfg=mixup, **settings))
    images, samples = batch()
    data = {'inputs': torch.ones_like(images), 'data_samples': samples}
    plain = model.data_preprocessor(data)
    assert plain['inputs'].abs().max() == 0
    mixed = model.data_preprocessor(data, training=True)
    assert mixed['data_samples'][0].gt_score.shape == (NUM_CLASSES,)


STORED = ('linear', 'levit', 'timm', 'hugging face resnet')
WAYS = {
    'torch': (torch.nn.Module.state_dict, torch.nn.Module.load_state_dict),
    'mmengine': (get_state_dict, partial(load_state_dict, strict=True)),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', STORED)
def test_a_checkpoint_of_one_network_is_a_plain_one(name, way, tmp_path):
    cfg = NETWORKS[name].cfg(tmp_path)
    save, load = WAYS[way]
    plain = draw_weights(MODELS.build(cfg), seed=0)
    model = draw_weights(MODELS.build({'type': 'kd_mm.BAKE', 'student': cfg}), seed=1)
    again = draw_weights(MODELS.build({'type': 'kd_mm.BAKE', 'student': cfg}), seed=2)
    assert save(model).keys() == save(plain).keys()
    for source, target in ((model, plain), (model, again), (plain, model)):
        draw_weights(source, seed=3)
        draw_weights(target, seed=4)
        assert differ(save(source), save(target))
        load(target, save(source))
        torch.testing.assert_close(dict(save(target)), dict(save(source)), rtol=0, atol=0)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', STORED)
def test_an_average_of_one_network_is_stored_as_a_plain_one(name, way, tmp_path):
    cfg = NETWORKS[name].cfg(tmp_path)
    save, load = WAYS[way]
    plain = draw_weights(MODELS.build(cfg), seed=0)
    bake = {'type': 'kd_mm.BAKE', 'student': cfg}
    averages = [ExponentialMovingAverage(MODELS.build(bake)) for _ in range(2)]
    for seed, average in enumerate(averages, 1):
        draw_weights(average.module, seed)
    averaged, again = averages
    assert save(averaged).keys() == {'steps'} | {f'module.{key}' for key in save(plain)}
    assert differ(save(averaged), save(again))
    load(again, save(averaged))
    torch.testing.assert_close(dict(save(again)), dict(save(averaged)), rtol=0, atol=0)
    weights = {k.removeprefix('module.'): w for k, w in save(averaged).items() if k != 'steps'}
    load(plain, weights)
    torch.testing.assert_close(dict(save(plain)), weights, rtol=0, atol=0)
    load(again, {'steps': torch.tensor(0)} | {f'module.{k}': w for k, w in save(plain).items()})


@pytest.mark.parametrize('way', WAYS)
def test_what_a_method_stores_lies_next_to_the_one_network(way):
    save, load = WAYS[way]
    general = {'type': 'kd_mm.KDCL', 'student': student(), 'target': 'general'}
    for wrap, prefix in ((lambda model: model, ''), (ExponentialMovingAverage, 'module.')):
        model, again = (wrap(draw_weights(MODELS.build(general), seed)) for seed in (0, 1))
        plain = {f'{prefix}{key}' for key in MODELS.build(student()).state_dict()}
        others = {'methods.kdcl.weights', 'module.methods.kdcl.weights', 'steps'}
        assert plain < save(model).keys() < plain | others
        assert differ(save(model), save(again))
        load(again, save(model))
        torch.testing.assert_close(dict(save(again)), dict(save(model)), rtol=0, atol=0)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', STORED)
def test_a_checkpoint_of_several_holds_each_under_its_name(name, way, tmp_path):
    cfg = NETWORKS[name].cfg(tmp_path)
    save, load = WAYS[way]
    students = {'a': cfg, 'b': cfg}
    model = draw_weights(MODELS.build({'type': 'kd_mm.DML', 'students': students}), seed=0)
    again = draw_weights(MODELS.build({'type': 'kd_mm.DML', 'students': students}), seed=1)
    plain = draw_weights(MODELS.build(cfg), seed=2)
    load(again, save(model))
    torch.testing.assert_close(dict(save(again)), dict(save(model)), rtol=0, atol=0)
    weights = {
        key.removeprefix('students.b.'): weight
        for key, weight in save(model).items()
        if not key.startswith('students.a.')
    }
    assert weights.keys() == save(plain).keys()
    load(plain, weights)
    images = torch.ones(2, NETWORKS[name].channels, 32, 32)
    torch.testing.assert_close(plain.eval()(images), model.students['b'].eval()(images))


@pytest.mark.parametrize(
    ('options', 'found'),
    [({}, 'neither'), ({'student': student(), 'students': {'a': student()}}, 'both')],
)
def test_a_model_has_one_network_or_several(options, found):
    with pytest.raises(ValueError, match=f'either one student=.* but got {found}$'):
        Distiller(**options)


@pytest.mark.parametrize(('temperature', 'loss_weight'), [(1.0, 1.0), (3.0, 0.5)])
def test_dml_equals_the_papers_sum(temperature, loss_weight):
    names = ['a', 'b', 'c']
    model = build({n: student() for n in names}, temperature=temperature, loss_weight=loss_weight)
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    logits = {n: model.students[n](images).detach().double().numpy() for n in names}
    for name in names:
        terms = []
        for other in set(names) - {name}:
            target = np.stack([reference.softmax(row / temperature) for row in logits[other]])
            terms.append(reference.soft_target_kl(logits[name], target, temperature).mean())
        np.testing.assert_allclose(
            losses[f'{name}/loss_dml'].item(), loss_weight * sum(terms) / 2, rtol=1e-4
        )


def test_targets_carry_no_gradient():
    model = build()
    images, samples = batch()
    model(images, samples, mode='loss')['a/loss_dml'].backward()
    assert all(p.grad is None for p in model.students['b'].parameters())
    assert all(p.grad is not None for p in model.students['a'].parameters())


def test_permuting_students_permutes_nothing_else():
    model = build({'a': student(), 'b': student(), 'c': student()})
    turned = build({'c': student(), 'a': student(), 'b': student()})
    turned.load_state_dict(model.state_dict())
    first, second = (m(*batch(), mode='loss') for m in (model, turned))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value)
    # A dumped config has its keys sorted, and an optimizer knows its parameters by their place.
    assert list(turned.state_dict()) == list(model.state_dict())
    assert turned.deploy == model.deploy == 'a'


def test_predict_and_tensor_answer_with_the_deployed_student():
    images, _ = batch()
    for deploy, expected in ((None, 'a'), ('b', 'b')):
        model = build(deploy=deploy).eval()
        logits = {name: s(images) for name, s in model.students.items()}
        assert torch.equal(model(images), logits[expected])
        for i, sample in enumerate(model(images, mode='predict')):
            assert torch.equal(sample.pred_score, logits[expected].softmax(1)[i])
            assert sample.pred_label == logits[expected][i].argmax()
            for name in 'ab':
                assert torch.equal(sample.student_scores[name], logits[name].softmax(1)[i])


def test_views_reach_the_students_in_their_order():
    model = build(views='per_student')
    images, samples = batch()
    other = batch(seed=1)[0]
    losses = model([images, other], samples, mode='loss')
    torch.testing.assert_close(
        losses['a/loss'], model.students['a'](images, samples, mode='loss')['loss']
    )
    torch.testing.assert_close(
        losses['b/loss'], model.students['b'](other, samples, mode='loss')['loss']
    )


@pytest.mark.parametrize(
    ('views', 'count', 'message'),
    [
        ('per_student', None, 'needs 2 views per sample, but the pipeline gives one image'),
        ('per_student', 1, 'gives 1 views'),
        ('per_student', 3, 'gives 3 views'),
        ('shared', 2, 'needs one image per sample, but the pipeline gives 2 views'),
    ],
)
def test_wrong_number_of_views(views, count, message):
    images, samples = batch()
    with pytest.raises(ValueError, match=message):
        build(views=views)(images if count is None else [images] * count, samples, mode='loss')


def test_preprocessor_normalises_each_view_and_mixes_all_alike():
    augments = {'augments': [{'type': 'Mixup', 'alpha': 0.8}], 'probs': None}
    preprocess = CohortDataPreprocessor(
        mean=[1.0, 2.0, 3.0], std=[2.0] * 3, to_rgb=True, num_classes=5, batch_augments=augments
    )
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(6, 3, 4, 4, generator=generator) for _ in range(2)]
    samples = [DataSample().set_gt_label(i % 5) for i in range(6)]
    data = {'inputs': views, 'data_samples': samples}
    plain = preprocess(data, training=False)
    for view, out in zip(views, plain['inputs'], strict=True):
        expected = (view.flip(1) - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / 2
        torch.testing.assert_close(out, expected)
    mixed = preprocess(data, training=True)
    scores = torch.stack([sample.gt_score for sample in mixed['data_samples']])
    # The share of each image in each mixed one, read off the labels, explains both views.
    labels = torch.eye(5)[[i % 5 for i in range(6)]]
    for before, after in zip(plain['inputs'], mixed['inputs'], strict=True):
        for i in range(6):
            errors = [
                ((s * before[i] + (1 - s) * before[j]) - after[i]).abs().max()
                + ((s * labels[i] + (1 - s) * labels[j]) - scores[i]).abs().max()
                for j in range(6)
                for s in scores.unique()
            ]
            assert min(errors) < 1e-5
    assert not torch.equal(mixed['inputs'][0], plain['inputs'][0])


def test_single_images_go_through_mmpretrains_own_preprocessor():
    preprocess = CohortDataPreprocessor(mean=[1.0], std=[2.0])
    out = preprocess({'inputs': torch.ones(2, 1, 4, 4), 'data_samples': None})
    assert out['inputs'].abs().max() == 0


def test_students_by_path_and_overrides_of_one_alone(tmp_path):
    path = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    cfg = {'cfg_path': path, 'head': {'num_classes': 7}}
    model = student_cfg(cfg)
    assert model.backbone.type == 'ResNet_CIFAR'
    assert (model.head.num_classes, model.head.in_channels) == (7, 512)
    assert cfg == {'cfg_path': path, 'head': {'num_classes': 7}}  # left as it was
    Config({'model': student()}).dump(tmp_path / 'one.py')
    assert student_cfg({'cfg_path': str(tmp_path / 'one.py')}).backbone.type.endswith('LeNet5')


def test_a_student_starts_from_its_own_plain_checkpoint(tmp_path):
    source = build().students['a']
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'a.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'a.pth')}
    model = build({'a': student(), 'b': student(init_cfg=init_cfg)}, seed=1)
    model.init_weights()
    for name, weight in source.state_dict().items():
        assert torch.equal(model.students['b'].state_dict()[name], weight)
    torch.save({'state_dict': {'x': torch.ones(1)}}, tmp_path / 'a.pth')
    model = build({'a': student(), 'b': student(init_cfg=init_cfg)}, seed=1)
    with pytest.raises(ValueError, match=r'a\.pth of students\.b'):
        model.init_weights()


@pytest.mark.parametrize('prefix', ['backbone', 'backbone.'])
def test_a_backbone_starts_from_a_plain_checkpoint(prefix, tmp_path):
    cfg = student(in_channels=64)
    cfg['backbone'] = {'type': 'kd_mm.CIFARResNet', 'depth': 8}
    source = build({'a': cfg, 'b': student()}).students['a']
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'a.pth')
    cfg['backbone']['init_cfg'] = {
        'type': 'Pretrained',
        'checkpoint': str(tmp_path / 'a.pth'),
        'prefix': prefix,
    }
    model = build({'a': student(), 'b': cfg}, seed=1)
    model.init_weights()
    for name, weight in source.backbone.state_dict().items():
        assert torch.equal(model.students['b'].backbone.state_dict()[name], weight)
    cfg['backbone']['init_cfg'].pop('prefix')  # as of a backbone alone
    with pytest.raises(ValueError, match=r'a\.pth of students\.b\.backbone'):
        build({'a': student(), 'b': cfg}).init_weights()


def test_students_that_start_alike_draw_a_warning(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(distiller, 'print_log', lambda message, **_: said.append(message))
    build().init_weights()
    assert said == []
    torch.save(build().students['a'].state_dict(), tmp_path / 'a.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'a.pth')}
    build({name: student(init_cfg=init_cfg) for name in 'abc'}).init_weights()
    pairs = ['a and b', 'a and c', 'b and c']
    assert [message.split('students ')[1].split(' have')[0] for message in said] == pairs


def test_the_initialisation_of_each_student_is_run():
    """A default of mmpretrain's LinearClsHead: weights of 0.01 standard deviation."""
    model = build()
    model.init_weights()
    for name in 'ab':
        assert 0.005 < model.students[name].head.fc.weight.std() < 0.015


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (
            {'students': {'a': student()}},
            ValueError,
            r'^DML needs at least two students, but got a; add one to model\.students$',
        ),
        (
            {'students': {'a.x': student(), 'b': student()}},
            ValueError,
            r"without dots, but got 'a\.x'",
        ),
        (
            {'students': {'best': student(), 'b': student()}},
            ValueError,
            "must not be called .* but got 'best'",
        ),
        (
            {'students': {'a_loss': student(), 'b': student()}},
            ValueError,
            'must not contain "loss", by which .*, but got \'a_loss\'',
        ),
        ({'deploy': 'c'}, ValueError, "deploy must name one of the students a, b, but got 'c'"),
        (
            {'views': 'own'},
            ValueError,
            "views must be 'shared', 'per_student' or a number of at least 2, but got 'own'",
        ),
        ({'temperature': 0.0}, ValueError, 'temperature must be positive'),
        (
            {
                'students': {
                    'a': student(),
                    'b': {**student(), 'head': {**student()['head'], 'num_classes': 6}},
                }
            },
            ValueError,
            'same number of classes, but got a: 5, b: 6',
        ),
        (
            {'students': {'a': student(), 'b': student(train_cfg={'augments': 'x'})}},
            ValueError,
            r'students\.b\.train_cfg',
        ),
        (
            {'students': {'a': student(), 'b': student(head='ArcFaceClsHead')}},
            TypeError,
            'head of b .* ArcFaceClsHead has a way of its own',
        ),
    ],
)
def test_refusals_name_the_value_and_the_fix(kwargs, error, message):
    with pytest.raises(error, match=message):
        build(**kwargs)


def step_of(model, images, samples):
    """Return the losses, gradients and buffers of a step."""
    torch.manual_seed(1)  # of drop path
    losses = model(images, samples, mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return losses, gradients, dict(model.named_buffers())


def deep_student(out_indices=(2, 3)):
    cfg = student('ResNet', in_channels=512, head='kd_mm.BAKEHead')
    cfg['backbone'] |= {
        'depth': 18, 'out_indices': out_indices, 'drop_path_rate': 0.5, 'norm_eval': False,
    }  # fmt: skip
    return cfg


@pytest.mark.parametrize(
    ('type', 'students', 'settings'),
    [
        ('kd_mm.DML', 2, {}),
        ('kd_mm.KDCL', 2, {'target': 'general'}),
        ('kd_mm.FFSD', 3, {'img_size': 64}),
    ],
)
def test_backbones_computed_again_give_the_same_step(type, students, settings):
    names = ['a', 'b', 'leader'][:students]
    images, samples = batch()
    images = images.repeat(1, 3, 2, 2)
    steps = {}
    for with_cp in (False, True):
        cfg = {name: deep_student() for name in names}
        init_default_scope('mmpretrain')
        torch.manual_seed(0)
        model = MODELS.build({'type': type, 'students': cfg, 'with_cp': with_cp, **settings})
        model.clock = Clock(0, 1, 0, 1, num_images=4)
        steps[with_cp] = step_of(model.train(), images, samples)
    for plain, again in zip(steps[False], steps[True], strict=True):
        assert plain.keys() == again.keys()
        for key, value in plain.items():
            assert torch.equal(value, again[key]), key
    tracked = steps[True][2]['students.a.backbone.bn1.num_batches_tracked']
    assert tracked == 1


def test_backbones_computed_again_hold_one_students_activations():
    images, samples = batch(num_images=8)
    images = images.repeat(1, 3, 3, 3)
    peaks = {}
    for count, with_cp in ((1, False), (3, False), (3, True)):
        students = {name: deep_student() for name in 'abc'[:count]}
        model = build(students, 'kd_mm.KDCL', target='min_logit', with_cp=with_cp)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # there in all cases
        peaks[count, with_cp] = benchmark.cpu_rise(lambda m=model: step_of(m, images, samples))
    assert peaks[3, True] < 1.3 * peaks[1, False] < peaks[3, False] / 1.7


def test_a_backbone_in_evaluation_mode_keeps_its_statistics_when_computed_again():
    images, samples = batch()
    images = images.repeat(1, 3, 1, 1)
    gradients = []
    for with_cp in (False, True):
        cfg = {name: deep_student() for name in 'ab'}
        for one in cfg.values():
            one['backbone']['norm_eval'] = True
        model = build(cfg, with_cp=with_cp).train()
        gradients.append(step_of(model, images, samples)[1])
        assert model.students['a'].backbone.bn1.momentum == 0.1
    for key, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][key], rtol=0, atol=0)
