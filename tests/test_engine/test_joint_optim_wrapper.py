"""One backward pass, then each part's own optimizer: against optimizers stepped by hand."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner

from kd_mm.engine.optim import JointOptimWrapper, JointOptimWrapperConstructor
from tests.test_engine.toy_cohort import (
    ADAM,
    NUM_CLASSES,
    SGD,
    assert_equal,
    build_cohort,
    build_joint,
    draw,
    in_double,
    joint_cfg,
    loss_of,
    student,
    weights,
)


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


def test_steps_equal_separate_optimizers_after_one_backward():
    model, by_hand = pair()
    joint, optimizers = build_joint(model), optimizers_by_hand(by_hand)
    before = weights(model)
    for step in range(3):
        log = model.train_step(draw(4, seed=step), joint)
        loss = loss_of(by_hand, draw(4, seed=step))
        loss.backward()
        step_by_hand(optimizers)
        assert log['loss'].item() == loss.item()
        assert_equal(weights(model), weights(by_hand))
    assert all(p.grad is None for p in model.parameters())
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_equals_the_single_wrapper_where_all_parts_are_alike():
    model, single = pair()
    clip = {'max_norm': 0.5}
    joint = build_joint(model, a=SGD, b=SGD, clip_grad=clip)
    plain = build_optim_wrapper(single, {'optimizer': SGD, 'clip_grad': clip})
    for step in range(3):
        model.train_step(draw(4, seed=step), joint)
        single.train_step(draw(4, seed=step), plain)
    assert_equal(weights(model), weights(single))


def test_configs_given_to_the_classes_are_left_alone():
    model = build_cohort()
    clip = {'type': 'norm', 'max_norm': 0.5}
    cfg = {'parts': {n: {'optimizer': SGD, 'clip_grad': dict(clip)} for n in 'ab'}}
    given = deepcopy(cfg)
    joint = JointOptimWrapperConstructor(cfg)(model)
    assert cfg == given
    JointOptimWrapper(joint.optim_wrappers, {'clip_grad': clip})
    assert clip == {'type': 'norm', 'max_norm': 0.5}


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
    model, whole = pair()
    model, whole = in_double(model), in_double(whole)
    joint = build_joint(model, accumulative_counts=2)
    joint.initialize_count_status(model, 0, 3)
    first, last = draw(8), draw(4, seed=1)
    halves = [{key: value[i : i + 4] for key, value in first.items()} for i in (0, 4)]
    updates = []
    for batch in (*halves, last):
        before = weights(model)
        sync = joint.should_sync()
        model.train_step(batch, joint)
        updates.append(
            not torch.equal(before['students.a.head.fc.weight'], model.students.a.head.fc.weight)
        )
        assert joint.should_update() == sync == updates[-1]
    assert updates == [False, True, True]
    assert joint.inner_count == 3

    optimizers = optimizers_by_hand(whole)
    for batch in (first, last):
        loss_of(whole, batch).backward()
        step_by_hand(optimizers)
    # Adam divides by the root of tiny squares: 1e-9 is far above its rounding.
    assert_equal(weights(model), weights(whole), rtol=1e-9, atol=1e-9)


def test_backward_and_step_can_be_called_apart():
    model, by_hand = pair()
    joint = build_joint(model, accumulative_counts=2)
    loss = loss_of(model, draw(4))
    joint.backward(joint.scale_loss(loss))
    joint.step()
    assert joint.inner_count == 1
    assert model.students.b.head.fc.weight.grad is not None
    joint.zero_grad(set_to_none=False)
    assert model.students.b.head.fc.weight.grad.abs().max() == 0
    optimizers = optimizers_by_hand(by_hand)
    (loss_of(by_hand, draw(4)) / 2).backward()
    step_by_hand(optimizers)
    assert_equal(weights(model), weights(by_hand))


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
@pytest.mark.parametrize('overflowing', ['a', 'b'])
def test_an_overflow_in_one_part_skips_all(overflowing):
    model = build_cohort()
    joint = build_joint(model, **AMP)
    model.train_step(draw(4), joint)
    before, state = weights(model), deepcopy(joint.state_dict())
    bias = model.students[overflowing].head.fc.bias
    handle = bias.register_hook(lambda grad: grad * float('inf'))
    model.train_step(draw(4), joint)
    handle.remove()
    assert_equal(weights(model), before)
    after = joint.state_dict()
    assert_equal(after['parts'], state['parts'])  # neither momentum nor Adam's step count moved
    assert (state['loss_scaler']['scale'], after['loss_scaler']['scale']) == (1024.0, 512.0)
    model.train_step(draw(4), joint)
    for name in ('a', 'b'):
        key = f'students.{name}.head.fc.weight'
        assert not torch.equal(before[key], model.state_dict()[key])


@pytest.mark.usefixtures('amp_on_cpu')
def test_the_amp_flag_of_the_tools_is_the_switch():
    cfg = Config({'optim_wrapper': joint_cfg()})
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    joint = build_optim_wrapper(build_cohort(), cfg.optim_wrapper)
    assert joint.state_dict()['loss_scaler']['scale'] == 65536.0


def test_amp_without_a_gpu_is_an_error():
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    with pytest.raises(AssertionError, match='only available training on gpu'):
        build_joint(build_cohort(), type='AmpOptimWrapper', loss_scale='dynamic')


@pytest.mark.usefixtures('amp_on_cpu')
@pytest.mark.parametrize('to', [AMP, {}], ids=['amp', 'full precision'])
def test_the_state_goes_into_a_new_wrapper(to):
    model = build_cohort()
    paramwise = {'optimizer': SGD, 'paramwise_cfg': {'bias_lr_mult': 2.0}}
    joint = build_joint(model, a=paramwise, **AMP)
    model.train_step(draw(4), joint)
    joint.joint.loss_scaler.update(256.0)
    copy = deepcopy(model)
    new = build_joint(copy, a=paramwise, **to)
    state = deepcopy(joint.state_dict())  # torch's optimizers share what they load
    before = deepcopy(state)
    new.load_state_dict(state)
    assert_equal(state, before)
    assert new.state_dict().get('loss_scaler', {}).get('scale') == (256.0 if to else None)
    assert_equal(new.state_dict()['parts'], state['parts'])
    loss_of(model, draw(4)).backward()
    loss_of(copy, draw(4)).backward()
    for wrapper in (joint, new):
        for part in wrapper.values():
            part.step()
    assert_equal(weights(copy), weights(model))


# --- the Runner ------------------------------------------------------------------------------


class Images(list):
    """Eight images and their labels."""

    def __init__(self):
        batch = draw(8)
        pairs = zip(batch['inputs'], batch['data_samples'], strict=True)
        super().__init__({'inputs': image, 'data_samples': sample} for image, sample in pairs)


def build_runner(work_dir, model, max_epochs=4, **kwargs):
    return Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=str(work_dir).replace('/', '_'),
        train_dataloader={
            'dataset': Images(),
            'batch_size': 4,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'default_collate'},
        },
        train_cfg={'by_epoch': True, 'max_epochs': max_epochs},
        default_scope='mmpretrain',
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 2}},
        log_level='ERROR',
        **kwargs,
    )


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


@pytest.mark.parametrize('amp', [False, True], ids=['full precision', 'amp'])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path, amp_on_cpu, amp):
    # A scale that grows every third step: what is not resumed is seen.
    scaler = {'init_scale': 256.0, 'growth_interval': 3}
    extra = {'type': 'AmpOptimWrapper', 'loss_scale': scaler} if amp else {}
    a = {'optimizer': SGD, 'paramwise_cfg': {'bias_lr_mult': 2.0}}
    options = {'optim_wrapper': joint_cfg(a=a, **extra), 'param_scheduler': SCHEDULES}
    straight = build_runner(tmp_path / 'straight', build_cohort(), **deepcopy(options))
    straight.train()
    resumed = build_runner(
        tmp_path / 'resumed',
        build_cohort(seed=1),
        load_from=str(tmp_path / 'straight' / 'epoch_2.pth'),
        resume=True,
        **deepcopy(options),
    )
    resumed.train()
    assert_equal(weights(resumed.model), weights(straight.model))
    assert_equal(resumed.optim_wrapper.state_dict(), straight.optim_wrapper.state_dict())
    assert logged(resumed, 'b.lr') == RATES_B
    assert logged(resumed, 'a.base_lr') == RATES_A


def test_auto_scale_lr_scales_every_part(tmp_path):
    runner = build_runner(
        tmp_path,
        build_cohort(),
        max_epochs=1,
        optim_wrapper=joint_cfg(),
        param_scheduler={'type': 'ConstantLR', 'factor': 0.5},  # one schedule for all parts
        auto_scale_lr={'base_batch_size': 2, 'enable': True},
    )
    runner.train()
    assert logged(runner, 'a.lr') == [0.1] * 2  # 0.1 x (4 / 2) x 0.5
    assert logged(runner, 'b.lr') == [0.01] * 2


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
    heads = {
        'prefix': ['students.a.head', 'students.b.head'],
        'optimizer': ADAM,
        'paramwise_cfg': {'custom_keys': {'fc.bias': {'lr_mult': 3.0}}},
    }
    rest = {'prefix': ['students.a.backbone', 'students.b.backbone'], 'optimizer': SGD}
    cfg = {**joint_cfg(), 'parts': {'heads': heads, 'rest': rest}}
    joint = build_optim_wrapper(model, cfg)
    rates = {name: rate for name, (rate, _) in names_in(joint['heads'], model).items()}
    assert rates == {
        'students.a.head.fc.weight': 0.01,
        'students.a.head.fc.bias': 0.03,
        'students.b.head.fc.weight': 0.01,
        'students.b.head.fc.bias': 0.03,
    }
    assert len(names_in(joint['rest'], model)) == len(list(model.parameters())) - 4


def test_a_part_can_have_the_constructor_of_its_students_recipe():
    arch = {'embed_dims': 8, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 8}
    vit = student(
        backbone={
            'type': 'mmpretrain.VisionTransformer',
            'arch': arch,
            'img_size': 32,
            'patch_size': 16,
            'in_channels': 1,
        },
        neck=None,
        head={
            'type': 'mmpretrain.VisionTransformerClsHead',
            'num_classes': NUM_CLASSES,
            'in_channels': 8,
        },
    )
    model = build_cohort(a=student(), b=vit)
    b = {
        'optimizer': {'type': 'AdamW', 'lr': 0.4, 'weight_decay': 0.05},
        'constructor': 'mmpretrain.LearningRateDecayOptimWrapperConstructor',
        'paramwise_cfg': {'layer_decay_rate': 0.5},
    }
    rates = {
        name: rate for name, (rate, _) in names_in(build_joint(model, b=b)['b'], model).items()
    }
    assert rates['students.b.head.layers.head.weight'] == 0.4
    assert rates['students.b.backbone.layers.1.ln1.weight'] == 0.2
    assert rates['students.b.backbone.layers.0.ln1.weight'] == 0.1
    assert rates['students.b.backbone.cls_token'] == 0.05


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
MISTAKES = {
    'no parts': (only(), ValueError, r'must give the optimizer of each student.*but got \{\}'),
    'parts missing': (
        {'constructor': 'kd_mm.JointOptimWrapperConstructor'},
        ValueError,
        'but got None',
    ),
    'unknown student': (
        only(a=A, bb=B),
        ValueError,
        r"but got 'students.bb'; did you mean students.b\?",
    ),
    'unknown module': (
        only(a=A, b={'prefix': 'students.xxxxxxxxxxxxxxx', **B}),
        ValueError,
        'there are students.a, students.b',
    ),
    'a parameter is no module': (
        only(a=A, b={'prefix': 'students.b.head.fc.bias', **B}),
        ValueError,
        'must name a module',
    ),
    'a forgotten student': (
        only(a=A),
        ValueError,
        r'students.b.backbone.features.0.weight, .* and 5 more are in none; add a part, such as '
        r"b=dict\(prefix='students.b', ",
    ),
    'a forgotten head': (
        only(a=A, b={'prefix': 'students.b.backbone', **B}),
        ValueError,
        'students.b.head.fc.weight, students.b.head.fc.bias are in none',
    ),
    'twice': (
        only(a=A, b=B, heads={'prefix': 'students.a.head', **A}),
        ValueError,
        'students.a.head.fc.weight, students.a.head.fc.bias are in a and heads; give',
    ),
    'twice in one part': (
        only(a={'prefix': ['students.a', 'students.a.head'], **A}, b=B),
        ValueError,
        'are in a and a; give',
    ),
    'no optimizer': (only(a=A, b={'lr': 0.1}), ValueError, 'parts.b must be a dict with an opt'),
    'no dict': (only(a=A, b=None), ValueError, 'with an optimizer, but got None'),
    'no such option': (
        only(a=A, b={**B, 'accumulative_counts': 2}),
        TypeError,
        'parts.b has no option accumulative_counts; there are prefix, .* belong to optim_wrapper',
    ),
    'shared optimizer': (joint_cfg(optimizer=SGD), ValueError, 'got optim_wrapper.optimizer; mov'),
    'shared paramwise': (
        joint_cfg(paramwise_cfg={'bias_lr_mult': 2}),
        ValueError,
        'got optim_wrapper.paramwise_cfg',
    ),
    'type': (joint_cfg(type='ApexOptimWrapper'), ValueError, "but got 'ApexOptimWrapper'"),
}


@pytest.mark.parametrize(('cfg', 'error', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(cfg, error, message):
    with pytest.raises(error, match=message):
        build_optim_wrapper(build_cohort(), cfg)


def test_a_frozen_part_is_named():
    model = build_cohort()
    model.students.b.requires_grad_(False)
    with pytest.raises(ValueError, match=r'parts.b must .* each of its 8 parameters is frozen'):
        build_joint(model)


def test_a_module_that_two_students_share_is_named():
    model = build_cohort()
    model.students.b.head = model.students.a.head
    with pytest.raises(ValueError, match=r'students.a.head.fc.weight, .* are in a and b'):
        build_joint(model)


@pytest.mark.parametrize('single', [True, False])
def test_a_checkpoint_of_other_parts_is_refused(single):
    model = build_cohort()
    if single:
        state = build_optim_wrapper(model, {'optimizer': SGD}).state_dict()
    else:
        cfg = only(all={'prefix': 'students', 'optimizer': SGD})
        state = build_optim_wrapper(model, cfg).state_dict()
    had = 'a single optimizer' if single else 'all'
    with pytest.raises(ValueError, match=f'of its checkpoint, {had}, but got a, b; keep'):
        build_joint(model).load_state_dict(state)
