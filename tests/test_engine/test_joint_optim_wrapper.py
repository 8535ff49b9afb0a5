"""One backward pass, then each part's own optimizer: against optimizers stepped by hand."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper

from kd_mm.engine.optim import JointOptimWrapperConstructor
from tests.toys.cohort import (
    ADAM,
    SGD,
    assert_equal,
    build_cohort,
    build_joint,
    draw,
    in_double,
    items,
    joint_cfg,
    loss_of,
    student,
    weights,
)
from tests.toys.models import loader, runner_of


def optimizers_by_hand(model):
    """SGD and ADAM of the toys, without MMEngine."""
    sgd = {key: value for key, value in SGD.items() if key != 'type'}
    return {
        'a': torch.optim.SGD(model.students.a.parameters(), **sgd),
        'b': torch.optim.Adam(model.students.b.parameters(), lr=ADAM['lr']),
    }


def step_by_hand(optimizers):
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()


def pair():
    """A model to train by the wrapper and its equal to train by hand."""
    model = build_cohort()
    return model, deepcopy(model)


# --- steps -----------------------------------------------------------------------------------


def test_equals_the_single_wrapper_where_all_parts_are_alike():
    model, single = pair()
    clip = {'max_norm': 0.5}
    joint = build_joint(model, a=SGD, b=SGD, clip_grad=clip)
    plain = build_optim_wrapper(single, {'optimizer': SGD, 'clip_grad': clip})
    for step in range(3):
        model.train_step(draw(4, seed=step), joint)
        single.train_step(draw(4, seed=step), plain)
    assert_equal(weights(model), weights(single))


def test_configs_are_left_alone():
    clip = {'type': 'norm', 'max_norm': 0.5}
    cfg = joint_cfg(a={'optimizer': SGD, 'clip_grad': clip}, clip_grad=clip)
    del cfg['constructor']
    given = deepcopy(cfg)
    JointOptimWrapperConstructor(cfg)(build_cohort())
    assert cfg == given


def test_a_part_clips_its_own_gradients():
    model, by_hand = pair()
    clip = {'type': 'norm', 'max_norm': 0.01}
    cfg = joint_cfg(b={'optimizer': ADAM, 'clip_grad': clip})
    joint = build_optim_wrapper(model, cfg)
    optimizers = optimizers_by_hand(by_hand)
    for step in range(2):
        model.train_step(draw(4, seed=step), joint)
        loss_of(by_hand, draw(4, seed=step)).backward()
        norm = torch.nn.utils.clip_grad_norm_(by_hand.students.b.parameters(), 0.01)
        step_by_hand(optimizers)
    assert_equal(weights(model), weights(by_hand))
    assert norm > 0.01
    assert joint['b'].message_hub.get_scalar('train/b.grad_norm').current() == norm.item()


def test_accumulation_equals_the_whole_batch_and_ends_complete():
    model, whole = map(in_double, pair())
    joint = build_joint(model, accumulative_counts=2)
    joint.initialize_count_status(model, 0, 3)
    first, last = draw(8), draw(4, seed=1)
    halves = [{key: value[i : i + 4] for key, value in first.items()} for i in (0, 4)]
    updates = []
    for batch in (*halves, last):
        before = weights(model)['students.a.head.fc.weight']
        sync = joint.should_sync()
        model.train_step(batch, joint)
        updates.append(not torch.equal(before, model.students.a.head.fc.weight))
        assert joint.should_update() == sync == updates[-1]
    assert updates == [False, True, True]
    optimizers = optimizers_by_hand(whole)
    for batch in (first, last):
        loss_of(whole, batch).backward()
        step_by_hand(optimizers)
    # Adam divides by the root of tiny squares: 1e-9 is far above its rounding.
    assert_equal(weights(model), weights(whole), rtol=1e-9, atol=1e-9)


# --- mixed precision -------------------------------------------------------------------------


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """MMEngine's AMP wrapper with torch's own scaler for CPU; autocast is bfloat16 there."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, device='cpu')
    )


AMP = {'type': 'AmpOptimWrapper', 'loss_scale': {'init_scale': 1024.0}}


@pytest.mark.usefixtures('amp_on_cpu')
def test_amp_equals_a_scaled_loss_by_hand():
    model, by_hand = pair()
    joint = build_joint(model, b={'optimizer': ADAM, 'clip_grad': {'max_norm': 0.01}}, **AMP)
    optimizers = optimizers_by_hand(by_hand)
    in_full = deepcopy(model)
    for step in range(2):
        model.train_step(draw(4, seed=step), joint)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = loss_of(by_hand, draw(4, seed=step))
        (loss * 1024).backward()
        for param in by_hand.parameters():
            param.grad /= 1024
        torch.nn.utils.clip_grad_norm_(by_hand.students.b.parameters(), 0.01)
        step_by_hand(optimizers)
    assert_equal(weights(model), weights(by_hand))
    full = loss_of(in_full, draw(4)).item()
    with joint.optim_context(in_full):
        half = loss_of(in_full, draw(4)).item()
    assert full != half == pytest.approx(full, rel=0.05)


