"""Sizes, values, initialisation and errors of the GoogLeNet for CIFAR."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from kd_mm.models.backbones import CIFARGoogLeNet

# Szegedy et al. 2014, table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
TABLE = {
    '3a': (64, 96, 128, 16, 32, 32),
    '3b': (128, 128, 192, 32, 96, 64),
    '4a': (192, 96, 208, 16, 48, 64),
    '4b': (160, 112, 224, 24, 64, 64),
    '4c': (128, 128, 256, 24, 64, 64),
    '4d': (112, 144, 288, 32, 64, 64),
    '4e': (256, 160, 320, 32, 128, 128),
    '5a': (256, 160, 320, 32, 128, 128),
    '5b': (384, 192, 384, 48, 128, 128),
}
STAGES = (('3a', '3b'), ('4a', '4b', '4c', '4d', '4e'), ('5a', '5b'))


def count_by_hand(num_classes):
    """Return weights with the classifier, and the channels of all convolutions."""
    total, convolved, before = 9 * 3 * 192, 192, 192
    for one, reduce3, three, reduce5, five, pool in TABLE.values():
        total += before * (one + reduce3 + reduce5 + pool)
        total += 9 * reduce3 * three + 9 * reduce5 * five + 9 * five * five
        convolved += one + reduce3 + three + reduce5 + 2 * five + pool
        before = one + three + five + pool
    return total + 2 * convolved + (before + 1) * num_classes, convolved


def test_has_the_published_size():
    """6.2 million; the CIFAR-10 zoos print 6,166,250, with a bias in each convolution."""
    with torch.device('meta'):
        model = CIFARGoogLeNet()
    size = sum(p.numel() for p in model.parameters()) + (1024 + 1) * 10
    expected, biases = count_by_hand(10)
    assert size == expected == 6_158_346
    assert expected + biases == 6_166_250


@pytest.mark.parametrize(
    ('out_indices', 'shapes'),
    [
        ((2,), [(2, 1024, 4, 4)]),
        ([0, 2], [(2, 480, 16, 16), (2, 1024, 4, 4)]),
        ((0, 1, 2), [(2, 480, 16, 16), (2, 832, 8, 8), (2, 1024, 4, 4)]),
    ],
)
def test_returns_the_stages_asked_for(out_indices, shapes):
    outs = CIFARGoogLeNet(out_indices=out_indices)(torch.rand(2, 3, 16, 16))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == shapes


def test_is_built_by_name_and_takes_other_channels():
    model = MMPRETRAIN_MODELS.build({'type': 'kd_mm.CIFARGoogLeNet', 'in_channels': 1})
    (out,) = model(torch.rand(2, 1, 11, 9))
    assert out.shape == (2, 1024, 3, 3)


def test_computes_what_the_paper_says():
    torch.manual_seed(0)
    model = CIFARGoogLeNet(out_indices=(0, 1, 2)).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    model(x)  # moves the running statistics off 0 and 1
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.eval()
    weights = model.state_dict()

    def conv(x, name):
        weight = weights[f'{name}.0.weight']
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        mean, var, scale, shift = (
            weights[f'{name}.1.{part}'].view(1, -1, 1, 1)
            for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return ((y - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    expected = []
    y = conv(x, 'stem')
    for index, modules in enumerate(STAGES):
        y = F.max_pool2d(y, 3, 2, 1) if index else y
        for position, key in enumerate(modules):
            name = f'stages.{index}.{position}'
            three = conv(conv(y, f'{name}.branch3x3.0'), f'{name}.branch3x3.1')
            five = conv(conv(y, f'{name}.branch5x5.0'), f'{name}.branch5x5.1')
            branches = (
                conv(y, f'{name}.branch1x1'),
                three,
                conv(five, f'{name}.branch5x5.2'),
                conv(F.max_pool2d(y, 3, 1, 1), f'{name}.branch_pool.1'),
            )
            one, _, three, _, five, pool = TABLE[key]
            assert [branch.shape[1] for branch in branches] == [one, three, five, pool]
            y = torch.cat(branches, dim=1)
        expected.append(y)
    for ours, reference in zip(model(x), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_training_takes_the_statistics_of_the_batch():
    torch.manual_seed(0)
    model = CIFARGoogLeNet()
    x = torch.randn(2, 3, 8, 8)
    bn = model.stem[1]
    model.eval()
    model(x)
    assert bn.running_mean.eq(0).all()
    model.train()
    model(x)
    batch_mean = F.conv2d(x, model.stem[0].weight, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(bn.running_mean, 0.1 * batch_mean)


def test_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    model = CIFARGoogLeNet()
    model.init_weights()
    (out,) = model(torch.randn(4, 3, 16, 16))
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_starts_from_kaiming_fan_out():
    torch.manual_seed(0)
    model = CIFARGoogLeNet()
    torch.nn.init.zeros_(model.stem[1].weight)
    model.init_weights()
    module = model.stages[2][1]  # 5b
    for conv, fan_out in (
        (module.branch3x3[1][0], 9 * 384),
        (module.branch1x1[0], 384),
        (model.stem[0], 9 * 192),
    ):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    assert model.stem[1].weight.eq(1).all()


@pytest.mark.parametrize(
    ('out_indices', 'error', 'message'),
    [
        ((3,), ValueError, r'stages 0, 1, 2, got \(3,\)'),
        ((), ValueError, r'stages 0, 1, 2, got \(\)'),
        (2, TypeError, 'sequence of stages'),
    ],
)
def test_refuses(out_indices, error, message):
    with pytest.raises(error, match=message):
        CIFARGoogLeNet(out_indices=out_indices)
