import csv
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from mmengine.config import Config

from kd_mm.analysis import reproduction
from kd_mm.analysis.reproduction import Row, Run, Settings, load_table, run_config, summarise
from tests import forked
from tests.conftest import REPO, run_tool

CONFIGS = REPO / 'configs'
TABLES = yaml.safe_load((CONFIGS / 'tables.yml').read_text())
ROWS = {row.name: row for table in TABLES for row in load_table(table, CONFIGS)}


@pytest.mark.parametrize('row', ROWS.values(), ids=ROWS)
def test_gains_are_taken_from_a_plain_recipe_of_the_table(row):
    tables = [{entry['config'] for entry in table} for table in TABLES.values()]
    plain = row.vanilla
    if plain and not isinstance(plain, str):
        assert plain.keys() == set(Config.fromfile(row.config).model.students)
    for name in [plain] if isinstance(plain, str) else plain.values():
        assert ROWS[name].vanilla == {}
        assert all(name in table for table in tables if row.name in table)
    assert bool(plain) == (row.config.parent.name != 'vanilla')


@pytest.mark.parametrize(
    ('name', 'published'),
    [
        ('resnet18_1xb128_cifar100', {'network': 78.72}),  # an error of 21.28
        ('vanilla_resnet32_1xb128_cifar100', {'network': 69.9}),
        (
            'kdcl-general_resnet32-wrn16-2_1xb128_cifar100',
            {'resnet32': 74.3, 'wrn16_2': 75.5},
        ),
        ('resnet20_1xb64_digits', {}),
    ],
)
def test_published_numbers_come_from_the_metafiles(name, published):
    assert ROWS[name].published == published


def test_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r'must be one of digits, bake-cifar100.* but got .nope.'):
        load_table('nope', CONFIGS)


def test_schedules_shrink_with_the_run():
    cfg = run_config(ROWS['ffsd_resnet32_1xb128_cifar100'].config, 3, Settings(epochs=30))
    assert cfg.train_cfg.max_epochs == 30
    assert cfg.randomness.seed == 3
    (steps,) = reproduction._schedulers(cfg.param_scheduler)
    assert steps['milestones'] == [15, 22]  # 150 and 225 of 300

    cfg = run_config(ROWS['resnet20_1xb64_digits'].config, 0, Settings(epochs=5))
    warmup, cosine = cfg.param_scheduler
    assert (warmup.begin, warmup.end) == (0, 1)  # a quarter of 2, but one epoch at least
    assert (cosine.begin, cosine.end, cosine.T_max) == (0, 5, 4)


def test_schedules_of_each_part_shrink():
    parts = {'a': [{'type': 'MultiStepLR', 'milestones': [100, 150]}], 'b': {'type': 'StepLR'}}
    parts['b']['step_size'] = 30
    by_iteration = {'type': 'LinearLR', 'by_epoch': False, 'begin': 0, 'end': 500}
    for scheduler in reproduction._schedulers([parts, by_iteration]):
        reproduction._shorten_scheduler(scheduler, 0.1)
    assert parts['a'][0]['milestones'] == [10, 15]
    assert parts['b']['step_size'] == 3
    assert by_iteration['end'] == 500


def test_own_schedule_is_left_alone():
    row = ROWS['resnet20_1xb64_digits']
    cfg, recipe = run_config(row.config, 7, Settings()), Config.fromfile(row.config)
    assert cfg.randomness.seed == 7
    recipe.randomness.seed = 7
    assert cfg.pretty_text == recipe.pretty_text


def test_subset_shrinks_what_is_held_out():
    row = ROWS['kdcl-general_resnet20-wrn16-1_1xb64_digits']
    whole = Config.fromfile(row.config).train_dataloader.dataset
    half = run_config(row.config, 0, Settings(subset=599)).train_dataloader.dataset
    assert half.dataset.indices == 599
    assert half.num_per_class == whole.num_per_class // 2


