"""The paired step benchmark: its arithmetic and its protocol. Times themselves are not tested."""

import json
import statistics

import pytest
import torch

from kd_mm.analysis import benchmark
from kd_mm.engine.optim import Bfloat16OptimWrapper
from tests.toys.models import build
from tests.toys.recipes import recipe, run_tool

TOOL = 'analysis_tools/benchmark.py'
PARAMETERS = sum(p.numel() for p in build('bake').parameters())


def cohort(tmp_path, views='per_student'):
    """Two students, one of them from a file of 10 classes, each with its own optimizer."""
    other = recipe('plain')
    other.model.head.num_classes = 10
    other.dump(tmp_path / 'other.py')
    config = recipe('dml')
    config.model.students.b = {'cfg_path': str(tmp_path / 'other.py')}
    config.model.views = views
    return config


def compare(config, *against, sizes=None, **arguments):
    arguments = {'steps': 2, 'warmup': 0, **arguments}
    against = against or [benchmark.undistilled(config)]
    return benchmark.compare_steps(config, against, sizes or {}, **arguments)


def compare_cohort(config, **arguments):
    against = [benchmark.undistilled(config, name) for name in ('a', 'b')]
    return compare(config, *against, **arguments)


@pytest.fixture
def recorded(monkeypatch):
    """The side of every step, its images, weights and a random draw."""
    steps = []
    original = benchmark.Side.step

    def step(self, data):
        weights = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        steps.append((self, data['inputs'], weights.clone(), torch.rand(1)))
        original(self, data)

    monkeypatch.setattr(benchmark.Side, 'step', step)
    return steps


def test_the_tool_writes_consistent_numbers(tmp_path, monkeypatch, capsys):
    recipe('bake').dump(tmp_path / 'bake_tiny.py')
    page = tmp_path / 'costs.md'
    page.write_text(f'<!-- steps of {tmp_path.name} -->\n<!-- end of steps -->\n')
    run_tool(
        monkeypatch, TOOL, tmp_path / 'bake_tiny.py', '--steps=3', '--warmup=1', '--batch-size=6',
        f'--json={tmp_path / "out.json"}', f'--markdown={tmp_path / "out.md"}',
        f'--save={tmp_path / "costs"}',
    )  # fmt: skip
    report = json.loads((tmp_path / 'out.json').read_text())
    sizes = {'batch_size': 6, 'img_size': 16, 'num_classes': 3}
    assert report['settings'] == {**sizes, 'steps': 3, 'warmup': 1, 'clock': 'wall'}
    ours, plain = report['pairs']['step_ms']
    assert report['config']['step_ms']['median'] == statistics.median(ours)
    assert report['sum']['step_ms']['median'] == statistics.median(plain)
    ratio, ratios = report['ratio'], report['pairs']['ratio']
    assert ratios == [a / b for a, b in zip(ours, plain, strict=True)]
    assert min(ratios) <= ratio['interval'][0] <= statistics.median(ratios) == ratio['median']
    assert ratio['median'] <= ratio['interval'][1] <= max(ratios)
    extra, overhead = (report['distillation'][key] for key in ('extra_ms', 'overhead'))
    assert extra['median'] == statistics.median(report['pairs']['extra_ms'])
    assert overhead['median'] == pytest.approx(extra['median'] / statistics.median(plain))
    # Weights, gradients and momenta, and the first layer's output of 6 images twice.
    assert report['sum']['peak_memory_bytes'] > 4 * (3 * PARAMETERS + 2 * 6 * 16 * 16 * 16)
    table = (tmp_path / 'out.md').read_text()
    assert table in capsys.readouterr().out
    assert table in page.read_text()
    assert '--steps=3 --warmup=1 --batch-size=6' in table
    (kept,) = (tmp_path / 'costs').iterdir()
    assert kept.name.startswith('bake_tiny_6x16px_')


