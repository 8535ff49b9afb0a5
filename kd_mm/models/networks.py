"""Students and teachers: their configs, and what one of them makes of a batch."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from mmpretrain.evaluation import Accuracy
from mmpretrain.models.classifiers import (
    BaseClassifier,
    HuggingFaceClassifier,
    ImageClassifier,
    TimmClassifier,
)
from mmpretrain.models.heads import (
    ClsHead,
    DeiTClsHead,
    EfficientFormerClsHead,
    StackedLinearClsHead,
    VigClsHead,
    VisionTransformerClsHead,
)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_mm.config import read_config
from kd_mm.methods.base import RESERVED_ROWS, Seen

from .heads.distilling_head import DistillingHead


def student_cfg(cfg: Mapping) -> ConfigDict:
    """Return the config of one student's classifier.

    Args:
        cfg: A whole classifier config, or ``cfg_path``, the path of a recipe
            (``mmpretrain::resnet/resnet50_8xb32_in1k.py``) whose model is taken, with settings
            that change it. Left as it is.

    Raises:
        ValueError: If there is no such recipe, or the settings do not fit it.

    Examples:
        >>> student_cfg({'type': 'ImageClassifier', 'head': {'topk': (1, 5)}})['head']
        {'topk': (1, 5)}
    """
    cfg = ConfigDict(cfg)
    path = cfg.pop('cfg_path', None)
    if path is None:
        return cfg
    base = Config({'model': recipe(path).model})
    try:
        base.merge_from_dict({'model': cfg.to_dict()})
    except (KeyError, TypeError) as error:
        raise ValueError(f'a student does not fit its cfg_path {path}: {error}') from None
    return base.model


def recipe(path: str) -> Config:
    """Return the config of a file, or of an installed recipe, such as ``mmpretrain::resnet/...``.

    Raises:
        ValueError: If there is no such recipe, or it has no model.
    """
    if not isinstance(path, str) or '::' not in path:
        return read_config(path)
    from mmengine.hub import get_config

    try:
        return get_config(path)
    except Exception as error:  # MMEngine's, which raises what it likes
        raise ValueError(
            'cfg_path must name a recipe that is installed, such as '
            f"'mmpretrain::resnet/resnet50_8xb32_in1k.py', but got {path!r} ({error})"
        ) from None


def check_names(networks: Mapping[str, Mapping]) -> None:
    """Raise ValueError unless these are configs of students, by names that logs can hold.

    Examples:
        >>> check_names({'res.net': {'type': 'ImageClassifier'}})
        Traceback (most recent call last):
        ValueError: the name of a student must be a word without dots, but got 'res.net'; it is \
