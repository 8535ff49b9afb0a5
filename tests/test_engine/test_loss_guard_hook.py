"""A loss that is not finite stops the run before the step, or costs that step alone."""

import math

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.runner import Runner

from kd_mm.engine.hooks import LossGuardHook
from kd_mm.methods import DML
from tests.test_distributed.ranks import run_on_ranks
from tests.test_engine.toy_cohort import build_cohort, draw, joint_cfg

PER_EPOCH = 4
CHECKPOINT = {'type': 'CheckpointHook', 'interval': 1, 'max_keep_ckpts': 1}
SGD = {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.1}


class Falling(BaseModel):
    """A weight and a buffer, and losses that are not finite when the plan says so.

    The plan tells by iteration, counted over all forward passes: ``nan`` or ``inf`` as the loss,
    ``gradient`` for a finite loss whose gradient is not, ``buffer`` for a NaN that a buffer takes
    up as well.
    """

    def __init__(self, plan):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.register_buffer('mean', torch.zeros(1))
        self.plan, self.passes, self.before = plan, 0, []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        images = torch.stack(inputs)
        if mode != 'loss':
            return self.linear(images)
        event = self.plan.get(self.passes)
        self.passes += 1
        self.before.append(self.linear.weight.item())
        loss = self.linear(images).square().mean()
        zero = (self.linear.weight - self.linear.weight.detach()).sum()
        extra = zero * 0.5
        if event in ('nan', 'buffer'):
            extra = loss * math.nan
        elif event == 'inf':
            extra = zero + math.inf
        elif event == 'gradient':
            extra = zero.square().sqrt()  # 0, with the gradient 0 / 0
        if event == 'buffer':
            self.mean.fill_(math.nan)
        return {'loss': loss, 'loss_extra': [extra, zero], 'monitor': loss.detach() * math.nan}