def test_data_folder_replaces_every_root():
    cfg = run_config(ROWS['kdcl-general_resnet32-wrn16-2_1xb128_cifar100'].config, 0,
                     Settings(data='elsewhere'))  # fmt: skip
    assert cfg.train_dataloader.dataset.dataset.data_root == 'elsewhere'
    assert cfg.val_dataloader.dataset.data_root == 'elsewhere'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (Settings(epochs=0), r'--epochs must be at least 1, but got 0'),
        (Settings(subset=0), r'--subset must lie in 1\.\.1198, but got 0'),
        (Settings(subset=9999), r'--subset must lie in 1\.\.1198, but got 9999'),
        (Settings(subset=4), r'the first 4 hold [1-4] of 10; use a larger --subset'),
    ],
)
def test_lengths_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run_config(ROWS['resnet20_1xb64_digits'].config, 0, settings)


def result(config, seed, top1, seconds=10.0, host=100, gpu=0):
    return {
        'config': config, 'seed': seed, 'epochs': 2, 'steps': 8, 'top1': top1, 'seconds': seconds,
        'peak_host_mib': host, 'peak_gpu_mib': gpu,
    }  # fmt: skip


def test_lines_hold_last_epochs_and_gains_by_seed():
    plain = Row(Path('plain.py'), {'network': 70.0}, {})
    pair = Row(Path('pair.py'), {'a': 72.0}, {'a': 'plain'})
    results = [
        result('plain', 0, {'network': [10.0, 50.0]}),
        result('plain', 1, {'network': [10.0, 54.0]}),
        result('pair', 0, {'a': [20.0, 53.0], 'ensemble': [30.0, 60.0], 'mean': [0.0, 0.0]}, None),
        result('pair', 1, {'a': [20.0, 55.0], 'ensemble': [30.0, 61.0], 'mean': [0.0, 0.0]}, 30.0),
        result('pair', 2, {'a': [20.0, 99.0], 'ensemble': [30.0, 99.0]}, 40.0, 300, 7),
    ]
    lines = {(line.recipe, line.network): line for line in summarise([plain, pair], results)}
    assert list(lines) == [('plain', 'network'), ('pair', 'a'), ('pair', 'ensemble')]
    student = lines['pair', 'a']
    assert student.top1 == {0: 53.0, 1: 55.0, 2: 99.0}
    assert student.gain == {0: 3.0, 1: 1.0}  # the plain recipe has no third seed
    assert student.published == 72.0
    assert student.seconds == 35.0
    assert student.peak_mib == 100
    assert lines['pair', 'ensemble'].gain is None
    text = reproduction.to_markdown(lines.values(), 'a table', ['a note'])
    assert '| plain | network | 70.00 | 52.00 ± 2.83 |  | 2 | 8 | 10 | 100 |' in text
    # 1 and 3: mean 2, SD of a sample of two is 2 / sqrt(2)
    assert '| +2.00 ± 1.41 | 3 |' in text


FAKE_TOOL = """
import json, pathlib, sys, torch
parts = {'state_dict': {}, 'message_hub': {}, 'optimizer': {}}
config, _, work_dir, *resume = sys.argv[1:]
work_dir = pathlib.Path(work_dir)
assert pathlib.Path(config).exists()
if 'seed1' in str(work_dir) and not resume:
    torch.save({**parts, 'meta': {'iter': 1}}, work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    sys.exit('broken')
folder = work_dir / '20260101_000000' / 'vis_data'
folder.mkdir(parents=True)
(folder / 'scalars.json').write_text(json.dumps({'accuracy/top1': 42.0, 'step': 1}))
torch.save({**parts, 'meta': {'iter': 12}}, work_dir / 'epoch_1.pth')
(work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
"""


def test_a_failed_run_is_resumed_and_a_finished_one_left_alone(tmp_path):
    tool = tmp_path / 'tool.py'
    tool.write_text(FAKE_TOOL)
    row = ROWS['vanilla_resnet20_1xb64_digits']
    runs = [Run(row, seed, Settings(epochs=1), tmp_path) for seed in (0, 1)]
    seen = []
    train = lambda: reproduction.train_all(  # noqa: E731
        runs, [sys.executable, str(tool)], 2, lambda all_runs: seen.append(len(all_runs)), 0.05
    )
    assert train() == [runs[1]]
    assert 'broken' in (runs[1].work_dir / reproduction.LOG).read_text()
    assert runs[0].result['top1'] == {'network': [42.0]}
    assert runs[0].result['steps'] == 12
    assert runs[0].result['seconds'] > 0
    first = (runs[0].work_dir / reproduction.RESULT).stat().st_mtime_ns
    assert train() == []
    assert runs[1].result['seconds'] is None  # resumed
    assert (runs[0].work_dir / reproduction.RESULT).stat().st_mtime_ns == first
    assert set(seen) == {2}


