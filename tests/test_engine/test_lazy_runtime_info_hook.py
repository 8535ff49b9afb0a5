"""Loss terms stay on the device until they are read, and the log is the same to the last bit."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kd_mm.engine.hooks import LossGuardHook
from kd_mm.engine.hooks.lazy_runtime_info_hook import LazyHistoryBuffer
from kd_mm.functional import kdcl
from tests.test_engine.toy_methods import METHODS, build, build_runner, images

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
# Iterations of build_runner's epoch, from 0: the first one meets new terms; 1 and 3 are logged.
SILENT = (2, 4)


class Waits(TorchDispatchMode):
    """Count by iteration what would wait."""

    def __init__(self, runner):
        super().__init__()
        self.runner, self.seen = runner, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in WAITS:
            self.seen[self.runner.iter] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Leave out what reads no device's memory where there is a device."""
    # The verdict is copied beside the backward pass, to be read from the host's memory.
    monkeypatch.setattr(LossGuardHook, '_is_bad', lambda self: False)
    monkeypatch.setattr(kdcl, '_may_stop', lambda gap: False)


def hooks_with(runtime_info, **more):
    return {
        'runtime_info': runtime_info,
        'logger': {'type': 'LoggerHook', 'interval': 2},
        'seed': {'type': 'kd_mm.SeedHook'},
        'distiller': {'type': 'kd_mm.DistillerHook'},
        'safe_checkpoints': {'type': 'kd_mm.SafeCheckpointHook'},
        **more,
    }


def waits_of(runner):
    with Waits(runner) as mode:
        runner.train()
    return [mode.seen[iteration] for iteration in range(runner.iter)]


@pytest.mark.parametrize('method', METHODS)
def test_no_iteration_waits_for_the_device_between_two_lines_of_the_log(
    method, tmp_path, as_on_a_gpu, monkeypatch
):
    reads = []
    tolist = Tensor.tolist
    runner = build_runner(method, tmp_path)
    monkeypatch.setattr(Tensor, 'tolist', lambda t: reads.append(runner.iter) or tolist(t))
    waits = waits_of(runner)
    assert waits[0] > 0
    assert waits[1:] == [0, 0, 0, 0]
    # One copy for each line of the log, and one at the end of the epoch.
    assert [i for i in reads if 0 < i < 5] == [1, 3]


def test_mmengines_own_hook_waits_for_each_term(tmp_path, as_on_a_gpu):
    runner = build_runner('dml', tmp_path, default_hooks=hooks_with(STOCK))
    terms = 1 + 2 * 2  # the sum, and two losses of each student
    assert waits_of(runner)[1:] == [terms] * 4


def test_mixing_waits_for_nothing_and_clipping_for_the_norm_that_mmengine_logs(
    tmp_path, as_on_a_gpu
):
    mixup = {'augments': [{'type': 'Mixup', 'alpha': 0.8}]}
    preprocessor = {'batch_augments': mixup, 'num_classes': 3}
    model = build('min_logit', data_preprocessor=preprocessor)
    plain = waits_of(build_runner('min_logit', tmp_path / 'plain', model))
    clip = {'clip_grad': {'max_norm': 1.0}}
    clipped = waits_of(build_runner('min_logit', tmp_path / 'clipped', model, clip))
    assert [clipped[i] - plain[i] for i in SILENT] == [1, 1]
    # On a CPU alone, F.one_hot looks whether the least and the largest label are classes.
    assert [plain[i] for i in SILENT] == [2, 2]


