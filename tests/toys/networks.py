"""A small classifier of mmpretrain's for each kind of head, and what its last layer takes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

NUM_CLASSES = 5


class Network(NamedTuple):
    """A classifier: its config, its embeddings (N, D) without kd_mm, and its last layer."""

    cfg: Callable[[Path], dict]  # files that it needs are written into the folder
    embed: Callable[[nn.Module, Tensor], Tensor]
    last: Callable[[nn.Module], nn.Module]
    channels: int = 1


def classifier(head, **kwargs):
    """A LeNet with a head, whose features are (N, 120)."""
    return {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': 'mmpretrain.LeNet5'},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': {
            'type': f'mmpretrain.{head}',
            'num_classes': NUM_CLASSES,
            'in_channels': 120,
            **kwargs,
        },
    }


def _headed(last, head, embed=None, **kwargs):
    def pre_logits(network, images):
        return network.head.pre_logits(network.extract_feat(images))

    return Network(
        lambda folder: classifier(head, **kwargs),
        embed or pre_logits,
        lambda network: network.head.get_submodule(last),
    )


def _convnext(folder):
    arch = {'depths': [1, 1, 1, 1], 'channels': [8, 8, 16, 16]}
    cfg = classifier('LinearClsHead', in_channels=16)
    del cfg['neck']
    return {**cfg, 'backbone': {'type': 'mmpretrain.ConvNeXt', 'arch': arch}}


def _timm(name, **kwargs):
    def cfg(folder):
        pytest.importorskip('timm', reason='TimmClassifier needs timm')
        return {
            'type': 'mmpretrain.TimmClassifier',
            'model_name': name,
            'num_classes': NUM_CLASSES,
            **kwargs,
        }

    return cfg


def _timm_embed(network, images):
    return network.model.forward_head(network.model.forward_features(images), pre_logits=True)


def _hugging_face(name, **kwargs):
    def cfg(folder):
        transformers = pytest.importorskip(
            'transformers', reason='HuggingFaceClassifier needs transformers'
        )
        getattr(transformers, f'{name}Config')(**kwargs).save_pretrained(folder)
        return {
            'type': 'mmpretrain.HuggingFaceClassifier',
            'model_name': str(folder),
            'num_labels': NUM_CLASSES,
        }

    return cfg


def _levit_embed(network, images):
    return network.head.head.bn(network.extract_feat(images)[-1])


NETWORKS = {
    'linear': _headed('fc', 'LinearClsHead'),
    # Hidden layers as wide as there are classes, which are not the last.
    'stacked': _headed('layers.2.fc', 'StackedLinearClsHead', mid_channels=[NUM_CLASSES] * 2),
    'vit': _headed('layers.head', 'VisionTransformerClsHead'),
    'vit, hidden': _headed('layers.head', 'VisionTransformerClsHead', hidden_dim=NUM_CLASSES),
    'vig': _headed('fc2', 'VigClsHead', hidden_dim=32, dropout=0.5),
    'vig, as wide as classes': _headed('fc2', 'VigClsHead', hidden_dim=NUM_CLASSES),
    'efficientformer': _headed('head', 'EfficientFormerClsHead', distillation=False),
    'levit': _headed('head.linear', 'LeViTClsHead', _levit_embed, distillation=False),
    'convnext': Network(
        _convnext,
        lambda network, images: network.extract_feat(images)[-1],
        lambda network: network.head.fc,
        channels=3,
    ),
    'timm': Network(
        _timm('resnet18', channels=(8, 8, 16, 16)),
        _timm_embed,
        lambda network: network.model.fc,
        channels=3,
    ),
    'timm, a convolution': Network(
        _timm('dla46_c'), _timm_embed, lambda network: network.model.fc, channels=3
    ),
    'hugging face resnet': Network(
        _hugging_face(
            'ResNet', embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type='basic'
        ),
        lambda network, images: network.model.resnet(images).pooler_output.flatten(1),
        lambda network: network.model.classifier[1],
        channels=3,
    ),
    'hugging face vit': Network(
        _hugging_face(
            'ViT',
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
        ),
        lambda network, images: network.model.vit(images).last_hidden_state[:, 0],
        lambda network: network.model.classifier,
        channels=3,
    ),
}


def draw(channels, num_images=6, soft=False):
    """Images and their labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, channels, 32, 32, generator=generator)
    samples = [DataSample().set_gt_label(i % NUM_CLASSES) for i in range(num_images)]
    if soft:
        scores = torch.rand(num_images, NUM_CLASSES, generator=generator).softmax(dim=1)
        samples = [s.set_gt_score(score) for s, score in zip(samples, scores, strict=True)]
    return images, samples
