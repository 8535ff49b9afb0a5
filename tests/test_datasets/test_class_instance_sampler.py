"""The class-instance sampler against its rules in plain loops."""

from collections import Counter
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.logging import MMLogger
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner
from scipy.stats import chisquare
from torch.utils.data import Subset

from kd_mm.datasets import ClassInstanceSampler
from kd_mm.datasets.samplers import class_instance_sampler as module
from tests.references import class_instance_sampler as reference
from tests.test_datasets.toys import Labelled

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


class TestGroups:
    @pytest.mark.parametrize('num_instances', [2, 3, 4, 6, 11])
    @pytest.mark.parametrize('epoch_length', ['anchors', 'images'])
    def test_every_group_keeps_the_rules(self, num_instances, epoch_length):
        sampler = ClassInstanceSampler(Labelled(LABELS), num_instances, epoch_length, seed=3)
        for epoch in range(5):
            for group in groups_of(sampler, epoch):
                assert reference.broken_rule(group, LABELS, range(len(LABELS))) is None

    def test_small_blocks_keep_the_rules(self, monkeypatch):
        monkeypatch.setattr(module, '_BLOCK', 10)
        groups = groups_of(ClassInstanceSampler(Labelled(LABELS), 3, seed=3))
        assert sorted(group[0] for group in groups) == list(range(len(LABELS)))
        for group in groups:
            assert reference.broken_rule(group, LABELS, range(len(LABELS))) is None

    def test_indices_are_python_ints(self):
        assert {type(i) for i in ClassInstanceSampler(Labelled(LABELS), 2, seed=0)} == {int}

    def test_anchors_each_image_once(self):
        sampler = ClassInstanceSampler(Labelled(LABELS), 4, 'anchors', seed=0)
        assert len(sampler) == 4 * 22
        for epoch in range(3):
            anchors = [group[0] for group in groups_of(sampler, epoch)]
            assert sorted(anchors) == list(range(22))

    def test_images_reads_as_many_as_a_plain_epoch(self):
        sampler = ClassInstanceSampler(Labelled(LABELS), 4, 'images', seed=0)
        assert len(sampler) == 24  # 22 images, rounded up to whole groups of 4
        epochs = [[group[0] for group in groups_of(sampler, epoch)] for epoch in range(40)]
        assert all(len(set(anchors)) == 6 for anchors in epochs)
        assert len({tuple(sorted(anchors)) for anchors in epochs}) == 40
        assert {anchor for anchors in epochs for anchor in anchors} == set(range(22))

    @pytest.mark.parametrize(('size', 'count'), [(2, 1), (5, 3), (9, 8), (20, 1)])
    def test_pick_distinct_is_a_list_being_emptied(self, size, count):
        rng = np.random.default_rng(0)
        own = rng.integers(size, size=50)
        ranks = np.stack([rng.integers(size - 1 - j, size=50) for j in range(count)])
        expected = [
            reference.pick_distinct(row, place, size)
            for row, place in zip(ranks.T.tolist(), own.tolist(), strict=True)
        ]
        assert module._pick_distinct(ranks, own).T.tolist() == expected


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

    def test_without_replacement_every_ordered_choice_is_as_likely(self):
        counts = Counter(self.partner_sequences(class_size=4, num_instances=3, epochs=30))
        choices = list(permutations([1, 2, 3], 2))
        assert set(counts) == set(choices)
        assert chisquare([counts[choice] for choice in choices]).pvalue > 1e-3

    def test_with_replacement_every_sequence_is_as_likely(self):
        counts = Counter(self.partner_sequences(class_size=3, num_instances=4, epochs=30))
        sequences = list(product([1, 2], repeat=3))
        assert set(counts) == set(sequences)
        assert chisquare([counts[sequence] for sequence in sequences]).pvalue > 1e-3

    def test_anchors_of_a_short_epoch_are_as_likely(self):
        sampler = ClassInstanceSampler(Labelled(LABELS), 2, 'images', seed=5)
        counts = Counter(g[0] for epoch in range(300) for g in groups_of(sampler, epoch))
        assert chisquare([counts[i] for i in range(22)]).pvalue > 1e-3

    def test_anchors_draw_independently(self):
        # In a class of three, do neighbours in the order choose the same step? Half of the time.
        steps = list(self.partner_sequences(class_size=3, num_instances=2, epochs=20))
        same = sum(a == b for a, b in pairwise(steps))
        assert chisquare([same, len(steps) - 1 - same]).pvalue > 1e-3


