"""The paired step benchmark: its arithmetic and its protocol. Times themselves are not tested."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models.heads import LinearClsHead

from kd_mm.export import plain_model_cfg
from kd_mm.models.heads import BAKEHead
from kd_mm.utils import benchmark

ROOT = Path(__file__).resolve().parents[2]


def tiny_config(head='kd_mm.BAKEHead', **model):
    """ResNet-8 on 16-pixel images with 5 classes, as a training config."""
    return Config(
        {
            'model': {
                'type': 'ImageClassifier',
                'backbone': {'type': 'kd_mm.CIFARResNet', 'depth': 8},
                'neck': {'type': 'GlobalAveragePooling'},
                'head': {
                    'type': head,
                    'num_classes': 5,
                    'in_channels': 64,
                    'loss': {'type': 'CrossEntropyLoss'},
                },
                **model,
            },
            'data_preprocessor': {'num_classes': 5, 'mean': [127.0] * 3, 'std': [64.0] * 3},
            'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1, 'weight_decay': 1e-4}},
            'train_dataloader': {
                'batch_size': 4,
                'dataset': {
                    'type': 'CIFAR100',
                    'pipeline': [
                        {'type': 'ResizeEdge', 'scale': 20},
                        {'type': 'RandomCrop', 'crop_size': 16, 'padding': 2},
                        {'type': 'PackInputs'},
                    ],
                },
            },
        }
    )


# Convolutions, classifier, two per pixel and channel of BN, and the pooled pixels.
MULTIPLY_ADDS = (
    (9 * 3 * 16 + 2 * 9 * 16 * 16) * 16 * 16
    + (9 * 16 * 32 + 9 * 32 * 32) * 8 * 8
    + (9 * 32 * 64 + 9 * 64 * 64) * 4 * 4
    + 64 * 5
    + 2 * (3 * 16 * 16 * 16 + 2 * 32 * 8 * 8 + 2 * 64 * 4 * 4)
    + 64 * 4 * 4
)
PARAMETERS = (
    9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    + 2 * (3 * 16 + 2 * 32 + 2 * 64)
    + (64 + 1) * 5
)


def test_the_tool_writes_consistent_numbers(tmp_path):
    config = tmp_path / 'bake_tiny.py'
    tiny_config().dump(config)
    command = [sys.executable, str(ROOT / 'tools/analysis_tools/benchmark.py'), str(config)]
    command += ['--steps', '3', '--warmup', '1', '--threads', '1', '--batch-size', '6']
    command += ['--json', str(tmp_path / 'out.json'), '--markdown', str(tmp_path / 'out.md')]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / 'out.json').read_text())

    assert report['settings'] == {
        'batch_size': 6,
        'img_size': 16,
        'num_classes': 5,
        'steps': 3,
        'warmup': 1,
        'clock': 'wall',
        'amp': False,
    }
    assert report['machine']['threads'] == 1
    assert report['machine']['versions']['torch'] == torch.__version__
    config, against = report['config'], report['against']
    assert (config['name'], against['name']) == ('bake_tiny', 'the same without distillation')
    for side in (config, against):
        times = side['step_ms']['all']
        assert len(times) == 3
        assert side['step_ms']['median'] == statistics.median(times)
        assert side['images_per_s'] == pytest.approx(6000 / statistics.median(times))
        assert side['parameters'] == PARAMETERS
        assert side['multiply_adds'] == MULTIPLY_ADDS
        assert side['peak_memory_bytes'] is None

    ratio = report['ratio']
    pairs = zip(config['step_ms']['all'], against['step_ms']['all'], strict=True)
    assert ratio['pairs'] == [ours / theirs for ours, theirs in pairs]
    assert ratio['median'] == statistics.median(ratio['pairs'])
    assert min(ratio['pairs']) <= ratio['interval'][0] <= ratio['median']
    assert ratio['median'] <= ratio['interval'][1] <= max(ratio['pairs'])

    extra, overhead = (report['distillation'][key] for key in ('extra_ms', 'overhead'))
    plain_ms = against['step_ms']['median']
    assert len(extra['pairs']) == 3
    assert extra['median'] == statistics.median(extra['pairs'])
    assert overhead['median'] == pytest.approx(extra['median'] / plain_ms)
    assert overhead['interval'] == pytest.approx([end / plain_ms for end in extra['interval']])

    table = (tmp_path / 'out.md').read_text()
    assert table in run.stdout
    assert '| bake_tiny |' in table
    assert 'not measured on CPU' in table
    assert '- Wall time on ' in table
    assert f'median {100 * (ratio["median"] - 1):+.2f} %, 95 % interval' in table
    assert f'{extra["median"]:+.3f} ms' in table
    assert '--steps 3 --warmup 1 --threads 1 --batch-size 6' in table


@pytest.fixture
def recorded(monkeypatch):
    """What every step of either side was given: side, weights, images, random draw."""
    steps = []
    original = benchmark.Side.step

    def step(self, data):
        weights = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        random_draw = torch.rand(1)
        steps.append((self, weights.clone(), data['inputs'].clone(), random_draw))
        original(self, data)

    monkeypatch.setattr(benchmark.Side, 'step', step)
    return steps


def compare(config, against=None, **arguments):
    if against is None:
        against = Config({**config.to_dict(), 'model': plain_model_cfg(config.model)})
    arguments = {'steps': 2, 'warmup': 0, **arguments}
    return benchmark.compare_steps(config, against, **arguments)


def test_pairs_alternate_on_equal_images_weights_and_random_numbers(recorded):
    report = compare(tiny_config(), steps=3, warmup=1)
    sides = [side for side, *_ in recorded]
    bake = next(s for s in sides if type(s.model.head).__name__ == 'BAKEHead')
    plain = next(s for s in sides if type(s.model.head).__name__ == 'LinearClsHead')
    assert sides == [plain, bake, bake, plain, plain, bake, bake, plain]
    for first, second in zip(recorded[::2], recorded[1::2], strict=True):
        torch.testing.assert_close(first[3], second[3], rtol=0, atol=0)
    for _, weights, images, _ in recorded:
        torch.testing.assert_close(weights, recorded[0][1], rtol=0, atol=0)
        torch.testing.assert_close(images, recorded[0][2], rtol=0, atol=0)
    assert recorded[0][3] != recorded[2][3]
    assert recorded[0][2].dtype == torch.uint8
    assert len(report['config']['step_ms']['all']) == 3


def test_times_of_a_slowing_clock_become_exact_figures(monkeypatch):
    """A machine that halves its speed with every pair.

    At full speed: 1.5 s of plain step, 0.5 s of head loss; BAKE's head takes 0.75 s, and 0.25 s
    more in the backward pass.
    """
    seconds, slowdown = [0.0], [1]

    def slow(loss, forward, backward):
        def run(self, *args, **kwargs):
            losses = loss(self, *args, **kwargs)
            seconds[0] += forward * slowdown[0]

            def hook(grad):
                seconds[0] += backward * slowdown[0]

            losses['loss'].register_hook(hook)
            return losses

        return run

    step = benchmark.Side.step
    calls = []

    def slow_step(self, data):
        step(self, data)
        seconds[0] += 1.5 * slowdown[0]
        calls.append(self)
        slowdown[0] = 2 ** (len(calls) // 2)

    monkeypatch.setattr(benchmark.Side, 'step', slow_step)
    monkeypatch.setattr(BAKEHead, 'loss', slow(BAKEHead.loss, 0.75, 0.25))
    monkeypatch.setattr(LinearClsHead, 'loss', slow(LinearClsHead.loss, 0.5, 0.0))
    monkeypatch.setattr(benchmark.time, 'process_time', lambda: seconds[0])
    report = compare(tiny_config(), steps=3, warmup=1, clock='cpu')

    # The warm-up pair ran at full speed.
    assert report['config']['step_ms']['all'] == [5000.0, 10000.0, 20000.0]
    assert report['against']['step_ms']['all'] == [4000.0, 8000.0, 16000.0]
    assert report['config']['step_ms']['quartiles'] == [7500.0, 15000.0]
    assert report['against']['images_per_s'] == 4 / 8
    assert report['ratio'] == {'median': 1.25, 'interval': [1.25, 1.25], 'pairs': [1.25] * 3}
    extra = report['distillation']['extra_ms']
    assert (extra['pairs'], extra['median']) == ([1000.0, 2000.0, 4000.0], 2000.0)
    assert report['distillation']['overhead']['median'] == 0.25
    table = benchmark.to_markdown({**report, 'command': 'python x'})
    assert '| 10000.0 (7500.0 to 15000.0) | 0.4 |' in table
    assert 'median +25.00 %, 95 % interval +25.00 % to +25.00 %' in table
    assert '- Processor time on ' in table
    assert 'median +2000.000 ms, 95 % interval +1000.000 to +4000.000 ms' in table
    assert 'that is **+25.00 %** of the plain step (+12.50 % to +50.00 %)' in table


def test_sizes_come_from_the_config_unless_given(recorded):
    report = compare(tiny_config())
    assert recorded[0][2].shape == (4, 3, 16, 16)
    assert report['settings']['num_classes'] == 5

    recorded.clear()
    config = tiny_config()
    before = config.to_dict()
    report = compare(config, batch_size=2, img_size=8, num_classes=7)
    assert recorded[0][2].shape == (2, 3, 8, 8)
    assert recorded[0][0].model.head.fc.out_features == 7
    assert recorded[0][0].model.data_preprocessor.num_classes == 7
    assert config.to_dict() == before


def test_grey_images_follow_the_backbone(recorded):
    config = tiny_config(backbone={'type': 'kd_mm.CIFARResNet', 'depth': 8, 'in_channels': 1})
    del config.data_preprocessor['mean'], config.data_preprocessor['std']
    compare(config)
    assert recorded[0][2].shape == (4, 1, 16, 16)


def test_mixed_labels_are_drawn_afresh_in_each_step(monkeypatch):
    config = tiny_config(train_cfg={'augments': [{'type': 'Mixup', 'alpha': 0.8}]})
    heads = []
    original = benchmark.Side.step

    def step(self, data):
        assert all('gt_score' not in sample for sample in data['data_samples'])
        original(self, data)
        heads.append([sample.gt_score for sample in data['data_samples']])

    monkeypatch.setattr(benchmark.Side, 'step', step)
    assert compare(config)['distillation'] is not None
    scores = [torch.stack(samples) for samples in heads]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)
    assert not torch.equal(scores[0], scores[2])


def test_other_networks_have_no_distillation_part():
    wider = tiny_config('LinearClsHead', backbone={'type': 'kd_mm.CIFARResNet', 'depth': 14})
    report = compare(tiny_config(), wider)
    assert report['distillation'] is None
    assert 'the head adds' not in benchmark.to_markdown({**report, 'command': 'x'})


def test_optimizer_of_each_side_is_its_own():
    config, against = tiny_config(), tiny_config('LinearClsHead')
    against.optim_wrapper = {'optimizer': {'type': 'AdamW', 'lr': 0.1}}
    settings = {'num_classes': 5, 'amp': False}
    watch = benchmark.Stopwatch('cpu', 'wall')
    kinds = [
        type(benchmark.Side(cfg, settings, 'cpu', watch).optim_wrapper.optimizer).__name__
        for cfg in (config, against)
    ]
    assert kinds == ['SGD', 'AdamW']


def test_bootstrap_interval_follows_the_binomial_law():
    # The median of 5 draws is 1 if three or more are: probability 0.058 > 0.025.
    assert benchmark.bootstrap_interval([0, 0, 0, 0, 1]) == [0.0, 1.0]
    # Of 10 draws five or more must be 1 for a median above 0: probability 0.0016 < 0.025.
    assert benchmark.bootstrap_interval([0] * 9 + [1]) == [0.0, 0.0]


def test_processor_time_is_blind_to_waiting(monkeypatch):
    monkeypatch.setattr(benchmark.time, 'perf_counter', iter([0.0, 10.0]).__next__)
    monkeypatch.setattr(benchmark.time, 'process_time', iter([5.0, 6.0]).__next__)
    for clock, expected in (('wall', 10000.0), ('cpu', 1000.0)):
        watch = benchmark.Stopwatch('cpu', clock)
        span = (watch.now(), watch.now())
        assert watch.milliseconds([span]) == [expected]


def test_a_loss_that_is_not_finite_is_refused():
    config = tiny_config()
    config.model.head.loss = {'type': 'CrossEntropyLoss', 'loss_weight': float('inf')}
    with pytest.raises(RuntimeError, match='loss is not finite'):
        compare(config)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'steps': 1}, 'steps must be at least 2'),
        ({'warmup': -1}, 'warmup at least 0, got 2 and -1'),
        ({'device': 'tpu'}, "device must be 'cpu' or 'cuda', got 'tpu'"),
        ({'clock': 'sun'}, "clock must be 'wall' or 'cpu', got 'sun'"),
        ({'device': 'cuda', 'clock': 'cpu'}, "clock 'cpu' cannot time a GPU"),
        ({'amp': True}, "amp needs device 'cuda'"),
        ({'batch_size': 0}, 'must be positive'),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(tiny_config(), **arguments)


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('train_dataloader.batch_size', 'Give a batch size'),
        ('train_dataloader.dataset.pipeline', 'Give an image size'),
        ('model.head.num_classes', 'Give a number of classes'),
    ],
)
def test_a_size_that_is_nowhere_is_asked_for(key, message):
    config = tiny_config()
    *parents, last = key.split('.')
    node = config
    for parent in parents:
        node = node[parent]
    del node[last]
    with pytest.raises(ValueError, match=message):
        compare(config)
