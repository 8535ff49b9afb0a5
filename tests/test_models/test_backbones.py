"""Shapes, sizes, gradients and values of the backbones that mmpretrain lacks."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample

from kd_mm.models.backbones import CIFARResNet, DenseNet_CIFAR


def classifier(backbone, channels, num_classes):
    """A whole mmpretrain classifier, built as a config builds it."""
    return MMPRETRAIN_MODELS.build(
        {
            'type': 'ImageClassifier',
            'backbone': backbone,
            'neck': {'type': 'GlobalAveragePooling'},
            'head': {
                'type': 'LinearClsHead',
                'num_classes': num_classes,
                'in_channels': channels,
                'loss': {'type': 'CrossEntropyLoss'},
            },
        }
    )


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ResNet of depth 6n + 2 --------------------------------------------------------------------


def resnet_count(depth, num_classes):
    """Weights of 3x3 convolutions, two numbers per BN channel, the classifier."""
    n = (depth - 2) // 6
    total = 9 * 3 * 16 + 2 * 16
    for before, width in ((16, 16), (16, 32), (32, 64)):
        convolutions = 9 * before * width + (2 * n - 1) * 9 * width * width
        total += convolutions + 2 * n * 2 * width
    return total + (64 + 1) * num_classes


# Millions of parameters: He et al. 2015, table 6 (CIFAR-10).
@pytest.mark.parametrize(
    ('depth', 'published', 'digits'),
    [(20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1)],
)
def test_resnet_has_the_published_size(depth, published, digits):
    backbone = {'type': 'kd_mm.CIFARResNet', 'depth': depth}
    model = classifier(backbone, 64, num_classes=10)
    assert count(model) == resnet_count(depth, num_classes=10)
    assert round(count(model) / 1e6, digits) == published


def test_resnet_projection_adds_two_convolutions_and_their_bn():
    plain, projected = CIFARResNet(20), CIFARResNet(20, shortcut='B')
    extra = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count(projected) - count(plain) == extra
    assert {name.split('.')[0] for name in projected.state_dict()} == {
        'conv1',
        'bn1',
        'layer1',
        'layer2',
        'layer3',
    }


@pytest.mark.parametrize(
    ('out_indices', 'shapes'),
    [
        ((2,), [(2, 64, 8, 8)]),
        ((0, 2), [(2, 16, 32, 32), (2, 64, 8, 8)]),
        ([0, 1, 2], [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]),
    ],
)
def test_resnet_returns_the_stages_asked_for(out_indices, shapes):
    outs = CIFARResNet(20, out_indices=out_indices)(torch.rand(2, 3, 32, 32))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == shapes


def test_resnet_takes_other_channels_and_odd_sizes():
    (out,) = CIFARResNet(8, in_channels=1)(torch.rand(2, 1, 11, 9))
    assert out.shape == (2, 64, 3, 3)


def plain_resnet20(x, weights, shortcut):
    """ResNet-20 in evaluation mode from the paper's description, weights by name."""

    def conv(x, name, stride=1, padding=1):
        return F.conv2d(x, weights[f'{name}.weight'], stride=stride, padding=padding)

    def bn(x, name):
        mean, var, scale, shift = (
            weights[f'{name}.{part}'].view(1, -1, 1, 1)
            for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = bn(conv(x, 'conv1'), 'bn1').clamp(min=0)
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            name = f'layer{stage}.{block}'
            stride = 2 if stage > 1 and block == 0 else 1
            y = bn(conv(x, f'{name}.conv1', stride), f'{name}.bn1').clamp(min=0)
            y = bn(conv(y, f'{name}.conv2'), f'{name}.bn2')
            if stride == 2 and shortcut == 'A':
                small = x[:, :, ::2, ::2]
                x = torch.cat([small, torch.zeros_like(small)], dim=1)
            elif stride == 2:
                x = conv(x, f'{name}.downsample.0', stride=2, padding=0)
                x = bn(x, f'{name}.downsample.1')
            x = (x + y).clamp(min=0)
    return x


@pytest.mark.parametrize('shortcut', ['A', 'B'])
def test_resnet20_computes_what_the_paper_says(shortcut):
    torch.manual_seed(0)
    model = CIFARResNet(20, shortcut=shortcut).double()
    model.init_weights()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    model(x)  # moves the running statistics off 0 and 1
    for name, parameter in model.named_parameters():
        if 'bn' in name or 'downsample.1' in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.eval()
    expected = plain_resnet20(x, model.state_dict(), shortcut)
    torch.testing.assert_close(model(x)[0], expected, rtol=1e-10, atol=1e-10)


def test_resnet_starts_from_kaiming_fan_out():
    torch.manual_seed(0)
    model = CIFARResNet(20)
    torch.nn.init.zeros_(model.layer3[2].bn2.weight)
    model.init_weights()
    weight = model.layer3[2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert model.layer2[0].conv1.weight.std().item() == pytest.approx(
        (2 / (9 * 32)) ** 0.5, rel=0.05
    )
    assert model.layer3[2].bn2.weight.eq(1).all()


def test_resnet_norm_cfg_reaches_every_layer():
    model = CIFARResNet(20, norm_cfg={'type': 'GN', 'num_groups': 8}, shortcut='B')
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count('GroupNorm') == 1 + 18 + 2
    assert 'BatchNorm2d' not in kinds


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'depth': 21}, ValueError, 'depth=21. Try 20 or 26'),
        ({'depth': 18}, ValueError, 'Try 14 or 20'),
        ({'depth': 2}, ValueError, 'depth=2. Try 8'),
        ({'depth': -4}, ValueError, 'depth=-4. Try 8'),
        ({'depth': '20'}, TypeError, "depth must be an int, got '20'"),
        ({'out_indices': (3,)}, ValueError, r'stages 0, 1, 2, got \(3,\)'),
        ({'out_indices': ()}, ValueError, r'stages 0, 1, 2, got \(\)'),
        ({'out_indices': 2}, TypeError, 'sequence of stages'),
        ({'shortcut': 'C'}, ValueError, "shortcut must be 'A' or 'B', got 'C'"),
    ],
)
def test_resnet_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CIFARResNet(**arguments)


