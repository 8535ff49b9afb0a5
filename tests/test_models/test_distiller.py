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
from tests import contract
from tests.references import bake as reference
from tests.toys.networks import NETWORKS

NUM_CLASSES = 5


def student(backbone='LeNet5', in_channels=120, head='LinearClsHead', **kwargs):
    return {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': f'mmpretrain.{backbone}'},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': {
            'type': head if '.' in head else f'mmpretrain.{head}',
            'num_classes': NUM_CLASSES,
            'in_channels': in_channels,
        },
        **kwargs,
    }


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


# Losses and predictions ----------------------------------------------------------------------


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


def test_dml_equals_the_papers_sum():
    model = build({n: student() for n in 'abc'}, temperature=3.0, loss_weight=0.5)
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    logits = {n: model.students[n](images).detach().double().numpy() for n in 'abc'}
    for name in 'abc':
        terms = []
        for other in set('abc') - {name}:
            target = np.stack([reference.softmax(row / 3) for row in logits[other]])
            terms.append(reference.soft_target_kl(logits[name], target, 3.0).mean())
        found = losses[f'{name}/loss_dml'].item()
        np.testing.assert_allclose(found, 0.5 * sum(terms) / 2, rtol=1e-4)


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


# Views and the preprocessor ------------------------------------------------------------------


def test_views_reach_the_students_in_their_order():
    model = build(views='per_student')
    images, samples = batch()
    other = batch(seed=1)[0]
    losses = model([images, other], samples, mode='loss')
    for name, view in (('a', images), ('b', other)):
        alone = model.students[name](view, samples, mode='loss')
        torch.testing.assert_close(losses[f'{name}/loss'], alone['loss'])


