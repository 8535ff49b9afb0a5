"""Ranks of BAKE equal one process on the concatenated batch: losses, and every gradient."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmpretrain.models import ImageClassifier

from kd_mm.models import Distiller
from kd_mm.registry import MODELS
from tests.test_distributed.ranks import (
    NUM_CLASSES,
    average,
    draw,
    losses_and_gradients,
    run_on_ranks,
    shard,
)

# Batches of the two ranks, step by step: full, then a smaller last one, on either side.
STEPS = [(6, 6), (6, 2), (3, 6), (1, 1)]


def build_model(gather, group_size=None, by_head=True):
    """BAKE as a head, or as a method with one network."""
    torch.manual_seed(0)
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': NUM_CLASSES, 'in_channels': 120}
    options = {'gather': gather, 'group_size': group_size, 'omega': 0.9}
    if by_head:
        head |= {'type': 'kd_mm.BAKEHead', **options}
    network = {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': 'mmpretrain.LeNet5'},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': head,
    }
    model = MODELS.build(
        network if by_head else {'type': 'kd_mm.BAKE', 'student': network, **options}
    )
    assert isinstance(model, ImageClassifier if by_head else Distiller)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def train_on_a_rank(rank, gather, by_head, steps=STEPS, group_size=None):
    model = build_model(gather, group_size, by_head)
    ddp = MMDistributedDataParallel(model, device_ids=None)
    results = []
    for step, sizes in enumerate(steps):
        images, samples = draw(step, sum(sizes))
        mine = shard(rank, sizes)
        results.append(losses_and_gradients(ddp, images[mine], samples[mine]))
    return results


@pytest.mark.parametrize('by_head', [True, False], ids=['head', 'method'])
def test_global_gather_equals_one_process(tmp_path, by_head):
    ranks = run_on_ranks(train_on_a_rank, tmp_path, 'global', by_head)
    model = build_model('global', by_head=by_head)
    for step, sizes in enumerate(STEPS):
        losses, gradients = losses_and_gradients(model, *draw(step, sum(sizes)))
        close = {'rtol': 1e-9, 'atol': 1e-12, 'msg': lambda m, s=sizes: f'{s}: {m}'}
        mean = average([rank[step][0] for rank in ranks])
        torch.testing.assert_close(mean, losses, **close)
        for name, expected in gradients.items():
            for rank in ranks:  # DDP has averaged
                torch.testing.assert_close(rank[step][1]['module.' + name], expected, **close)


@pytest.mark.parametrize('by_head', [True, False], ids=['head', 'method'])
def test_local_gather_equals_each_rank_alone_by_its_share_of_images(tmp_path, by_head):
    ranks = run_on_ranks(train_on_a_rank, tmp_path, 'local', by_head)
    model = build_model('local', by_head=by_head)
    for step, sizes in enumerate(STEPS):
        images, samples = draw(step, sum(sizes))
        parts = [shard(rank, sizes) for rank in range(2)]
        alone = [losses_and_gradients(model, images[part], samples[part]) for part in parts]
        for rank, (losses, _), size in zip(ranks, alone, sizes, strict=True):
            expected = {key: loss * 2 * size / sum(sizes) for key, loss in losses.items()}
            torch.testing.assert_close(rank[step][0], expected, rtol=1e-9, atol=1e-12)
        expected = average([gradients for _, gradients in alone], sizes)
        for name, gradient in expected.items():
            torch.testing.assert_close(ranks[0][step][1]['module.' + name], gradient)


def evaluate_on_a_rank(rank):
    return losses_and_gradients(build_model('local').eval(), *draw(0, 3 + rank))[0]


def test_a_head_in_evaluation_mode_asks_no_other_rank(tmp_path):
    """In evaluation, ranks may have different numbers of batches."""
    ranks = run_on_ranks(evaluate_on_a_rank, tmp_path)
    assert ranks == [evaluate_on_a_rank(rank) for rank in range(2)]


def grow_on_a_rank(rank):
    ddp = MMDistributedDataParallel(build_model('global'), device_ids=None)
    ddp(*draw(0, 2), mode='loss')  # a resumed run may begin with the last batch of an epoch
    ddp(*draw(0, 3), mode='loss')
    ddp(*draw(0, 2), mode='loss')
    with pytest.raises(ValueError, match=r'3 images per rank, but got 4; .*drop_last=True'):
        ddp(*draw(0, 4), mode='loss')
    return True


def test_a_growing_batch_is_refused_by_name(tmp_path):
    assert run_on_ranks(grow_on_a_rank, tmp_path) == [True, True]


# Batches of four ranks, step by step, of pairs with different largest ones.
STEPS_OF_FOUR = [(6, 4, 3, 5), (6, 2, 3, 1), (1, 1, 3, 5)]


def train_in_a_group(rank, by_head):
    return train_on_a_rank(rank, 'group', by_head, STEPS_OF_FOUR, group_size=2)


@pytest.mark.parametrize('by_head', [True, False], ids=['head', 'method'])
def test_group_gather_equals_one_process_on_each_group_by_its_share_of_images(tmp_path, by_head):
    ranks = run_on_ranks(train_in_a_group, tmp_path, by_head, world_size=4)
    model = build_model('global', by_head=by_head)
    for step, sizes in enumerate(STEPS_OF_FOUR):
        images, samples = draw(step, sum(sizes))
        pairs = [sum(sizes[:2]), sum(sizes[2:])]
        parts = [shard(pair, pairs) for pair in range(2)]
        alone = [losses_and_gradients(model, images[part], samples[part]) for part in parts]
        close = {'rtol': 1e-9, 'atol': 1e-12, 'msg': lambda m, s=sizes: f'{s}: {m}'}
        for pair, (losses, _), size in zip((ranks[:2], ranks[2:]), alone, pairs, strict=True):
            expected = {key: loss * 2 * size / sum(sizes) for key, loss in losses.items()}
            torch.testing.assert_close(
                average([rank[step][0] for rank in pair]), expected, **close
            )
        expected = average([gradients for _, gradients in alone], pairs)
        for name, gradient in expected.items():
            for rank in ranks:
                torch.testing.assert_close(rank[step][1]['module.' + name], gradient, **close)


def test_group_of_all_ranks_is_global(tmp_path):
    ranks = run_on_ranks(train_in_a_group_of_all, tmp_path)
    for step, sizes in enumerate(STEPS):
        model = build_model('global')
        losses, _ = losses_and_gradients(model, *draw(step, sum(sizes)))
        mean = average([rank[step][0] for rank in ranks])
        torch.testing.assert_close(mean, losses, rtol=1e-9, atol=1e-12)


def train_in_a_group_of_all(rank):
    """And refuse, in the same processes, a group that does not divide the ranks."""
    with pytest.raises(ValueError, match='group_size=3 with 2 ranks; take one of its divisors'):
        build_model('group', 3)(*draw(0, 2), mode='loss')
    results = []
    model = build_model('group', 2)
    for step, sizes in enumerate(STEPS):
        images, samples = draw(step, sum(sizes))
        mine = shard(rank, sizes)
        results.append(losses_and_gradients(model, images[mine], samples[mine]))
    return results


def test_group_of_one_process_is_local():
    losses, _ = losses_and_gradients(build_model('group', 2), *draw(0, 6))
    expected, _ = losses_and_gradients(build_model('local'), *draw(0, 6))
    assert losses == expected
