"""A run that is killed at any moment and resumed is the run that was never stopped."""

import json
import random
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler

from kd_mm.checkpoint import load_checkpoint
from tests.conftest import REPO
from tests.test_resume.runs import KILLED, train
from tests.toys import project as toy_project


def newest(work_dir):
    return load_checkpoint((work_dir / 'last_checkpoint').read_text())


def accuracies(work_dir):
    """What validation logged, by the step; a validation that was done twice counts once."""
    rows = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for row in map(json.loads, path.read_text().splitlines()):
            scores = {key: value for key, value in row.items() if 'accuracy' in key}
            if scores:
                assert rows.setdefault(row['step'], scores) == scores
    return rows


def assert_equal(actual, expected, path=''):
    """Bit by bit, whatever lies in whatever."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), path
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_equal(actual[key], value, f'{path}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), path
        for index, value in enumerate(expected):
            assert_equal(actual[index], value, f'{path}.{index}')
    else:
        assert actual == expected, path


def assert_same_run(actual, expected):
    """Weights, their average, optimizers, schedules, logged numbers and the best checkpoint."""
    a, b = newest(actual), newest(expected)
    assert a.keys() == b.keys()
    assert (a['meta']['epoch'], a['meta']['iter']) == (b['meta']['epoch'], b['meta']['iter'])
    for key in a.keys() - {'meta', 'message_hub'}:
        assert_equal(a[key], b[key], key)
    scalars = [checkpoint['message_hub']['log_scalars'] for checkpoint in (a, b)]
    names = {name for name in scalars[1] if 'time' not in name}
    assert names == {name for name in scalars[0] if 'time' not in name}
    for name in names:  # the loss of each iteration, say, and so the order of the data
        assert scalars[0][name].data[0].tolist() == scalars[1][name].data[0].tolist(), name
    assert accuracies(actual) == accuracies(expected)

    files = [sorted(path.name for path in d.glob('*.pth*')) for d in (actual, expected)]
    assert files[0] == files[1]  # nothing outdated, nothing half written
    for name in files[0]:
        if name.startswith('best_'):
            best = [load_checkpoint(d / name)['state_dict'] for d in (actual, expected)]
            assert_equal(*best)


def hooks_of_the_docs():
    """The lines that docs/resume.md gives to another project."""
    page = (REPO / 'docs/resume.md').read_text()
    section = page.partition('## In another MMEngine project')[2]
    return re.search(r'```python\n(.*?)```', section, re.S)[1]


# Settings of the other project's run, and where it is killed: five iterations an epoch.
PLAIN = {
    'training': ('', ('train', 7)),
    'half-written': ('', ('half written', 3)),
    'not-in-place': ('', ('not in place', 4)),
    'in-place': ('', ('in place', 3)),
    'validation': ('', ('validation', 12)),
    'inside-an-epoch': (
        'default_hooks["checkpoint"].update(by_epoch=False, interval=3)\n'
        'optim_wrapper.update(accumulative_counts=2)\n',
        ('train', 10),  # from iteration 9, between two steps of the optimizer
    ),
    'no-epochs': (
        "train_cfg = dict(type='IterBasedTrainLoop', max_iters=16, val_interval=4)\n"
        "train_dataloader = dict(loader, sampler=dict(type='InfiniteSampler', shuffle=True))\n"
        'param_scheduler.update(by_epoch=False, T_max=16)\n'
        'default_hooks["logger"].update(log_metric_by_epoch=False)\n'
        'default_hooks["checkpoint"].update(by_epoch=False, interval=3)\n',
        ('train', 14),
    ),
}


def write_plain(folder, settings=''):
    path = folder / 'project.py'
    own = "imports=['tests.toys.project', "
    lines = hooks_of_the_docs().replace('imports=[', own)
    path.write_text(
        toy_project.CONFIG
        + lines.replace('custom_hooks = [', "custom_hooks = [dict(type='EMAHook', momentum=0.1),")
        + settings
    )
    return path


def assert_exact(tmp_path, config, kill, **kwargs):
    """Kill a run, resume it, and compare it with one that goes through."""
    for name in ('whole', 'stopped'):
        (tmp_path / name).mkdir()
    assert train(config, tmp_path / 'whole', **kwargs) == 0
    assert train(config, tmp_path / 'stopped', kill=kill, **kwargs) == KILLED
    assert train(config, tmp_path / 'stopped', '--resume', **kwargs) == 0
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')


@pytest.mark.parametrize('name', PLAIN)
def test_another_project_resumes_exactly(tmp_path, name):
    """By MMEngine's Runner and the lines of docs/resume.md, without our tools."""
    if name == 'no-epochs' and 'skip' not in vars(InfiniteSampler):
        pytest.skip('before its maintained fork, MMEngine reads ahead of the hooks')
    settings, kill = PLAIN[name]
    assert_exact(tmp_path, write_plain(tmp_path, settings), kill, plain=True)


