"""A loss that is not finite stops the run before the step, or costs that step alone."""

import math
from functools import partial

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim.optimizer import amp_optimizer_wrapper

from kd_mm.engine.hooks import LossGuardHook
from kd_mm.methods import DML
from tests.ranks import run_on_ranks
from tests.toys.cohort import build_cohort, items, joint_cfg
from tests.toys.models import loader, runner_of

PER_EPOCH = 4
CHECKPOINT = {'type': 'CheckpointHook', 'interval': 1, 'max_keep_ckpts': 1}
SGD = {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.1}
SKIP = {'on_nonfinite': 'skip'}


class Falling(BaseModel):
    """A weight and a buffer, and losses that are not finite at the passes of a plan.

    Events are ``nan`` and ``inf``; ``gradient`` for a finite loss whose gradient is not finite;
    ``buffer`` for a NaN that goes into a buffer, too.
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


def build_runner(work_dir, plan, hook=None, epochs=2, **changes):
    data = loader([{'inputs': torch.ones(1)} for _ in range(PER_EPOCH)], 1)
    model = Falling(plan)
    for parameter in model.linear.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    settings = {
        'optim_wrapper': {'optimizer': SGD},
        'custom_hooks': [{'type': 'kd_mm.LossGuardHook', **(hook or {})}],
        'default_hooks': {'checkpoint': CHECKPOINT},
        **changes,
    }
    data['collate_fn'] = {'type': 'pseudo_collate'}
    return runner_of(model, work_dir, data, epochs, **settings)


def saved(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth'))


@pytest.mark.parametrize('event', ['nan', 'inf'])
def test_stops_before_the_step_and_names_the_term(tmp_path, event):
    runner = build_runner(tmp_path / 'a', {6: event})
    with pytest.raises(FloatingPointError) as caught:
        runner.train()
    assert str(caught.value).startswith(
        f'the loss is not finite in epoch 2, iteration 7: loss_extra = {event}. The step was not'
    )
    assert runner.model.linear.weight.item() == runner.model.before[-1]  # no step since
    assert saved(tmp_path / 'a') == ['epoch_1.pth']
    plain = build_runner(tmp_path / 'b', {}, custom_hooks=[])
    plain.train()
    assert plain.model.before[:7] == runner.model.before  # the hook changes no healthy step


BY_ITERATION = {
    'train_cfg': {'by_epoch': False, 'max_iters': 8},
    'default_hooks': {'checkpoint': {**CHECKPOINT, 'by_epoch': False, 'interval': 2}},
}


@pytest.mark.parametrize(
    ('at', 'changes', 'file'), [(7, {}, 'epoch_1.pth'), (3, BY_ITERATION, 'iter_2.pth')]
)
def test_weights_that_are_not_finite_are_not_saved(tmp_path, at, changes, file):
    # The loss of the iteration is finite, the gradient is not: the step spoils the weights.
    runner = build_runner(tmp_path, {at: 'gradient'}, **changes)
    with pytest.raises(FloatingPointError, match=r'not finite: linear\.weight\. They were not'):
        runner.train()
    assert saved(tmp_path) == [file]  # MMEngine removes the old one before it saves the new one


def test_weights_and_images_that_are_not_finite_are_named(tmp_path):
    runner = build_runner(tmp_path / 'weights', {1: 'gradient'})
    with pytest.raises(FloatingPointError, match=r'iteration 3: .*not finite either \(linear\.we'):
        runner.train()
    runner = build_runner(tmp_path / 'images', {})
    runner.train_dataloader.dataset[2]['inputs'].fill_(math.inf)
    with pytest.raises(FloatingPointError, match=r'loss = inf.* images of the batch are not'):
        runner.train()
    runner = build_runner(tmp_path / 'validation', {})
    runner.model.mean.fill_(math.inf)
    with pytest.raises(FloatingPointError, match='not finite: mean'):
        runner.call_hook('before_val')


def test_skip_drops_the_step_alone(tmp_path):
    """The run is that of the other batches: no momentum, no decay, no count of the optimizer."""
    befores = []
    for name, plan in (('b', {}), ('a', {3: 'nan'})):
        runner = build_runner(tmp_path / name, plan, SKIP, log_level='WARNING')
        runner.train()
        befores.append(runner.model.before)
    plain, before = befores
    assert before[:4] + before[5:] == plain[:7]
    assert before[3] == before[4]
    log = next((tmp_path / 'a').glob('*/*.log')).read_text()
    assert 'iteration 4: loss_extra = nan; the step is skipped (1 in a row, ' in log


@pytest.mark.parametrize(
    ('plan', 'message', 'passes'),
    [
        ({0: 'nan', 2: 'nan', 3: 'nan', 4: 'nan'}, 'It is skip number 3 in a row', 5),
        ({1: 'buffer'}, 'cannot be skipped, since mean is not finite', 2),
    ],
)
def test_skips_have_limits(tmp_path, plan, message, passes):
    runner = build_runner(tmp_path, plan, {**SKIP, 'max_consecutive_skips': 2})
    with pytest.raises(FloatingPointError, match=message):
        runner.train()
    assert runner.model.passes == passes


@pytest.mark.parametrize('bad', [0, 1], ids=['first pass', 'last pass'])
def test_gradient_accumulation(tmp_path, bad):
    """A pass of the first pair is dropped with those before it; the other pair steps as before."""
    changes = {'optim_wrapper': {'optimizer': SGD, 'accumulative_counts': 2}, 'epochs': 1}
    runner = build_runner(tmp_path / 'a', {bad: 'nan'}, SKIP, **changes)
    runner.train()
    before = runner.model.before
    assert before[0] == before[1]
    assert (before[1] == before[2]) == (bad == 1)
    assert math.isfinite(runner.model.linear.weight.item())
    assert runner.model.linear.weight.item() != before[3]
    runner = build_runner(tmp_path / 'b', {bad: 'nan'}, **changes)
    with pytest.raises(FloatingPointError, match=f'iteration {bad + 1}: loss_extra = nan'):
        runner.train()


@pytest.mark.parametrize('choice', ['stop', 'skip'])
def test_under_a_grad_scaler_which_takes_no_step_itself(tmp_path, choice, monkeypatch):
    scaler = partial(torch.amp.GradScaler, 'cpu', init_scale=4.0)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    amp = {'type': 'AmpOptimWrapper', 'optimizer': SGD, 'dtype': 'bfloat16'}
    hook = {'on_nonfinite': choice}
    runner = build_runner(tmp_path, {1: 'nan'}, hook, optim_wrapper=amp, epochs=1)
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
    hooks = [{'type': 'kd_mm.LossGuardHook'}]
    settings = {'custom_hooks': hooks, 'optim_wrapper': joint_cfg(), **changes}
    return runner_of(model, work_dir, loader(items(8), 2), **settings)


def test_a_term_that_no_gradient_passes_is_reported_once(tmp_path):
    cohort_runner(tmp_path, failing_cohort(), log_level='WARNING').train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('no parameter learns from loss_fixed of student a: ') == 1
    assert 'loss_dml' not in log


def rank_with_a_failing_loss(rank, folder):
    results = {}
    for choice in ('stop', 'skip'):
        model = failing_cohort(fails_at=1 if rank == 1 else None)
        method = model.methods['dml']
        ddp = MMDistributedDataParallel(model, device_ids=None)
        hooks = [{'type': 'kd_mm.LossGuardHook', 'on_nonfinite': choice}]
        runner = cohort_runner(folder / choice, ddp, custom_hooks=hooks)
        start = {}

        def note(module, inputs, start=start, method=method):
            start[method.passes] = [p.detach().clone() for p in module.parameters()]

        model.register_forward_pre_hook(note)
        message = ''
        try:
            runner.train()
        except FloatingPointError as error:
            message = str(error)
        after = start.get(2, list(model.parameters()))
        took_no_step = all(torch.equal(a, b) for a, b in zip(start[1], after, strict=True))
        results[choice] = message, method.passes, took_no_step
    return results


def test_all_ranks_decide_alike_and_no_part_steps(tmp_path):
    first, second = run_on_ranks(rank_with_a_failing_loss, tmp_path, tmp_path)
    assert first == second
    message, passes, took_no_step = first['stop']
    assert 'iteration 2: loss_dml of student b = nan on rank 1. ' in message
    assert (passes, took_no_step, saved(tmp_path / 'stop')) == (2, True, [])
    assert first['skip'] == ('', 2, True)
    assert saved(tmp_path / 'skip') == ['epoch_1.pth']


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs KD_MM_TEST_GPU=1 and a GPU')
def test_on_a_gpu(tmp_path):
    runner = build_runner(tmp_path, {6: 'nan'})
    with pytest.raises(FloatingPointError, match='iteration 7: loss_extra = nan'):
        runner.train()
    assert runner.model.linear.weight.item() == runner.model.before[-1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'on_nonfinite': 'halt'}, "one of 'stop', 'skip', but got 'halt'"),
        ({'max_consecutive_skips': 0}, 'an integer of at least 1, but got 0'),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossGuardHook(**arguments)
