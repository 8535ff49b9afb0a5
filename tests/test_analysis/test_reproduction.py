import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from kd_mm.analysis import reproduction
from kd_mm.analysis.reproduction import Row, Run, Settings, load_table, load_tables, run_config
from tests import forked
from tests.conftest import REPO, run_tool

CONFIGS = REPO / 'configs'
TABLES = load_tables(CONFIGS)
ROWS = {row.name: row for rows in TABLES.values() for row in rows}
PLAIN = ROWS['vanilla_resnet20_1xb64_digits']


def test_gains_are_taken_from_a_vanilla_recipe_of_the_table():
    for table, rows in TABLES.items():
        names = [row.name for row in rows]
        assert len(set(names)) == len(names), table
        for row in rows:
            plain = row.vanilla.values() if isinstance(row.vanilla, dict) else [row.vanilla]
            assert set(plain) <= set(names), row.name
            assert all(ROWS[name].vanilla == {} for name in plain)
            assert bool(row.vanilla) == (row.config.parent.name != 'vanilla')


@pytest.mark.parametrize(
    ('name', 'published'),
    [
        ('resnet18_1xb128_cifar100', {'network': 78.72}),  # an error of 21.28
        ('vanilla_resnet32_1xb128_cifar100', {'network': 69.9}),
        ('kdcl-general_resnet32-wrn16-2_1xb128_cifar100', {'resnet32': 74.3, 'wrn16_2': 75.5}),
        ('resnet20_1xb64_digits', {}),
    ],
)
def test_published_numbers_come_from_the_metafiles(name, published):
    assert ROWS[name].published == published


def test_a_row_may_change_options_of_a_config(tmp_path):
    (tmp_path / 'bake').mkdir()
    config = CONFIGS / 'bake/resnet20_1xb64_digits.py'
    (tmp_path / 'bake/own.py').write_text(f'_base_ = {str(config)!r}')
    changed = {
        'config': 'own', 'name': 'own-hot', 'options': {'model.head.temperature': 9.0},
        'published': {'network': 70.5}, 'vanilla': 'own',
    }  # fmt: skip
    (tmp_path / 'tables.yml').write_text(yaml.safe_dump({'t': ['own', changed], 'u': ['nope']}))
    with pytest.raises(ValueError, match=r'must name a config, but there is no nope\.py'):
        load_table('t', tmp_path)
    (tmp_path / 'tables.yml').write_text(yaml.safe_dump({'t': ['own', changed]}))
    plain, hot = load_table('t', tmp_path)
    assert (plain.name, plain.vanilla, hot.name, hot.vanilla) == ('own', {}, 'own-hot', 'own')
    assert hot.published == {'network': 70.5}
    run = Run(hot, 0, Settings(), tmp_path)
    assert run.work_dir == tmp_path / 'own-hot/seed0'
    assert run_config(hot, 0, Settings()).model.head.temperature == 9.0
    assert run_config(plain, 0, Settings()).model.head.temperature != 9.0
    with pytest.raises(ValueError, match=r'the table must be one of t, but got .nope.'):
        load_table('nope', tmp_path)


def test_schedules_shrink_with_the_run():
    cfg = run_config(ROWS['ffsd_resnet32_1xb128_cifar100'], 3, Settings(epochs=30, data='there'))
    assert cfg.train_cfg.max_epochs == 30
    assert cfg.randomness.seed == 3
    assert (
        cfg.train_dataloader.dataset.data_root == cfg.val_dataloader.dataset.data_root == 'there'
    )
    (steps,) = reproduction._typed_dicts(cfg.param_scheduler)
    assert steps['milestones'] == [15, 22]  # 150 and 225 of 300

    cfg = run_config(ROWS['resnet20_1xb64_digits'], 0, Settings(epochs=5))
    warmup, cosine = cfg.param_scheduler
    assert (warmup.begin, warmup.end) == (0, 1)  # a quarter of 2, but at least one epoch
    assert (cosine.begin, cosine.end, cosine.T_max) == (0, 5, 4)

    own = run_config(PLAIN, 7, Settings())
    recipe = Config.fromfile(PLAIN.config)
    recipe.randomness.seed = 7
    assert own.pretty_text == recipe.pretty_text


