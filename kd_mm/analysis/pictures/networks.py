"""What networks say of images and where they look, recorded while a model predicts or learns."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import default_collate
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from kd_mm.analysis.predictions import scores_by_network
from kd_mm.analysis.run_log import SINGLE
from kd_mm.checks import did_you_mean
from kd_mm.functional.ffsd import attention_map
from kd_mm.methods.base import Method, Step
from kd_mm.models.distiller import Distiller, named_networks, observed
from kd_mm.models.heads import DistillingHead


class Look(NamedTuple):
    """One image, and what each network makes of it.

    Attributes:
        image: (H, W, 3) uint8, RGB, as the networks see it.
        name: Name of its file without the ending, or its number in the data set.
        label: The true class; None where it is not known.
        scores: Class probabilities (K,) by network, the ensemble of several among them.
        attention: :func:`kd_mm.functional.ffsd.attention_map`, (h, w), by network and layer.
    """

    image: np.ndarray
    name: str
    label: int | None
    scores: dict[str, np.ndarray]
    attention: dict[tuple[str, str], np.ndarray]


class BatchKnowledge(NamedTuple):
    """What N images of a batch take from each other.

    Attributes:
        images: (N, H, W, 3) uint8, RGB, as this network sees them.
        labels: (N, K), one-hot, or mixed by batch augmentation.
        affinity: (N, N), the weight that each image gives to each other.
        own: (N, K), the network's softened predictions.
        target: (N, K), the soft targets.
        temperature: Of ``own`` and ``target``.
        size: Images of the whole batch, of which these N are shown.
    """

    images: np.ndarray
    labels: np.ndarray
    affinity: np.ndarray
    own: np.ndarray
    target: np.ndarray
    temperature: float
    size: int


def networks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the classifiers of a model by name, those outside of the ensemble last.

    One network alone has the name ``'network'``.
    """
    networks = named_networks(model)
    if '' in networks:
        return {SINGLE: networks['']}
    names = sorted(networks, key=lambda name: name in model.outside_ensemble)
    return {name: networks[name] for name in names}


def as_map(output: Any, size: Sequence[int], extra_tokens: int = 0) -> Tensor | None:
    """Return the output of a layer as a map (N, C, H, W); None if it has no places, or one alone.

    Args:
        output: A map (N, C, H, W), tokens (N, L, C), tokens with their height and width, or
            several outputs, of which the last counts.
        size: Height and width of the image: the tokens of a map have the same aspect.
        extra_tokens: Tokens before those of the image, such as the class token.

    Examples:
        >>> import torch
        >>> as_map(torch.zeros(2, 9, 5), size=(32, 64), extra_tokens=1).shape
        torch.Size([2, 5, 2, 4])
        >>> as_map(torch.zeros(2, 5, 1, 1), size=(32, 64)) is None
        True
    """
    shape = None
    if isinstance(output, (tuple, list)) and output:
        last = output[-1]
        sized = isinstance(last, (tuple, list)) and len(last) == 2
        output, shape = (output[0], tuple(map(int, last))) if sized else (last, None)
    if isinstance(output, Tensor) and output.ndim == 3:
        tokens = output if shape else output[:, extra_tokens:]
        if shape is None:
            height = max(round((tokens.shape[1] * size[0] / size[1]) ** 0.5), 1)
            shape = height, tokens.shape[1] // height
        if shape[0] * shape[1] != tokens.shape[1]:
            return None
        output = tokens.transpose(1, 2).unflatten(2, shape)
    found = isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1
    return output if found else None


