"""BAKEHead: one more loss, nothing else changed."""

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample

from kd_mm.registry import MODELS
from tests.references import bake as reference

IN_CHANNELS, NUM_CLASSES = 8, 5


def build(scope_and_name, **kwargs):
    return MODELS.build(
        {'type': scope_and_name, 'num_classes': NUM_CLASSES, 'in_channels': IN_CHANNELS, **kwargs}
    )


def batch(num_images=6, soft=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    feats = (torch.randn(num_images, IN_CHANNELS, generator=generator),)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    samples = [DataSample().set_gt_label(label) for label in labels]
    if soft:
        scores = torch.rand(num_images, NUM_CLASSES, generator=generator)
        scores /= scores.sum(1, keepdim=True)
        samples = [s.set_gt_score(score) for s, score in zip(samples, scores, strict=True)]
    return feats, samples


def randomise(head, seed=0):
    """Some heads start at zero weights, where every prediction is the same."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return head


@pytest.mark.parametrize('soft', [False, True], ids=['hard labels', 'mixed labels'])
def test_only_adds_a_loss(soft):
    ours = randomise(build('kd_mm.BAKEHead'))
    theirs = build('mmpretrain.LinearClsHead')
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    feats, samples = batch(soft=soft)
    losses, plain = ours.loss(feats, samples), theirs.loss(feats, samples)
    assert losses.keys() == {'loss', 'loss_bake'}
    assert torch.equal(losses['loss'], plain['loss'])
    assert losses['loss_bake'] > 1e-4

    ours.eval(), theirs.eval()
    for mine, other in zip(ours.predict(feats), theirs.predict(feats), strict=True):
        assert torch.equal(mine.pred_score, other.pred_score)


def test_loss_bake_is_the_papers():
    head = randomise(build('kd_mm.BAKEHead', omega=0.7, temperature=3.0, loss_weight=0.25))
    feats, samples = batch()
    features = feats[0].double().numpy()
    logits = head(feats).detach().double().numpy()
    target = reference.ensemble_knowledge(features, logits, 3.0, 0.7)
    expected = 0.25 * reference.soft_target_kl(logits, target, 3.0).mean()
    np.testing.assert_allclose(head.loss(feats, samples)['loss_bake'].item(), expected, 1e-5)


@pytest.mark.parametrize(
    ('option', 'value'), [('omega', 0.9), ('temperature', 1.0), ('loss_weight', 2.0)]
)
def test_each_option_reaches_the_loss(option, value):
    feats, samples = batch()
    default = randomise(build('kd_mm.BAKEHead')).loss(feats, samples)['loss_bake']
    changed = randomise(build('kd_mm.BAKEHead', **{option: value})).loss(feats, samples)
    assert abs(changed['loss_bake'] - default) > 1e-3


def test_gradient_flows_through_the_prediction_only():
    """By hand: the mean of T (softmax(z / T) - Q) times the classifier."""
    head = randomise(build('kd_mm.BAKEHead', omega=0.5, temperature=2.0))
    feats, samples = batch()
    feature = feats[0].requires_grad_()
    logits = head((feature,))
    target = torch.from_numpy(
        reference.ensemble_knowledge(feature.detach().numpy(), logits.detach().numpy(), 2.0, 0.5)
    ).float()
    expected = 2 * ((logits / 2).softmax(1) - target) / len(logits) @ head.fc.weight
    head.loss((feature,), samples)['loss_bake'].backward()
    torch.testing.assert_close(feature.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_ensembling_in_float32(dtype):
    head = randomise(build('kd_mm.BAKEHead'))
    feats, samples = batch()
    exact = head.loss(feats, samples)['loss_bake']
    with torch.autocast('cpu', dtype=dtype):
        loss = head.loss(feats, samples)['loss_bake']
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'omega': 1.0}, r'omega must lie in \[0, 1\), but got 1.0'),
        ({'omega': -0.5}, r'omega must lie in \[0, 1\), but got -0.5'),
        ({'temperature': 0}, 'temperature must be positive and finite, but got 0'),
        ({'loss_weight': -1}, 'loss_weight must be finite and at least 0, but got -1'),
        ({'gather': 'all'}, "gather must be 'global'.* but got 'all'"),
        ({'gather': 'group'}, 'needs group_size, an integer of at least 2 ranks, but got None'),
        ({'gather': 'group', 'group_size': 1}, 'at least 2 ranks, but got 1'),
        ({'gather': 'group', 'group_size': 2.0}, r'at least 2 ranks, but got 2\.0'),
        ({'gather': 'local', 'group_size': 2}, "but got gather='local' and group_size=2"),
        ({'group_size': 2}, "but got gather='global' and group_size=2"),
    ],
)
def test_refuses_values_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build('kd_mm.BAKEHead', **kwargs)