def test_two_ranks_with_seeds_of_their_own(tmp_path):
    config = write_plain(tmp_path, 'randomness = dict(seed=3, diff_rank_seed=True)\n')
    assert_exact(tmp_path, config, ('train', 5), ranks=2, plain=True)


def test_without_a_seed_a_run_continues_with_the_first_one(tmp_path):
    config = write_plain(tmp_path, 'randomness = dict(seed=None)\n')
    assert train(config, tmp_path / 'stopped', kill=('not in place', 4), plain=True) == KILLED
    seed = newest(tmp_path / 'stopped')['meta']['seed']
    assert train(config, tmp_path / 'stopped', '--resume', plain=True) == 0
    config = write_plain(tmp_path, f'randomness = dict(seed={seed})\n')
    assert train(config, tmp_path / 'whole', plain=True) == 0
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')


# KDCL-General with everything: two workers, views, Mixup, an averaged model, an optimizer per
# student, a loss weight that ramps up.
GENERAL = """
_base_ = '{repo}/configs/kdcl/kdcl-general_resnet20-wrn16-1_1xb64_digits.py'

custom_hooks = [dict(type='EMAHook', momentum=0.1)]
train_cfg = dict(max_epochs=5)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
loader = dict(batch_size=16, num_workers=2, persistent_workers=True)
augments = [
    dict(type='RandomCrop', crop_size=16, padding=2),
    dict(type='RandomErasing', erase_prob=0.5),
]
views = [
    dict(type='Resize', scale=16),
    dict(type='MultiView', num_views=2, transforms=[augments]),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    loader, dataset=dict(num_per_class=3, dataset=dict(indices=96, pipeline=views))
)
val_dataloader = dict(loader, dataset=dict(indices=48))
depths = dict(resnet20=dict(backbone=dict(depth=8)), wrn16_1=dict(backbone=dict(depth=10)))
ramp = dict(_delete_=True, type='kd_mm.SigmoidRamp', epochs=4)
mixup = dict(augments=dict(type='Mixup', alpha=0.8))
model = dict(train_cfg=mixup, students=depths, loss_weight=ramp)
optim_wrapper = dict(
    _delete_=True,
    constructor='kd_mm.JointOptimWrapperConstructor',
    parts=dict(
        resnet20=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        wrn16_1=dict(optimizer=dict(type='Adam', lr=0.002)),
    ),
)
"""


def test_four_kills_at_random_moments_lose_nothing(tmp_path):
    """By ``tools/train.py``, resumed with another number of workers each time."""
    inherits, config = tmp_path / 'inherits.py', tmp_path / 'whole.py'
    inherits.write_text(GENERAL.format(repo=REPO))
    Config.fromfile(inherits).dump(config)
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    assert train(config, whole) == 0
    kills = ('train', 8), ('half written', 2), ('validation', 5), ('time', random.random())
    for number, kill in enumerate(kills):
        loaders = ('train_dataloader', 'val_dataloader')
        workers = [f'{name}.num_workers={number % 3}' for name in loaders]
        resume = ['--resume'] if number else []
        code = train(config, stopped, *resume, '--cfg-options', *workers, kill=kill)
        assert code == KILLED, kill
    assert train(config, stopped, '--resume') == 0
    assert_same_run(stopped, whole)
