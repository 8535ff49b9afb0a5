"""Ways in which ranks of BAKE gather, against one process: losses, and every gradient."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from kd_mm.registry import MODELS
from tests.ranks import (
    NUM_CLASSES,
    average,
    draw,
    losses_and_gradients,
    run_on_ranks,
    shard,
)

# Batches of two and of four ranks, step by step: full, then smaller last ones.
STEPS = [(6, 6), (6, 2), (3, 6), (1, 1)]
STEPS_OF_FOUR = [(6, 4, 3, 5), (6, 2, 3, 1), (1, 1, 3, 5)]
CLOSE = {'rtol': 1e-9, 'atol': 1e-12}


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
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def train(rank, steps, *options):
    ddp = MMDistributedDataParallel(build_model(*options), device_ids=None)
    results = []
    for step, sizes in enumerate(steps):
        images, samples = draw(step, sum(sizes))
        mine = shard(rank, sizes)
        results.append(losses_and_gradients(ddp, images[mine], samples[mine]))
    return results


def on_two_ranks(rank):
    with pytest.raises(ValueError, match='group_size=3 with 2 ranks; take one of its divisors'):
        build_model('group', 3)(*draw(0, 2), mode='loss')
    growing = build_model('global')
    for size in (2, 3, 2):  # a resumed run may begin with the last batch of an epoch
        growing(*draw(0, size), mode='loss')
    with pytest.raises(ValueError, match=r'3 images per rank, but got 4; .*drop_last=True'):
        growing(*draw(0, 4), mode='loss')
    return {
        'global': train(rank, STEPS, 'global'),
        'group of all': train(rank, STEPS, 'group', 2),
        'local head': train(rank, STEPS, 'local', None, True),
        'local method': train(rank, STEPS, 'local', None, False),
        # In evaluation, ranks may have different numbers of batches.
        'evaluation': evaluate(rank),
    }


def evaluate(rank):
    return losses_and_gradients(build_model('local').eval(), *draw(0, 3 + rank))[0]


def on_four_ranks(rank):
    return [train(rank, STEPS_OF_FOUR, 'group', 2, by_head) for by_head in (True, False)]


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory):
    return run_on_ranks(on_two_ranks, tmp_path_factory.mktemp('two'))


def check_steps(steps, ranks, model, group_size):
    """Each group equals one process on its images, by its share of all images."""
    for step, sizes in enumerate(steps):
        images, samples = draw(step, sum(sizes))
        starts = range(0, len(sizes), group_size)
        counts = [sum(sizes[start : start + group_size]) for start in starts]
        parts = [shard(group, counts) for group in range(len(counts))]
        alone = [losses_and_gradients(model, images[part], samples[part]) for part in parts]
        for start, (losses, _), count in zip(starts, alone, counts, strict=True):
            mean = average([rank[step][0] for rank in ranks[start : start + group_size]])
            share = count * len(counts) / sum(sizes)
            expected = {key: loss * share for key, loss in losses.items()}
            torch.testing.assert_close(mean, expected, **CLOSE)
        gradients = average([gradients for _, gradients in alone], counts)
        for rank in ranks:  # DDP has averaged
            found = {name.removeprefix('module.'): g for name, g in rank[step][1].items()}
            torch.testing.assert_close(found, gradients, **CLOSE)


@pytest.mark.parametrize('gather', ['global', 'group of all'])
def test_a_head_that_gathers_from_all_equals_one_process(two_ranks, gather):
    check_steps(STEPS, [rank[gather] for rank in two_ranks], build_model('global'), group_size=2)


@pytest.mark.parametrize('kind', ['head', 'method'])
def test_local_gather_equals_each_rank_alone(two_ranks, kind):
    model = build_model('local', by_head=kind == 'head')
    check_steps(STEPS, [rank[f'local {kind}'] for rank in two_ranks], model, group_size=1)


def test_a_head_in_evaluation_mode_asks_no_other_rank(two_ranks):
    assert [rank['evaluation'] for rank in two_ranks] == [evaluate(rank) for rank in range(2)]


def test_group_gather_equals_one_process_on_each_group(tmp_path):
    ranks = run_on_ranks(on_four_ranks, tmp_path, world_size=4)
    for number, by_head in enumerate((True, False)):
        model = build_model('global', by_head=by_head)
        check_steps(STEPS_OF_FOUR, [rank[number] for rank in ranks], model, group_size=2)


def test_group_of_one_process_is_local():
    losses, _ = losses_and_gradients(build_model('group', 2), *draw(0, 6))
    expected, _ = losses_and_gradients(build_model('local'), *draw(0, 6))
    assert losses == expected
