"""The tools for parts of a step, data loaders and scaling. Times themselves are not tested."""

import json
import runpy
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import REPO
from tests.toys.recipes import recipe, run_tool

PROFILE, SCALING = (f'analysis_tools/{name}.py' for name in ('profile_step', 'benchmark_scaling'))
SIZES = {'batch_size': 4, 'img_size': 16, 'num_classes': 3}


def load(name):
    """Return the functions of a tool."""
    return SimpleNamespace(**runpy.run_path(str(REPO / 'tools' / name)))


def profiled(config, monkeypatch, tmp_path):
    config.dump(tmp_path / 'recipe.py')
    flags = [f'--{name.replace("_", "-")}={size}' for name, size in SIZES.items()]
    flags += ['--steps=1', '--warmup=1', f'--json={tmp_path / "out.json"}']
    run_tool(monkeypatch, PROFILE, tmp_path / 'recipe.py', *flags)
    return json.loads((tmp_path / 'out.json').read_text())


@pytest.mark.parametrize(
    ('method', 'learning'),
    [
        ('bake', {'network'}),
        ('bake_student', {'network'}),
        ('ffsd', {'network leader', 'network student1', 'network student2', 'fusion', 'decoder',
                  'self distillation'}),
    ],
)  # fmt: skip
def test_each_part_of_a_step_has_its_backward(method, learning, monkeypatch, tmp_path, capsys):
    report = profiled(recipe(method), monkeypatch, tmp_path)
    parts = report['parts']
    learning |= {'classification losses', 'distillation losses'}
    others = {'preprocessor', 'optimizer', 'Python and all else', 'gradients added up'}
    assert learning < set(parts) <= learning | others
    assert all(parts[name][way] > 0 for name in learning for way in ('forward', 'backward'))
    assert parts['preprocessor']['backward'] == parts['optimizer']['backward'] == 0
    assert report['step_ms'] == pytest.approx(sum(sum(ways.values()) for ways in parts.values()))
    assert report['settings'] == {**SIZES, 'steps': 1}
    assert '| distillation losses' in capsys.readouterr().out


def test_a_teacher_has_no_backward(monkeypatch, tmp_path):
    config = recipe('dml')
    config.model.teachers = {'t': {**config.model.students.a, 'checkpoint': 'not_read.pth'}}
    config.model.methods = {'kd': {'type': 'tests.Snapshot'}}
    parts = profiled(config, monkeypatch, tmp_path)['parts']
    assert parts['teacher t']['forward'] > 0 == parts['teacher t']['backward']


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--cfg-options', 'compile=True'], 'a compiled step has no parts'),
        (['--steps', '0'], 'steps must be an integer of at least 1'),
        (['--threads', '0'], '--threads must be at least 1, but got 0'),
        (['--json', 'missing/out.json'], '--json must be a file in a folder that exists'),
    ],
)
def test_a_step_that_cannot_be_profiled_is_named(flags, message, monkeypatch, tmp_path, capsys):
    recipe('dml').dump(tmp_path / 'dml.py')
    with pytest.raises(SystemExit) as ended:
        run_tool(monkeypatch, PROFILE, tmp_path / 'dml.py', *flags)
    assert message in str(ended.value) + capsys.readouterr().err


def test_loaders_take_turns_over_several_epochs(monkeypatch, capsys):
    configs = [
        'configs/vanilla/vanilla_resnet20_1xb64_digits.py',
        'configs/in_memory/kdcl-general_resnet20-wrn16-1_1xb64_digits-in-memory.py',
    ]
    monkeypatch.chdir(REPO)
    flags = ['--batch-size=600', '--batches=4', '--rounds=1']  # an epoch has three
    threads = torch.get_num_threads()
    run_tool(monkeypatch, 'analysis_tools/benchmark_loader.py', *configs, *flags)
    torch.set_num_threads(threads)
    rows = [line.split('|') for line in capsys.readouterr().out.splitlines() if '600' in line]
    cells = [[cell.strip() for cell in row] for row in rows if len(row) > 5]
    assert [row[1:4] for row in cells] == [
        ['vanilla_resnet20_1xb64_digits', '600', '1'],
        ['kdcl-general_resnet20-wrn16-1_1xb64_digits-in-memory', '600', '2'],
    ]
    assert cells[0][-2] == '1.00 x'


def test_the_cost_of_ensembling_by_hand():
    """Two ranks of 3 images, 5 features, 7 classes; then 2 classes, which make solves cheaper."""
    cost = load(SCALING).ensembling_cost
    operations = 2 * 36 * 5 + 72 + 2 * 36 * 3 + 2 * 3 * 6 * 7
    assert cost(2, 3, 5, 7) == (operations, 4 * 3 * (5 + 7 + 1), 4 * 36)
    assert cost(2, 3, 5, 2)[0] == 2 * 36 * 5 + 72 + 2 * 36 * 2
    assert cost(1, 3, 5, 7)[1] == 0


def test_the_inverse_gives_the_same_targets():
    tool = load(SCALING)
    batch = tool.random_batch(6, 5, 7)
    ours = tool.ensemble_knowledge(*batch, 4.0, 0.5)
    torch.testing.assert_close(tool.inverse_targets(*batch, 4.0, 0.5), ours)


def test_scaling_prints_its_tables(monkeypatch, capsys):
    flags = ['--images=4', '--rounds=1', '--features=3', '--classes=5', '--inverse=8']
    flags += ['--num-instances=4', '--ranks', 1, 2, '--labels', 20]
    run_tool(monkeypatch, SCALING, *flags)
    rows = [line.split('|') for line in capsys.readouterr().out.splitlines() if '|' in line]
    cells = [[cell.strip() for cell in row[1:]] for row in rows]
    assert ['2', '8', '0.00 G'] in [row[:3] for row in cells]
    assert [row[0] for row in cells[6:10]] == ['1', '2', '4', '8']
    assert (cells[-1][0], cells[-1][2]) == ('20', '80')


def test_scaling_without_a_question_names_them(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, SCALING, '--images', '4')
    assert 'give --ranks, --inverse or --labels' in capsys.readouterr().err
