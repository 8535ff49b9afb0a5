"""The headline command on two gloo processes, and mmpretrain's own evaluation of the result."""

import json
import pickle
import re
import socket
import sys
from pathlib import Path

import mmpretrain
import pytest
import torch

from tests.conftest import REPO, run

CONFIG = 'configs/bake/swin-t_8xb128_in1k.py'
STOCK_TOOLS = Path(mmpretrain.__file__).parent / '.mim'


def launch(script, *arguments):
    bin_dir = Path(sys.executable).parent
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        port = found.getsockname()[1]
    return run(
        ['bash', REPO / 'tools' / script, *arguments],
        PATH=f'{bin_dir}:/usr/bin:/bin',
        PORT=str(port),
    ).stdout


@pytest.fixture(scope='module')
def overrides(image_folder):
    """Data root, batch size and length; the warm-up of 20 epochs must fit the length."""
    roots = [
        f'{name}_dataloader.dataset.data_root={image_folder}' for name in ('train', 'val', 'test')
    ]
    return [
        *roots,
        *(f'{name}_dataloader.batch_size=4' for name in ('train', 'val', 'test')),
        'train_dataloader.num_batch_per_epoch=1',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=1',
        'default_hooks.checkpoint.max_keep_ckpts=1',
        'train_cfg.max_epochs=2',
    ]


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory, overrides):
    """Two epochs of one iteration on two processes, then a third one by --resume."""
    folder = tmp_path_factory.mktemp('swin')
    first = launch('dist_train.sh', CONFIG, 2, '--work-dir', folder, '--cfg-options', *overrides)
    assert (folder / 'epoch_2.pth').exists(), first
    overrides = [*overrides[:-1], 'train_cfg.max_epochs=3']
    second = launch(
        'dist_train.sh', CONFIG, 2, '--work-dir', folder, '--resume', '--cfg-options', *overrides
    )
    assert 'resumed epoch: 2' in second
    return folder


def test_trains_validates_resumes_and_tests(work_dir, overrides, tmp_path):
    assert (work_dir / 'epoch_3.pth').exists()
    assert (work_dir / 'deploy/model.pth').exists()
    rows = [
        json.loads(line)
        for file in work_dir.glob('*/vis_data/scalars.json')
        for line in file.read_text().splitlines()
    ]
    rows = [row for row in rows if 'accuracy/top1' in row]
    # One validation per epoch, and the second again: its checkpoint is from before.
    assert sorted(row['step'] for row in rows) == [1, 2, 2, 3]
    accuracies = {row['step']: row['accuracy/top1'] for row in rows}
    output = launch(
        'dist_test.sh',
        CONFIG,
        work_dir / 'epoch_3.pth',
        2,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *overrides,
    )
    assert float(re.search(r'accuracy/top1: ([\d.]+)', output)[1]) == accuracies[3]


def test_stock_config_and_tool_of_mmpretrain_give_our_answers(work_dir, image_folder, tmp_path):
    """No kd_mm in the process: the checkpoint is given to mmpretrain alone."""
    stock = STOCK_TOOLS / 'configs/swin_transformer/swin-tiny_16xb64_in1k.py'
    guard = tmp_path / 'kd_mm'
    guard.mkdir()
    (guard / '__init__.py').write_text('raise AssertionError("kd_mm was imported")\n')
    results = {}
    for name, tool, config, env in (
        ('ours', REPO / 'tools/test.py', CONFIG, {}),
        ('stock', STOCK_TOOLS / 'tools/test.py', stock, {'PYTHONPATH': str(tmp_path)}),
    ):
        out = tmp_path / f'{name}.pkl'
        output = run(
            [
                sys.executable,
                tool,
                config,
                work_dir / 'epoch_3.pth',
                '--work-dir',
                tmp_path / name,
                '--out',
                out,
                '--cfg-options',
                f'test_dataloader.dataset.data_root={image_folder}',
                'test_dataloader.batch_size=4',
                'test_dataloader.num_workers=0',
                'test_dataloader.persistent_workers=False',
            ],
            **env,
        ).stdout
        accuracy = re.search(r'accuracy/top1: [\d.]+ +accuracy/top5: [\d.]+', output)[0]
        results[name] = accuracy, pickle.loads(out.read_bytes())
    (ours, our_samples), (stock, stock_samples) = results['ours'], results['stock']
    assert ours == stock
    assert len(our_samples) == len(stock_samples) == 8
    for mine, other in zip(our_samples, stock_samples, strict=True):
        assert torch.equal(mine['pred_score'], other['pred_score'])
        assert torch.equal(mine['gt_label'], other['gt_label'])