def test_subset_shrinks_what_is_held_out():
    row = ROWS['kdcl-general_resnet20-wrn16-1_1xb64_digits']
    whole = Config.fromfile(row.config).train_dataloader.dataset
    half = run_config(row, 0, Settings(subset=599)).train_dataloader.dataset
    assert half.dataset.indices == 599
    assert half.num_per_class == whole.num_per_class // 2
    for count, message in ((9999, r'must lie in 1\.\.1198'), (4, r'the first 4 hold [1-4] of 10')):
        with pytest.raises(ValueError, match=message):
            run_config(row, 0, Settings(subset=count))


def result(config, seed, top1, seconds=10.0, gpu=0):
    return {'config': config, 'seed': seed, 'epochs': 2, 'steps': 1008, 'top1': top1,
            'seconds': seconds, 'peak_gpu_mib': gpu}  # fmt: skip


def test_table_holds_last_epochs_and_paired_gains(tmp_path):
    rows = [
        Row('plain', Path('plain.py'), {}, {'network': 70.0}, {}),
        Row('pair', Path('pair.py'), {}, {'a': 72.0}, {'a': 'plain'}),
    ]
    results = [
        result('pair', 2, {'a': [20.0, 99.0], 'ensemble': [30.0, 99.0]}, 40.0, 7),
        result('pair', 1, {'a': [20.0, 55.0], 'ensemble': [30.0, 61.0], 'mean': [0.0, 0.0]}, 30.0),
        result('pair', 0, {'a': [20.0, 53.0], 'ensemble': [30.0, 60.0], 'mean': [0.0, 0.0]}, None),
        result('plain', 0, {'network': [10.0, 50.0]}),
        result('plain', 1, {'network': [10.0, 54.0]}),
    ]
    markdown, table, record = reproduction.write_table(tmp_path, 't', rows, results, ['a note'])
    lines = {
        (line['recipe'], line['network']): line for line in json.loads(record.read_text())['lines']
    }
    assert list(lines) == [('plain', 'network'), ('pair', 'a'), ('pair', 'ensemble')]
    student = lines['pair', 'a']
    assert student['top1'] == {'0': 53.0, '1': 55.0, '2': 99.0}
    assert student['gain'] == {'0': 3.0, '1': 1.0}  # the plain recipe has no third seed
    assert (student['published'], student['seconds'], student['peak_mib']) == (72.0, 35.0, 7)
    assert lines['pair', 'ensemble']['gain'] is None
    cells = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in markdown.read_text().splitlines()
        if line.startswith('|')
    ]
    assert cells[2] == [
        'plain',
        'network',
        '70.00',
        '52.00 ± 2.83',
        '',
        '',
        '2',
        '1,008',
        '10',
        '',
    ]
    # 1 and 3: mean 2, SD sqrt(2), standard error 1, and t of one degree of freedom is 12.706.
    assert cells[3][4:7] == ['+2.00 ± 1.41', '-10.71 to +14.71', '3']
    assert table.read_text().splitlines()[1].endswith(',50.0000,54.0000,')