class TestSeeds:
    def test_seed_and_epoch_fix_the_order(self):
        orders = {
            (seed, epoch): tuple(
                map(tuple, groups_of(ClassInstanceSampler(Labelled(LABELS), 3, seed=seed), epoch))
            )
            for seed in range(3)
            for epoch in range(3)
        }
        assert len(set(orders.values())) == 9
        again = ClassInstanceSampler(Labelled(LABELS), 3, seed=1)
        assert tuple(map(tuple, groups_of(again, 2))) == orders[1, 2]
        assert tuple(map(tuple, groups_of(again, 0))) == orders[1, 0]

    def test_global_random_state_is_neither_read_nor_written(self):
        sampler = ClassInstanceSampler(Labelled(LABELS), 3, seed=1)
        first = groups_of(sampler)
        np.random.seed(7)
        before = np.random.get_state()[1].tolist()
        assert groups_of(sampler) == first
        assert np.random.get_state()[1].tolist() == before

    def test_without_a_seed_the_ranks_agree_on_one(self, monkeypatch):
        monkeypatch.setattr(module, 'sync_random_seed', lambda: 123)
        unseeded = ClassInstanceSampler(Labelled(LABELS), 3)
        seeded = ClassInstanceSampler(Labelled(LABELS), 3, seed=123)
        assert groups_of(unseeded) == groups_of(seeded)

    def test_a_running_epoch_ignores_set_epoch(self):
        sampler = ClassInstanceSampler(Labelled(LABELS), 3, seed=1)
        expected = list(sampler)
        running = iter(sampler)
        sampler.set_epoch(1)
        assert list(running) == expected


class TestRanks:
    @pytest.mark.parametrize('world_size', [2, 3, 4, 8, 50])
    @pytest.mark.parametrize('epoch_length', ['anchors', 'images'])
    @pytest.mark.parametrize('block', [6, 1 << 18])
    def test_ranks_share_out_the_order_of_one_process(
        self, monkeypatch, world_size, epoch_length, block
    ):
        monkeypatch.setattr(module, '_BLOCK', block)
        data = Labelled(LABELS)
        whole = groups_of(ClassInstanceSampler(data, 3, epoch_length, seed=9), 4)
        hands = []
        for rank in range(world_size):
            on_rank(monkeypatch, rank, world_size)
            sampler = ClassInstanceSampler(data, 3, epoch_length, seed=9)
            hands.append(groups_of(sampler, 4))
        assert hands == reference.deal(whole, world_size)


class TestWrappers:
    def test_a_repeat_of_an_image_is_not_its_partner(self):
        data = RepeatDataset(Labelled(LABELS), 3)
        groups = groups_of(ClassInstanceSampler(data, 3, seed=0))
        assert sorted(group[0] for group in groups) == list(range(66))
        for group in groups:
            assert reference.broken_rule(group, LABELS * 3, list(range(22)) * 3) is None

    def test_partners_come_from_all_parts_of_a_concatenation(self):
        data = ConcatDataset([Labelled([0, 1], 2), Labelled([1, 0], 2)])
        sampler = ClassInstanceSampler(data, 2, seed=0)
        assert sorted(groups_of(sampler)) == [[0, 3], [1, 2], [2, 1], [3, 0]]

    def test_a_subset_yields_its_own_indices(self):
        data = Subset(Labelled([0, 0, 1, 1, 0, 1], 2), [5, 0, 1, 2])
        sampler = ClassInstanceSampler(data, 2, seed=0)
        assert sorted(groups_of(sampler)) == [[0, 3], [1, 2], [2, 1], [3, 0]]

    def test_repeats_of_a_subset_leave_images_out(self):
        # Items 0, 1 and 3 are the same image; item 2 is the other one of its class.
        data = Subset(RepeatDataset(Labelled([0, 0]), 2), [0, 2, 1, 0])
        sampler = ClassInstanceSampler(data, 3, seed=0)
        assert sorted(groups_of(sampler)) == [[0, 2, 2], [1, 2, 2], [2, 0, 0], [3, 2, 2]]


class TestWarnings:
    def test_single_image_classes_are_counted_once(self, warnings):
        sampler = ClassInstanceSampler(Labelled([0, 1, 1, 2, 3], 4), 3, seed=0)
        for epoch in range(3):
            groups = groups_of(sampler, epoch)
            assert [0, 0, 0] in groups
            assert [3, 3, 3] in groups
        assert warnings() == ['3 of 4 classes have a single image, which is paired with itself.']

    def test_no_warning_without_cause(self, warnings):
        list(ClassInstanceSampler(Labelled([0, 1, 1, 0], 2), 4, seed=0))
        assert warnings() == []

    def test_only_the_first_rank_warns(self, warnings, monkeypatch):
        on_rank(monkeypatch, 1, 2)
        ClassInstanceSampler(Labelled([0, 2, 2], 3, ann_file='list.txt'), 2, seed=0)
        assert warnings() == []

    @pytest.mark.parametrize(
        'data',
        [
            Labelled([0, 0, 3, 3], 5, ann_file='list.txt'),
            Labelled([0, 0, 3, 3, 1, 2, 4], 5, indices=4),
            Subset(Labelled([0, 0, 3, 3, 1, 2, 4], 5), [0, 1, 2, 3]),
            RepeatDataset(Labelled([0, 0, 3, 3, 1, 2, 4], 5, indices=4), 4),
        ],
    )
    def test_a_chosen_subset_may_miss_classes(self, data, warnings):
        ClassInstanceSampler(data, 2, seed=0)
        assert warnings() == [
            '3 of 5 classes have no image in this data set; they are never sampled.'
        ]