# DenseNet with the CIFAR stem --------------------------------------------------------------


def densenet121_count(num_classes):
    """Growth 32, bottlenecks of 128, halving transitions, BN before each convolution."""
    channels = 2 * 32
    total = 9 * 3 * channels
    for block, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            total += 2 * channels + channels * 128 + 2 * 128 + 9 * 128 * 32
            channels += 32
        total += 2 * channels
        if block < 3:
            total += channels * (channels // 2)
            channels //= 2
    return total + (channels + 1) * num_classes


def test_densenet121_has_the_size_counted_by_hand():
    model = classifier({'type': 'kd_mm.DenseNet_CIFAR', 'arch': '121'}, 1024, num_classes=10)
    assert count(model) == densenet121_count(10) == 6_956_298


def test_densenet_keeps_the_resolution_up_to_the_first_transition():
    arch = {'growth_rate': 4, 'depths': [2, 2, 2], 'init_channels': 8}
    model = DenseNet_CIFAR(arch=arch, in_channels=1, out_indices=[0, 1, 2])
    outs = model(torch.rand(2, 1, 32, 32))
    # 8 + 2 * 4 = 16, halved to 8; the same again; the last block is not halved.
    assert [tuple(out.shape) for out in outs] == [(2, 8, 16, 16), (2, 8, 8, 8), (2, 16, 8, 8)]


def test_densenet_stem_is_one_convolution():
    model = DenseNet_CIFAR(arch={'growth_rate': 4, 'depths': [1], 'init_channels': 8})
    model.eval()  # mmpretrain's DenseNet.eval() returns None
    x = torch.randn(2, 3, 8, 8)
    seen = []
    model.stages[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(x)
    torch.testing.assert_close(seen[0], F.conv2d(x, model.stem.weight, padding=1))


# Both --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('backbone', 'channels'),
    [
        ({'type': 'kd_mm.CIFARResNet'}, 64),
        ({'type': 'kd_mm.CIFARResNet', 'shortcut': 'B'}, 64),
        ({'type': 'kd_mm.DenseNet_CIFAR'}, 1024),
    ],
)
def test_gradient_reaches_every_parameter(backbone, channels):
    torch.manual_seed(0)
    model = classifier(backbone, channels, num_classes=7)
    model.init_weights()
    model.train()
    samples = [DataSample().set_gt_label(label) for label in (0, 3, 6, 3)]
    losses = model(torch.randn(4, 3, 32, 32), samples, mode='loss')
    losses['loss'].backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert silent == []
