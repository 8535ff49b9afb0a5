"""The paired step benchmark: its arithmetic and its protocol. Times themselves are not tested."""

import copy
import json
import os
import runpy
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models.heads import LinearClsHead
from torch import nn

from kd_mm.analysis import benchmark
from kd_mm.engine.optim import Bfloat16OptimWrapper
from kd_mm.export import plain_cfg
from kd_mm.models.heads import BAKEHead

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/analysis_tools/benchmark.py'


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


def cohort_config(tmp_path, views='per_student', **model):
    """Two ResNet-8, one of them from a file of 10 classes, each with its own optimizer."""
    config = tiny_config('LinearClsHead')
    student = config.to_dict()['model']
    other = tiny_config('LinearClsHead')
    other.model.head.num_classes = 10
    other.dump(tmp_path / 'other.py')
    pipeline = config.train_dataloader.dataset.pipeline
    if views == 'per_student':
        many = {'type': 'MultiView', 'num_views': 2, 'transforms': [pipeline[:2]]}
        pipeline = [many, pipeline[2]]
    config.train_dataloader.dataset.pipeline = pipeline
    sgd = {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}
    return Config(
        {
            **config.to_dict(),
            'model': {
                'type': 'kd_mm.KDCL',
                'students': {
                    'here': student,
                    'there': {'cfg_path': str(tmp_path / 'other.py')},
                },
                'views': views,
                **model,
            },
            'optim_wrapper': {
                'constructor': 'kd_mm.JointOptimWrapperConstructor',
                'parts': {name: {'optimizer': sgd} for name in ('here', 'there')},
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
    command = [sys.executable, str(TOOL), str(config)]
    command += ['--steps', '3', '--warmup', '1', '--threads', '1', '--batch-size', '6']
    command += ['--json', str(tmp_path / 'out.json'), '--markdown', str(tmp_path / 'out.md')]
    page = tmp_path / 'costs.md'
    page.write_text(f'<!-- steps of {tmp_path.name} -->\n<!-- end of steps -->\n')
    command += ['--save', str(tmp_path / 'costs')]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / 'out.json').read_text())
    (kept,) = (tmp_path / 'costs').iterdir()
    assert kept.name.startswith('bake_tiny_6x16px_')
    assert '| bake_tiny | 6, 16, 5 | wall, 1 | A | 3 |' in page.read_text()

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
    config, against = report['config'], report['against'][0]
    assert {**against, 'name': 'their sum'} == report['sum']
    assert (config['name'], against['name']) == ('bake_tiny', 'the same without distillation')
    for side in (config, against):
        times = side['step_ms']['all']
        assert len(times) == 3
        assert side['step_ms']['median'] == statistics.median(times)
        assert side['images_per_s'] == pytest.approx(6000 / statistics.median(times))
        assert side['parameters'] == PARAMETERS
        assert side['multiply_adds'] == MULTIPLY_ADDS
        # Weights and their gradients, and the first layer's output of 6 images twice.
        assert side['peak_memory_bytes'] > 4 * (2 * PARAMETERS + 2 * 6 * 16 * 16 * 16)

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
    assert f'| {against["peak_memory_bytes"] / 2**20:.1f} MiB |' in table
    assert 'their sum' not in table
    assert '- Wall time on ' in table
    assert f'median {100 * (ratio["median"] - 1):+.2f} %, 95 % interval' in table
    assert f'{extra["median"]:+.3f} ms' in table
    assert '--steps 3 --warmup 1 --threads 1 --batch-size 6' in table


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Run the tool with arguments; return the names and configs that it compares with."""

    def run(*arguments):
        given = run.given = []
        run.report = {'config': {'name': 'a'}}
        monkeypatch.setattr(
            benchmark, 'compare_steps', lambda *args, **_: given.extend(args) or run.report
        )
        monkeypatch.setattr(benchmark, 'to_markdown', lambda report: '')
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name='__main__')
        _, against, names = given
        return names, against

    return run


def test_the_tool_compares_a_cohort_with_each_student_alone(tool, tmp_path):
    cohort_config(tmp_path, deploy='there').dump(tmp_path / 'cohort.py')
    names, against = tool(tmp_path / 'cohort.py')
    assert names == ['there', 'here']
    assert [cfg.model.head.num_classes for cfg in against] == [10, 5]
    assert [cfg.model.type for cfg in against] == ['ImageClassifier'] * 2


def test_the_tool_compares_with_what_it_is_told(tool, tmp_path):
    tiny_config().dump(tmp_path / 'bake.py')
    tiny_config(head='LinearClsHead').dump(tmp_path / 'a.py')
    names, against = tool(tmp_path / 'bake.py')
    assert (names, [cfg.model.head.type for cfg in against]) == (None, ['LinearClsHead'])
    names, against = tool(
        tmp_path / 'bake.py', '--against', tmp_path / 'a.py', tmp_path / 'bake.py'
    )
    assert names is None
    assert [Path(cfg.filename).name for cfg in against] == ['a.py', 'bake.py']


@pytest.mark.parametrize('named', [True, False])
def test_options_change_the_config_and_its_own_undistilled_recipe(tool, tmp_path, named):
    path = tmp_path / 'bake.py'
    tiny_config().dump(path)
    options = ['--cfg-options', 'compile=True', 'model.head.omega=0.25']
    _, (other,) = tool(path, *options, *(['--against', path] if named else []))
    config = tool.given[0]
    assert (config.compile, config.model.head.omega) == (True, 0.25)
    assert 'omega' not in other.model.head
    assert ('compile' in other) != named
    name = 'a with compile=True, model.head.omega=0.25'
    assert tool.report['config']['name'] == name
    assert tool.report['undistilled'] != named


@pytest.fixture
def recorded(monkeypatch):
    """What every step of any side was given: side, weights, images, random draw."""
    steps = []
    original = benchmark.Side.step

    def step(self, data):
        weights = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        random_draw = torch.rand(1)
        steps.append((self, weights.clone(), copy.deepcopy(data['inputs']), random_draw))
        original(self, data)

    monkeypatch.setattr(benchmark.Side, 'step', step)
    return steps


def compare(config, against=None, **arguments):
    arguments = {'steps': 2, 'warmup': 0, **arguments}
    against = plain_cfg(config) if against is None else against
    return benchmark.compare_steps(config, against, **arguments)


def compare_cohort(config, **arguments):
    names = ['here', 'there']
    against = [plain_cfg(config, name) for name in names]
    return compare(config, against, names=names, **arguments)


def test_pairs_alternate_on_equal_images_weights_and_random_numbers(recorded):
    report = compare(tiny_config(), steps=3, warmup=1)
    peaks = recorded[8:]
    del recorded[8:]
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
    assert [side for side, *_ in peaks] == [bake, plain]


def test_switches_hold_on_their_side_alone(recorded, monkeypatch):
    config = tiny_config()
    config.compile = {'backend': 'eager'}
    config.custom_hooks = [{'type': 'kd_mm.ChannelsLastHook'}]
    config.optim_wrapper.type = 'kd_mm.Bfloat16OptimWrapper'
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda step, **k: compiled.append(k) or step)
    report = compare(config, tiny_config())
    fast, plain = recorded[0][0], recorded[1][0]
    assert compiled == [{'backend': 'eager'}]
    last = {'memory_format': torch.channels_last}
    formats = [side.model.backbone.conv1.weight.is_contiguous(**last) for side in (fast, plain)]
    assert formats == [True, False]
    assert isinstance(fast.optim_wrapper, Bfloat16OptimWrapper)
    assert not isinstance(plain.optim_wrapper, Bfloat16OptimWrapper)
    assert fast.loss != plain.loss
    assert report['distillation'] is None


@pytest.mark.parametrize('names', [[None], ['here', 'there']])
def test_a_recipe_undistilled_has_its_switches(names, tmp_path):
    config = cohort_config(tmp_path) if names[0] else tiny_config()
    config.compile = {'backend': 'eager'}
    config.default_hooks = {'last': {'type': 'kd_mm.ChannelsLastHook'}}
    config.optim_wrapper.type = 'kd_mm.Bfloat16OptimWrapper'
    for plain in (benchmark.undistilled(config, name) for name in names):
        assert benchmark._switches(plain) == benchmark._switches(config)
        assert plain.model.head.type == 'LinearClsHead'
        assert 'dtype' not in plain.optim_wrapper  # AmpOptimWrapper's


@pytest.mark.parametrize('same', [True, False])
def test_what_the_head_adds_is_told_of_sides_with_equal_switches(same):
    config, plain = tiny_config(), tiny_config('LinearClsHead')
    for cfg in (config, plain) if same else (config,):
        cfg.default_hooks = {'last': {'type': 'kd_mm.ChannelsLastHook'}}
    assert (compare(config, plain)['distillation'] is not None) == same


@pytest.mark.parametrize('views', ['per_student', 'shared'])
def test_a_cohort_alternates_with_all_its_students(recorded, tmp_path, views):
    report = compare_cohort(cohort_config(tmp_path, views), steps=3, warmup=1)
    both, here, there = [side for side, *_ in recorded[-3:]]
    sides = [side for side, *_ in recorded[:-3]]
    assert sides == [there, here, both, both, here, there, there, here, both, both, here, there]

    weights = {
        side: torch.cat([p.detach().flatten() for p in side.model.parameters()])
        for side in (both, here, there)
    }
    own = torch.cat([weights[here], weights[there]])
    torch.testing.assert_close(weights[both], own, rtol=0, atol=0)
    assert not torch.equal(weights[here], weights[there])
    images = recorded[0][2]
    assert images.shape == (4, 3, 16, 16)
    for side, before, inputs, _ in recorded:
        torch.testing.assert_close(before, weights[side], rtol=0, atol=0)
        seen = inputs if side is both and views == 'per_student' else [inputs]
        assert len(seen) == (2 if side is both and views == 'per_student' else 1)
        for view in seen:
            torch.testing.assert_close(view, images, rtol=0, atol=0)

    assert [row['name'] for row in report['against']] == ['here', 'there']
    assert report['distillation'] is None
    for row, networks in ((report['config'], 2), (report['sum'], 2), (report['against'][1], 1)):
        assert row['parameters'] == networks * PARAMETERS
        assert row['multiply_adds'] == networks * MULTIPLY_ADDS
    memories = [row['peak_memory_bytes'] for row in report['against']]
    assert report['sum']['peak_memory_bytes'] == sum(memories)
    assert max(memories) < report['config']['peak_memory_bytes']


def test_a_cohort_that_draws_its_views_gets_the_images(recorded, tmp_path):
    config = cohort_config(tmp_path)
    crop = {'type': 'kd_mm.BatchRandomCrop', 'crop_size': 16, 'padding': 1}
    config.data_preprocessor.update(
        type='kd_mm.CohortDataPreprocessor', augments=[crop], num_views=2
    )
    dataset = config.train_dataloader.dataset
    dataset.pipeline = dataset.pipeline[-1:]
    report = compare_cohort(config)
    assert report['settings']['img_size'] == 16
    assert {inputs.shape for _, _, inputs, *_ in recorded} == {(4, 3, 16, 16)}


def one_network_config(method, **model):
    """A network in a Distiller, with one method more."""
    config = tiny_config('LinearClsHead')
    model = {'type': 'kd_mm.BAKE', 'student': config.model, 'methods': {'own': method}, **model}
    return Config({**config.to_dict(), 'model': model})


def test_one_network_of_a_distiller_alternates_with_its_own_recipe(recorded):
    student = tiny_config('LinearClsHead').model
    config = one_network_config(
        {'type': 'tests.Snapshot', 'loss_weight': {'type': 'kd_mm.LinearRamp', 'epochs': 300}},
        teachers={'t': {**student, 'checkpoint': 'not_read.pth'}},
    )
    plain = benchmark.undistilled(config)
    assert plain.model == student
    report = compare(config, plain)
    (both, weights, *_), (_, same, *_) = recorded[:2]
    torch.testing.assert_close(weights, same, rtol=0, atol=0)
    assert both.model.methods.own.loss_weight(both.model.clock) == 1
    assert report['distillation'] is None
    assert report['config']['parameters'] == report['sum']['parameters'] == PARAMETERS
    peaks = [report[key]['peak_memory_bytes'] for key in ('config', 'sum')]
    assert peaks[0] > peaks[1] + 4 * PARAMETERS  # the teacher's


@pytest.mark.parametrize('num_classes', [None, 7])
def test_methods_get_views_and_numbers(num_classes, recorded, tmp_path):
    tiny_config('LinearClsHead').dump(tmp_path / 'student.py')
    config = one_network_config(
        {'type': 'tests.TwoViews'}, student={'cfg_path': str(tmp_path / 'student.py')}, views=2
    )
    config.model.methods.past = {'type': 'tests.PastLabels'}
    report = compare(config, num_classes=num_classes)
    assert report['settings']['num_classes'] == (num_classes or 5)
    assert [view.shape for view in recorded[0][2]] == [(4, 3, 16, 16)] * 2
    assert recorded[0][0].model.methods.past.memory.filled.tolist() == [True] * 4


def test_times_and_memories_of_several_recipes_add_up(monkeypatch, tmp_path):
    """A cohort's step takes 10 s, the students' 3 s and 5 s, on a machine that slows down."""
    seconds = [0.0]
    durations = iter([10.0, 3.0, 5.0, 2 * 5.0, 2 * 3.0, 2 * 10.0, 4 * 10.0, 4 * 3.0, 4 * 5.0])

    def step(self, data):
        self.loss = torch.zeros(())
        seconds[0] += next(durations)

    monkeypatch.setattr(benchmark.Side, 'step', step)
    monkeypatch.setattr(benchmark.time, 'process_time', lambda: seconds[0])
    mebibytes = {'Distiller': 2.75, 'ImageClassifier': 1.5}
    monkeypatch.setattr(
        benchmark,
        '_peak_memory',
        lambda side, batch, device: int(mebibytes[type(side.model).__name__] * 2**20),
    )
    report = compare_cohort(cohort_config(tmp_path), steps=3, clock='cpu')
    assert report['config']['step_ms']['all'] == [10000.0, 20000.0, 40000.0]
    assert [row['step_ms']['all'] for row in report['against']] == [
        [3000.0, 6000.0, 12000.0],
        [5000.0, 10000.0, 20000.0],
    ]
    assert report['sum']['step_ms'] == {
        'all': [8000.0, 16000.0, 32000.0],
        'median': 16000.0,
        'quartiles': [12000.0, 24000.0],
    }
    assert report['sum']['images_per_s'] == 4 / 16
    assert report['ratio'] == {'median': 1.25, 'interval': [1.25, 1.25], 'pairs': [1.25] * 3}
    table = benchmark.to_markdown({**report, 'command': 'python x'})
    assert '| this recipe | 20000.0 (15000.0 to 30000.0) | 0.2 |' in table
    one, two = (
        f'{count * PARAMETERS / 1e6:.2f} M | {count * MULTIPLY_ADDS / 1e6:.1f} M'
        for count in (1, 2)
    )
    assert f'| there | 10000.0 (7500.0 to 15000.0) | 0.4 | {one} | 1.5 MiB |' in table
    assert f'| their sum | 16000.0 (12000.0 to 24000.0) | 0.2 | {two} | 3.0 MiB |' in table
    assert '- Step of the first by sum of the others, 3 pairs: median +25.00 %' in table


def test_memory_is_that_of_the_largest_moment():
    def run():
        first = torch.empty(1000)
        second = torch.empty(500)
        del first  # 6,000 bytes so far
        third = torch.empty(999)
        fourth = torch.empty(1)
        del second, third, fourth

    assert benchmark.cpu_rise(run) == 6000
    assert benchmark.cpu_rise(lambda: None) == 0


def test_memory_of_a_step_counts_what_the_side_holds(monkeypatch):
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    model(torch.ones(2, 10)).sum().backward()
    optimizer.step()
    side = SimpleNamespace(
        model=model,
        optimizers=[optimizer],
        teachers=[],
        num_views=None,
        step=lambda data: torch.empty(data['count']),
    )
    batch = SimpleNamespace(fresh=lambda num_views: {'count': 100})
    weights, buffers = 4 * (4 * 10 + 4 + 4 + 4), 4 * (4 + 4) + 8
    held = 3 * weights + buffers  # with gradients and momenta
    assert benchmark._peak_memory(side, batch, 'cpu') == held + 400
    optimizer.zero_grad()
    assert benchmark._peak_memory(side, batch, 'cpu') == held - weights + 400

    for name, value in (
        ('synchronize', None),
        ('memory_allocated', 5000),
        ('reset_peak_memory_stats', None),
        ('max_memory_allocated', 5700),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert benchmark._peak_memory(side, batch, 'cuda') == held - weights + 700


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
    assert report['against'][0]['step_ms']['all'] == [4000.0, 8000.0, 16000.0]
    assert report['config']['step_ms']['quartiles'] == [7500.0, 15000.0]
    assert report['against'][0]['images_per_s'] == 4 / 8
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


def test_classes_of_a_student_from_a_file_are_replaced(recorded, tmp_path):
    config = cohort_config(tmp_path)
    report = compare_cohort(config)
    assert report['settings']['num_classes'] == 5
    assert report['settings']['img_size'] == 16
    recorded.clear()
    compare_cohort(config, num_classes=7)
    for side, *_ in recorded:
        assert {network.head.num_classes for network in side.networks} == {7}


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


def test_recipes_without_names_are_called_by_their_files_or_numbers(tmp_path):
    tiny_config().dump(tmp_path / 'bake.py')
    from_file, other = Config.fromfile(tmp_path / 'bake.py'), tiny_config('LinearClsHead')
    report = compare(tiny_config(), [other, from_file])
    assert [row['name'] for row in report['against']] == ['recipe 1', 'bake']
    report = compare(from_file, other, names=['plain'])
    assert [report[key]['name'] for key in ('config', 'sum')] == ['bake', 'their sum']
    assert report['against'][0]['name'] == 'plain'


def test_recipes_and_names_must_fit():
    with pytest.raises(ValueError, match='at least one config'):
        compare(tiny_config(), [])
    with pytest.raises(ValueError, match='names must be as many as the configs of against, 1'):
        compare(tiny_config(), names=['a', 'b'])


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