@torch.no_grad()
def look(model: nn.Module, item: dict, layers: Sequence[str] = ()) -> Look:
    """Show an image to a model in evaluation mode.

    By default the attention of a network is that of the last map that any of its layers gives: of
    most, the output of the backbone. What comes out of a layer normalisation is passed over, since
    it makes the attention nearly the same at each place. Maps of methods (``Method.extra_maps``)
    are shown as well.

    Args:
        model: A Distiller, or a classifier.
        item: Of a data set, as its pipeline gives it.
        layers: Layers of each network to show in place of that, by their names in it, such as
            ``backbone.layer3``.

    Raises:
        ValueError: If a network has no such layer, or gives no map.
    """
    data = model.data_preprocessor(default_collate([item]), False)
    networks = networks_of(model)
    maps: dict[tuple[str, str], Tensor] = {}
    last_leaf = None

    def record(key, extra_tokens, module, args, output):
        nonlocal last_leaf
        name, layer = key
        if next(module.children(), None) is None:
            last_leaf = module
        if layer not in layers if layers else isinstance(last_leaf, nn.LayerNorm):
            return
        found = as_map(output, data['inputs'].shape[-2:], extra_tokens)
        if found is None and layers:
            raise ValueError(
                f'a target layer must give a map (N, C, H, W) or tokens (N, L, C) of one, but '
                f'{layer} of {name} does not; name another layer, such as a stage of the backbone'
            )
        if found is not None:
            for other in [k for k in maps if k[0] == name and not layers]:
                del maps[other]
            maps[key] = found

    def record_extra_maps(step, losses):
        for method in model.methods.values():
            maps.update({(name, name): found for name, found in method.extra_maps(step).items()})

    with ExitStack() as stack:
        if isinstance(model, Distiller):
            model.observers.append(record_extra_maps)
            stack.callback(model.observers.remove, record_extra_maps)
        for name, network in networks.items():
            known = {k: m for k, m in network.named_modules() if k}
            stages = [k for k in known if k.startswith('backbone.') and k.count('.') == 1]
            for layer in set(layers) - set(known):
                raise ValueError(
                    f'target layers must be in each network, but {name} has no {layer}; '
                    f'{did_you_mean(layer, stages)}'
                )
            extra = getattr(getattr(network, 'backbone', None), 'num_extra_tokens', 0)
            for layer, module in known.items():
                hook = module.register_forward_hook(partial(record, (name, layer), extra))
                stack.callback(hook.remove)
        (sample,) = model(**data, mode='predict')
    for name in networks.keys() - {name for name, _ in maps}:
        raise ValueError(
            f'a network must give a map of more than one place, but no layer of {name} does; use '
            'larger images'
        )
    # Maps of a network stay in the order in which its layers ran.
    scores = scores_by_network([sample], single=SINGLE in networks)
    order = [*networks, *scores]
    number = f'image {sample.sample_idx}' if 'sample_idx' in sample else ''
    return Look(
        to_image(data['inputs'][0], model.data_preprocessor, sample),
        Path(sample.img_path).stem if sample.get('img_path') else number,
        int(sample.gt_label) if 'gt_label' in sample else None,
        {name: scores[name][0].float().cpu().numpy() for name in sorted(scores, key=order.index)},
        {
            key: attention_map(maps[key])[0, 0].cpu().numpy()
            for key in sorted(maps, key=lambda key: order.index(key[0]))
        },
    )


class BatchWatch:
    """Record a training step of a model, and what its images take from each other."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._observed = model, observed(model)
        self._handle = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._observed.observers.append(self._record)

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._inputs, self._samples = kwargs['inputs'], kwargs['data_samples']

    @torch.no_grad()
    def _record(self, step: Step, losses: dict[str, Tensor]) -> None:
        self._labels, self._relations = step.labels, self._observed.relations(step)

    def close(self, count: int) -> dict[str, BatchKnowledge]:
        """Record no more. Return what this process's images took from each other, by network.

        Args:
            count: Number of images to show, the first of the batch. Affinities and targets are
                those of the whole batch.
        """
        self._handle.remove()
        self._observed.observers.remove(self._record)
        shown, found = slice(count), {}
        for name, (affinity, own, target, temperature) in self._relations.items():
            labels = distributions(self._labels, own.shape[1])
            values = (labels, affinity[:, shown], own, target)
            arrays = [value[shown].detach().float().cpu().numpy() for value in values]
            images = view_of(self._model, self._inputs, self._samples, name, count)
            size = len(self._samples)
            found[name or SINGLE] = BatchKnowledge(images, *arrays, temperature, size)
        return found


def shows_relations(model: nn.Module) -> bool:
    """Return whether a training step of a model has relations between images to show."""
    heads = [getattr(network, 'head', None) for network in named_networks(model).values()]
    methods = model.methods.values() if isinstance(model, Distiller) else ()
    return any(isinstance(head, DistillingHead) for head in heads) or any(
        type(method).relations is not Method.relations for method in methods
    )


def view_of(
    model: nn.Module, inputs: Tensor | list[Tensor], samples: list, name: str, count: int
) -> np.ndarray:
    """Return what a network sees, (n, H, W, 3) uint8, RGB: of several views of it, the first.

    Args:
        model: A Distiller, or a classifier.
        inputs: Normalised images (N, C, H, W), or a list of views.
        samples: Of the images.
        name: The network.
        count: n, images from the first.
    """
    if not isinstance(inputs, Tensor):
        by_student = model.views == 'per_student' and name in model.names
        inputs = inputs[model.names.index(name) if by_student else 0]
    pairs = zip(inputs[:count], samples, strict=False)
    return np.stack([to_image(image, model.data_preprocessor, sample) for image, sample in pairs])


def distributions(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels, (N,) classes or (N, K) mixed ones, as distributions (N, K)."""
    return (F.one_hot(labels, num_classes) if labels.ndim == 1 else labels).float()


def to_image(inputs: Tensor, preprocessor: ClsDataPreprocessor, sample: DataSample) -> np.ndarray:
    """Turn what a network sees back into an image, (H, W, 3) uint8, RGB.

    Args:
        inputs: A normalised image (C, H, W).
        preprocessor: What normalised it.
        sample: Of the image. One that was read from a file is in BGR unless the preprocessor has
            turned it; data sets that come in arrays (CIFAR, Digits) are in RGB.
    """
    image = inputs.detach().float()
    if preprocessor._enable_normalize:
        image = image * preprocessor.std.to(image) + preprocessor.mean.to(image)
    image = image.round().clamp(0, 255).byte().cpu()
    if len(image) == 3 and 'img_path' in sample and not preprocessor.to_rgb:
        image = image.flip(0)
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()
