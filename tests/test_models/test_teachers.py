"""Frozen teachers: right inputs, strict weights, and no trace in what is trained and stored."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT_MODELS

from kd_mm.models.distiller import SINGLE
from kd_mm.registry import MODELS
from tests import contract


def classifier(seed=0, **changes):
    torch.manual_seed(seed)
    cfg = {**contract.network(contract.GROUP_NORM), **changes, '_scope_': 'mmpretrain'}
    network = ROOT_MODELS.build(cfg)
    for param in network.parameters():
        torch.nn.init.normal_(param, std=0.3)
    return network.eval()


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / 'teacher.pth'
    torch.save({'state_dict': classifier(1).state_dict()}, path)
    return str(path)


def teacher_cfg(weights, **kwargs):
    return {**contract.network(contract.GROUP_NORM), 'checkpoint': weights, **kwargs}


def build(weights, teachers=None, methods=None, ready=True, **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(
        {
            'type': 'kd_mm.Distiller',
            'student': contract.network(contract.GROUP_NORM),
            'teachers': teachers or {'t': teacher_cfg(weights)},
            'methods': methods or {'kd': {'type': 'tests.Imitate'}},
            '_scope_': 'mmpretrain',
            **kwargs,
        }
    )
    if ready:
        model.init_weights()
    return model.train()


def seen_by(model, inputs, samples):
    """What the teachers gave in a step, by name."""
    steps = []
    model.observers.append(lambda step, losses: steps.append(step))
    model(inputs, samples, mode='loss')
    model.observers.clear()
    return {name: views[0].logits for name, views in steps[0].teachers.items()}


def test_teacher_answers_in_evaluation_and_stays_as_it_was(weights):
    model = build(weights)
    images, samples = contract.batch()
    torch.testing.assert_close(seen_by(model, images, samples)['t'], classifier(1)(images))
    losses = model(images, samples, mode='loss')
    assert set(losses) == {'loss', 'loss_kd'}
    sum(losses.values()).backward()
    network = model.teachers.networks['t']
    assert not network.training
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_teacher_leaves_no_trace(weights):
    model = build(weights)
    plain = classifier()
    assert dict(model.state_dict()).keys() == plain.state_dict().keys()
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    assert not any('teacher' in name for name, _ in model.named_modules())
    wrapper = build_optim_wrapper(model, {'optimizer': {'type': 'SGD', 'lr': 0.1}})
    held = sum(len(group['params']) for group in wrapper.optimizer.param_groups)
    assert held == len(list(plain.parameters()))
    average = ExponentialMovingAverage(model)
    assert len(list(average.module.parameters())) == len(list(plain.parameters()))
    assert average.module.teachers is model.teachers


def test_device_and_dtype_reach_the_teacher(weights):
    model = build(weights).double().to('meta')
    weight = next(model.teachers.networks['t'].parameters())
    assert (weight.dtype, weight.device.type) == (torch.float64, 'meta')


def test_own_mean_std_channel_order_and_size(weights):
    own = {'mean': [10.0, 20.0, 30.0], 'std': [2.0, 3.0, 4.0], 'to_rgb': True}
    students = {'mean': [1.0, 2.0, 3.0], 'std': [5.0, 6.0, 7.0], 'to_rgb': False}
    cfg = teacher_cfg(weights, data_preprocessor=own, input_size=32)
    model = build(weights, {'t': cfg}, data_preprocessor=students)
    raw = torch.randint(0, 256, (4, 3, contract.SIZE, contract.SIZE)).float()
    _, samples = contract.batch(4)
    inputs = model.data_preprocessor({'inputs': raw, 'data_samples': samples})['inputs']
    mean, std = (torch.tensor(own[key])[:, None, None] for key in ('mean', 'std'))
    expected = (raw.flip(1) - mean) / std
    expected = torch.nn.functional.interpolate(
        expected, (32, 32), mode='bilinear', align_corners=False, antialias=True
    )
    torch.testing.assert_close(
        seen_by(model, inputs, samples)['t'], classifier(1)(expected), rtol=1e-4, atol=1e-4
    )


def test_two_teachers_with_weights(weights, tmp_path):
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': classifier(2).state_dict()}, other)
    teachers = {'one': teacher_cfg(weights), 'two': teacher_cfg(str(other))}
    methods = {
        'first': {'type': 'tests.Imitate', 'teacher': 'one', 'loss_weight': 0.25},
        'second': {'type': 'tests.Imitate', 'teacher': 'two', 'loss_weight': 2.0},
    }
    model = build(weights, teachers, methods)
    images, samples = contract.batch()
    losses = model(images, samples, mode='loss')
    alone = {}
    for name, path in (('one', weights), ('two', str(other))):
        single = build(path, {name: teacher_cfg(path)})
        single.load_state_dict(model.state_dict())
        alone[name] = single(images, samples, mode='loss')['loss_kd']
    torch.testing.assert_close(losses['loss_kd'], 0.25 * alone['one'])
    torch.testing.assert_close(losses['loss_kd_second'], 2.0 * alone['two'])


def test_prediction_and_export_need_no_file(tmp_path):
    model = build(str(tmp_path / 'missing.pth'), ready=False).eval()
    images, samples = contract.batch()
    assert model(images, mode='predict')[0].pred_score.shape == (contract.NUM_CLASSES,)
    with pytest.raises(RuntimeError, match='teachers must have their weights before training'):
        model.train()(images, samples, mode='loss')


def test_copy_of_a_student_starts_with_its_weights_and_may_be_refreshed(weights):
    teachers = {'past': {'copy_of': SINGLE}}
    model = build(weights, teachers)
    images, samples = contract.batch()
    student = model.students[SINGLE]
    torch.testing.assert_close(seen_by(model, images, samples)['past'], student.eval()(images))
    before = student(images)
    state = copy.deepcopy(model.teachers.copied_state())
    with torch.no_grad():
        for param in student.parameters():
            param += 1
    torch.testing.assert_close(seen_by(model, images, samples)['past'], before)
    model.teachers.copy_students()
    torch.testing.assert_close(seen_by(model, images, samples)['past'], student(images))
    model.teachers.load_copied_state(state)
    torch.testing.assert_close(seen_by(model, images, samples)['past'], before)


SEVEN = {'type': 'LinearClsHead', 'num_classes': 7, 'in_channels': 32}


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (teacher_cfg(None), 'must have either the config of a classifier and the file'),
        (teacher_cfg('t.pth', copy_of='student'), 'must have either the config of a classifier'),
        (teacher_cfg('t.pth', input_size=0), 'input_size must be an integer of at least 1, but'),
        (teacher_cfg('t.pth', head=SEVEN), 't: 7'),
        ({'copy_of': 'x'}, 'must name one of the students student, but got'),
        ({}, 'must have either'),
    ],
)
def test_bad_teachers(cfg, message):
    with pytest.raises(ValueError, match=message):
        build(None, {'t': cfg})


def test_a_method_that_needs_a_teacher_says_so():
    with pytest.raises(ValueError, match=r'Imitate needs a teacher, but there is none; add model'):
        MODELS.build({'type': 'tests.Imitate', 'student': contract.network(contract.GROUP_NORM)})


def test_weights_must_fit_strictly(weights, tmp_path):
    whole = classifier(1).state_dict()
    cases = {
        'lacks head.fc.bias': {k: v for k, v in whole.items() if k != 'head.fc.bias'},
        'has no place for more': {**whole, 'more': torch.zeros(1)},
        'differs in head.fc.bias': {**whole, 'head.fc.bias': torch.zeros(7)},
    }
    for message, state in cases.items():
        path = tmp_path / 'odd.pth'
        torch.save({'state_dict': state}, path)
        with pytest.raises(ValueError, match=message):
            build(str(path))
    with pytest.raises(FileNotFoundError):
        build(str(tmp_path / 'missing.pth'))
