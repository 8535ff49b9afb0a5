"""Sizes, values and errors of the wide ResNets for CIFAR."""

import pytest
import torch
import torch.nn.functional as F

from kd_mm.models.backbones import CIFARWideResNet


def count_by_hand(depth, k, num_classes):
    """Weights of convolutions, two numbers per BN channel, the classifier."""
    n = (depth - 4) // 6
    total, before = 9 * 3 * 16, 16
    for base in (16, 32, 64):
        width = base * k
        total += 9 * before * width + (2 * n - 1) * 9 * width * width
        total += 2 * before + (2 * n - 1) * 2 * width
        total += before * width if before != width or base > 16 else 0
        before = width
    return total + 2 * before + (before + 1) * num_classes


# Millions of parameters: the paper's table 5 (WRN-40-2 and larger) and the distillation
# literature's for 16-1 and 16-2, with 10 classes.
@pytest.mark.parametrize(
    ('depth', 'k', 'published', 'digits'),
    [(16, 1, 0.18, 2), (16, 2, 0.69, 2), (40, 2, 2.2, 1), (28, 10, 36.5, 1)],
)
def test_has_the_published_size(depth, k, published, digits):
    with torch.device('meta'):
        model = CIFARWideResNet(depth, k)
    size = sum(p.numel() for p in model.parameters()) + (64 * k + 1) * 10
    assert size == count_by_hand(depth, k, 10)
    assert round(size / 1e6, digits) == published


def test_computes_what_the_paper_says():
    torch.manual_seed(0)
    model = CIFARWideResNet(16, 1, out_indices=(0, 1, 2)).double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    model(x)  # moves the running statistics off 0 and 1
    model.eval()
    weights = model.state_dict()

    def bn_relu(x, name):
        mean, var, scale, shift = (
            weights[f'{name}.{part}'].view(1, -1, 1, 1)
            for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    expected = []
    y = F.conv2d(x, weights['conv1.weight'], padding=1)
    for stage in range(3):
        for block in range(2):
            name = f'stages.{stage}.{block}'
            stride = 2 if stage > 0 and block == 0 else 1
            a = bn_relu(y, f'{name}.bn1')
            b = F.conv2d(a, weights[f'{name}.conv1.weight'], stride=stride, padding=1)
            b = F.conv2d(bn_relu(b, f'{name}.bn2'), weights[f'{name}.conv2.weight'], padding=1)
            shortcut = weights.get(f'{name}.shortcut.weight')
            y = b + (y if shortcut is None else F.conv2d(a, shortcut, stride=stride))
        expected.append(y)
    expected[2] = bn_relu(y, 'bn')
    for ours, reference in zip(model(x), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_every_parameter_receives_a_gradient():
    model = CIFARWideResNet(16, 1)
    model(torch.rand(2, 3, 16, 16))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'depth': 20}, r'6n \+ 4 layers .* depth=20\. Try 16 or 22'),
        ({'depth': 4}, 'depth=4'),
        ({'widen_factor': 0}, 'widen_factor must be at least 1, got 0'),
        ({'out_indices': (3,)}, r'out_indices .* got \(3,\)'),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CIFARWideResNet(**kwargs)