def logs_of(work_dir):
    """The lines of the log without times."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if 'time' not in k} for line in lines]


def test_log_and_checkpoints_are_the_same_to_the_last_bit(tmp_path):
    found = {}
    for name, hook in (('lazy', LAZY), ('stock', STOCK)):
        checkpoint = {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 3}
        hooks = hooks_with(hook, checkpoint=checkpoint)
        processor = {
            'window_size': 3,
            'custom_cfg': [{'data_src': 'loss', 'log_name': 'm', 'method_name': 'max'}],
        }
        processor['custom_cfg'][0]['window_size'] = 'epoch'
        changes = {'log_processor': processor, 'default_hooks': hooks}
        train_cfg = {'by_epoch': True, 'max_epochs': 2}
        runner = build_runner('ffsd', tmp_path / name, train_cfg=train_cfg, **changes)
        runner.train()
        file = torch.load(tmp_path / name / 'iter_3.pth', weights_only=False)
        found[name] = logs_of(tmp_path / name), file['message_hub']['log_scalars']
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
    """Add terms of other kinds, and read a history in each iteration."""

    priority = 'HIGHEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        i = float(runner.iter)
        step = torch.tensor(i)
        outputs.update(
            number=i, count=torch.tensor(runner.iter), double=step.double() / 3, one=step[None]
        )
        outputs['half'] = (step / 3).bfloat16()
        if runner.iter == 2:
            outputs['number'] = step  # first a number, now a tensor
        if runner.iter == 3:
            outputs['late'] = step


class Changing(Hook):
    """Change a term after it was logged, and note what a reader sees."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        outputs['one'].fill_(-1)
        if runner.iter % 2 == 0:
            runner.message_hub.update_scalar('train/one', 0.5)
            self.seen.append(runner.message_hub.get_scalar('train/one').current())


def test_terms_of_any_kind_are_logged_as_they_were(tmp_path):
    changing = Changing()
    runner = build_runner('dml', tmp_path, custom_hooks=[Unusual(), changing])
    runner.train()
    histories = runner.message_hub.log_scalars
    values = {name: list(histories[f'train/{name}'].data[0]) for name in ('number', 'count')}
    assert values == {'number': [0, 1, 2, 3, 4], 'count': [0, 1, 2, 3, 4]}
    assert list(histories['train/one'].data[0]) == [0, 0.5, 1, 2, 0.5, 3, 4, 0.5]
    assert list(histories['train/one'].data[1]) == [1] * 8
    assert changing.seen == [0.5] * 3
    assert list(histories['train/late'].data[0]) == [3]
    assert list(histories['train/double'].data[0]) == [i / 3 for i in range(5)]
    halves = [torch.tensor(i / 3).bfloat16().item() for i in range(5)]
    assert list(histories['train/half'].data[0]) == halves


def test_the_end_of_an_epoch_frees_what_nobody_has_read(tmp_path):
    hooks = hooks_with(LAZY, logger={'type': 'LoggerHook', 'interval': 4}, checkpoint=None)
    runner = build_runner('dml', tmp_path, default_hooks=hooks)
    runner.train()
    assert len(runner.message_hub.log_scalars['train/loss']._values) == 5


def test_a_history_keeps_its_longest_length():
    class Given:
        def read(self):
            pass

    plain = HistoryBuffer([1.0, 2.0], [1, 1], max_length=3)
    lazy = LazyHistoryBuffer(plain, Given())
    lazy.extend([3.0, 4.0])
    for value in (3.0, 4.0):
        plain.update(value)
    assert [list(part) for part in lazy.data] == [list(part) for part in plain.data]
    assert list(lazy.data[0]) == [2.0, 3.0, 4.0]


class Strict(Hook):
    """Let torch raise where the host waits, in iterations whose terms are not read."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        torch.cuda.set_sync_debug_mode('error' if runner.iter in SILENT[:1] else 'default')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs KD_MM_TEST_GPU=1 and a GPU')
@pytest.mark.parametrize('method', METHODS)
def test_torch_sees_no_wait_on_a_gpu(method, tmp_path):
    data = images()  # on the device: mmpretrain's preprocessor waits for its copies
    for item in data:
        item['inputs'] = item['inputs'].cuda()
        item['data_samples'].set_gt_label(item['data_samples'].gt_label.cuda())
    loader = {
        'dataset': data,
        'batch_size': 6,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
    }
    hooks = [{'type': 'kd_mm.LossGuardHook'}, Strict()]
    try:
        build_runner(method, tmp_path, train_dataloader=loader, custom_hooks=hooks).train()
    finally:
        torch.cuda.set_sync_debug_mode('default')