@pytest.mark.usefixtures('amp_on_cpu')
def test_an_overflow_in_one_part_skips_all():
    model = build_cohort()
    joint = build_joint(model, **AMP)
    model.train_step(draw(4), joint)
    before, state = weights(model), deepcopy(joint.state_dict())
    handle = model.students.b.head.fc.bias.register_hook(lambda grad: grad * float('inf'))
    model.train_step(draw(4), joint)
    handle.remove()
    assert_equal(weights(model), before)
    after = joint.state_dict()
    assert_equal(after['parts'], state['parts'])  # neither momentum nor Adam's step count moved
    assert (state['loss_scaler']['scale'], after['loss_scaler']['scale']) == (1024.0, 512.0)
    model.train_step(draw(4), joint)
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


# --- the Runner ------------------------------------------------------------------------------


def build_runner(work_dir, model, epochs=4, **changes):
    checkpoint = {'checkpoint': {'type': 'CheckpointHook', 'interval': 2}}
    data = loader(items(8), 4)
    return runner_of(model, work_dir, data, epochs, default_hooks=checkpoint, **changes)


def logged(runner, name):
    return list(runner.message_hub.get_scalar(f'train/{name}').data[0])


SCHEDULES = {
    'a': {'type': 'MultiStepLR', 'milestones': [1, 3], 'gamma': 0.5},
    'b': [{'type': 'ExponentialLR', 'gamma': 0.5, 'by_epoch': False}],
}
# Two iterations in each of four epochs.
RATES_A = [0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025]
RATES_B = [0.01 * 0.5**step for step in range(8)]


def test_schedules_by_name_over_epochs_equal_rates_by_hand(tmp_path):
    model, by_hand = pair()
    cfg = joint_cfg()
    given = deepcopy(cfg)
    runner = build_runner(tmp_path, model, optim_wrapper=cfg, param_scheduler=SCHEDULES)
    runner.train()
    assert cfg == given
    assert logged(runner, 'a.lr') == RATES_A
    assert logged(runner, 'b.lr') == RATES_B

    optimizers = optimizers_by_hand(by_hand)
    images = draw(8)
    for step, rates in enumerate(zip(RATES_A, RATES_B, strict=True)):
        for optimizer, rate in zip(optimizers.values(), rates, strict=True):
            optimizer.param_groups[0]['lr'] = rate
        half = slice(4) if step % 2 == 0 else slice(4, 8)
        loss_of(by_hand, {key: value[half] for key, value in images.items()}).backward()
        step_by_hand(optimizers)
    assert_equal(weights(model), weights(by_hand))


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path, amp_on_cpu):
    # A scale that grows every third step: what is not resumed is seen.
    scaler = {'init_scale': 256.0, 'growth_interval': 3}
    a = {'optimizer': SGD, 'paramwise_cfg': {'bias_lr_mult': 2.0}}
    cfg = joint_cfg(a=a, type='AmpOptimWrapper', loss_scale=scaler)
    options = {'optim_wrapper': cfg, 'param_scheduler': SCHEDULES}
    straight = build_runner(tmp_path / 'straight', build_cohort(), **deepcopy(options))
    straight.train()
    options |= {'load_from': str(tmp_path / 'straight' / 'epoch_2.pth'), 'resume': True}
    resumed = build_runner(tmp_path / 'resumed', build_cohort(seed=1), **options)
    resumed.train()
    assert_equal(weights(resumed.model), weights(straight.model))
    assert_equal(resumed.optim_wrapper.state_dict(), straight.optim_wrapper.state_dict())
    assert logged(resumed, 'b.lr') == RATES_B
    assert logged(resumed, 'a.base_lr') == RATES_A


# --- which parameter is whose ----------------------------------------------------------------


