"""The first command of the README, shortened: train, resume, test, deploy."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer

from kd_mm.analysis.comparison import read_run
from kd_mm.config import read_config
from kd_mm.datasets import Digits
from kd_mm.engine.hooks import ExportHook
from tests import forked
from tests.conftest import REPO, run, run_tool

CONFIG = 'configs/bake/resnet20_1xb64_digits.py'
SHORT = [
    'train_dataloader.dataset.indices=256',
    'val_dataloader.dataset.indices=100',
    'test_dataloader.dataset.indices=100',
    'train_dataloader.num_workers=0',
]


def train(work_dir, *arguments, epochs, run_tool=forked.run_tool):
    return run_tool(
        'train.py',
        CONFIG,
        '--work-dir',
        work_dir,
        *arguments,
        '--cfg-options',
        *SHORT,
        f'train_cfg.max_epochs={epochs}',
    )


def scalars(work_dir):
    """Every logged number of the last run in a work dir."""
    newest = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    return [json.loads(line) for line in newest.read_text().splitlines()]


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp('digits')
    output = train(folder, epochs=1, run_tool=run_tool).stdout
    (folder / 'console.txt').write_text(output)
    return folder


def test_training_leaves_checkpoints_curves_and_a_deployable_network(work_dir):
    names = {str(path.relative_to(work_dir)) for path in work_dir.rglob('*')}
    assert {'epoch_1.pth', 'learning_curves.png', 'deploy/model.pth', 'deploy/config.py'} <= names
    console = (work_dir / 'console.txt').read_text()
    assert 'mmcv-lite' not in console  # no advice to break the installation
    closing = console[console.index('Training is done. Written:') :]
    for written in ('epoch_1.pth', 'learning_curves.png', 'model.pth', 'config.py'):
        assert written in closing
    assert 'mim test mmpretrain' in closing
    assert 'needs kd_mm installed: mmpretrain has no kd_mm.CIFARResNet, kd_mm.Digits' in closing
    train_log = [row for row in scalars(work_dir) if 'loss_bake' in row]
    assert train_log
    assert all(row['loss_bake'] > 0 for row in train_log)


def test_deployed_network_is_the_trained_one_without_distillation(work_dir):
    plain = Config.fromfile(work_dir / 'deploy/config.py')
    assert plain.model.head.type == 'LinearClsHead'
    assert plain.train_dataloader.sampler == {'type': 'DefaultSampler', 'shuffle': True}
    assert 'custom_hooks' not in plain or not plain.custom_hooks
    deployed = torch.load(work_dir / 'deploy/model.pth', weights_only=True)
    assert deployed['meta']['dataset_meta']['classes'] == tuple('0123456789')
    trained = torch.load(work_dir / 'epoch_1.pth', weights_only=False)['state_dict']
    assert deployed['state_dict'].keys() == trained.keys()
    for name, weight in trained.items():
        assert torch.equal(deployed['state_dict'][name], weight)


def test_inferencer_of_mmpretrain_takes_the_deployed_network(work_dir):
    inferencer = ImageClassificationInferencer(
        str(work_dir / 'deploy/config.py'), pretrained=str(work_dir / 'deploy/model.pth')
    )
    image = Digits(split='test')[0]['img']
    result = inferencer(image)[0]
    assert result['pred_class'] == str(result['pred_label'])


def test_our_test_tool_gives_the_accuracy_of_training(work_dir, tmp_path):
    logged = [row['accuracy/top1'] for row in scalars(work_dir) if 'accuracy/top1' in row][-1]
    for tool, config, checkpoint in (
        (run_tool, CONFIG, work_dir / 'epoch_1.pth'),
        (forked.run_tool, work_dir / 'deploy/config.py', work_dir / 'deploy/model.pth'),
    ):
        tool(
            'test.py',
            config,
            checkpoint,
            '--work-dir',
            tmp_path,
            '--out',
            tmp_path / 'metrics.json',
            '--out-item',
            'metrics',
            '--cfg-options',
            SHORT[2],
        )
        metrics = json.loads((tmp_path / 'metrics.json').read_text())
        assert metrics['accuracy/top1'] == pytest.approx(logged, abs=1e-4)


def test_test_time_augmentation_leaves_what_training_wrote(work_dir, tmp_path):
    run = shutil.copytree(work_dir, tmp_path / 'run')
    dumped = run / Path(CONFIG).name
    before = dumped.read_text()
    output = forked.run_tool(
        'test.py',
        CONFIG,
        run / 'deploy/model.pth',
        '--tta',
        '--work-dir',
        run,
        '--cfg-options',
        SHORT[2],
    ).stdout
    assert re.search(r'Epoch\(test\).*accuracy/top1: [\d.]+', output)
    assert dumped.read_text() == before
    assert sorted(run.glob('*.py')) == [dumped]
    recorded = read_run(run)
    assert recorded.cfg.model.type == read_run(work_dir).cfg.model.type == 'ImageClassifier'


def test_resume_goes_on_behind_the_last_epoch(work_dir):
    output = train(work_dir, '--resume', epochs=2).stdout
    assert 'resumed epoch: 1' in output
    assert next(row['epoch'] for row in scalars(work_dir) if 'loss_bake' in row) == 2
    assert (work_dir / 'epoch_2.pth').exists()


def test_no_validate_trains_without_validation(tmp_path):
    train(tmp_path, '--no-validate', '--no-persistent-workers', epochs=1)
    assert not [row for row in scalars(tmp_path) if 'accuracy/top1' in row]
    assert (tmp_path / 'deploy/model.pth').exists()


def parsed(monkeypatch, *arguments):
    """tools/train.py as a module, and what it makes of its command line."""
    spec = importlib.util.spec_from_file_location('train', REPO / 'tools/train.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', ['train.py', str(REPO / CONFIG), *arguments])
    return tool, tool.parse_args()


def merged(monkeypatch, *arguments):
    """The config that tools/train.py makes of its command line."""
    tool, args = parsed(monkeypatch, *arguments)
    return tool.merge_args(read_config(args.config, args.cfg_options), args)


@pytest.mark.parametrize(
    ('recipe', 'hooks', 'students'),
    [
        ('ffsd/ffsd_resnet20_1xb64_digits', [], ['leader']),
        ('kdcl/kdcl-minlogit_resnet20-wrn16-1_1xb64_digits', [], ['resnet20', 'wrn16_1']),
        ('ffsd/ffsd_resnet20_1xb64_digits', [ExportHook()], []),
        ('bake/resnet20_1xb64_digits', [], []),  # whose checkpoint is a plain one
    ],
)
def test_a_cohort_without_the_hook_is_told_how_to_export(
    recipe, hooks, students, monkeypatch, tmp_path
):
    tool, _ = parsed(monkeypatch)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    told = []
    cfg = read_config(f'configs/{recipe}.py')
    logger = SimpleNamespace(info=told.append)
    run = SimpleNamespace(cfg=cfg, hooks=hooks, work_dir=str(tmp_path), logger=logger)
    tool.log_next_step(run)
    checkpoint, config = tmp_path / 'epoch_3.pth', tmp_path / Path(recipe).with_suffix('.py').name
    commands = [
        f'  python tools/model_converters/export_student.py {config} {checkpoint} '
        f'--student {name} --out {tmp_path}/deploy/{name}'
        for name in students
    ]
    assert '\n'.join(told).splitlines()[1:] == commands


def test_flags_of_mmpretrain_do_what_they_say(monkeypatch):
    plain = merged(monkeypatch)
    assert plain.work_dir == 'work_dirs/resnet20_1xb64_digits'
    assert (plain.launcher, plain.resume, plain.load_from) == ('none', False, None)
    assert plain.optim_wrapper.get('type') != 'AmpOptimWrapper'
    assert not plain.auto_scale_lr.get('enable', False)
    assert plain.val_dataloader.collate_fn.type == 'default_collate'

    amp = merged(monkeypatch, '--amp').optim_wrapper
    assert (amp.type, amp.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert merged(monkeypatch, '--auto-scale-lr').auto_scale_lr.enable
    assert merged(monkeypatch, '--no-validate').val_cfg is None
    assert merged(monkeypatch, '--work-dir', 'a').work_dir == 'a'
    automatic, named = merged(monkeypatch, '--resume'), merged(monkeypatch, '--resume', 'a.pth')
    assert (automatic.resume, automatic.load_from) == (True, None)
    assert (named.resume, named.load_from) == (True, 'a.pth')

    keep = 'train_dataloader.persistent_workers=True'
    workers = ['--cfg-options', 'train_dataloader.num_workers=2', keep]
    assert merged(monkeypatch, *workers).train_dataloader.persistent_workers
    stopped = merged(monkeypatch, '--no-persistent-workers', *workers)
    assert not stopped.train_dataloader.persistent_workers
    workers[1] = 'train_dataloader.num_workers=0'  # torch refuses persistent workers here
    assert not merged(monkeypatch, *workers).train_dataloader.persistent_workers


def test_memory_is_pinned_where_there_is_a_gpu_unless_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert merged(monkeypatch).train_dataloader.pin_memory
    assert not merged(monkeypatch, '--no-pin-memory').train_dataloader.pin_memory
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert not merged(monkeypatch).train_dataloader.pin_memory


def test_the_check_of_the_start_can_be_skipped(tmp_path, monkeypatch):
    """What it refuses then meets the run itself."""
    wrong = [
        '--work-dir',
        str(tmp_path / 'run'),
        '--cfg-options',
        'train_dataloader.batch_size=63',
    ]
    tool, args = parsed(monkeypatch, *wrong)
    with pytest.raises(SystemExit) as refused:
        tool.train(args)
    assert refused.value.code.startswith('error: train_dataloader.batch_size must be a multiple')
    assert not (tmp_path / 'run').exists()
    started = []
    tool, args = parsed(monkeypatch, '--no-check', *wrong)
    monkeypatch.setattr(tool, 'Runner', SimpleNamespace(from_cfg=started.append))
    with pytest.raises(AttributeError):  # of what stands for a runner
        tool.train(args)
    (cfg,) = started
    assert cfg.train_dataloader.batch_size == 63


@pytest.mark.parametrize('script', sorted((REPO / 'tools').glob('*.sh')), ids=lambda p: p.stem)
def test_shell_scripts_parse(script):
    run(['bash', '-n', script])


def test_slurm_scripts_pass_everything_on(tmp_path):
    """A stand-in for srun prints its arguments."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/usr/bin/env bash\nprintf "[%s]" "$@"\n')
    srun.chmod(0o755)
    output = run(
        ['bash', REPO / 'tools/slurm_train.sh', 'part', 'job', 'a.py', 'out', '--resume'],
        PATH=f'{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin',
        GPUS='16',
        SRUN_ARGS='--quiet --mem=1G',
    ).stdout
    for word in ('-p][part', '--job-name=job', '--gres=gpu:8', '--ntasks=16', '[--mem=1G]'):
        assert word in output
    assert '[a.py][--work-dir=out][--launcher=slurm][--resume]' in output
