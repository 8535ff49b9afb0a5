"""Augmentation of whole batches, and their views, before normalisation and Mixup."""

from collections import Counter

import pytest
import torch
from mmpretrain.structures import DataSample
from scipy.stats import chisquare

from kd_mm.models import CohortDataPreprocessor

CROP = {'type': 'kd_mm.BatchRandomCrop', 'crop_size': 4, 'padding': 1}
FLIP = {'type': 'kd_mm.BatchRandomFlip', 'prob': 0.25}
# Every pixel differs, and none is the zero of the padding.
IMAGE = torch.arange(1, 3 * 4 * 4 + 1, dtype=torch.uint8).view(3, 4, 4)


def places(images):
    """Return the place of each crop of IMAGE, by a pixel that is never padding."""
    return images[:, 0, 1, 1].tolist()


def test_images_and_views_draw_independently():
    """All 81 pairs of places are equally frequent: of two views, and of neighbours."""
    torch.manual_seed(0)
    preprocess = CohortDataPreprocessor(augments=[CROP], num_views=2)
    first, second = map(places, preprocess.draw(IMAGE.expand(20000, -1, -1, -1)))
    for pairs in (zip(first, second, strict=True), zip(first[::2], first[1::2], strict=True)):
        counts = Counter(pairs)
        assert len(counts) == 81
        assert chisquare(list(counts.values())).pvalue > 0.01


@pytest.mark.parametrize('num_views', [None, 1, 3])
def test_training_alone_sees_augmented_images(num_views):
    """Before normalisation: the border is the mean subtracted from zero."""
    torch.manual_seed(0)
    settings = {'mean': [1.0] * 3, 'std': [2.0] * 3}
    preprocess = CohortDataPreprocessor(augments=[CROP], num_views=num_views, **settings)
    batch = IMAGE.expand(64, -1, -1, -1).clone()
    data = {'inputs': batch, 'data_samples': [DataSample().set_gt_label(1) for _ in batch]}
    seen = preprocess(data, training=True)
    views = [seen['inputs']] if num_views is None else seen['inputs']
    assert len(views) == len({view.numpy().tobytes() for view in views}) == (num_views or 1)
    for view in views:
        assert (view.shape, view.dtype) == (batch.shape, torch.float32)
        assert view.min() == -0.5
    assert [sample.gt_label.item() for sample in seen['data_samples']] == [1] * 64

    plain = CohortDataPreprocessor(**settings)(data)['inputs']
    assert torch.equal(preprocess(data)['inputs'], plain)
    assert torch.equal(batch, IMAGE.expand(64, -1, -1, -1))


def test_mixup_sees_the_augmented_views():
    """Two images alike stay so when they are mixed, in each view by one draw."""
    mixup = {'augments': [{'type': 'mmpretrain.Mixup', 'alpha': 1.0}]}
    preprocess = CohortDataPreprocessor(
        augments=[FLIP], num_views=2, num_classes=2, batch_augments=mixup
    )
    batch = torch.ones(2, 3, 4, 4, dtype=torch.uint8)
    samples = [DataSample().set_gt_label(label) for label in (0, 1)]
    seen = preprocess({'inputs': batch, 'data_samples': samples}, training=True)
    assert [view.unique().tolist() for view in seen['inputs']] == [[1.0], [1.0]]
    torch.testing.assert_close(sum(s.gt_score for s in seen['data_samples']), torch.ones(2))


def test_inputs_and_options_that_do_not_fit_are_refused():
    preprocess = CohortDataPreprocessor(augments=[CROP])
    with pytest.raises(ValueError, match='a list of 2; set train_dataloader'):
        preprocess({'inputs': [IMAGE, IMAGE]}, training=True)
    for views, augments in ((0, [CROP]), (2, [])):
        with pytest.raises(ValueError, match=f'num_views={views} and {len(augments)} augments'):
            CohortDataPreprocessor(augments=augments, num_views=views)