part of keys that dots and slashes separate
    """
    if not isinstance(networks, Mapping) or not networks:
        raise ValueError(
            'a model must have a student, students=dict(name=dict(...), ...), but students is '
            f'{repr(networks) if networks else "empty"}'
        )
    for name, cfg in networks.items():
        if not isinstance(name, str) or not re.fullmatch(r'[\w-]+', name):
            raise ValueError(
                f'the name of a student must be a word without dots, but got {name!r}; it is '
                'part of keys that dots and slashes separate'
            )
        if name in RESERVED_ROWS:
            raise ValueError(
                f'a student must not be called {", ".join(RESERVED_ROWS)}, as the metric calls '
                f'its own rows, but got {name!r}'
            )
        if 'loss' in name:
            raise ValueError(
                'the name of a student must not contain "loss", by which MMEngine finds the terms '
                f'of the total, but got {name!r}'
            )
        if name in dir(nn.ModuleDict):
            raise ValueError(
                'a student must not have the name of an attribute of every ModuleDict, but got '
                f'{name!r}; choose another name'
            )
        if not isinstance(cfg, Mapping) or not {'type', 'cfg_path'} & set(cfg):
            raise ValueError(
                f'students.{name} must be the config of a classifier, with its type or a '
                f'cfg_path, but got {cfg!r}'
            )


def deepest_only(cfg: ConfigDict) -> ConfigDict:
    """Return a student's config whose backbone gives its deepest map alone.

    A student whose other maps nobody reads is built and deployed so: a backbone that normalises
    each output has parameters for it.

    Examples:
        >>> deepest_only(ConfigDict(backbone=dict(type='ResNet', out_indices=(2, 3))))
        {'backbone': {'type': 'ResNet', 'out_indices': (3,)}}
    """
    out_indices = cfg.get('backbone', {}).get('out_indices')
    if isinstance(out_indices, (list, tuple)) and len(out_indices) > 1:
        cfg = ConfigDict({**cfg, 'backbone': {**cfg.backbone, 'out_indices': out_indices[-1:]}})
    return cfg


def build_network(cfg: ConfigDict, place: str) -> nn.Module:
    """Build a classifier, whose own preprocessor stays unused.

    Args:
        cfg: Its config.
        place: Where the model's config has it, such as ``students.resnet18``.

    Raises:
        ValueError: If it is not a classifier, or brings batch augmentations of its own.
    """
    if cfg.get('train_cfg'):
        raise ValueError(
            'batch augmentations must be the same for all students, but '
            f'{place}.train_cfg is {dict(cfg.train_cfg)}; set it to None and give '
            'model.train_cfg'
        )
    cfg = ConfigDict(cfg)
    cfg.setdefault('_scope_', 'mmpretrain')  # in whatever project the model trains
    network = ROOT_MODELS.build(cfg)
    if not isinstance(network, BaseClassifier):
        raise ValueError(
            'students and teachers must be classifiers, such as an ImageClassifier, but '
            f'{place.partition(".")[2]} is a {type(network).__name__}; set model.{place}.type'
        )
    if isinstance(network, (TimmClassifier, HuggingFaceClassifier)):
        # MMPretrain's hook returns a new state_dict, which torch drops inside of another module.
        network._state_dict_hooks.clear()
        network._register_state_dict_hook(partial(strip_part, 'model.'))
    return network


def strip_part(
    part: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict
) -> None:
    """Store the weights of a part of a module under its plain names. A hook of torch's."""
    inside = f'{prefix}{part}'
    for key in [key for key in state_dict if key.startswith(inside)]:
        state_dict[prefix + key.removeprefix(inside)] = state_dict.pop(key)


def num_classes_of(network: nn.Module) -> int | None:
    """Return the number of classes of a classifier, None where its head does not say."""
    if isinstance(network, TimmClassifier):
        return network.model.num_classes
    if isinstance(network, HuggingFaceClassifier):
        return network.model.config.num_labels
    head = getattr(network, 'head', None)
    if isinstance(head, VigClsHead):  # which does not keep the number
        return head.fc2.out_features
    return getattr(head, 'num_classes', None)