FAKE_TOOL = """
import json, os, pathlib, shutil, sys, time
config, _, work_dir, *resume = sys.argv[1:]
work_dir, checkpoint = pathlib.Path(work_dir), pathlib.Path(__file__).with_suffix('.pth')
assert pathlib.Path(config).exists()
(work_dir / 'gpus').write_text(os.environ['CUDA_VISIBLE_DEVICES'])
(work_dir / 'pid').write_text(str(os.getpid()))
if 'seed2' in str(work_dir):
    time.sleep(3600)
shutil.copy(checkpoint, work_dir / 'epoch_1.pth')
(work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
if 'seed1' in str(work_dir) and not resume:
    sys.exit('broken')
folder = work_dir / '20260101_000000' / 'vis_data'
folder.mkdir(parents=True)
(folder / 'scalars.json').write_text(json.dumps({'accuracy/top1': 42.0, 'step': 1}))
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6')
    (tmp_path / 'tool.py').write_text(FAKE_TOOL)
    empty = {key: {} for key in ('state_dict', 'message_hub', 'optimizer')}
    torch.save({**empty, 'meta': {'iter': 12}}, tmp_path / 'tool.pth')
    return [sys.executable, str(tmp_path / 'tool.py')]


def test_a_failed_run_is_resumed_and_a_finished_one_left_alone(tool, tmp_path):
    runs = [Run(PLAIN, seed, Settings(epochs=1), tmp_path) for seed in (0, 1)]
    ended = []
    assert reproduction.train_all(runs, tool, 2, ended.append) == [runs[1]]
    assert set(ended) == set(runs)
    assert {(run.work_dir / 'gpus').read_text() for run in runs} == {'4', '6'}
    assert 'broken' in (runs[1].work_dir / reproduction.LOG).read_text()
    first = runs[0].result
    assert (first['top1'], first['steps']) == ({'network': [42.0]}, 12)
    assert first['seconds'] > 0
    assert reproduction.train_all(runs, tool, 1, ended.append) == []
    assert runs[1].result['seconds'] is None  # resumed
    assert runs[0].result == first
    assert len(ended) == 3
    assert (runs[1].work_dir / 'gpus').read_text() == '4,6'


def test_processes_end_after_ctrl_c(tool, tmp_path):
    runs = [Run(PLAIN, seed, Settings(epochs=1), tmp_path) for seed in (0, 2)]
    pid = runs[1].work_dir / 'pid'

    def interrupt(run):
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduction.train_all(runs, tool, 2, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    run = Run(PLAIN, 0, Settings(epochs=1), tmp_path)
    run.work_dir.mkdir(parents=True)
    run.config.write_text(run.text)
    Run(PLAIN, 0, Settings(epochs=2), tmp_path)  # nothing was trained yet
    (run.work_dir / 'epoch_1.pth').touch()
    Run(PLAIN, 0, Settings(epochs=1), tmp_path)
    with pytest.raises(ValueError, match='holds a run with other settings'):
        Run(PLAIN, 0, Settings(epochs=2), tmp_path)


def test_sigterm_stops_the_tool_and_its_runs(tmp_path):
    begun = tmp_path / PLAIN.name / 'seed0' / reproduction.LOG
    tool = forked.start_tool(
        'reproduce.py', 'digits', '--rows', PLAIN.name, '--seeds', 2, '--work-dir', tmp_path,
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
    table = tmp_path / 'digits.md'
    table.write_text('measured before')
    flags = ['--rows', PLAIN.name, '--seeds', '1', '--work-dir', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', 'digits', *flags])
    monkeypatch.setattr(tool, 'train', lambda runs, jobs: runs)
    with pytest.raises(SystemExit, match=r'error: 1 runs failed; .*\n.*/seed0/train.log'):
        tool.main()
    assert table.read_text() == 'measured before'


def test_tool_trains_and_writes_three_files(tmp_path):
    flags = ('--epochs', 1, '--subset', 64, '--seeds', 1, '--work-dir', tmp_path)
    done = run_tool('reproduce.py', 'digits', '--rows', PLAIN.name, *flags)
    (run,) = json.loads((tmp_path / 'digits.json').read_text())['runs']
    assert run['steps'] == 1  # 64 images are one batch
    assert 0 <= run['top1']['network'][-1] <= 100
    assert '1 epoch in place of 20; the first 64 training images only' in done.stdout
    assert (tmp_path / 'digits.md').read_text() in done.stdout

    # What other rows have reached stays in the table.
    other = 'vanilla_wrn16-1_1xb64_digits'
    forked.run_tool('reproduce.py', 'digits', '--rows', other, *flags)
    runs = json.loads((tmp_path / 'digits.json').read_text())['runs']
    assert {run['config'] for run in runs} == {PLAIN.name, other}
