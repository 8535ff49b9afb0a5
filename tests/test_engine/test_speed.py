"""What makes a step faster changes no result: compile, channels last, bfloat16, lazy log."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from kd_mm.engine.hooks import ChannelsLastHook, LossGuardHook
from kd_mm.engine.hooks.speed import LazyHistoryBuffer, use_channels_last
from kd_mm.functional import kdcl
from tests.toys.cohort import assert_equal, weights
from tests.toys.models import (
    METHODS,
    batch,
    build,
    build_runner,
    images,
    loader,
    optim_cfg,
)

BFLOAT16 = {'type': 'kd_mm.Bfloat16OptimWrapper'}
# Terms that necks take part in, which are networks and run in bfloat16.
AFTER_NECKS = ('self_distillation', 'neck', 'decoder', 'fusion', 'leader/loss_kd')
COMPILED = {'cfg': {'compile': {'backend': 'eager'}}}


def train(method, work_dir, hooks=(), model=None, **changes):
    """The terms of five iterations, and the weights after them."""
    runner = build_runner(method, work_dir, model, **changes)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    histories = runner.message_hub.log_scalars.items()
    terms = {key: torch.tensor(h.data[0]) for key, h in histories if 'loss' in key}
    return terms, weights(runner.model)


# --- channels last ---------------------------------------------------------------------------


class Formats(Hook):
    """Record whether convolutions and their inputs are channels last, at each iteration."""

    priority = 'VERY_LOW'

    def before_train(self, runner):
        self.of_backbones, self.of_necks = [], []
        for name, module in runner.model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                seen = self.of_backbones if 'backbone' in name else self.of_necks
                module.register_forward_pre_hook(partial(self.record, seen))

    @staticmethod
    def record(seen, convolution, args):
        for tensor in (args[0], convolution.weight):
            if convolution.training and min(tensor.shape[1:]) > 1:  # otherwise it is both
                seen.append(tensor.is_contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize('method', METHODS)
def test_channels_last_is_another_order_of_the_same_numbers(method, tmp_path):
    before, after = Formats(), Formats()
    plain, _ = train(method, tmp_path / 'plain', [before])
    last, _ = train(method, tmp_path / 'last', [ChannelsLastHook(), after])
    assert not any(before.of_backbones)  # necks choose for themselves
    assert all(after.of_backbones + after.of_necks)
    assert len(after.of_backbones) >= 10
    assert bool(after.of_necks) == (method == 'ffsd')
    # Of weights that are equal, and of those after a step; rounding errors grow from there.
    for key, terms in plain.items():
        torch.testing.assert_close(last[key][:2], terms[:2], rtol=1e-4, atol=1e-6)


def test_views_are_channels_last_until_the_hook_is_removed():
    model = build('dml', views='per_student').eval()
    given = batch()
    seen = []
    for student in model.students.values():
        student.backbone.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
    views = {**given, 'inputs': [given['inputs']] * 2}
    handle = use_channels_last(model)
    model(**views, mode='loss')
    model(**given, mode='predict')
    assert seen == [True] * 4
    assert given['inputs'].is_contiguous()
    handle.remove()
    model(**views, mode='loss')
    assert seen[4:] == [False] * 2


# --- bfloat16 --------------------------------------------------------------------------------


def widen(leaf):
    half = isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16
    return leaf.float() if half else leaf


@pytest.mark.parametrize('method', ['bake_student', 'dml', 'general', 'ffsd'])
def test_bfloat16_trains_float32_weights_with_float32_losses(method):
    full, half = build(method), build(method)
    exact = full.train_step(batch(), build_optim_wrapper(full, optim_cfg(method)))
    steps = []
    (distillation,) = half.methods.values()
    losses = distillation.losses
    distillation.losses = lambda step: steps.append(step) or losses(step)
    terms = half.train_step(batch(), build_optim_wrapper(half, optim_cfg(method, **BFLOAT16)))
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert not torch.equal(terms['loss'], exact['loss'])
    torch.testing.assert_close(terms, exact, rtol=0.1, atol=0.05)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    # The same terms of the same logits and maps, with and without autocast.
    (step,) = steps
    assert {z.dtype for z in step.logits().values()} == {torch.bfloat16}
    with torch.autocast('cpu', torch.bfloat16):
        own = losses(step)
    again = losses(tree_map(widen, step))
    for key, term in own.items():
        necks = any(part in key for part in AFTER_NECKS)
        exactness = {'rtol': 0.05, 'atol': 1e-3} if necks else {'rtol': 1e-6, 'atol': 1e-7}
        torch.testing.assert_close(term, again[key], **exactness, msg=key)


# --- compile ---------------------------------------------------------------------------------


class Compilations(Hook):
    """Record after each iteration how many functions were compiled so far."""

    def __init__(self):
        self.counts = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.counts.append(counters['frames']['total'])


def test_a_compiled_step_is_the_same_to_the_last_bit_and_compiled_once(tmp_path):
    torch.compiler.reset()
    compilations = Compilations()
    schedule = {'type': 'CosineAnnealingLR', 'by_epoch': False, 'T_max': 5}
    switches = {'optim': BFLOAT16, 'param_scheduler': schedule}
    plain = train('min_logit', tmp_path / 'plain', [ChannelsLastHook()], **switches)
    before = counters['frames']['total']
    hooks = [ChannelsLastHook(), compilations]
    compiled = train('min_logit', tmp_path / 'compiled', hooks, **switches, **COMPILED)
    assert_equal(compiled, plain)
    assert compilations.counts[0] > before
    assert compilations.counts == compilations.counts[:1] * 5
    spoilt = build('min_logit')
    nn.init.constant_(spoilt.students.a.head.fc.weight, float('nan'))
    with pytest.raises(FloatingPointError, match='iteration 1: loss of student a = nan'):
        train('min_logit', tmp_path / 'spoilt', model=spoilt, **COMPILED)


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'bake'])
def test_terms_compile_as_a_whole_with_the_same_values_and_gradients(method):
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        model = build(method)
        (distillation,) = model.methods.values()
        if compiled:
            # As a whole: where the graph breaks, a run continues without compiling, and nobody
            # sees it. Linear's solver looks whether it may stop.
            distillation.losses = torch.compile(
                distillation.losses, backend='eager', fullgraph=method != 'linear'
            )
        losses = model(**model.data_preprocessor(batch(), True), mode='loss')
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters())
        found.append((losses, {n: p.grad for n, p in model.named_parameters()}))
    assert_equal(found[1], found[0])


@pytest.mark.parametrize('method', ['bake_student', 'dml', 'general', 'ffsd'])
def test_a_compiled_run_recomputes_activations(method, tmp_path):
    torch.compiler.reset()
    plain = train(method, tmp_path / 'plain')
    model = build(method, with_cp=True)
    assert_equal(train(method, tmp_path / 'compiled', model=model, **COMPILED), plain)


def test_a_run_resumes_with_and_without_channels_last(tmp_path):
    def run(folder, *hooks, epochs=2, **changes):
        train_cfg = {'by_epoch': True, 'max_epochs': epochs}
        return train('dml', tmp_path / folder, hooks, train_cfg=train_cfg, **changes)[1]

    whole = run('whole', ChannelsLastHook())
    resumed = {'resume': True, 'load_from': str(tmp_path / 'whole/epoch_1.pth')}
    assert_equal(run('with', ChannelsLastHook(), **resumed), whole)
    without = run('without', **resumed)
    assert all(tensor.is_contiguous() for tensor in without.values())
    assert not all(tensor.is_contiguous() for tensor in whole.values())
    torch.testing.assert_close(without, whole, rtol=1e-2, atol=1e-3)


# --- the lazy log ----------------------------------------------------------------------------

# What makes the host wait for a GPU: a value on the host, or a shape that depends on values.
WAITS = {
    'aten::_local_scalar_dense',
    'aten::equal',
    'aten::is_nonzero',
    'aten::masked_select',
    'aten::nonzero',
    'aten::repeat_interleave.Tensor',
    'aten::_unique2',
}
LAZY, STOCK = ({'type': name} for name in ('kd_mm.LazyRuntimeInfoHook', 'RuntimeInfoHook'))


class Waits(TorchDispatchMode):
    """Count by iteration what would wait."""

    def __init__(self, runner):
        super().__init__()
        self.runner, self.seen = runner, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in WAITS:
            self.seen[self.runner.iter] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('method', METHODS)
def test_no_iteration_waits_for_the_device_between_two_lines_of_the_log(
    method, tmp_path, monkeypatch
):
    # On a GPU the verdict is copied during the backward pass, to be read from the host's memory.
    monkeypatch.setattr(LossGuardHook, '_is_bad', lambda self: False)
    monkeypatch.setattr(kdcl, '_may_stop', lambda gap: False)
    reads = []
    tolist = Tensor.tolist
    runner = build_runner(method, tmp_path)
    monkeypatch.setattr(Tensor, 'tolist', lambda t: reads.append(runner.iter) or tolist(t))
    with Waits(runner) as mode:
        runner.train()
    assert [mode.seen[i] for i in range(1, 5)] == [0, 0, 0, 0]
    assert mode.seen[0] > 0  # new terms
    # One copy for each line of the log, and one at the end of the epoch.
    assert [i for i in reads if 0 < i < 5] == [1, 3]


def test_log_and_checkpoints_are_the_same_to_the_last_bit(tmp_path):
    found = {}
    window = {'data_src': 'loss', 'log_name': 'm', 'method_name': 'max', 'window_size': 'epoch'}
    for name, hook in (('lazy', LAZY), ('stock', STOCK)):
        hooks = {
            'runtime_info': hook,
            'logger': {'type': 'LoggerHook', 'interval': 2},
            'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 3},
            'safe_checkpoints': {'type': 'kd_mm.SafeCheckpointHook'},
        }
        runner = build_runner(
            'dml',
            tmp_path / name,
            default_hooks=hooks,
            train_cfg={'by_epoch': True, 'max_epochs': 2},
            log_processor={'window_size': 3, 'custom_cfg': [dict(window)]},
        )
        runner.train()
        (path,) = (tmp_path / name).glob('*/vis_data/scalars.json')
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        log = [{k: v for k, v in line.items() if 'time' not in k} for line in lines]
        file = torch.load(tmp_path / name / 'iter_3.pth', weights_only=False)
        found[name] = log, file['message_hub']['log_scalars']
    (lazy_log, lazy), (stock_log, stock) = found.values()
    assert len(lazy_log) == 4
    assert lazy_log == stock_log
    assert list(lazy) == list(stock)
    for key in stock:
        assert type(lazy[key]) is HistoryBuffer
        for ours, theirs in zip(lazy[key].data, stock[key].data, strict=True):
            assert len(ours) == 3
            assert ours.dtype == theirs.dtype
            assert 'time' in key or np.array_equal(ours, theirs), key


class Unusual(Hook):
    """Log terms of other kinds, and change one after it was logged."""

    priority = 'HIGHEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        step = torch.tensor(float(runner.iter))
        outputs |= {'count': torch.tensor(runner.iter), 'double': step.double() / 3}
        outputs |= {'one': step[None], 'half': (step / 3).bfloat16()}
        # First a number, then a tensor.
        outputs['number'] = step if runner.iter == 2 else float(runner.iter)
        if runner.iter == 3:
            outputs['late'] = step
        self.one = outputs['one']

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter > 0:
            self.one.fill_(-1)
            runner.message_hub.update_scalar('train/one', 0.5)


def test_terms_of_any_kind_are_logged_as_they_were(tmp_path):
    runner = build_runner('dml', tmp_path, custom_hooks=[Unusual()])
    runner.train()
    logged = {k: list(h.data[0]) for k, h in runner.message_hub.log_scalars.items()}
    assert logged['train/number'] == logged['train/count'] == [0, 1, 2, 3, 4]
    assert logged['train/one'] == [0, 0.5, 1, 0.5, 2, 0.5, 3, 0.5, 4]
    assert logged['train/late'] == [3]
    assert logged['train/double'] == [i / 3 for i in range(5)]
    assert logged['train/half'] == [torch.tensor(i / 3).bfloat16().item() for i in range(5)]


def test_a_history_keeps_its_longest_length():
    plain = HistoryBuffer([1.0, 2.0], [1, 1], max_length=3)
    lazy = LazyHistoryBuffer(plain, lambda: None)
    lazy.extend([3.0, 4.0])
    assert list(lazy.data[0]) == [2.0, 3.0, 4.0]
    assert list(lazy.data[1]) == [1, 1, 1]


class Strict(Hook):
    """Let torch raise where the host waits, in an iteration whose terms are not read."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        torch.cuda.set_sync_debug_mode('error' if runner.iter == 2 else 'default')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs KD_MM_TEST_GPU=1 and a GPU')
@pytest.mark.parametrize('method', METHODS)
def test_torch_sees_no_wait_on_a_gpu(method, tmp_path):
    data = images()  # on the device: mmpretrain's preprocessor waits for its copies
    for item in data:
        item['inputs'] = item['inputs'].cuda()
        item['data_samples'].set_gt_label(item['data_samples'].gt_label.cuda())
    hooks = [{'type': 'kd_mm.LossGuardHook'}, Strict()]
    try:
        build_runner(method, tmp_path, train_dataloader=loader(data), custom_hooks=hooks).train()
    finally:
        torch.cuda.set_sync_debug_mode('default')