class TestErrors:
    @pytest.mark.parametrize('num_instances', [2.0, '2', None, True])
    def test_num_instances_must_be_an_integer(self, num_instances):
        with pytest.raises(TypeError, match=f'num_instances must be an integer.*{num_instances}'):
            ClassInstanceSampler(Labelled(LABELS), num_instances)

    @pytest.mark.parametrize('num_instances', [1, 0, -3])
    def test_num_instances_must_be_two_or_more(self, num_instances):
        with pytest.raises(ValueError, match=f'at least 2.*got {num_instances}.*DefaultSampler'):
            ClassInstanceSampler(Labelled(LABELS), num_instances)

    def test_unknown_epoch_length(self):
        with pytest.raises(ValueError, match="'anchors' or 'images'; got 'image'"):
            ClassInstanceSampler(Labelled(LABELS), 2, epoch_length='image')

    def test_empty_data_set(self):
        with pytest.raises(ValueError, match='must not be empty, but Subset has 0 items'):
            ClassInstanceSampler(Subset(Labelled(LABELS), []), 2)

    def test_empty_classes_are_named(self):
        with pytest.raises(ValueError, match=r"but 2 of 4 have none: 'b', 'd'\. Add"):
            ClassInstanceSampler(Labelled([0, 0, 2], 4), 2)

    def test_of_many_empty_classes_five_are_named(self):
        with pytest.raises(
            ValueError, match=r"but 7 of 8 have none: 'b', 'c', 'd', 'e', 'f', \.\.\."
        ):
            ClassInstanceSampler(RepeatDataset(Labelled([0, 0], 8), 3), 2)

    @pytest.mark.parametrize(('label', 'classes', 'limit'), [(4, 3, 3), (-1, 3, 3), (-1, None, 3)])
    def test_label_out_of_range(self, label, classes, limit):
        with pytest.raises(ValueError, match=rf'in \[0, {limit}\).*one is {label}\.'):
            ClassInstanceSampler(Labelled([0, 1, 2, label], classes), 2)

    def test_a_data_set_without_labels(self):
        with pytest.raises(TypeError, match='must be able to tell its labels'):
            ClassInstanceSampler(Labelled([0, 1], key='caption'), 2)

    def test_several_labels(self):
        with pytest.raises(ValueError, match='exactly one label'):
            ClassInstanceSampler(Labelled([[0], [1, 2]]), 2)


class TestRunner:
    def test_built_by_name_each_batch_holds_whole_groups(self):
        loader = Runner.build_dataloader(
            dict(
                batch_size=8,
                num_workers=0,
                dataset=dict(type='kd_mm.Digits', split='test'),
                sampler=dict(type='kd_mm.ClassInstanceSampler', num_instances=4),
                collate_fn=dict(type='pseudo_collate'),
            ),
            seed=11,
        )
        assert loader.sampler.seed == 11
        assert len(loader) == 300  # 599 anchors, 2 a batch
        for batch in loader:
            labels = np.array(batch['gt_label']).reshape(-1, 4)
            images = np.array(batch['sample_idx']).reshape(-1, 4)
            assert (labels == labels[:, :1]).all()
            assert all(len(set(group)) == 4 for group in images.tolist())

    def test_num_batch_per_epoch_draws_from_the_first_images(self):
        loader = Runner.build_dataloader(
            dict(
                batch_size=4,
                num_workers=0,
                num_batch_per_epoch=25,
                dataset=dict(type='kd_mm.Digits', split='test'),
                sampler=dict(
                    type='kd_mm.ClassInstanceSampler', num_instances=2, epoch_length='images'
                ),
                collate_fn=dict(type='pseudo_collate'),
            ),
            seed=0,
        )
        seen = [i for batch in loader for i in batch['sample_idx']]
        assert len(loader) == 25
        assert len(seen) == 100
        assert max(seen) < 100

    def test_registered_for_any_scope(self):
        assert DATA_SAMPLERS.get('kd_mm.ClassInstanceSampler') is ClassInstanceSampler