def test_nothing_goes_on_after_ctrl_c(tmp_path):
    tool = tmp_path / 'tool.py'
    tool.write_text(
        'import os, pathlib, sys, time\n'
        'pid = pathlib.Path(sys.argv[1] + ".part")\n'
        'pid.write_text(str(os.getpid()))\n'
        'pid.replace(sys.argv[1] + ".pid")\n'
        'time.sleep(60)\n'
    )
    row = ROWS['vanilla_resnet20_1xb64_digits']
    runs = [Run(row, seed, Settings(epochs=1), tmp_path) for seed in range(3)]

    def interrupt_both(runs):
        if all(run.config.with_suffix('.py.pid').exists() for run in runs[:2]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduction.train_all(runs, [sys.executable, str(tool)], 2, interrupt_both, interval=0.05)
    pids = [int(path.read_text()) for path in tmp_path.glob('*/*.pid')]
    assert len(pids) == 2  # the third was not begun
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path):
    tool = tmp_path / 'tool.py'
    tool.write_text(FAKE_TOOL)
    row = ROWS['vanilla_resnet20_1xb64_digits']
    done, broken = (Run(row, seed, Settings(epochs=1), tmp_path) for seed in (0, 1))
    others = []
    for run in (done, broken):
        run.work_dir.mkdir(parents=True)
        with (run.work_dir / reproduction.LOG).open('a') as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            # Killed, a tool leaves its training behind, which holds the lock as its output.
            others.append(
                subprocess.Popen(
                    [sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, stdout=log
                )
            )
    with ThreadPoolExecutor() as pool:
        codes = [pool.submit(run.train, [sys.executable, str(tool)], {}) for run in (done, broken)]
        time.sleep(1)
        assert not any(code.done() for code in codes)
        assert not done.config.exists()
        (done.work_dir / reproduction.RESULT).write_text('{}')
        others[0].communicate(b'\n')
        assert codes[0].result(timeout=60) == 0
        assert not done.config.exists()  # not trained again
        broken.stop()
        assert codes[1].result(timeout=60) != 0
        assert not broken.config.exists()
        others[1].communicate(b'\n')


def test_sigterm_stops_the_tool_and_its_runs(tmp_path):
    row = ROWS['vanilla_resnet20_1xb64_digits']
    begun = tmp_path / row.name / 'seed0' / reproduction.LOG
    tool = forked.start_tool(
        'reproduce.py', 'digits', '--rows', row.name, '--seeds', 2, '--work-dir', tmp_path,
        log=tmp_path / 'console.txt',
    )  # fmt: skip
    while not begun.exists() and tool.is_alive():
        time.sleep(0.1)
    os.kill(tool.pid, signal.SIGTERM)
    tool.join(60)
    console = (tmp_path / 'console.txt').read_text()
    assert tool.exitcode == 143, console
    assert 'error: the run was stopped by SIGTERM; the same command goes on with it' in console
    assert sorted(begun.parents[1].glob('seed?')) == [begun.parent]


def test_a_table_stays_where_all_runs_failed(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('reproduce', REPO / 'tools/reproduce.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    row = 'vanilla_resnet20_1xb64_digits'
    table = tmp_path / 'digits.md'
    table.write_text('measured before')
    flags = ['--rows', row, '--seeds', '1', '--work-dir', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', 'digits', *flags])
    monkeypatch.setattr(tool, 'train', lambda runs, jobs: runs)
    with pytest.raises(SystemExit, match=f'error: 1 runs failed; .*\\n.*{row}/seed0/train.log'):
        tool.main()
    assert table.read_text() == 'measured before'
    assert not (tmp_path / 'digits.json').exists()


@pytest.mark.parametrize(
    ('given', 'count', 'jobs', 'expected'),
    [
        (None, 2, 3, ['0', '1', '0']),
        ('4,6', 2, 3, ['4', '6', '4']),  # a share of a machine
        ('4,6', 2, 1, [None]),
        ('4', 1, 2, [None, None]),
        ('', 0, 2, [None, None]),
    ],
)
def test_jobs_share_the_gpus_that_are_theirs(given, count, jobs, expected, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if given is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
    monkeypatch.setattr(reproduction.torch.cuda, 'device_count', lambda: count)
    together, seen = threading.Barrier(jobs), []

    def train(command, env):
        seen.append(env.get('CUDA_VISIBLE_DEVICES'))
        together.wait(timeout=10)  # so that each run has a slot of its own
        return 0

    runs = [Mock(result=None, train=train) for _ in range(jobs)]
    assert reproduction.train_all(runs, [], jobs, watch=lambda runs: None, interval=0.01) == []
    assert sorted(map(str, seen)) == sorted(map(str, expected))


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    row = ROWS['vanilla_resnet20_1xb64_digits']
    run = Run(row, 0, Settings(epochs=1), tmp_path)
    run.work_dir.mkdir(parents=True)
    run.config.write_text(run.text)
    Run(row, 0, Settings(epochs=1), tmp_path)
    Run(row, 0, Settings(epochs=2), tmp_path)  # nothing was trained yet
    (run.work_dir / 'epoch_1.pth').touch()
    Run(row, 0, Settings(epochs=1), tmp_path)
    with pytest.raises(ValueError, match='holds a run with other settings'):
        Run(row, 0, Settings(epochs=2), tmp_path)


def test_settings_are_compared_when_another_process_has_ended(tmp_path):
    row = ROWS['vanilla_resnet20_1xb64_digits']
    late = Run(row, 0, Settings(epochs=2), tmp_path)
    other = Run(row, 0, Settings(epochs=1), tmp_path)
    other.work_dir.mkdir(parents=True)
    other.config.write_text(other.text)
    (other.work_dir / reproduction.RESULT).write_text('{}')
    with pytest.raises(ValueError, match='holds a run with other settings'):
        late.train(['false'], {})


def test_epochs_are_counted_in_the_log_until_there_is_a_result(tmp_path, monkeypatch):
    run = Run(ROWS['vanilla_resnet20_1xb64_digits'], 0, Settings(epochs=3), tmp_path)
    logged = [{'accuracy/top1': 10.0, 'step': 1}]
    monkeypatch.setattr(reproduction, 'read_log', lambda work_dir: ([], logged))
    assert run.epochs_done == 1
    run.work_dir.mkdir(parents=True)
    (run.work_dir / reproduction.RESULT).write_text('{}')
    logged.clear()
    assert run.epochs_done == 3


def test_tool_trains_and_writes_three_files(tmp_path):
    arguments = (
        'digits', '--rows', 'vanilla_resnet20_1xb64_digits', '--epochs', 1, '--subset', 64,
        '--seeds', 1, '--work-dir', tmp_path / 'runs', '--out', tmp_path / 'out',
    )  # fmt: skip
    done = run_tool('reproduce.py', *arguments)
    written = json.loads((tmp_path / 'out/digits.json').read_text())
    (run,) = written['runs']
    assert run['steps'] == 1  # 64 images are one batch
    (line,) = written['lines']
    top1 = run['top1']['network'][-1]
    assert line['top1'] == {'0': top1}
    assert 0 <= top1 <= 100
    assert '1 epoch in place of 20; the first 64 training images only' in done.stdout
    assert (tmp_path / 'out/digits.md').read_text() in done.stdout
    with (tmp_path / 'out/digits.csv').open() as file:
        (row,) = csv.DictReader(file)
    assert float(row['seed0']) == pytest.approx(top1, abs=1e-4)
    assert (int(row['steps']), int(row['mib'])) == (1, line['peak_mib'])

    # What other rows have reached stays in the table.
    other = 'vanilla_wrn16-1_1xb64_digits'
    arguments = [other if word == 'vanilla_resnet20_1xb64_digits' else word for word in arguments]
    forked.run_tool('reproduce.py', *arguments)
    written = (tmp_path / 'out/digits.json').read_text()
    assert {run['config'] for run in json.loads(written)['runs']} == {row['recipe'], other}

    refused = forked.run_tool('reproduce.py', *arguments[:3], '--seeds', 0, check=False)
    assert refused.returncode == 1
    assert 'error: --seeds must be at least 1, but got 0' in refused.stdout
