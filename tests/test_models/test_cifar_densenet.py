"""Sizes, values, initialisation and errors of the DenseNets without bottlenecks for CIFAR."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from kd_mm.models.backbones import CIFARDenseNet


def count_by_hand(depth, growth_rate, num_classes, init_channels=16):
    """Weights of convolutions, two numbers per BN channel, the classifier."""
    channels = init_channels
    total = 9 * 3 * channels
    for block in range(3):
        for _ in range((depth - 4) // 3):
            total += 2 * channels + 9 * channels * growth_rate
            channels += growth_rate
        total += 2 * channels
        total += channels * channels if block < 2 else 0
    return total + (channels + 1) * num_classes


# Millions of parameters: Huang et al. 2016, table 2.
@pytest.mark.parametrize(
    ('depth', 'growth_rate', 'channels', 'published'),
    [(40, 12, 448, 1.0), (100, 12, 1168, 7.0), (100, 24, 2320, 27.2)],
)
def test_has_the_published_size(depth, growth_rate, channels, published):
    with torch.device('meta'):
        model = CIFARDenseNet(depth, growth_rate)
    size = sum(p.numel() for p in model.parameters()) + (channels + 1) * 10
    assert size == count_by_hand(depth, growth_rate, 10)
    assert round(size / 1e6, 1) == published


def test_the_size_of_densenet_40_12():
    with torch.device('meta'):
        sizes = [
            sum(p.numel() for p in CIFARDenseNet(40, 12, width).parameters()) for width in (16, 24)
        ]
    assert sizes == [count_by_hand(40, 12, 0), count_by_hand(40, 12, 0, 24)]
    assert sizes == [1_015_232, 1_054_728]


@pytest.mark.parametrize(
    ('out_indices', 'shapes'),
    [
        ((2,), [(2, 448, 4, 4)]),
        ([0, 2], [(2, 160, 16, 16), (2, 448, 4, 4)]),
        ((0, 1, 2), [(2, 160, 16, 16), (2, 304, 8, 8), (2, 448, 4, 4)]),
    ],
)
def test_returns_the_blocks_asked_for(out_indices, shapes):
    outs = CIFARDenseNet(out_indices=out_indices)(torch.rand(2, 3, 16, 16))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == shapes


def test_is_built_by_name_with_other_widths():
    model = MMPRETRAIN_MODELS.build(
        {
            'type': 'kd_mm.CIFARDenseNet',
            'depth': 10,
            'growth_rate': 3,
            'init_channels': 5,
            'in_channels': 1,
            'out_indices': (0, 1, 2),
        }
    )
    outs = model(torch.rand(2, 1, 8, 8))
    assert [tuple(out.shape) for out in outs] == [(2, 11, 8, 8), (2, 17, 4, 4), (2, 23, 2, 2)]


def test_computes_what_the_paper_says():
    torch.manual_seed(0)
    model = CIFARDenseNet(10, 4, out_indices=(0, 1, 2)).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    model(x)  # moves the running statistics off 0 and 1
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.eval()
    weights = model.state_dict()

    def bn_relu(x, name):
        mean, var, scale, shift = (
            weights[f'{name}.{part}'].view(1, -1, 1, 1)
            for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    expected = []
    y = F.conv2d(x, weights['stem.weight'], padding=1)
    for block in range(3):
        for layer in range(2):
            name = f'stages.{block}.{layer}'
            new = F.conv2d(bn_relu(y, f'{name}.bn'), weights[f'{name}.conv.weight'], padding=1)
            y = torch.cat([y, new], dim=1)
        if block < 2:
            expected.append(y)
            name = f'transitions.{block}'
            y = F.conv2d(bn_relu(y, f'{name}.0'), weights[f'{name}.2.weight'])
            y = y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    expected.append(bn_relu(y, 'bn'))
    for ours, reference in zip(model(x), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_training_takes_the_statistics_of_the_batch():
    torch.manual_seed(0)
    model = CIFARDenseNet(7, 4)
    x = torch.randn(2, 3, 8, 8)
    bn = model.stages[0][0].bn
    model.eval()
    model(x)
    assert bn.running_mean.eq(0).all()
    model.train()
    model(x)
    batch_mean = F.conv2d(x, model.stem.weight, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(bn.running_mean, 0.1 * batch_mean)


def test_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    model = CIFARDenseNet()
    model.init_weights()
    (out,) = model(torch.randn(4, 3, 16, 16))
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_starts_from_kaiming_fan_out():
    torch.manual_seed(0)
    model = CIFARDenseNet()
    torch.nn.init.zeros_(model.bn.weight)
    model.init_weights()
    for conv, fan_out in (
        (model.stages[2][11].conv, 9 * 12),
        (model.transitions[1][2], 304),
    ):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert model.bn.weight.eq(1).all()


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        ({'depth': 41}, ValueError, r'3n \+ 4 layers .* depth=41\. Try 40 or 43'),
        ({'depth': 161}, ValueError, r'DenseNet-121, 161, .* take kd_mm\.DenseNet_CIFAR'),
        ({'depth': 4}, ValueError, r'depth=4\. Try 7 or 10'),
        ({'growth_rate': 0}, ValueError, 'growth_rate must be at least 1, got 0'),
        ({'init_channels': 0}, ValueError, 'init_channels must be at least 1, got 0'),
        ({'out_indices': (3,)}, ValueError, r'stages 0, 1, 2, got \(3,\)'),
        ({'out_indices': 2}, TypeError, 'sequence of stages'),
    ],
)
def test_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        CIFARDenseNet(**kwargs)