class EmbeddingTap:
    """Keeps the embedding, the input of a network's last layer; see :func:`find_classifier`."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.embedding: Tensor | None = None
        find_classifier(network, name).register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: tuple) -> None:
        """Keep the input of the layer."""
        self.embedding = args[0]

    def take(self) -> Tensor:
        """Return the embedding (N, D) of the last pass, and forget it."""
        embedding, self.embedding = self.embedding, None
        return embedding.flatten(1)


def find_classifier(network: nn.Module, name: str) -> nn.Module:
    """Return the linear layer, or 1x1 convolution, that maps embeddings (N, D) to logits (N, K).

    Args:
        network: A classifier of mmpretrain's.
        name: Its name, for the error.

    Raises:
        TypeError: If the network computes its losses from other things than one logit per class.
    """
    if isinstance(network, TimmClassifier):
        last = network.model.get_classifier()
        found = list(last) if isinstance(last, tuple) else [last]
    elif isinstance(network, HuggingFaceClassifier):
        found = _last_layers(network.model, network.model.config.num_labels)
    else:
        head = getattr(network, 'head', None)
        # EfficientFormerClsHead adds a guard to loss, and nothing more.
        known = (ClsHead.loss, EfficientFormerClsHead.loss)
        plain = isinstance(head, ClsHead) and type(head).loss in known
        plain = plain or isinstance(head, DistillingHead)
        if not (plain and type(head)._get_loss is ClsHead._get_loss):
            way = (
                f'{type(head).__name__} has a way of its own'
                if head is not None
                else 'there is none'
            )
            raise TypeError(
                f'the head of {name} must compute its losses from one logit per class, as '
                f'LinearClsHead does, but {way}; use LinearClsHead or another head with one '
                'classifier'
            )
        # First heads with hidden layers, which may be as wide as there are classes.
        if isinstance(head, StackedLinearClsHead):
            found = [head.fc.fc]
        elif isinstance(head, VigClsHead):
            found = [head.fc2]
        elif isinstance(head, VisionTransformerClsHead) and not isinstance(head, DeiTClsHead):
            found = [head.layers.head]
        else:
            found = _last_layers(head, num_classes_of(network))
    found = [layer for layer in found if isinstance(layer, (nn.Linear, nn.Conv2d))]
    if len(found) != 1:
        raise TypeError(
            f'the head of {name} must have one linear layer that gives the logits, as '
            f'LinearClsHead does, but it has {len(found)}; use a head with one classifier '
            '(distillation=False where the head has that option)'
        )
    return found[0]


def _last_layers(module: nn.Module, num_classes: int | None) -> list[nn.Module]:
    """Return the layers whose outputs are as many as there are classes."""
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    found = [m for m in linear if m.out_features == num_classes]
    if found:
        return found
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return [m for m in convs if m.out_channels == num_classes and m.kernel_size == (1, 1)]


def see(
    network: nn.Module, view: Tensor, tap: EmbeddingTap, deepest: bool, with_cp: bool = False
) -> Seen:
    """Run a classifier with its tap on a view (N, C, H, W).

    With ``deepest``, neck and head take the deepest map alone, as when the network is deployed.
    With ``with_cp``, the backward pass recomputes the backbone's activations.
    """
    if not isinstance(network, ImageClassifier):
        return Seen(network(view, mode='tensor'), tap.take(), ())
    if with_cp:
        maps = _maps_without_activations(network, view)
    else:
        maps = network.extract_feat(view, stage='backbone')
    feats = maps[-1:] if deepest else maps
    logits = network.head(network.neck(feats) if network.with_neck else feats)
    return Seen(logits, tap.take(), maps)


def own_losses(
    network: nn.Module, seen: Seen, labels: Tensor, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Return ``loss`` of a network's own head as mmpretrain does, and accuracies with ``cal_acc``.

    Args:
        network: A classifier.
        seen: What it made of a view.
        labels: (N,) classes or (N, K) soft labels.
        weight: (N,) weight of each image in the mean. None: 1 for each.
    """
    head = network.head if isinstance(network, ImageClassifier) else network
    weights = {} if weight is None else {'weight': weight}
    count = len(seen.logits) if weight is None else weight.sum()
    losses = {'loss': head.loss_module(seen.logits, labels, avg_factor=count, **weights)}
    if isinstance(head, ClsHead) and head.cal_acc:
        classes = labels if labels.ndim == 1 else labels.argmax(dim=1)
        accuracies = Accuracy.calculate(seen.logits, classes, topk=head.topk)
        found = zip(head.topk, accuracies, strict=True)
        losses.update({f'accuracy_top-{k}': accuracy for k, accuracy in found})
    return losses


@torch.compiler.disable  # torch.compile takes no context_fn of ours
def _maps_without_activations(student: nn.Module, view: Tensor) -> tuple[Tensor, ...]:
    """Return a student's maps; the backward pass recomputes the activations before them."""
    return torch.utils.checkpoint.checkpoint(
        student.extract_feat,
        view,
        stage='backbone',
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _statistics_kept(student.backbone)),
    )


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep what BN layers normalise by, but do not count a batch twice in their statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, without gradient, and each part back into its mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def zeros_for(network: nn.Module, img_size: int) -> Tensor:
    """Return an image of zeros (1, C, H, W), as the network's first convolution takes it."""
    stem = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if stem is None:
        return torch.zeros(1, 3, img_size, img_size)
    return stem.weight.new_zeros(1, stem.in_channels, img_size, img_size)