def names_in(part, model):
    """The names of a part's parameters, with their learning rate and weight decay."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: (group['lr'], group['weight_decay'])
        for group in part.optimizer.param_groups
        for param in group['params']
    }


def test_a_part_takes_the_paramwise_settings_of_its_students_recipe():
    model = build_cohort(
        a=student(),
        b=student(
            backbone={'type': 'kd_mm.CIFARResNet', 'depth': 8},
            head={'type': 'mmpretrain.LinearClsHead', 'num_classes': 5, 'in_channels': 64},
        ),
    )
    custom = {'backbone.conv1': {'lr_mult': 0.5}}
    b = {'optimizer': SGD, 'paramwise_cfg': {'norm_decay_mult': 0.0, 'custom_keys': custom}}
    joint = build_joint(model, b=b)
    assert set(names_in(joint['a'], model)) == {
        f'students.a.{name}' for name, _ in model.students.a.named_parameters()
    }
    settings = names_in(joint['b'], model)
    assert len(settings) == len(list(model.students.b.parameters()))
    assert settings['students.b.backbone.conv1.weight'] == (0.05, 0.01)
    assert settings['students.b.backbone.bn1.weight'] == (0.1, 0.0)
    assert settings['students.b.head.fc.weight'] == (0.1, 0.01)


def test_prefixes_group_modules_of_any_place():
    model = build_cohort()
    heads = {'prefix': ['students.a.head', 'students.b.head'], 'optimizer': ADAM}
    heads['paramwise_cfg'] = {'custom_keys': {'fc.bias': {'lr_mult': 3.0}}}
    rest = {'prefix': ['students.a.backbone', 'students.b.backbone'], 'optimizer': SGD}
    joint = build_optim_wrapper(model, {**joint_cfg(), 'parts': {'heads': heads, 'rest': rest}})
    rates = {name: rate for name, (rate, _) in names_in(joint['heads'], model).items()}
    assert rates == {
        f'students.{student}.head.fc.{name}': rate
        for student in 'ab'
        for name, rate in (('weight', 0.01), ('bias', 0.03))
    }
    assert len(names_in(joint['rest'], model)) == len(list(model.parameters())) - 4


def test_a_part_can_have_the_constructor_of_its_students_recipe():
    arch = {'embed_dims': 8, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 8}
    backbone = {'type': 'mmpretrain.VisionTransformer', 'arch': arch, 'in_channels': 1}
    head = {'type': 'mmpretrain.VisionTransformerClsHead', 'num_classes': 5, 'in_channels': 8}
    vit = student(backbone={**backbone, 'img_size': 32, 'patch_size': 16}, neck=None, head=head)
    model = build_cohort(a=student(), b=vit)
    b = {
        'optimizer': {'type': 'AdamW', 'lr': 0.4, 'weight_decay': 0.05},
        'constructor': 'mmpretrain.LearningRateDecayOptimWrapperConstructor',
        'paramwise_cfg': {'layer_decay_rate': 0.5},
    }
    settings = names_in(build_joint(model, b=b)['b'], model)
    assert settings['students.b.head.layers.head.weight'][0] == 0.4
    assert settings['students.b.backbone.layers.1.ln1.weight'][0] == 0.2
    assert settings['students.b.backbone.cls_token'][0] == 0.05


def test_a_frozen_student_needs_no_part():
    model = build_cohort(a=student(), b=student(), teacher=student())
    model.students.teacher.requires_grad_(False)
    before = weights(model.students.teacher)
    model.train_step(draw(4), build_joint(model))
    assert_equal(weights(model.students.teacher), before)


# --- mistakes --------------------------------------------------------------------------------


def only(**parts):
    return {**joint_cfg(), 'parts': parts}


A, B = {'optimizer': SGD}, {'optimizer': ADAM}
MISTAKES = [
    (only(), r'must give the optimizer of each student.*but got \{\}'),
    (only(a=A, bb=B), r"but got 'students.bb'; did you mean students.b\?"),
    (only(a=A, b={'prefix': 'dmll', **B}), r'did you mean methods\.dml\?'),
    (only(a=A, b={'prefix': 'students.' + 15 * 'x', **B}), 'there are students.a, students.b'),
    (only(a=A, b={'prefix': 'students.b.head.fc.bias', **B}), 'must name a module'),
    (
        only(a=A),
        r'students.b.backbone.features.0.weight, .* and 5 more are in none; add a part, such as '
        r"b=dict\(prefix='students.b', ",
    ),
    (
        only(a=A, b=B, heads={'prefix': 'students.a.head', **A}),
        'students.a.head.fc.weight, students.a.head.fc.bias are in a and heads; give',
    ),
    (only(a={'prefix': ['students.a', 'students.a.head'], **A}, b=B), 'are in a and a; give'),
    (only(a=A, b={'lr': 0.1}), 'parts.b must be a dict with an opt'),
    (
        only(a=A, b={**B, 'accumulative_counts': 2}),
        'parts.b has no option accumulative_counts; there are prefix, .* belong to optim_wrapper',
    ),
    (joint_cfg(optimizer=SGD), 'got optim_wrapper.optimizer; mov'),
    (joint_cfg(paramwise_cfg={'bias_lr_mult': 2}), 'got optim_wrapper.paramwise_cfg'),
    (joint_cfg(type='ApexOptimWrapper'), "but got 'ApexOptimWrapper'"),
]


@pytest.mark.parametrize(('cfg', 'message'), MISTAKES)
def test_mistakes_are_named(cfg, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build_optim_wrapper(build_cohort(), cfg)


def test_a_part_without_trainable_parameters_is_named():
    model = build_cohort()
    model.students.b.requires_grad_(False)
    with pytest.raises(ValueError, match=r'parts.b must .* each of its 8 parameters is frozen'):
        build_joint(model)


@pytest.mark.parametrize(
    ('cfg', 'had'),
    [
        ({'optimizer': SGD}, 'a single optimizer'),
        (only(all={'prefix': 'students', 'optimizer': SGD}), 'all'),
    ],
)
def test_a_checkpoint_of_other_parts_is_refused(cfg, had):
    model = build_cohort()
    state = build_optim_wrapper(model, cfg).state_dict()
    with pytest.raises(ValueError, match=f'of its checkpoint, {had}, but got a, b; keep'):
        build_joint(model).load_state_dict(state)
