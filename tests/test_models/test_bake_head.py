"""BAKEHead: one more loss, nothing else changed."""

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample

from kd_mm.registry import MODELS
from tests.references import bake as reference

IN_CHANNELS, NUM_CLASSES = 8, 5


def build(type='kd_mm.BAKEHead', **kwargs):
    """A head far from the small weights it starts with, where all predictions are alike."""
    head = MODELS.build(
        {'type': type, 'num_classes': NUM_CLASSES, 'in_channels': IN_CHANNELS, **kwargs}
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return head


def batch(num_images=6, soft=False):
    generator = torch.Generator().manual_seed(0)
    feats = (torch.randn(num_images, IN_CHANNELS, generator=generator),)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    samples = [DataSample().set_gt_label(label) for label in labels]
    if soft:
        scores = torch.rand(num_images, NUM_CLASSES, generator=generator)
        scores /= scores.sum(1, keepdim=True)
        samples = [s.set_gt_score(score) for s, score in zip(samples, scores, strict=True)]
    return feats, samples


@pytest.mark.parametrize('soft', [False, True], ids=['hard labels', 'mixed labels'])
def test_only_adds_a_loss(soft):
    ours, theirs = build(), build('mmpretrain.LinearClsHead')
    theirs.load_state_dict(ours.state_dict())
    feats, samples = batch(soft=soft)
    losses, plain = ours.loss(feats, samples), theirs.loss(feats, samples)
    assert losses.keys() == {'loss', 'loss_bake'}
    assert torch.equal(losses['loss'], plain['loss'])
    assert losses['loss_bake'] > 1e-4
    ours.eval(), theirs.eval()
    for mine, other in zip(ours.predict(feats), theirs.predict(feats), strict=True):
        assert torch.equal(mine.pred_score, other.pred_score)


def test_loss_bake_and_its_gradient_are_the_papers():
    """The gradient by hand: the mean of T (softmax(z / T) - Q) times the classifier."""
    head = build(omega=0.7, temperature=3.0, loss_weight=0.25)
    feats, samples = batch()
    feature = feats[0].requires_grad_()
    logits = head((feature,))
    features, rows = feature.detach().double().numpy(), logits.detach().double().numpy()
    target = reference.ensemble_knowledge(features, rows, 3.0, 0.7)
    loss = head.loss((feature,), samples)['loss_bake']
    expected = 0.25 * reference.soft_target_kl(rows, target, 3.0).mean()
    np.testing.assert_allclose(loss.item(), expected, 1e-5)
    loss.backward()
    gap = (logits / 3).softmax(1) - torch.from_numpy(target).float()
    expected = 0.25 * 3 * gap / len(logits) @ head.fc.weight
    torch.testing.assert_close(feature.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'omega': 1.0}, r'omega must lie in \[0, 1\), but got 1.0'),
        ({'temperature': 0}, 'temperature must be positive and finite, but got 0'),
        ({'loss_weight': -1}, 'loss_weight must be finite and at least 0, but got -1'),
        ({'gather': 'all'}, "gather must be 'global'.* but got 'all'"),
        ({'gather': 'group'}, 'needs group_size, an integer of at least 2 ranks, but got None'),
        ({'group_size': 2}, "but got gather='global' and group_size=2"),
    ],
)
def test_refuses_values_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
