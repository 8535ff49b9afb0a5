"""Sizes, values, gradients, initialisation and errors of the backbones that mmpretrain lacks."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS

from kd_mm.models.backbones import (
    CIFARDenseNet,
    CIFARGoogLeNet,
    CIFARResNet,
    CIFARWideResNet,
    DenseNet_CIFAR,
)

# Szegedy et al. 2014, table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


# Millions of parameters, as published: He et al. 2015, table 6; Zagoruyko and Komodakis 2016,
# table 5, and the distillation literature for 16-1 and 16-2; Huang et al. 2016, table 2.
@pytest.mark.parametrize(
    ('build', 'published'),
    [
        (lambda: CIFARResNet(20), '0.27'),
        (lambda: CIFARResNet(56), '0.85'),
        (lambda: CIFARResNet(110), '1.7'),
        (lambda: CIFARWideResNet(16, 1), '0.18'),
        (lambda: CIFARWideResNet(16, 2), '0.69'),
        (lambda: CIFARWideResNet(40, 2), '2.2'),
        (lambda: CIFARDenseNet(40, 12), '1.0'),
        (lambda: CIFARDenseNet(100, 12), '7.0'),
        (lambda: CIFARDenseNet(100, 24), '27.2'),
        (CIFARGoogLeNet, '6.2'),
        (DenseNet_CIFAR, '7.0'),
    ],
)
def test_has_the_published_size_with_ten_classes(build, published):
    with torch.device('meta'):
        model = build()
    channels = model(torch.rand(1, 3, 32, 32, device='meta'))[0].shape[1]
    size = sum(p.numel() for p in model.parameters()) + (channels + 1) * 10
    digits = len(published.partition('.')[2])
    assert f'{size / 1e6:.{digits}f}' == published


# Values, in evaluation mode, from the papers' descriptions; weights by name ----------------------


class Reference:
    """Layers of a network that are written out, with its weights."""

    def __init__(self, model):
        self.weights = model.state_dict()

    def conv(self, x, name, stride=1):
        weight = self.weights[f'{name}.weight']
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def bn(self, x, name):
        mean, var, scale, shift = (
            self.weights[f'{name}.{part}'].view(1, -1, 1, 1)
            for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def bn_relu(self, x, name):
        return self.bn(x, name).clamp(min=0)

    def conv_bn_relu(self, x, name):
        return self.bn_relu(self.conv(x, f'{name}.0'), f'{name}.1')


def resnet14(net, x):
    x = net.bn_relu(net.conv(x, 'conv1'), 'bn1')
    for stage in (1, 2, 3):
        for block in (0, 1):
            name = f'layer{stage}.{block}'
            stride = 2 if stage > 1 and block == 0 else 1
            y = net.bn_relu(net.conv(x, f'{name}.conv1', stride), f'{name}.bn1')
            y = net.bn(net.conv(y, f'{name}.conv2'), f'{name}.bn2')
            if f'{name}.downsample.0.weight' in net.weights:
                x = net.bn(net.conv(x, f'{name}.downsample.0', 2), f'{name}.downsample.1')
            elif stride == 2:
                x = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], dim=1)
            x = (x + y).clamp(min=0)
        yield x


def wide_resnet16(net, x):
    x = net.conv(x, 'conv1')
    for stage in range(3):
        for block in range(2):
            name = f'stages.{stage}.{block}'
            stride = 2 if stage > 0 and block == 0 else 1
            activated = net.bn_relu(x, f'{name}.bn1')
            y = net.conv(activated, f'{name}.conv1', stride)
            y = net.conv(net.bn_relu(y, f'{name}.bn2'), f'{name}.conv2')
            if f'{name}.shortcut.weight' in net.weights:
                x = net.conv(activated, f'{name}.shortcut', stride)
            x = x + y
        yield net.bn_relu(x, 'bn') if stage == 2 else x


def densenet10(net, x):
    x = net.conv(x, 'stem')
    for block in range(3):
        for layer in range(2):
            name = f'stages.{block}.{layer}'
            x = torch.cat([x, net.conv(net.bn_relu(x, f'{name}.bn'), f'{name}.conv')], dim=1)
        yield net.bn_relu(x, 'bn') if block == 2 else x
        if block < 2:
            name = f'transitions.{block}'
            x = net.conv(net.bn_relu(x, f'{name}.0'), f'{name}.2')
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))


def googlenet(net, x):
    x = net.conv_bn_relu(x, 'stem')
    for stage, inceptions in enumerate(INCEPTIONS):
        x = F.max_pool2d(x, 3, 2, 1) if stage else x
        for place, (one, _, three, _, five, pool) in enumerate(inceptions):
            name = f'stages.{stage}.{place}'
            branches = {'branch1x1': x, 'branch3x3.0': x, 'branch5x5.0': x}
            branches = {k: net.conv_bn_relu(y, f'{name}.{k}') for k, y in branches.items()}
            y3 = net.conv_bn_relu(branches['branch3x3.0'], f'{name}.branch3x3.1')
            y5 = net.conv_bn_relu(branches['branch5x5.0'], f'{name}.branch5x5.1')
            y5 = net.conv_bn_relu(y5, f'{name}.branch5x5.2')
            yp = net.conv_bn_relu(F.max_pool2d(x, 3, 1, 1), f'{name}.branch_pool.1')
            parts = (branches['branch1x1'], y3, y5, yp)
            assert [part.shape[1] for part in parts] == [one, three, five, pool]
            x = torch.cat(parts, dim=1)
        yield x


ALL = {'out_indices': (0, 1, 2)}


@pytest.mark.parametrize(
    ('build', 'reference'),
    [
        (lambda: CIFARResNet(14, **ALL), resnet14),
        (lambda: CIFARResNet(14, shortcut='B', **ALL), resnet14),
        (lambda: CIFARWideResNet(16, 1, **ALL), wide_resnet16),
        (lambda: CIFARDenseNet(10, 4, **ALL), densenet10),
        (lambda: CIFARGoogLeNet(**ALL), googlenet),
    ],
)
def test_computes_what_the_paper_says_and_learns_everywhere(build, reference):
    torch.manual_seed(0)
    model = build().double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    out = model(x)[-1]  # also moves the running statistics off 0 and 1
    (out * torch.randn_like(out)).sum().backward()
    assert [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []
    outs = model.eval()(x)
    for ours, expected in zip(outs, reference(Reference(model), x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    model.out_indices = (0, 2)
    first, last = model(x)
    assert torch.equal(first, outs[0])
    assert torch.equal(last, outs[2])


def test_densenet_121_keeps_the_resolution_behind_its_one_convolution():
    arch = {'growth_rate': 4, 'depths': [2, 2, 2], 'init_channels': 8}
    model = DenseNet_CIFAR(arch=arch, in_channels=1, out_indices=[0, 1, 2])
    x = torch.rand(2, 1, 32, 32)
    seen = []
    model.stages[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    # 8 + 2 * 4 = 16, halved to 8; the same again; the last block is not halved.
    shapes = [tuple(out.shape) for out in model(x)]
    assert shapes == [(2, 8, 16, 16), (2, 8, 8, 8), (2, 16, 8, 8)]
    torch.testing.assert_close(seen[0], F.conv2d(x, model.stem.weight, padding=1))


@pytest.mark.parametrize(
    ('options', 'channels'),
    [
        ({'type': 'kd_mm.CIFARResNet', 'depth': 8}, 64),
        ({'type': 'kd_mm.CIFARWideResNet', 'depth': 10, 'widen_factor': 3}, 192),
        ({'type': 'kd_mm.CIFARDenseNet', 'depth': 7, 'growth_rate': 3, 'init_channels': 5}, 14),
        ({'type': 'kd_mm.CIFARGoogLeNet'}, 1024),
    ],
)
def test_is_built_by_name_and_takes_other_channels_and_odd_sizes(options, channels):
    model = MODELS.build({**options, 'in_channels': 1})
    (out,) = model(torch.rand(2, 1, 11, 9))
    assert out.shape[:2] == (2, channels)


@pytest.mark.parametrize(
    ('model', 'layer', 'fan_out'),
    [
        (CIFARResNet(20), 'layer3.2.conv2', 9 * 64),
        (CIFARWideResNet(16, 2), 'stages.2.1.conv2', 9 * 128),
        (CIFARDenseNet(), 'stages.2.11.conv', 9 * 12),
        (CIFARGoogLeNet(), 'stages.2.1.branch3x3.1.0', 9 * 384),
    ],
)
def test_starts_from_kaiming_fan_out(model, layer, fan_out):
    torch.manual_seed(0)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    torch.nn.init.zeros_(norm.weight)
    model.init_weights()
    std = model.get_submodule(layer).weight.std().item()
    assert std == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert norm.weight.eq(1).all()


def test_resnet_norm_cfg_reaches_every_layer():
    model = CIFARResNet(8, norm_cfg={'type': 'GN', 'num_groups': 8}, shortcut='B')
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count('GroupNorm') == 1 + 6 + 2
    assert 'BatchNorm2d' not in kinds


@pytest.mark.parametrize(
    ('network', 'arguments', 'message'),
    [
        (CIFARResNet, {'depth': 21}, r'6n \+ 2 layers .* depth=21. Try 20 or 26; for ResNet-18'),
        (CIFARResNet, {'depth': 2}, 'depth=2. Try 8 or 14'),
        (CIFARResNet, {'depth': '20'}, "depth must be an integer of at least 1, but got '20'"),
        (CIFARResNet, {'shortcut': 'C'}, "shortcut must be one of 'A', 'B', but got 'C'"),
        (CIFARResNet, {'out_indices': (3,)}, r'stages 0, 1, 2, got \(3,\)'),
        (CIFARResNet, {'out_indices': ()}, r'stages 0, 1, 2, got \(\)'),
        (CIFARResNet, {'out_indices': 2}, 'sequence of stages'),
        (CIFARWideResNet, {'depth': 20}, r'6n \+ 4 layers .* depth=20\. Try 16 or 22'),
        (CIFARWideResNet, {'widen_factor': 0}, 'widen_factor must be an integer of at least 1'),
        (CIFARDenseNet, {'depth': 161}, r'DenseNet-121, 161, .* take kd_mm\.DenseNet_CIFAR'),
        (CIFARDenseNet, {'growth_rate': 0}, 'growth_rate must be an integer of at least 1'),
        (CIFARDenseNet, {'init_channels': 0}, 'init_channels must be an integer of at least 1'),
        (CIFARDenseNet, {'out_indices': (3,)}, r'stages 0, 1, 2, got \(3,\)'),
        (CIFARWideResNet, {'out_indices': (3,)}, r'stages 0, 1, 2, got \(3,\)'),
        (CIFARGoogLeNet, {'out_indices': (3,)}, r'stages 0, 1, 2, got \(3,\)'),
    ],
)
def test_refuses_bad_arguments(network, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        network(**arguments)
