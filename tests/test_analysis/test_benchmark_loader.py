"""The loader benchmark: its turns and its arithmetic. Times themselves are not tested."""

import runpy
import sys

import pytest
import torch
from mmengine.config import Config

from kd_mm.analysis import loader_benchmark
from tests.conftest import REPO

PATHS = [
    'configs/vanilla/vanilla_resnet20_1xb64_digits.py',
    'configs/in_memory/kdcl-general_resnet20-wrn16-1_1xb64_digits-in-memory.py',
]


def test_speed_is_images_by_time_of_a_slowing_clock(monkeypatch):
    """The first recipe's rounds of two batches take 2, 4 and 8 s, the second's 1, 2 and 4 s."""
    moments = iter([0, 1, 1, 2, 2, 4, 4, 5, 5, 9, 9, 11, 11, 19, 19, 23])
    monkeypatch.setattr(loader_benchmark.time, 'process_time', lambda: next(moments))
    configs = [Config.fromfile(REPO / path) for path in PATHS]
    before = [config.to_dict() for config in configs]
    threads = torch.get_num_threads()
    report = loader_benchmark.compare_loaders(configs, batches=2, rounds=3)
    assert [config.to_dict() for config in configs] == before
    assert torch.get_num_threads() == threads
    assert report['rows'] == [
        {
            'name': 'vanilla_resnet20_1xb64_digits',
            'views': 1,
            'batch_size': 64,
            'images_per_s': {'median': 32.0, 'quartiles': [24.0, 48.0]},
        },
        {
            'name': 'kdcl-general_resnet20-wrn16-1_1xb64_digits-in-memory',
            'views': 2,
            'batch_size': 64,
            'images_per_s': {'median': 64.0, 'quartiles': [48.0, 96.0]},
        },
    ]
    table = loader_benchmark.to_markdown({**report, 'command': 'python x'})
    assert '| 64 | 1 | 32 (24 to 48) | 31,250.0 | 1.00 x |' in table
    assert '| 64 | 2 | 64 (48 to 96) | 15,625.0 | 2.00 x |' in table


def test_epochs_follow_each_other_and_folders_are_replaced(monkeypatch, tmp_path):
    config = Config.fromfile(REPO / PATHS[0])
    config.train_dataloader.dataset.indices = 100  # two batches
    seen = []
    build = loader_benchmark.Runner.build_dataloader
    monkeypatch.setattr(
        loader_benchmark.Runner,
        'build_dataloader',
        lambda cfg, seed: seen.append(cfg.dataset.data_root) or build(cfg, seed=seed),
    )
    report = loader_benchmark.compare_loaders([config], str(tmp_path), batches=5, rounds=1)
    assert report['rows'][0]['images_per_s']['median'] > 0
    assert seen == [str(tmp_path)]


def test_tool_prints_a_table(monkeypatch, capsys):
    command = [
        'benchmark_loader.py',
        PATHS[0],
        '--batch-size',
        '8',
        '--batches',
        '1',
        '--rounds',
        '1',
    ]
    monkeypatch.setattr(sys, 'argv', command)
    monkeypatch.chdir(REPO)
    runpy.run_path(str(REPO / 'tools/analysis_tools/benchmark_loader.py'), run_name='__main__')
    table = capsys.readouterr().out
    assert '| vanilla_resnet20_1xb64_digits | 8 | 1 |' in table
    assert f'{PATHS[0]} --batch-size 8 --batches 1 --rounds 1`' in table


@pytest.mark.parametrize('numbers', [{'batches': 0}, {'rounds': 0}])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ValueError, match='batches and rounds must be at least 1'):
        loader_benchmark.compare_loaders([], **numbers)