def build_runner(work_dir, plan, hook=None, model=None, epochs=2, **changes):
    settings = {
        'model': model or Falling(plan),
        'work_dir': str(work_dir),
        'train_dataloader': {
            'dataset': [{'inputs': torch.ones(1)} for _ in range(PER_EPOCH)],
            'batch_size': 1,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        'train_cfg': {'by_epoch': True, 'max_epochs': epochs},
        'optim_wrapper': {'optimizer': SGD},
        'custom_hooks': [{'type': 'kd_mm.LossGuardHook', **(hook or {})}],
        'default_hooks': {'checkpoint': CHECKPOINT},
        'experiment_name': f'guard{work_dir.parent.name}{work_dir.name}',
        'log_level': 'ERROR',
        **changes,
    }
    return Runner(**settings)


def saved(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth'))


@pytest.mark.parametrize('event', ['nan', 'inf'])
def test_stops_before_the_step_and_names_the_term(tmp_path, event):
    runner = build_runner(tmp_path, {6: event})
    with pytest.raises(FloatingPointError) as caught:
        runner.train()
    assert str(caught.value).startswith(
        f'the loss is not finite in epoch 2, iteration 7: loss_extra = {event}. The step was not'
    )
    assert runner.model.passes == 7
    assert runner.model.linear.weight.item() == runner.model.before[-1]  # no step since
    assert saved(tmp_path) == ['epoch_1.pth']


def test_a_healthy_run_is_left_as_it_is(tmp_path):
    weights = []
    for name, hooks in (('with', None), ('without', [])):
        torch.manual_seed(0)
        changes = {} if hooks is None else {'custom_hooks': hooks}
        runner = build_runner(tmp_path / name, {}, **changes)
        runner.train()
        weights.append(runner.model.before)
        assert not runner.model._forward_hooks
    assert weights[0] == weights[1]


def test_weights_that_are_not_finite_are_not_saved_and_remove_nothing(tmp_path):
    # The loss of the last iteration is finite, the gradient is not: the step spoils the weights.
    runner = build_runner(tmp_path, {2 * PER_EPOCH - 1: 'gradient'})
    with pytest.raises(FloatingPointError, match=r'not finite: linear\.weight\. They were not'):
        runner.train()
    assert saved(tmp_path) == ['epoch_1.pth']  # the hook keeps one, and removes it before saving

    checkpoint = {**CHECKPOINT, 'by_epoch': False, 'interval': 2}
    changes = {
        'train_cfg': {'by_epoch': False, 'max_iters': 8},
        'default_hooks': {'checkpoint': checkpoint},
    }
    runner = build_runner(tmp_path / 'iters', {3: 'gradient'}, **changes)
    with pytest.raises(FloatingPointError, match='They were not saved'):
        runner.train()
    assert saved(tmp_path / 'iters') == ['iter_2.pth']


def test_spoilt_weights_and_spoilt_images_are_told(tmp_path):
    runner = build_runner(tmp_path, {1: 'gradient'})
    with pytest.raises(FloatingPointError, match=r'iteration 3: .*not finite either \(linear\.we'):
        runner.train()
    runner = build_runner(tmp_path / 'images', {})
    runner.train_dataloader.dataset[2]['inputs'].fill_(math.inf)
    with pytest.raises(FloatingPointError, match=r'loss = inf.* images of the batch are not'):
        runner.train()


def test_weights_are_looked_at_before_validation(tmp_path):
    hook = LossGuardHook()
    runner = build_runner(tmp_path, {})
    hook.before_val(runner)
    torch.nn.init.constant_(runner.model.mean, math.inf)
    with pytest.raises(FloatingPointError, match='not finite: mean'):
        hook.before_val(runner)


@pytest.mark.parametrize('event', ['nan', 'inf'])
def test_skip_drops_the_step_alone(tmp_path, event):
    """The run is that of the other batches: no momentum, no decay, no count of the optimizer."""
    changes = {'epochs': 2, 'log_level': 'WARNING'}
    befores = []
    for name, plan in (('b', {}), ('a', {3: event})):
        runner = build_runner(tmp_path / name, plan, {'on_nonfinite': 'skip'}, **changes)
        torch.nn.init.constant_(runner.model.linear.weight, 0.5)
        torch.nn.init.constant_(runner.model.linear.bias, 0.25)
        runner.train()
        befores.append(runner.model.before)
    plain, before = befores
    assert before[:4] + before[5:] == plain[:7]
    assert before[3] == before[4]
    log = next((tmp_path / 'a').glob('*/*.log')).read_text()
    assert f'iteration 4: loss_extra = {event}; the step is skipped (1 in a row, ' in log


@pytest.mark.parametrize(('limit', 'passes'), [(1, 5), (2, 6)])
def test_skips_in_a_row_are_limited(tmp_path, limit, passes):
    plan = {0: 'nan', 1: None, 3: 'nan', 4: 'nan', 5: 'nan'}
    hook = {'on_nonfinite': 'skip', 'max_consecutive_skips': limit}
    runner = build_runner(tmp_path, plan, hook)
    with pytest.raises(FloatingPointError, match=f'iteration {limit + 1} of its kind in a row'):
        runner.train()
    assert runner.model.passes == passes


def test_what_a_buffer_took_up_cannot_be_skipped(tmp_path):
    runner = build_runner(tmp_path, {1: 'buffer'}, {'on_nonfinite': 'skip'})
    with pytest.raises(
        FloatingPointError, match='cannot be skipped, since mean is not finite either'
    ):
        runner.train()


@pytest.mark.parametrize('bad', [0, 1], ids=['first pass', 'last pass'])
def test_gradient_accumulation(tmp_path, bad):
    """A pass of the first pair is dropped with those before it; the other pair steps as ever."""
    changes = {'optim_wrapper': {'optimizer': SGD, 'accumulative_counts': 2}, 'epochs': 1}
    runner = build_runner(tmp_path / 'a', {bad: 'nan'}, {'on_nonfinite': 'skip'}, **changes)
    runner.train()
    before = runner.model.before
    assert before[0] == before[1]
    assert (before[1] == before[2]) == (bad == 1)
    assert math.isfinite(runner.model.linear.weight.item())
    assert runner.model.linear.weight.item() != before[3]
    runner = build_runner(tmp_path / 'b', {bad: 'nan'}, **changes)
    with pytest.raises(FloatingPointError, match=f'iteration {bad + 1}: loss_extra = nan'):
        runner.train()


class Scaled(torch.amp.GradScaler):
    """A GradScaler that scales on a CPU, and asks no step of an optimizer that overflowed."""

    def __init__(self):
        super().__init__('cpu', init_scale=4.0)


@pytest.mark.parametrize('choice', ['stop', 'skip'])
def test_under_a_grad_scaler_which_takes_no_step_itself(tmp_path, choice, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.GradScaler', Scaled)
    monkeypatch.setattr(
        'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True
    )
    changes = {'optim_wrapper': {'type': 'AmpOptimWrapper', 'optimizer': SGD}, 'epochs': 1}
    changes['optim_wrapper']['dtype'] = 'bfloat16'
    runner = build_runner(tmp_path, {1: 'nan'}, {'on_nonfinite': choice}, **changes)
    if choice == 'stop':
        with pytest.raises(FloatingPointError, match='iteration 2: loss_extra = nan'):
            runner.train()
        assert runner.model.linear.weight.item() == runner.model.before[1]
        return
    runner.train()
    before = runner.model.before
    assert before[1] == before[2] != before[3]
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0


class Failing(DML):
    """Mutual learning with a term of one student that fails, and one that no gradient passes."""

    fails_at, passes = None, 0

    def losses(self, step):
        losses = super().losses(step)
        if self.passes == self.fails_at:
            losses['b/loss_dml'] = losses['b/loss_dml'] * math.nan
        self.passes += 1
        return {**losses, 'a/loss_fixed': step.logits()['a'].detach().mean()}


def failing_cohort(fails_at=None):
    model = build_cohort()
    model.methods['dml'] = Failing()
    model.methods['dml'].fails_at = fails_at
    return model


def cohort_runner(work_dir, model, **changes):
    images = draw(8)
    data = [
        {'inputs': image, 'data_samples': sample}
        for image, sample in zip(images['inputs'], images['data_samples'], strict=True)
    ]
    loader = {
        'dataset': data,
        'batch_size': 2,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
    }
    changes = {'train_dataloader': loader, 'optim_wrapper': joint_cfg(), **changes}
    return build_runner(work_dir, {}, model=model, **changes)


def test_the_student_is_named_and_no_part_steps(tmp_path):
    model = failing_cohort(fails_at=1)
    runner = cohort_runner(tmp_path, model)
    start = {}
    model.register_forward_pre_hook(
        lambda module, inputs: start.update({n: p.clone() for n, p in model.named_parameters()})
    )
    with pytest.raises(FloatingPointError, match=r'iteration 2: loss_dml of student b = nan\. '):
        runner.train()
    assert all(torch.equal(start[name], param) for name, param in model.named_parameters())


def test_a_term_that_no_gradient_passes_is_reported_once(tmp_path):
    model = failing_cohort()
    cohort_runner(tmp_path, model, log_level='WARNING', epochs=1).train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('no parameter learns from loss_fixed of student a: ') == 1
    assert 'loss_dml' not in log


def rank_with_a_failing_loss(rank, folder, choice):
    model = failing_cohort(fails_at=1 if rank == 1 else None)
    method = model.methods['dml']
    model = MMDistributedDataParallel(model, device_ids=None)
    runner = cohort_runner(folder / 'run', model, custom_hooks=[LossGuardHook(choice)])
    start = {}

    def note(module, inputs):
        start[method.passes] = [p.detach().clone() for p in module.parameters()]

    model.module.register_forward_pre_hook(note)
    message = ''
    try:
        runner.train()
    except FloatingPointError as error:
        message = str(error)
    after = start.get(2, list(model.parameters()))
    took_no_step = all(torch.equal(a, b) for a, b in zip(start[1], after, strict=True))
    return message, method.passes, took_no_step


@pytest.mark.parametrize('choice', ['stop', 'skip'])
def test_all_ranks_decide_alike(tmp_path, choice):
    results = run_on_ranks(rank_with_a_failing_loss, tmp_path, tmp_path, choice)
    assert results[0] == results[1]
    message, passes, took_no_step = results[0]
    files = saved(tmp_path / 'run')
    assert took_no_step
    if choice == 'stop':
        assert 'iteration 2: loss_dml of student b = nan on rank 1. ' in message
        assert (passes, files) == (2, [])
    else:
        assert (message, passes, files) == ('', 4, ['epoch_2.pth'])


def test_a_compiled_step_is_watched_too(tmp_path):
    runner = build_runner(tmp_path, {1: 'nan'}, cfg={'compile': {'backend': 'eager'}})
    with pytest.raises(FloatingPointError, match='iteration 2: loss_extra = nan'):
        runner.train()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs KD_MM_TEST_GPU=1 and a GPU')
def test_on_a_gpu(tmp_path):
    runner = build_runner(tmp_path, {6: 'nan'})
    with pytest.raises(FloatingPointError, match='iteration 7: loss_extra = nan'):
        runner.train()
    assert runner.model.linear.weight.item() == runner.model.before[-1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'on_nonfinite': 'halt'}, "on_nonfinite must be one of stop, skip, but got 'halt'"),
        ({'max_consecutive_skips': 0}, 'an integer of at least 1, but got 0'),
        ({'max_consecutive_skips': 2.0}, r'an integer of at least 1, but got 2\.0'),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossGuardHook(**arguments)
