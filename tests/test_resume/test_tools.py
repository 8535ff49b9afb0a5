"""A run that is killed at any moment and resumed is the run that was never stopped."""

import json
import random

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler

from kd_mm.checkpoint import load_checkpoint
from tests.conftest import REPO
from tests.test_tools.runs import KILLED, train

# Two workers, random augmentation, batch augmentation and an averaged model, on few images.
COMMON = """
_base_ = '{repo}/configs/{recipe}.py'

custom_hooks = [dict(type='EMAHook', momentum=0.1)]
train_cfg = dict(max_epochs={epochs})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
loader = dict(batch_size=16, num_workers=2, persistent_workers=True)
augments = [
    dict(type='RandomCrop', crop_size=16, padding=2),
    dict(type='RandomErasing', erase_prob=0.5),
]
train_pipeline = [dict(type='Resize', scale=16), *augments, dict(type='PackInputs')]
val_dataloader = dict(loader, dataset=dict(indices=48))
mixup = dict(augments=dict(type='Mixup', alpha=0.8))
"""
ONE = """
train_dataloader = dict(loader, dataset=dict(indices=64, pipeline=train_pipeline))
model = dict(backbone=dict(depth=8), train_cfg=mixup)
"""
# KDCL-General with everything: views, an optimizer per student, a ramp.
GENERAL = """
views = [
    dict(type='Resize', scale=16),
    dict(type='MultiView', num_views=2, transforms=[augments]),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    loader, dataset=dict(num_per_class=3, dataset=dict(indices=96, pipeline=views))
)
depths = dict(resnet20=dict(backbone=dict(depth=8)), wrn16_1=dict(backbone=dict(depth=10)))
ramp = dict(_delete_=True, type='kd_mm.SigmoidRamp', epochs=4)
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
FFSD = """
train_dataloader = dict(loader, dataset=dict(indices=64, pipeline=train_pipeline))
shallow = dict(backbone=dict(depth=8))
model = dict(students=dict(student1=shallow, student2=shallow, leader=shallow))
default_hooks['checkpoint'].pop('save_best')
"""
BY_ITERATION = """
default_hooks.update(checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=1))
optim_wrapper = dict(accumulative_counts=2)
"""
NO_EPOCHS = """
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=10, val_interval=4, _scope_='mmpretrain'
)
train_dataloader.update(sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True))
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', by_epoch=False, T_max=10, _scope_='mmpretrain'
)
default_hooks.update(checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
"""
VANILLA = 'vanilla/vanilla_resnet20_1xb64_digits'


def write(folder, recipe, *texts, epochs=3):
    """Write a config, with all that it inherits."""
    path = folder / 'inherits.py'
    path.write_text((COMMON + ''.join(texts)).format(repo=REPO, recipe=recipe, epochs=epochs))
    cfg = Config.fromfile(path)
    cfg.dump(folder / 'whole.py')
    return folder / 'whole.py'


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
    for name in names:
        assert scalars[0][name].data[0].tolist() == scalars[1][name].data[0].tolist(), name
    assert accuracies(actual) == accuracies(expected)

    best = [sorted(path.name for path in d.glob('best_*.pth')) for d in (actual, expected)]
    assert best[0] == best[1]
    for name in best[0]:
        assert_equal(
            load_checkpoint(actual / name)['state_dict'],
            load_checkpoint(expected / name)['state_dict'],
        )
    kept = [sorted(path.name for path in d.glob('*.pth*')) for d in (actual, expected)]
    assert kept[0] == kept[1]  # nothing outdated, nothing half written


def workers(number):
    loaders = ('train_dataloader', 'val_dataloader')
    return ['--cfg-options', *(f'{name}.num_workers={number}' for name in loaders)]


def assert_exact(tmp_path, config, kill, *options, **kwargs):
    """Kill a run, resume it with other options, and compare it with one that goes through."""
    assert train(config, tmp_path / 'whole', **kwargs) == 0
    assert train(config, tmp_path / 'stopped', kill=kill, **kwargs) == KILLED
    assert train(config, tmp_path / 'stopped', '--resume', *options, **kwargs) == 0
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')


@pytest.mark.parametrize('epochs', [1, 3])
def test_vanilla_killed_while_it_writes_its_only_checkpoint_again(tmp_path, epochs):
    """After epoch 1 and its best checkpoint; what is left is done without workers."""
    config = write(tmp_path, VANILLA, ONE, epochs=epochs)
    assert_exact(tmp_path, config, ('half written', 3), *workers(0))


def test_ffsd_killed_inside_validation(tmp_path):
    config = write(tmp_path, 'ffsd/ffsd_resnet20_1xb64_digits', FFSD)
    assert_exact(tmp_path, config, ('validation', 5))
    lines = (tmp_path / 'stopped/console.txt').read_text()
    assert 'The checkpoint is from before its validation' in lines


def test_bake_without_a_seed_goes_on_with_the_first_one(tmp_path):
    """It is killed when epoch 2, its fourth file, is about to take the place of epoch 1."""
    recipe = 'bake/resnet20_1xb64_digits'
    config = write(tmp_path, recipe, ONE, 'randomness = dict(seed=None)\n')
    assert train(config, tmp_path / 'stopped', kill=('not in place', 4)) == KILLED
    seed = newest(tmp_path / 'stopped')['meta']['seed']
    assert train(config, tmp_path / 'stopped', '--resume') == 0
    assert train(config, tmp_path / 'whole', '--cfg-options', f'randomness.seed={seed}') == 0
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')


def test_checkpoints_inside_of_epochs_and_of_accumulated_gradients(tmp_path):
    assert_exact(tmp_path, write(tmp_path, VANILLA, ONE, BY_ITERATION), ('train', 11))


@pytest.mark.skipif(
    'skip' not in vars(InfiniteSampler),
    reason="before its maintained fork, MMEngine reads ahead before a run's hooks are asked",
)
def test_a_loop_without_epochs(tmp_path):
    assert_exact(tmp_path, write(tmp_path, VANILLA, ONE, NO_EPOCHS), ('train', 9))


def test_two_ranks_with_seeds_of_their_own(tmp_path):
    config = write(tmp_path, VANILLA, ONE, 'randomness = dict(diff_rank_seed=True)\n')
    assert_exact(tmp_path, config, ('train', 5), ranks=2)


EPOCHS = 16


def test_ten_kills_at_random_moments_lose_nothing(tmp_path):
    """KDCL-General with everything, resumed with another number of workers each time."""
    recipe = 'kdcl/kdcl-general_resnet20-wrn16-1_1xb64_digits'
    config = write(tmp_path, recipe, GENERAL, epochs=EPOCHS)
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    assert train(config, whole) == 0
    (log,) = whole.glob('*/vis_data/scalars.json')
    epoch = (log.stat().st_mtime - (whole / config.name).stat().st_mtime) / EPOCHS
    chance = random.Random(0)
    kills = [('time', chance.uniform(0, 2 * epoch)) for _ in range(4)]
    kills += [('train', chance.randint(1, 10)) for _ in range(2)]
    kills += [('validation', chance.randint(1, 6))]
    kills += [
        (kind, chance.randint(1, 3)) for kind in ('half written', 'not in place', 'in place')
    ]
    chance.shuffle(kills)
    resume = []
    for number, kill in enumerate(kills):
        code = train(config, stopped, *resume, *workers(number % 3), kill=kill)
        assert code == KILLED, kill
        resume = ['--resume']
    assert train(config, stopped, '--resume') == 0
    assert_same_run(stopped, whole)
