"""BAKE with any classifier of mmpretrain's: one more loss, nothing else changed."""

import numpy as np
import pytest
import torch

from kd_mm.registry import MODELS
from tests.references import bake as reference
from tests.toys.networks import NETWORKS, NUM_CLASSES, classifier, draw

OPTIONS = {'omega': 0.7, 'temperature': 3.0, 'loss_weight': 0.25}


@pytest.mark.parametrize('soft', [False, True], ids=['hard labels', 'mixed labels'])
@pytest.mark.parametrize('name', NETWORKS)
def test_adds_the_papers_loss_to_that_of_the_plain_network(name, soft, tmp_path):
    network = NETWORKS[name]
    torch.manual_seed(0)
    cfg = network.cfg(tmp_path)
    plain = MODELS.build(cfg).train()
    for layer in (*plain.modules(), network.last(plain)):  # far from 0, where images are alike
        if isinstance(layer, torch.nn.Linear) or layer is network.last(plain):
            torch.nn.init.normal_(layer.weight)
    model = MODELS.build({'type': 'kd_mm.BAKE', 'student': cfg, **OPTIONS}).train()
    assert model.num_classes == NUM_CLASSES
    model.load_state_dict(plain.state_dict())
    images, samples = draw(network.channels, soft=soft)
    torch.manual_seed(1)  # dropout draws
    losses = model(images, samples, mode='loss')

    torch.manual_seed(1)
    own = plain(images, samples, mode='loss')['loss']
    torch.manual_seed(1)
    with torch.no_grad():
        embedding = network.embed(plain, images)
        layer = network.last(plain)
        shape = (-1, *[1] * (layer.weight.ndim - 2))  # of what a 1x1 convolution takes
        logits = layer(embedding.unflatten(1, shape)).flatten(1)
    target = reference.ensemble_knowledge(
        embedding.double().flatten(1).numpy(), logits.double().numpy(), 3.0, 0.7
    )
    bake = 0.25 * reference.soft_target_kl(logits.double().numpy(), target, 3.0).mean()
    assert losses.keys() == {'loss', 'loss_bake'}
    torch.testing.assert_close(losses['loss'], own)
    assert bake > 1e-3
    np.testing.assert_allclose(losses['loss_bake'].item(), bake, rtol=2e-4, atol=2e-6)

    plain.load_state_dict(model.state_dict())
    predictions = [network.eval()(images, mode='predict') for network in (model, plain)]
    for ours, theirs in zip(*predictions, strict=True):
        torch.testing.assert_close(ours.pred_score, theirs.pred_score)


OWN_WAY = 'must compute its losses from one logit per class, .* but {}; use LinearClsHead'
COUNT = 'must have one linear layer that gives the logits, .* but it has {}; use .*=False'


def timm(name, num_classes):
    pytest.importorskip('timm', reason='TimmClassifier needs timm')
    return {'type': 'mmpretrain.TimmClassifier', 'model_name': name, 'num_classes': num_classes}


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        (lambda: classifier('ArcFaceClsHead'), OWN_WAY.format('ArcFaceClsHead has .* own')),
        (
            lambda: classifier('CSRAClsHead', num_heads=1, lam=0.1),
            OWN_WAY.format('CSRAClsHead has a way of its own'),
        ),
        (
            lambda: classifier('MultiLabelLinearClsHead'),
            OWN_WAY.format('MultiLabelLinearClsHead has a way of its own'),
        ),
        (
            lambda: {**classifier('LinearClsHead'), 'head': None},
            OWN_WAY.format('there is none'),
        ),
        (lambda: classifier('DeiTClsHead'), COUNT.format(2)),
        (lambda: classifier('EfficientFormerClsHead', distillation=True), COUNT.format(2)),
        (lambda: timm('deit_tiny_distilled_patch16_224', 5), COUNT.format(2)),
        (lambda: timm('resnet18', 0), COUNT.format(0)),
    ],
)
def test_refuses_networks_without_one_logit_per_class(network, message):
    with pytest.raises(TypeError, match=f'the head of student {message}'):
        MODELS.build({'type': 'kd_mm.BAKE', 'student': network()})
