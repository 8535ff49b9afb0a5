"""What a run draws follows from its seed and from where it stands."""

import logging
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.logging import MessageHub
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from kd_mm.resume import SeedHook
from tests.ranks import run_on_ranks


def loader_of(num_images=6, sampler_seed=0):
    dataset = [0] * num_images
    return DataLoader(
        dataset, batch_sampler=BatchSampler(DefaultSampler(dataset, seed=sampler_seed), 2, False)
    )


def runner_with(loader, seed=5, hub='hub'):
    """What the hook asks of a runner."""
    return SimpleNamespace(
        train_loop=SimpleNamespace(dataloader=loader),
        seed=seed,
        epoch=0,
        iter=0,
        message_hub=MessageHub.get_instance(f'{__name__}.{hub}'),
        logger=logging.getLogger(__name__),
    )


@pytest.fixture
def runner(request):
    return runner_with(loader_of(), hub=request.node.name)


def draw():
    return random.random(), np.random.random(), torch.rand(()).item()


def keys_of(runner):
    return [key for batch in runner.train_loop.dataloader.batch_sampler for key in batch.keys]


def test_each_moment_of_a_run_draws_for_itself(runner):
    def moments(seed):
        runner.seed = seed
        hook = SeedHook()
        hook.before_train(runner)
        drawn = []
        for runner.epoch, runner.iter in ((0, 0), (1, 0), (1, 1)):
            for begin in (hook.before_train_epoch, hook.before_val_epoch):
                begin(runner)
                drawn.append(draw())
            hook.before_train_iter(runner, batch_idx=0)
            drawn.append(draw())
        return drawn

    first = moments(5)
    draw()
    assert moments(5) == first
    # Epochs, iterations and validations differ; iteration 0 is the same in either epoch here.
    assert len(set(first)) == 3 - 1 + 3 - 1 + 3 - 1
    assert not set(first) & set(moments(6))


def test_switched_off_or_outside_of_training_it_leaves_all_to_mmengine(runner):
    given = runner.train_loop.dataloader.batch_sampler
    state = random.getstate()
    SeedHook().before_val_epoch(runner)
    hook = SeedHook(enabled=False)
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    hook.before_train_iter(runner, batch_idx=0)
    assert runner.train_loop.dataloader.batch_sampler is given
    assert random.getstate() == state


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


@pytest.mark.parametrize(
    'loader', [DataLoader(Stream()), DataLoader([0] * 4, batch_size=None)], ids=['stream', 'plain']
)
def test_images_without_an_index_draw_a_warning(loader, caplog, request):
    SeedHook().before_train(runner_with(loader, hub=request.node.name))
    assert 'seeds images by their index' in caplog.text
    assert len(list(loader)) == 4


def test_the_sampler_of_a_resumed_run_has_the_seed_of_the_first_start(runner, caplog):
    SeedHook().before_train(runner)
    runner.train_loop.dataloader = loader_of(sampler_seed=99)
    runner.epoch, runner.iter = 1, 4
    SeedHook().before_train(runner)
    batches = runner.train_loop.dataloader.batch_sampler
    assert batches.sampler.seed == 0
    assert batches.done == 1  # of 3 batches, in the second epoch
    assert caplog.text == ''


@pytest.mark.parametrize(
    ('num_images', 'iteration', 'sentence'),
    [(8, 4, '3 batches .* but this one has 4'), (6, 2, 'from iteration 2 and epoch 1')],
)
def test_a_run_that_is_not_the_same_draws_a_warning(
    runner, caplog, num_images, iteration, sentence
):
    SeedHook().before_train(runner)
    runner.train_loop.dataloader = loader_of(num_images)
    runner.epoch, runner.iter = 1, iteration
    SeedHook().before_train(runner)
    (record,) = caplog.records
    assert re.search(sentence, record.message)
    assert runner.train_loop.dataloader.batch_sampler.done == 0


def on_a_rank(rank):
    """Seeds of the images, dealt to the ranks or the same on all, and what a model draws."""
    keys = []
    for deals in (True, False):
        loader = loader_of()
        if not deals:
            loader.batch_sampler.sampler = range(6)
        runner = runner_with(loader, seed=5 + rank, hub=f'ranks_{deals}')
        hook = SeedHook()
        hook.before_train(runner)
        hook.before_train_iter(runner, batch_idx=0)
        keys.append(keys_of(runner))
    return *keys, draw()


def test_ranks_draw_alike_for_an_image_unless_both_may_have_it(tmp_path):
    (dealt, shared, drawn), (other_dealt, other_shared, other_drawn) = run_on_ranks(
        on_a_rank, tmp_path
    )
    assert {key[0] for key in dealt + shared + other_dealt + other_shared} == {5}
    assert {key[2] for key in dealt + other_dealt} == set(range(6))
    assert {key[3:] for key in dealt + other_dealt} == {(0, 0)}
    assert not set(shared) & set(other_shared)
    assert not set(drawn) & set(other_drawn)
