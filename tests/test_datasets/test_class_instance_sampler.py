"""The class-instance sampler against its rules in plain loops."""

from collections import Counter
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from scipy.stats import chisquare
from torch.utils.data import Subset

from kd_mm.datasets import ClassInstanceSampler
from kd_mm.datasets import class_instance_sampler as module
from tests.references import class_instance_sampler as reference
from tests.toys.datasets import Labelled

# Classes of 1, 2, 3, 5 and 11 images, mixed.
LABELS = [4, 2, 3, 4, 1, 4, 0, 3, 4, 2, 4, 3, 4, 1, 4, 3, 4, 4, 2, 4, 3, 4]


@pytest.fixture
def warnings(caplog):
    """Ask for the messages that MMLogger's current instance was given."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: caplog.messages
    logger.removeHandler(caplog.handler)


def groups_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return np.array(indices).reshape(-1, sampler.num_instances).tolist()


def on_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(module, 'get_dist_info', lambda: (rank, world_size))


@pytest.mark.parametrize('block', [10, 1 << 18])
@pytest.mark.parametrize('epoch_length', ['anchors', 'images'])
@pytest.mark.parametrize('num_instances', [2, 3, 6, 11])
def test_every_group_keeps_the_rules(num_instances, epoch_length, block, monkeypatch):
    monkeypatch.setattr(module, '_BLOCK', block)
    sampler = ClassInstanceSampler(Labelled(LABELS), num_instances, epoch_length, seed=3)
    assert {type(index) for index in sampler} == {int}
    for epoch in range(5):
        for group in groups_of(sampler, epoch):
            assert reference.broken_rule(group, LABELS, range(len(LABELS))) is None


def test_images_reads_as_many_as_a_plain_epoch():
    sampler = ClassInstanceSampler(Labelled(LABELS), 4, 'images', seed=0)
    assert len(sampler) == 24  # 22 images, rounded up to whole groups of 4
    epochs = [[group[0] for group in groups_of(sampler, epoch)] for epoch in range(40)]
    assert all(len(set(anchors)) == 6 for anchors in epochs)
    assert len({tuple(sorted(anchors)) for anchors in epochs}) == 40
    assert {anchor for anchors in epochs for anchor in anchors} == set(range(22))


class TestUniformity:
    """Fixed seeds; a fair draw fails one of these with probability 0.001."""

    @staticmethod
    def partner_sequences(class_size, num_instances, epochs):
        """Sequences of partners, each counted by the steps from the anchor within its class."""
        labels = np.repeat(np.arange(50), class_size)
        sampler = ClassInstanceSampler(Labelled(labels.tolist()), num_instances, seed=5)
        for epoch in range(epochs):
            for group in groups_of(sampler, epoch):
                yield tuple((partner - group[0]) % class_size for partner in group[1:])

    @pytest.mark.parametrize(
        ('class_size', 'num_instances', 'sequences'),
        [
            (4, 3, list(permutations([1, 2, 3], 2))),  # without replacement
            (3, 4, list(product([1, 2], repeat=3))),  # with replacement
        ],
    )
    def test_every_choice_of_partners_is_as_likely(self, class_size, num_instances, sequences):
        counts = Counter(self.partner_sequences(class_size, num_instances, epochs=30))
        assert set(counts) == set(sequences)
        assert chisquare([counts[sequence] for sequence in sequences]).pvalue > 1e-3

    def test_anchors_draw_independently(self):
        # In a class of three, do neighbours in the order choose the same step? Half of the time.
        steps = list(self.partner_sequences(class_size=3, num_instances=2, epochs=20))
        same = sum(a == b for a, b in pairwise(steps))
        assert chisquare([same, len(steps) - 1 - same]).pvalue > 1e-3


def test_seed_and_epoch_fix_the_order():
    def order(seed, epoch):
        sampler = ClassInstanceSampler(Labelled(LABELS), 3, seed=seed)
        return tuple(map(tuple, groups_of(sampler, epoch)))

    orders = {place: order(*place) for place in product(range(3), repeat=2)}
    assert len(set(orders.values())) == 9
    np.random.seed(8)
    state = np.random.get_state()[1].tolist()
    assert order(1, 2) == orders[1, 2]
    assert np.random.get_state()[1].tolist() == state  # neither read nor written


def test_without_a_seed_the_ranks_agree_on_one(monkeypatch):
    monkeypatch.setattr(module, 'sync_random_seed', lambda: 123)
    unseeded = ClassInstanceSampler(Labelled(LABELS), 3)
    assert groups_of(unseeded) == groups_of(ClassInstanceSampler(Labelled(LABELS), 3, seed=123))


@pytest.mark.parametrize('block', [6, 1 << 18])
@pytest.mark.parametrize('epoch_length', ['anchors', 'images'])
@pytest.mark.parametrize('world_size', [2, 3, 8, 50])
def test_ranks_share_out_the_order_of_one_process(monkeypatch, world_size, epoch_length, block):
    monkeypatch.setattr(module, '_BLOCK', block)
    data = Labelled(LABELS)
    whole = groups_of(ClassInstanceSampler(data, 3, epoch_length, seed=9), 4)
    hands = []
    for rank in range(world_size):
        on_rank(monkeypatch, rank, world_size)
        hands.append(groups_of(ClassInstanceSampler(data, 3, epoch_length, seed=9), 4))
    assert hands == reference.deal(whole, world_size)


def test_a_repeat_of_an_image_is_not_its_partner():
    data = RepeatDataset(Labelled(LABELS), 3)
    groups = groups_of(ClassInstanceSampler(data, 3, seed=0))
    assert sorted(group[0] for group in groups) == list(range(66))
    for group in groups:
        assert reference.broken_rule(group, LABELS * 3, list(range(22)) * 3) is None


@pytest.mark.parametrize(
    ('data', 'num_instances', 'expected'),
    [
        (
            ConcatDataset([Labelled([0, 1], 2), Labelled([1, 0], 2)]),
            2,
            [[0, 3], [1, 2], [2, 1], [3, 0]],
        ),
        (
            Subset(Labelled([0, 0, 1, 1, 0, 1], 2), [5, 0, 1, 2]),
            2,
            [[0, 3], [1, 2], [2, 1], [3, 0]],
        ),
        # Items 0, 1 and 3 are the same image; item 2 is the other one of its class.
        (
            Subset(RepeatDataset(Labelled([0, 0]), 2), [0, 2, 1, 0]),
            3,
            [[0, 2, 2], [1, 2, 2], [2, 0, 0], [3, 2, 2]],
        ),
    ],
)
def test_partners_come_from_all_parts_by_the_indices_of_the_whole(data, num_instances, expected):
    assert sorted(groups_of(ClassInstanceSampler(data, num_instances, seed=0))) == expected


@pytest.mark.parametrize(
    ('data', 'messages'),
    [
        (
            Labelled([0, 1, 1, 2, 3], 4),
            ['3 of 4 classes have a single image, which is paired with itself.'],
        ),
        (
            RepeatDataset(Labelled([0, 0, 3, 3], 5), 4),
            ["3 of 5 classes have no image and are never sampled: 'b', 'c', 'e'."],
        ),
        (Labelled([0, 1, 1, 0], 2), []),
    ],
)
@pytest.mark.parametrize('rank', [0, 1])
def test_classes_of_one_image_or_none_draw_a_warning(data, messages, rank, warnings, monkeypatch):
    on_rank(monkeypatch, rank, 2)
    sampler = ClassInstanceSampler(data, 3, seed=0)
    for epoch in range(2):
        groups_of(sampler, epoch)
    assert warnings() == (messages if rank == 0 else [])


@pytest.mark.parametrize(
    ('data', 'arguments', 'error', 'message'),
    [
        (Labelled(LABELS), (2.0,), ValueError, r'num_instances must be an integer .* got 2\.0'),
        (Labelled(LABELS), (1,), ValueError, 'at least 2, but got 1'),
        (Labelled(LABELS), (2, 'image'), ValueError, "'anchors', 'images', but got 'image'"),
        (Labelled(LABELS), (2, 'images', -1), ValueError, 'seed must be an integer'),
        (Subset(Labelled(LABELS), []), (2,), ValueError, 'not be empty, but Subset has 0 items'),
        (Labelled([0, 1, 2, 4], 3), (2,), ValueError, r'in \[0, 3\).*one is 4\.'),
        (Labelled([0, 1, 2, -1]), (2,), ValueError, r'in \[0, 3\).*one is -1\.'),
        (Labelled([0, 1], key='caption'), (2,), TypeError, 'must know its labels'),
    ],
)
def test_refusals_name_the_value(data, arguments, error, message):
    with pytest.raises(error, match=message):
        ClassInstanceSampler(data, *arguments)


def test_built_by_name_each_batch_holds_whole_groups():
    cfg = {
        'batch_size': 8,
        'num_workers': 0,
        'dataset': {'type': 'kd_mm.Digits', 'split': 'test'},
        'sampler': {'type': 'kd_mm.ClassInstanceSampler', 'num_instances': 4},
        'collate_fn': {'type': 'pseudo_collate'},
    }
    loader = Runner.build_dataloader(cfg, seed=11)
    assert loader.sampler.seed == 11
    assert len(loader) == 300  # 599 anchors, 2 a batch
    for batch in loader:
        labels = np.array(batch['gt_label']).reshape(-1, 4)
        images = np.array(batch['sample_idx']).reshape(-1, 4)
        assert (labels == labels[:, :1]).all()
        assert all(len(set(group)) == 4 for group in images.tolist())