def test_the_tool_compares_with_what_it_should(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(benchmark, 'compare_steps', lambda *args, **_: compared.append(args) or {})
    monkeypatch.setattr('kd_mm.analysis.step_costs.section', lambda reports: '')
    cohort(tmp_path).dump(tmp_path / 'cohort.py')
    recipe('bake').dump(tmp_path / 'bake.py')
    options = '--cfg-options', 'compile=True', 'model.head.omega=0.25'
    run_tool(monkeypatch, TOOL, tmp_path / 'cohort.py')
    run_tool(monkeypatch, TOOL, tmp_path / 'bake.py', *options)
    run_tool(monkeypatch, TOOL, tmp_path / 'bake.py', *options, '--against', tmp_path / 'bake.py')
    (_, students, _), (bake, (plain,), _), (_, (named,), _) = compared
    assert [cfg.model.head.num_classes for cfg in students] == [3, 10]
    assert (bake.compile, bake.model.head.omega) == (True, 0.25)
    assert (plain.compile, plain.model.head.type) == (True, 'LinearClsHead')
    assert 'compile' not in named
    assert 'omega' not in named.model.head


def test_mixed_precision_needs_a_gpu(tmp_path, monkeypatch):
    recipe('bake').dump(tmp_path / 'bake.py')
    with pytest.raises(SystemExit, match=r'the steps cannot be timed .*AmpOptim.*gpu'):
        run_tool(monkeypatch, TOOL, tmp_path / 'bake.py', '--amp')


def test_pairs_alternate_on_equal_images_weights_and_random_numbers(recorded):
    compare(recipe('bake'), steps=3, warmup=1)
    sides = [type(side.model.head).__name__ for side, *_ in recorded]
    bake, plain = 'BAKEHead', 'LinearClsHead'
    # The last two are those of the memory.
    assert sides == [bake, plain, plain, bake, bake, plain, plain, bake, bake, plain]
    for _, images, weights, _ in recorded:
        torch.testing.assert_close(images, recorded[0][1], rtol=0, atol=0)
        torch.testing.assert_close(weights, recorded[0][2], rtol=0, atol=0)
    draws = [draw.item() for *_, draw in recorded[:8]]
    assert draws[::2] == draws[1::2]
    assert len(set(draws)) == 4


@pytest.mark.parametrize('views', ['per_student', 'shared'])
def test_a_cohort_alternates_with_all_its_students(recorded, tmp_path, views):
    report = compare_cohort(cohort(tmp_path, views), sizes={'num_classes': 7})
    both, here, there = (side for side, *_ in recorded[:3])
    assert [side for side, *_ in recorded[3:6]] == [there, here, both]
    inputs = recorded[0][1]
    for view in inputs if views == 'per_student' else [inputs]:
        torch.testing.assert_close(view, recorded[1][1], rtol=0, atol=0)
    assert len(inputs) == (2 if views == 'per_student' else 4)
    assert {net.head.num_classes for side in (both, here, there) for net in side.networks} == {7}
    assert report['distillation'] is None
    together = [sum(pair) for pair in zip(*report['pairs']['step_ms'][1:], strict=True)]
    assert report['sum']['step_ms']['median'] == pytest.approx(statistics.median(together))


def test_methods_get_views_numbers_and_teachers(recorded):
    ramp = {'type': 'kd_mm.LinearRamp', 'epochs': 300}
    student = recipe('plain').model
    model = {
        'type': 'kd_mm.BAKE',
        'student': student,
        'teachers': {'t': {**student, 'checkpoint': 'not_read.pth'}},
        'methods': {
            'kd': {'type': 'tests.Snapshot', 'loss_weight': ramp},
            'views': {'type': 'tests.TwoViews'},
            'past': {'type': 'tests.PastLabels'},
        },
        'views': 2,
    }
    report = compare(recipe('bake', model))
    model = recorded[0][0].model
    assert [view.shape for view in recorded[0][1]] == [(4, 3, 16, 16)] * 2
    assert model.methods.kd.loss_weight(model.clock) == 1
    assert model.methods.past.memory.filled.tolist() == [True] * 4
    peaks = [report[key]['peak_memory_bytes'] for key in ('config', 'sum')]
    assert peaks[0] > peaks[1] + 4 * PARAMETERS  # the teacher's


def test_switches_hold_on_their_side_alone(recorded, monkeypatch):
    config = recipe('bake', compile={'backend': 'eager'})
    config.custom_hooks = [{'type': 'kd_mm.ChannelsLastHook'}]
    config.optim_wrapper.type = 'kd_mm.Bfloat16OptimWrapper'
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda step, **k: compiled.append(k) or step)
    report = compare(config, recipe('bake'))
    fast, plain = recorded[0][0], recorded[1][0]
    assert compiled == [{'backend': 'eager'}]
    weights = [side.model.backbone.conv1.weight for side in (fast, plain)]
    last = torch.channels_last
    assert [w.is_contiguous(memory_format=last) for w in weights] == [True, False]
    wrappers = [isinstance(side.optim_wrapper, Bfloat16OptimWrapper) for side in (fast, plain)]
    assert wrappers == [True, False]
    assert report['distillation'] is None
    undistilled = benchmark.undistilled(config)
    assert benchmark._switches(undistilled) == benchmark._switches(config)
    assert undistilled.model.head.type == 'LinearClsHead'