@pytest.mark.parametrize(
    ('views', 'count', 'message'),
    [
        ('per_student', None, 'needs 2 views per sample, but the pipeline gives one image'),
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


def test_settings_of_one_network_are_those_of_the_model():
    settings = {'data_preprocessor': {'mean': [1.0], 'std': [2.0], 'num_classes': NUM_CLASSES}}
    mixup = {'augments': {'type': 'Mixup', 'alpha': 0.8}}
    model = build_one(student(train_cfg=mixup, **settings))
    images, samples = batch()
    data = {'inputs': torch.ones_like(images), 'data_samples': samples}
    assert model.data_preprocessor(data)['inputs'].abs().max() == 0
    mixed = model.data_preprocessor(data, training=True)
    assert mixed['data_samples'][0].gt_score.shape == (NUM_CLASSES,)


# Checkpoints -----------------------------------------------------------------------------------

STORED = ('linear', 'timm', 'hugging face resnet')
WAYS = {
    'torch': (torch.nn.Module.state_dict, torch.nn.Module.load_state_dict),
    'mmengine': (get_state_dict, partial(load_state_dict, strict=True)),
}


def drawn(cfg, seed, wrap=lambda model: model):
    """A model with parameters and statistics of its own, or an average of it."""
    model = wrap(MODELS.build(cfg))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1, generator=generator)
    return model


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', STORED)
def test_a_checkpoint_of_one_network_is_a_plain_one(name, way, tmp_path):
    cfg = NETWORKS[name].cfg(tmp_path)
    save, load = WAYS[way]
    bake = {'type': 'kd_mm.BAKE', 'student': cfg}
    for source, target in ((bake, cfg), (bake, bake), (cfg, bake)):
        source, target = drawn(source, 3), drawn(target, 4)
        assert save(source).keys() == save(target).keys()
        load(target, save(source))
        torch.testing.assert_close(dict(save(target)), dict(save(source)), rtol=0, atol=0)
    averages = [drawn(bake, seed, ExponentialMovingAverage) for seed in (1, 2)]
    weights = dict(save(averages[0]))
    load(averages[1], weights)
    torch.testing.assert_close(dict(save(averages[1])), weights, rtol=0, atol=0)
    weights.pop('steps')
    weights = {key.removeprefix('module.'): weight for key, weight in weights.items()}
    plain = drawn(cfg, 5)
    load(plain, weights)
    torch.testing.assert_close(dict(save(plain)), weights, rtol=0, atol=0)


@pytest.mark.parametrize('way', WAYS)
def test_what_a_method_stores_lies_next_to_the_one_network(way):
    save, load = WAYS[way]
    general = {'type': 'kd_mm.KDCL', 'student': student(), 'target': 'general'}
    for wrap, prefix in ((lambda model: model, ''), (ExponentialMovingAverage, 'module.')):
        model, again = (drawn(general, seed, wrap) for seed in (0, 1))
        plain = {f'{prefix}{key}' for key in MODELS.build(student()).state_dict()}
        others = {'methods.kdcl.weights', 'module.methods.kdcl.weights', 'steps'}
        assert plain < save(model).keys() < plain | others
        load(again, save(model))
        torch.testing.assert_close(dict(save(again)), dict(save(model)), rtol=0, atol=0)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', STORED)
def test_a_checkpoint_of_several_holds_each_under_its_name(name, way, tmp_path):
    cfg = NETWORKS[name].cfg(tmp_path)
    save, load = WAYS[way]
    cohort = {'type': 'kd_mm.DML', 'students': {'a': cfg, 'b': cfg}}
    model, again, plain = drawn(cohort, 0), drawn(cohort, 1), drawn(cfg, 2)
    load(again, save(model))
    torch.testing.assert_close(dict(save(again)), dict(save(model)), rtol=0, atol=0)
    prefix = 'students.b.'
    weights = {k.removeprefix(prefix): w for k, w in save(model).items() if k.startswith(prefix)}
    load(plain, weights)
    images = torch.ones(2, NETWORKS[name].channels, 32, 32)
    torch.testing.assert_close(plain.eval()(images), model.students['b'].eval()(images))


# Configs and initial weights -------------------------------------------------------------------


def test_students_by_path_and_overrides_of_one_alone(tmp_path):
    path = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    cfg = {'cfg_path': path, 'head': {'num_classes': 7}}
    model = student_cfg(cfg)
    assert model.backbone.type == 'ResNet_CIFAR'
    assert (model.head.num_classes, model.head.in_channels) == (7, 512)
    assert cfg == {'cfg_path': path, 'head': {'num_classes': 7}}  # left as it was
    Config({'model': student()}).dump(tmp_path / 'one.py')
    assert student_cfg({'cfg_path': str(tmp_path / 'one.py')}).backbone.type.endswith('LeNet5')


@pytest.mark.parametrize('prefix', [None, 'backbone', 'backbone.'])
def test_a_student_or_its_backbone_starts_from_a_plain_checkpoint(prefix, tmp_path):
    cfg = student(in_channels=64)
    cfg['backbone'] = {'type': 'kd_mm.CIFARResNet', 'depth': 8}
    source = build({'a': cfg, 'b': student()}).students['a']
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': source.state_dict()}, path)
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    if prefix is None:
        cfg['init_cfg'] = init_cfg
    else:
        cfg['backbone']['init_cfg'] = {**init_cfg, 'prefix': prefix}
    model = build({'a': student(), 'b': cfg}, seed=1)
    model.init_weights()
    found = model.students['b'].state_dict()
    for name, weight in source.state_dict().items():
        assert torch.equal(found[name], weight) or (prefix and 'backbone' not in name), name
    # LinearClsHead's own initialisation: weights of 0.01 standard deviation.
    assert 0.005 < model.students['a'].head.fc.weight.std() < 0.015
    torch.save({'state_dict': {'x': torch.ones(1)}}, path)
    with pytest.raises(ValueError, match=r'a\.pth of students\.b'):
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


OTHER_CLASSES = {**student(), 'head': {**student()['head'], 'num_classes': 6}}


@pytest.mark.parametrize(
    ('second', 'kwargs', 'message'),
    [
        ({}, {}, r'^DML needs at least two students, but got a; add one to model\.students$'),
        ({'b.x': student()}, {}, r"without dots, but got 'b\.x'"),
        ({'best': student()}, {}, "must not be called .* but got 'best'"),
        ({'b_loss': student()}, {}, 'must not contain "loss", by which .*, but got \'b_loss\''),
        ({'b': student()}, {'deploy': 'c'}, "one of the students a, b, but got 'c'"),
        ({'b': student()}, {'views': 'own'}, "or a number of at least 2, but got 'own'"),
        ({'b': student()}, {'temperature': 0.0}, 'temperature must be positive'),
        ({'b': OTHER_CLASSES}, {}, 'same number of classes, but got a: 5, b: 6'),
        ({'b': student(train_cfg={'augments': 'x'})}, {}, r'students\.b\.train_cfg'),
        ({'b': student(head='ArcFaceClsHead')}, {}, 'head of b .* ArcFaceClsHead has a way of'),
    ],
)
def test_refusals_name_the_value_and_the_fix(second, kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build({'a': student(), **second}, **kwargs)


@pytest.mark.parametrize(
    ('options', 'found'),
    [({}, 'neither'), ({'student': student(), 'students': {'a': student()}}, 'both')],
)
def test_a_model_has_one_network_or_several(options, found):
    with pytest.raises(ValueError, match=f'either one student=.* but got {found}$'):
        Distiller(**options)


# Activation checkpointing ----------------------------------------------------------------------


def step_of(model, images, samples):
    """Return the losses, gradients and buffers of a step."""
    torch.manual_seed(1)  # of drop path
    losses = model(images, samples, mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return losses, gradients, dict(model.named_buffers())


@pytest.mark.parametrize(
    ('type', 'names', 'norm_eval'),
    [('kd_mm.DML', 'ab', False), ('kd_mm.DML', 'ab', True), ('kd_mm.FFSD', 'abc', False)],
)
def test_backbones_computed_again_give_the_same_step(type, names, norm_eval):
    options = {'out_indices': (2, 3), 'drop_path_rate': 0.5, 'norm_eval': norm_eval}
    own = contract.network({'type': 'BN'}, **options)
    steps = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        students = {name.replace('c', 'leader'): copy.deepcopy(own) for name in names}
        cfg = {'type': type, 'students': students, 'with_cp': with_cp, 'img_size': contract.SIZE}
        model = MODELS.build({**cfg, '_scope_': 'mmpretrain'})
        model.clock = Clock(0, 1, 0, 1, num_images=6)
        steps.append(step_of(model.train(), *contract.batch()))
        assert model.students['a'].backbone.bn1.momentum == 0.1
    for plain, again in zip(*steps, strict=True):
        torch.testing.assert_close(again, plain, rtol=0, atol=0)
    tracked = steps[1][2]['students.a.backbone.bn1.num_batches_tracked']
    assert tracked == (0 if norm_eval else 1)


def test_backbones_computed_again_hold_one_students_activations():
    images, samples = batch(num_images=8)
    images = images.repeat(1, 3, 2, 2)
    peaks = {}
    for count, with_cp in ((1, False), (3, False), (3, True)):
        students = {name: contract.network({'type': 'BN'}) for name in 'abc'[:count]}
        model = build(students, 'kd_mm.KDCL', target='min_logit', with_cp=with_cp)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # there in all cases
        peaks[count, with_cp] = benchmark.cpu_rise(lambda m=model: step_of(m, images, samples))
    assert peaks[3, True] < 1.3 * peaks[1, False] < peaks[3, False] / 1.7
