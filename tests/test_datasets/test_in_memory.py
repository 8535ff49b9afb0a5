"""Images read once: the same samples as from the data set inside, in batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, RepeatDataset
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from kd_mm.datasets import ClassInstanceSampler, Digits, HoldOut, InMemory, get_labels
from kd_mm.datasets.in_memory import batch_collate
from kd_mm.datasets.labels import index_labels
from kd_mm.engine.hooks.distiller_hook import held_out_dataloader
from kd_mm.run.preflight import check_config, check_dataloader, check_types

PIPELINE = [dict(type='Resize', scale=16), dict(type='PackInputs')]


@pytest.fixture(autouse=True)
def mmpretrain_scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


class Toy(BaseDataset):
    """Images (2, 2, 3), as many as asked for, whose values are their numbers."""

    def __init__(self, count=8, **info):
        self.count, self.info, self.reads = count, info, 0
        super().__init__(pipeline=[self.count_reads, dict(type='PackInputs')])

    def count_reads(self, results):
        self.reads += 1
        return results

    def load_data_list(self):
        images = [np.full((2, 2, 3), index, np.uint8) for index in range(self.count)]
        return [{'img': img, 'gt_label': i % 2, **self.info} for i, img in enumerate(images)]


def test_batches_hold_the_samples_of_the_data_set():
    digits = Digits(pipeline=PIPELINE)
    loader = DataLoader(InMemory(digits), batch_size=500, shuffle=False, collate_fn=batch_collate)
    batches = list(loader)
    assert [len(batch['data_samples']) for batch in batches] == [500, 500, 198]
    images = torch.cat([batch['inputs'] for batch in batches])
    samples = [sample for batch in batches for sample in batch['data_samples']]
    assert (images.shape, images.dtype) == ((1198, 3, 16, 16), torch.uint8)
    for index in (0, 1, 700, 1197):
        assert torch.equal(images[index], digits[index]['inputs'])
        assert torch.equal(samples[index].gt_label, digits[index]['data_samples'].gt_label)


def test_an_item_and_its_batch_are_the_same():
    dataset = InMemory(Toy())
    batch, item = dataset.__getitems__([3, 3, 5]), dataset[5]
    assert batch['inputs'][:, 0, 0, 0].tolist() == [3, 3, 5]
    assert torch.equal(batch['inputs'][2], item['inputs'])
    assert item['data_samples'].gt_label.tolist() == [1]
    # What a model writes stays with the batch.
    batch['inputs'].zero_(), item['inputs'].zero_()
    batch['data_samples'][0].set_gt_label(9).set_gt_score(torch.ones(3))
    again = dataset.__getitems__([3, 5])
    assert again['inputs'][:, 0, 0, 0].tolist() == [3, 5]
    assert [sample.keys() for sample in again['data_samples']] == [['gt_label']] * 2
    assert [sample.gt_label.tolist() for sample in again['data_samples']] == [[1], [1]]


def test_each_image_is_read_at_the_start_alone():
    toy = Toy()
    dataset = InMemory(toy, lazy_init=True)
    assert len(dataset) == 8
    assert toy.reads == 0
    dataset[0]
    read = toy.reads
    assert 8 <= read <= 8 + 1 + 8  # the shape, and a second look at some
    dataset.full_init(), dataset.__getitems__(range(8)), dataset[3]
    assert toy.reads == read


def test_what_is_inside_stays_seen():
    digits = Digits(pipeline=PIPELINE)
    parts = [HoldOut(digits, num_per_class=20, part=part) for part in ('train', 'held_out')]
    for part in parts:
        dataset = InMemory(part)
        assert dataset.metainfo['classes'] == tuple('0123456789')
        np.testing.assert_array_equal(get_labels(dataset), get_labels(part))
        assert torch.equal(dataset[7]['inputs'], part[7]['inputs'])
    repeated = InMemory(RepeatDataset(digits, 2))
    assert index_labels(repeated).images.tolist() == [*range(1198)] * 2


def test_class_instance_sampler_and_sliced_epochs_work():
    """As the Runner builds the loader, ``num_batch_per_epoch`` included."""
    cfg = {
        'dataset': {
            'type': 'kd_mm.InMemory',
            'dataset': {'type': 'kd_mm.Digits', 'pipeline': PIPELINE},
        },
        'sampler': {'type': 'kd_mm.ClassInstanceSampler', 'num_instances': 4},
        'collate_fn': {'type': 'kd_mm.batch_collate'},
        'batch_size': 32,
        'num_batch_per_epoch': 5,
        'num_workers': 0,
    }
    loader = Runner.build_dataloader(cfg, seed=0)
    assert isinstance(loader.sampler, ClassInstanceSampler)
    batches = list(loader)
    assert len(batches) == 5 * 4
    for batch in batches:
        assert batch['inputs'].shape == (32, 3, 16, 16)
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']]).view(-1, 4)
        assert (labels == labels[:, :1]).all()


def test_general_finds_the_images_left_out():
    whole = {'type': 'kd_mm.Digits', 'pipeline': PIPELINE}
    split = {'type': 'kd_mm.HoldOut', 'num_per_class': 10, 'dataset': whole}
    loader = {
        'batch_size': 64,
        'collate_fn': {'type': 'kd_mm.batch_collate'},
        'dataset': {'type': 'kd_mm.InMemory', 'dataset': split},
    }
    before = Config(loader).to_dict()
    held_out = held_out_dataloader(loader, PIPELINE[:1])
    assert loader == before
    assert held_out == {
        **loader,
        'dataset': {
            'type': 'kd_mm.InMemory',
            'dataset': {
                **split,
                'part': 'held_out',
                'dataset': {**whole, 'pipeline': PIPELINE[:1]},
            },
        },
    }
    loader['dataset'] = {'type': 'kd_mm.InMemory', 'dataset': whole}
    with pytest.raises(ValueError, match=r'kd_mm\.HoldOut'):
        held_out_dataloader(loader, PIPELINE)


class Random(Toy):
    def count_reads(self, results):
        return {**results, 'img': results['img'] + np.random.randint(200, dtype=np.uint8)}


class Growing(Toy):
    def count_reads(self, results):
        return {**results, 'img': np.zeros((2, 2 + results['sample_idx'], 3), np.uint8)}


class Floats(Toy):
    def count_reads(self, results):
        return {**results, 'img': results['img'].astype(np.float32)}


class Views(Toy):
    def count_reads(self, results):
        return {**results, 'img': [results['img']] * 2}


@pytest.mark.parametrize(
    ('dataset', 'message'),
    [
        (list, 'needs images, but list has 0'),
        (Random, r'image \d of Random differs .* data_preprocessor\.augments'),
        (Growing, r'image 0 is \(3, 2, 2\) and image 1 \(3, 2, 3\)'),
        (Floats, r'item 0 is torch\.float32 \(3, 2, 2\)'),
        (Views, r'item 0 is list; leave MultiView'),
        (lambda: Toy(gt_label=[0, 1]), r"item 0 has {'gt_label': \[0, 1\]}"),
        (lambda: Toy(gt_score=[0.5, 0.5]), r"'gt_score': \[0\.5, 0\.5\]"),
    ],
)
def test_data_that_does_not_fit_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        InMemory(dataset())


def test_views_are_counted_before_the_run(tmp_path):
    name = 'kdcl-general_resnet20-wrn16-1_1xb64_digits-in-memory.py'
    cfg = Config.fromfile(Path(__file__).parents[2] / 'configs/in_memory' / name)
    cfg.work_dir = str(tmp_path)
    cfg.train_dataloader.dataset.dataset.dataset.indices = 400
    check_config(cfg, ('train_dataloader',))
    cfg.data_preprocessor.num_views = 3
    with pytest.raises(ValueError, match=r'needs 2 views per sample, but .* gives 3 views'):
        check_config(cfg, ('train_dataloader',))


def test_collating_samples_one_by_one_is_refused_before_the_run():
    path = Path(__file__).parents[2] / 'configs/in_memory/resnet20_1xb64_digits-in-memory.py'
    cfg = Config.fromfile(path)
    check_types(cfg.to_dict())
    assert len(check_dataloader(cfg, 'train_dataloader')) == 1198
    cfg.train_dataloader.collate_fn = dict(type='default_collate')
    with pytest.raises(ValueError, match=r"train_dataloader\.collate_fn is 'default_collate'"):
        check_dataloader(cfg, 'train_dataloader')
    with pytest.raises(TypeError, match='has no option dat; did you mean data'):
        check_types({'collate_fn': {'type': 'kd_mm.batch_collate', 'dat': 1}})