def test_what_the_head_adds_is_measured_of_equal_networks_alone():
    wider = recipe('plain')
    wider.model.backbone.depth = 14
    assert compare(recipe('bake'), wider)['distillation'] is None


def test_memory_is_that_of_the_largest_moment():
    def run():
        first = torch.empty(1000)
        second = torch.empty(500)
        del first  # 6,000 bytes so far
        third = torch.empty(999)
        del second, third

    assert benchmark.cpu_rise(run) == 6000


def test_times_of_a_slowing_machine_become_exact_figures(monkeypatch, tmp_path):
    """A cohort's step takes 10 s, the students' 3 s and 5 s; each pair takes twice the last."""
    seconds = [0.0]
    durations = iter([10.0, 3.0, 5.0, 2 * 5.0, 2 * 3.0, 2 * 10.0, 4 * 10.0, 4 * 3.0, 4 * 5.0])

    def step(self, data):
        self.loss = torch.zeros(())
        seconds[0] += next(durations)

    monkeypatch.setattr(benchmark.Side, 'step', step)
    monkeypatch.setitem(benchmark.CLOCKS, 'cpu', lambda: seconds[0])
    monkeypatch.setattr(benchmark, '_peak_memory', lambda *args: 100)
    report = compare_cohort(cohort(tmp_path), steps=3, clock='cpu')
    times = [[10000.0, 20000.0, 40000.0], [3000.0, 6000.0, 12000.0], [5000.0, 10000.0, 20000.0]]
    assert report['pairs']['step_ms'] == times
    assert report['sum'] == {
        'step_ms': {'median': 16000.0, 'quartiles': [12000.0, 24000.0]},
        'peak_memory_bytes': 200,
    }
    assert report['ratio'] == {'median': 1.25, 'interval': [1.25, 1.25]}


def test_the_interval_follows_the_binomial_law():
    # The median of 5 draws is 1 if three or more are: probability 0.058 > 0.025.
    assert benchmark._median_with_interval([0, 0, 0, 0, 1])['interval'] == [0.0, 1.0]
    # Of 10 draws five or more must be 1 for a median above 0: probability 0.0016 < 0.025.
    assert benchmark._median_with_interval([0] * 9 + [1])['interval'] == [0.0, 0.0]


def test_sizes_come_from_the_config_unless_given(recorded):
    config = recipe('plain')
    before = config.to_dict()
    compare(config, config, sizes={'batch_size': 2, 'img_size': 8, 'num_classes': 7})
    assert config.to_dict() == before
    assert recorded[0][1].shape == (2, 3, 8, 8)
    assert recorded[0][0].model.head.fc.out_features == 7
    assert recorded[0][0].model.data_preprocessor.num_classes == 7


@pytest.mark.parametrize(
    ('changes', 'arguments', 'message'),
    [
        ({}, {'steps': 1}, 'steps must be an integer of at least 2, but got 1'),
        ({}, {'clock': 'sun'}, "clock must be one of 'wall', 'cpu', but got 'sun'"),
        ({}, {'device': 'cuda', 'clock': 'cpu'}, "clock must be one of 'wall', but got 'cpu'"),
        ({}, {'sizes': {'batch_size': 0}}, 'batch_size must be an integer of at least 1'),
        ({'train_dataloader': None}, {}, 'batch_size must be an integer .* but got None'),
        ({'model.head.loss.loss_weight': float('inf')}, {}, r'losses must be finite, .* got \['),
    ],
)
def test_what_cannot_be_timed_is_named(changes, arguments, message):
    config = recipe('plain')
    config.model.head.loss = {'type': 'CrossEntropyLoss'}
    config.merge_from_dict(changes)
    with pytest.raises(ValueError, match=message):
        compare(config, config, **arguments)
