"""Several methods in one model, several views, other labels, a memory, by config alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.dataset import ConcatDataset, RepeatDataset
from torch.utils.data import Subset

from kd_mm.datasets import Digits, InMemory
from kd_mm.registry import MODELS
from tests import contract
from tests.contract import Row


def build(students=('a', 'b'), backbone=(), **options):
    row = Row({'type': 'kd_mm.Distiller', **options}, students=students, backbone=dict(backbone))
    return contract.build(row)


def own_loss(model, name, images, samples):
    return F.cross_entropy(
        model.students[name](images), torch.tensor([int(s.gt_label) for s in samples])
    )


FFSD = {'type': 'kd_mm.FFSD', 'norm_cfg': contract.GROUP_NORM}
STAGES = {'num_stages': 2, 'out_indices': (0, 1)}
COMPOSED = {
    'BAKE + KDCL': (
        {'bake': {'type': 'kd_mm.BAKE'}, 'kdcl': {'type': 'KDCL'}},
        ('a', 'b'),
        {},
    ),
    'KDCL + FFSD': (
        {'ffsd': FFSD, 'kdcl': {'type': 'kd_mm.KDCL', 'target': 'naive'}},
        ('leader', 'one', 'two'),
        STAGES,
    ),
    'DML + a method of a project': (
        {'dml': {'type': 'kd_mm.DML'}, 'gate': {'type': 'tests.Gate'}},
        ('a', 'b'),
        {},
    ),
}


@pytest.mark.parametrize(('methods', 'students', 'backbone'), COMPOSED.values(), ids=COMPOSED)
def test_losses_are_those_of_each_method_alone(methods, students, backbone):
    model = build(students, backbone=backbone, methods=methods)
    inputs = contract.batch()
    losses = model(*inputs, mode='loss')
    expected = {}
    for name, method in methods.items():
        alone = build(students, backbone=backbone, methods={name: method})
        state = {k: v for k, v in model.state_dict().items() if k in alone.state_dict()}
        alone.load_state_dict(state)
        expected |= alone(*inputs, mode='loss')
    assert list(losses)[: len(students)] == [f'{name}/loss' for name in sorted(students)]
    torch.testing.assert_close(losses, expected)


def test_options_of_a_method_and_more_methods_stand_side_by_side():
    model = build(type='kd_mm.KDCL', target='naive', methods={'bake': {'type': 'kd_mm.BAKE'}})
    assert list(model.methods) == ['bake', 'kdcl']
    assert model.methods['kdcl'].target == 'naive'


def test_a_student_with_a_head_of_bake_in_a_cohort():
    own = contract.network(contract.GROUP_NORM)
    other = copy.deepcopy(own)
    other['head']['type'] = 'kd_mm.BAKEHead'
    cfg = {'type': 'kd_mm.KDCL', 'students': {'a': own, 'b': other}, '_scope_': 'mmpretrain'}
    model = MODELS.build(cfg).train()
    inputs = contract.batch()
    losses = model(*inputs, mode='loss')
    assert set(losses) == {'a/loss', 'b/loss', 'b/loss_bake', 'a/loss_kdcl', 'b/loss_kdcl'}
    alone = model.students['b'](*inputs, mode='loss')
    torch.testing.assert_close(losses['b/loss_bake'], alone['loss_bake'])
    torch.testing.assert_close(losses['b/loss'], alone['loss'])


def test_mutual_learning_with_a_frozen_teacher(tmp_path):
    own = contract.network(contract.GROUP_NORM)
    teacher = MODELS.build({**own, '_scope_': 'mmpretrain'})
    torch.save({'state_dict': teacher.state_dict()}, tmp_path / 't.pth')
    cfg = {**own, 'checkpoint': str(tmp_path / 't.pth')}
    methods = {'dml': {'type': 'kd_mm.DML'}, 'kd': {'type': 'tests.Imitate'}}
    model = build(methods=methods, teachers={'t': cfg})
    model.init_weights()
    losses = model(*contract.batch(), mode='loss')
    assert set(losses) == {f'{n}/{k}' for n in 'ab' for k in ('loss', 'loss_dml', 'loss_kd')}


def test_methods_that_deploy_different_students_are_refused():
    methods = {name: {**FFSD, 'leader': leader} for name, leader in (('one', 'a'), ('two', 'b'))}
    with pytest.raises(ValueError, match='the methods deploy different students, a, b; set'):
        build(('a', 'b', 'c'), STAGES, methods=methods)


@pytest.mark.parametrize('frozen', [False, True])
def test_each_student_sees_several_views(frozen):
    model = build(
        ('student',), methods={'v': {'type': 'tests.TwoViews', 'frozen': frozen}}, views=2
    )
    (first, samples), (second, _) = contract.batch(), contract.batch(seed=1)
    steps = []
    model.observers.append(lambda step, losses: steps.append(step))
    losses = model([first, second], samples, mode='loss')
    one, two = steps[0].students['student']
    assert one.logits.requires_grad
    assert two.logits.requires_grad is not frozen
    torch.testing.assert_close(two.logits.detach(), model.students['student'](second).detach())
    own = [own_loss(model, 'student', view, samples) for view in (first, second)]
    torch.testing.assert_close(losses['loss'], own[0] if frozen else sum(own) / 2)


def test_a_method_that_needs_views_says_so():
    with pytest.raises(ValueError, match=r"needs several views .*but views='shared'; set model"):
        build(('student',), methods={'v': {'type': 'tests.TwoViews'}})
    with pytest.raises(ValueError, match="views must be 'shared', 'per_student' or a number of"):
        build(views=1)


def test_weights_of_images_in_the_own_losses():
    model = build(('student',), methods={'w': {'type': 'tests.Weighed'}})
    images, samples = contract.batch()
    losses = model(images, samples, mode='loss')
    expected = own_loss(model, 'student', images[::2], samples[::2])
    torch.testing.assert_close(losses['loss'], expected)


def test_extra_classifiers_are_measured_and_not_exported():
    model = build(methods={'gate': {'type': 'tests.Gate'}}).eval()
    images, _ = contract.batch()
    sample = model(images, mode='predict')[0]
    assert list(sample.extra_scores) == ['gate']
    assert list(sample.student_scores) == ['a', 'b']


PIPELINE = [{'type': 'Resize', 'scale': contract.SIZE}, {'type': 'PackInputs'}]
PAST = Row({'type': 'tests.PastLabels'}, students=('student',))


def test_a_method_changes_the_labels_of_the_own_losses():
    model = build(('student',), methods={'past': {'type': 'tests.PastLabels'}})
    memory = model.methods['past'].memory
    memory.resize(50)
    images, samples = contract.batch()
    labels = torch.tensor([int(s.gt_label) for s in samples])
    logits = model.students['student'](images)
    first = model(images, samples, mode='loss')
    torch.testing.assert_close(first['loss'], F.cross_entropy(logits, labels))
    assert set(first) == {'loss'}
    second = model(images, samples, mode='loss')
    past = logits.softmax(dim=1).half().float()
    mixed = 0.5 * F.one_hot(labels, contract.NUM_CLASSES) + 0.5 * past
    torch.testing.assert_close(second['loss'], F.cross_entropy(logits, mixed))


@pytest.mark.parametrize('wrapper', ['Subset', 'Repeat', 'Concat', 'InMemory'])
def test_the_memory_knows_images_through_wrappers(tmp_path, wrapper):
    """After one epoch with a learning rate of 0, a row is the prediction of its image."""
    parts = [Digits(pipeline=PIPELINE, indices=indices) for indices in (list(range(12)), [20, 21])]
    images, order = {
        'Subset': lambda: (Subset(parts[0], [7, 3, 3, 5]), [3, 5, 7]),
        'Repeat': lambda: (RepeatDataset(parts[0], 2), range(12)),
        'Concat': lambda: (ConcatDataset(parts), range(14)),
        'InMemory': lambda: (InMemory(parts[0]), range(12)),
    }[wrapper]()
    pictures = [item['inputs'].float() for part in parts for item in part]
    run = contract.runner(
        PAST,
        tmp_path / wrapper,
        images,
        train_cfg={'by_epoch': True, 'max_epochs': 1},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.0}},
        train_dataloader={
            'dataset': images,
            'batch_size': 1,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': True},
            'collate_fn': {'type': 'kd_mm.batch_collate'},
        },
    )
    run.train()
    model = run.model
    values = model.methods['pastlabels'].memory.values.float()
    assert len(values) == len(order)
    # Batch norm of one image alone, in training, as the memory saw it.
    for row, place in zip(values, order, strict=True):
        expected = model.train().students['student'](pictures[place][None]).softmax(dim=1)
        torch.testing.assert_close(row, expected[0].detach(), rtol=2e-3, atol=2e-3)


def test_an_average_of_the_model_goes_with_a_memory(tmp_path):
    ema = {'type': 'EMAHook', 'update_buffers': True}
    run = contract.runner(PAST, tmp_path / 'ema', custom_hooks=[ema])
    run.train()
    state = torch.load(tmp_path / 'ema' / 'epoch_2.pth', weights_only=False)
    assert state['state_dict']['methods.pastlabels.memory.filled'].all()
    assert 'module.backbone.conv1.weight' in state['ema_state_dict']


def test_the_memory_is_exact_after_a_stop_in_the_middle_of_an_epoch(tmp_path):
    """Three iterations per epoch; the run dies in the fifth, and the last checkpoint is older."""
    hooks = {
        'distiller': {'type': 'kd_mm.DistillerHook'},
        'checkpoint': {'type': 'CheckpointHook', 'interval': 2, 'by_epoch': False},
        'seed': {'type': 'kd_mm.SeedHook'},
        'safe_checkpoints': {'type': 'kd_mm.SafeCheckpointHook'},
    }
    states = []
    for name in ('whole', 'stopped'):
        run = contract.runner(PAST, tmp_path / name, default_hooks=hooks)
        if name == 'stopped':
            step, calls = run.model.train_step, []

            def dies(data, optim_wrapper, step=step, calls=calls):
                calls.append(1)
                if len(calls) == 5:
                    raise RuntimeError('killed')
                return step(data, optim_wrapper)

            run.model.train_step = dies
            with pytest.raises(RuntimeError, match='killed'):
                run.train()
            run = contract.runner(PAST, tmp_path / name, default_hooks=hooks, resume=True)
        run.train()
        assert run.iter == 6
        states.append(run.model.state_dict())
    torch.testing.assert_close(dict(states[1]), dict(states[0]), rtol=0, atol=0)
