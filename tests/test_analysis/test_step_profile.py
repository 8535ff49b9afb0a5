"""Each nanosecond of a step belongs to one part, backward passes to the part they come from."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from kd_mm.analysis import step_profile
from kd_mm.analysis.step_profile import BACKWARD, REST, Range, profile_step, share_out, to_markdown
from tests.test_engine.toy_methods import model_cfg, optim_cfg

TOOL = Path(__file__).resolve().parents[2] / 'tools/analysis_tools/profile_step.py'
SIZES = {'batch_size': 4, 'img_size': 16, 'num_classes': 3}


def recipe(method):
    return Config(
        {
            'model': {**model_cfg(method), '_scope_': 'mmpretrain'},
            'optim_wrapper': optim_cfg(method),
            'default_hooks': {'runtime_info': {'type': 'kd_mm.LazyRuntimeInfoHook'}},
        }
    )


def test_time_is_shared_out_by_hand():
    events = [
        Range('aten::ones', -5, -1, 3),
        Range('kd_mm: step', 0, 100, -1),
        Range('kd_mm: preprocessor', 1, 6, -1),
        Range('aten::sub', 2, 5, 4),  # no node: the next operation takes its number
        Range('kd_mm: network a', 10, 30, -1),
        Range('aten::conv2d', 10, 20, 4),
        Range('aten::convolution', 11, 19, 4),
        Range('kd_mm: losses', 31, 45, -1),
        Range('aten::mul', 31, 33, 5),
        Range('kd_mm: neck', 33, 40, -1),
        Range('aten::relu', 34, 36, 6),
        Range('aten::sum', 41, 44, 7),
        Range(f'{BACKWARD}SumBackward0', 50, 53, 7),
        Range(f'{BACKWARD}ReluBackward0', 54, 58, 6),
        Range('aten::threshold_backward', 54, 57, 6),
        Range(f'{BACKWARD}MulBackward0', 58, 60, 5),
        Range(f'{BACKWARD}ConvolutionBackward0', 61, 75, 4),
        Range(f'{BACKWARD}torch::autograd::AccumulateGrad', 75, 76, -1),
        Range('Optimizer.step#Joint.step', 80, 90, -1),
        Range('Optimizer.step#SGD.step', 81, 89, -1),
        Range('kd_mm: step', 100, 110, -1),
        Range('Optimizer.step#SGD.step', 112, 115, -1),
    ]
    expected = {
        'preprocessor': (5, 0),
        'network a': (20, 14),
        'losses': (14 - 7, 3 + 2),
        'neck': (7, 4),
        'gradients added up': (0, 1),
        'optimizer': (10, 0),
    }
    used = sum(sum(pair) for pair in expected.values())
    expected[REST] = (110 - used, 0)
    shared = share_out(events[::-1])
    assert {k: (v['forward'], v['backward']) for k, v in shared.items()} == expected


def test_parts_of_a_cohort():
    report = profile_step(recipe('ffsd'), **SIZES, steps=2, warmup=1)
    parts = report['parts']
    learning = {
        *(f'network {name}' for name in ('leader', 'student1', 'student2')),
        *('fusion', 'decoder', 'self distillation'),
        *('classification losses', 'distillation losses'),
    }
    assert set(parts) == learning | {
        *('preprocessor', 'optimizer', 'logging', 'gradients added up'),
        REST,
    }
    assert {name for name, ways in parts.items() if ways['backward'] > 0} >= learning
    assert {name for name, ways in parts.items() if ways['forward'] > 0} >= learning
    assert parts['preprocessor']['backward'] == parts['logging']['backward'] == 0
    assert report['step_ms'] == pytest.approx(sum(sum(ways.values()) for ways in parts.values()))
    table = to_markdown({**report, 'command': 'python x'})
    assert '### this recipe, 4 images of 16 px' in table
    decoder = parts['decoder']
    share = 100 * sum(decoder.values()) / report['step_ms']
    line = f'{decoder["forward"]:.2f} | {decoder["backward"]:.2f} | {share:.2f} %'
    assert f'| decoder | {line} |' in table


@pytest.mark.parametrize('method', ['bake', 'bake_student'])
def test_parts_of_one_network(method):
    parts = profile_step(recipe(method), **SIZES, steps=1, warmup=0)['parts']
    learning = {'network', 'classification losses', 'distillation losses'}
    assert set(parts) - {'gradients added up'} == learning | {
        *('preprocessor', 'optimizer', 'logging'),
        REST,
    }
    assert all(parts[name]['backward'] > 0 for name in learning)


def test_parts_of_a_teacher_and_a_method_of_a_project():
    config = recipe('dml')
    config.model.teachers = {'t': {**config.model.students.a, 'checkpoint': 'not_read.pth'}}
    config.model.methods = {'kd': {'type': 'tests.Snapshot'}, 'gate': {'type': 'tests.Gate'}}
    config.optim_wrapper.parts.a.prefix = ['students.a', 'methods']
    parts = profile_step(config, **SIZES, steps=1, warmup=0)['parts']
    assert parts['teacher t']['forward'] > 0 == parts['teacher t']['backward']
    assert parts['gate']['backward'] > 0


def test_the_tool_tells_the_parts_of_a_network_alone(tmp_path, monkeypatch, capsys):
    recipe('bake').dump(tmp_path / 'bake.py')
    arguments = [f'--{key.replace("_", "-")}={value}' for key, value in SIZES.items()]
    arguments += ['--steps=1', '--warmup=0', f'--json={tmp_path / "out.json"}']
    monkeypatch.setattr(sys, 'argv', [str(TOOL), str(tmp_path / 'bake.py'), *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')
    report = json.loads((tmp_path / 'out.json').read_text())
    assert {'network', 'distillation losses', 'classification losses'} < set(report['parts'])
    assert to_markdown(report) in capsys.readouterr().out
    assert report['settings'] == {**SIZES, 'steps': 1}


def test_the_heap_grows_by_two_steps_before_the_profile(monkeypatch):
    seen = []
    monkeypatch.setattr(step_profile, 'cpu_rise', lambda step: step() or 1500)
    monkeypatch.setattr(step_profile, '_grow_heap', seen.append)
    profile_step(recipe('ffsd'), **SIZES, steps=1, warmup=0)
    assert seen == [3000]


@pytest.mark.parametrize(('free_pages', 'grown'), [(100, 3000), (1, 2048)])
def test_the_heap_grows_by_no_more_than_half_of_what_is_free(free_pages, grown, monkeypatch):
    seen = []
    monkeypatch.setattr(step_profile.platform, 'libc_ver', lambda: ('glibc', '2.36'))
    monkeypatch.setattr(
        step_profile.os, 'sysconf', {'SC_AVPHYS_PAGES': free_pages, 'SC_PAGE_SIZE': 4096}.get
    )
    monkeypatch.setattr(step_profile.torch, 'ones', lambda n, dtype: seen.append(n))
    step_profile._grow_heap(3000)
    assert seen == [grown]


@pytest.mark.parametrize(
    ('changes', 'sizes', 'message'),
    [
        ({'compile': True}, {}, 'a compiled step has no parts'),
        ({}, {'steps': 0}, 'steps must be at least 1'),
        ({}, {'warmup': -1}, 'warmup at least 0'),
    ],
)
def test_mistakes_are_named(changes, sizes, message):
    config = recipe('dml')
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        profile_step(config, **{**SIZES, **sizes})


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--threads', '0'], '--threads must be at least 1, but got 0'),
        (['--json', 'missing/out.json'], '--json must be a file in a folder that exists'),
    ],
)
def test_the_tool_refuses_before_it_measures(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'not_read.py', *flags])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
