"""What networks say of images and where they look, recorded while a model predicts or learns."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_mm.analysis.predictions import scores_by_network
from kd_mm.analysis.run_log import SINGLE
from kd_mm.functional.ffsd import attention_map
from kd_mm.methods.base import Method, Relations, Step
from kd_mm.models.distiller import Distiller, named_networks, observed
from kd_mm.models.heads import DistillingHead

ENSEMBLE = 'ensemble'  # as the metric calls it


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


class Views(NamedTuple):
    """What the networks of a model see of N images in training.

    Attributes:
        originals: The images (H, W, 3) uint8, RGB, before the pipeline; empty where the data set
            cannot tell.
        views: (N, H, W, 3) uint8, RGB, by network, or one for all that share it.
        labels: (N, K), one-hot, or mixed by batch augmentation.
    """

    originals: list[np.ndarray]
    views: dict[str, np.ndarray]
    labels: np.ndarray


def networks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the classifiers of a model by name, in the order of pictures.

    Args:
        model: A Distiller, or a classifier, which has no name of its own.

    Returns:
        Students in alphabetical order, those that are no part of the ensemble last. One network
        alone has the name ``'network'``.
    """
    networks = named_networks(model)
    if '' in networks:
        return {SINGLE: networks['']}
    names = sorted(networks, key=lambda name: name in model.outside_ensemble)
    return {name: networks[name] for name in names}


def as_map(output: Any, size: Sequence[int], extra_tokens: int = 0) -> Tensor | None:
    """Return the output of a layer as a map, if it is one.

    Args:
        output: What a layer gave: a map (N, C, H, W), tokens (N, L, C), tokens with their height
            and width, or several outputs, of which the last counts.
        size: Height and width of the image: the tokens of a map have the same aspect.
        extra_tokens: Tokens before those of the image, such as the class token.

    Returns:
        (N, C, H, W), or None: what has no places, or one alone, is no map.

    Examples:
        >>> import torch
        >>> as_map(torch.zeros(2, 9, 5), size=(32, 64), extra_tokens=1).shape
        torch.Size([2, 5, 2, 4])
        >>> as_map(torch.zeros(2, 5, 1, 1), size=(32, 64)) is None
        True
    """
    height_width = None
    if isinstance(output, (tuple, list)) and output:
        last = output[-1]
        if isinstance(last, (tuple, list)) and len(last) == 2:
            output, height_width = output[0], tuple(map(int, last))
        else:
            output = last
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 3:
        tokens = output if height_width else output[:, extra_tokens:]
        count = tokens.shape[1]
        if height_width is None:
            height = max(round((count * size[0] / size[1]) ** 0.5), 1)
            height_width = height, count // height
        if height_width[0] * height_width[1] != count:
            return None
        output = tokens.transpose(1, 2).unflatten(2, height_width)
    return output if output.ndim == 4 and output.shape[2] * output.shape[3] > 1 else None


class Watch:
    """Record what a model predicts: inputs, predictions and maps, without a pass of its own.

    By default the map of a network is the last one that any of its layers gives: of most, the
    output of the backbone. What comes out of a layer normalisation is passed over, since it makes
    the mean square of the channels, which is the attention, nearly the same at each place: a
    Swin Transformer is recorded before its last normalisation. Maps that methods make
    (``Method.extra_maps``, such as a fused one) are recorded as well.

    Args:
        model: A Distiller, or a classifier.
        layers: Layers of each network to record in place of that, by their names in it, such as
            ``backbone.layer3``.

    Raises:
        ValueError: If a network has no such layer.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] = ()) -> None:
        self._handles: list[RemovableHandle] = []
        self._maps: dict[tuple[str, str], Tensor] = {}
        self._last_leaf: nn.Module | None = None
        self._model, self._layers = model, layers
        networks = networks_of(model)
        for name, network in networks.items():
            known = dict(network.named_modules())
            for layer in layers:
                _check_layer(layer, known, name)
        self._handles.append(
            model.register_forward_pre_hook(self._record_inputs, with_kwargs=True)
        )
        self._handles.append(model.register_forward_hook(self._record_samples))
        for name, network in networks.items():
            extra = getattr(getattr(network, 'backbone', None), 'num_extra_tokens', 0)
            for layer, module in network.named_modules():
                # A student is never called as a whole; what normalises comes before.
                if layer and not layer.startswith('data_preprocessor'):
                    hook = self._recorder_of(name, layer, extra)
                    self._handles.append(module.register_forward_hook(hook))
        if isinstance(model, Distiller):
            model.observers.append(self._record_extra_maps)

    def _record_inputs(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._inputs = kwargs['inputs'] if 'inputs' in kwargs else args[0]
        self._maps.clear()

    def _record_samples(self, model: nn.Module, args: tuple, output: list[DataSample]) -> None:
        self._samples = output

    def _recorder_of(self, name: str, layer: str, extra_tokens: int):
        """Return the hook of a layer."""

        def record(module: nn.Module, args: tuple, output: Any) -> None:
            if next(module.children(), None) is None:
                self._last_leaf = module
            if self._layers and layer not in self._layers:
                return
            if not self._layers and isinstance(self._last_leaf, nn.LayerNorm):
                return
            found = as_map(output, self._inputs.shape[-2:], extra_tokens)
            if self._layers and found is None:
                raise ValueError(
                    f'a target layer must give a map (N, C, H, W) or tokens (N, L, C) of one, but '
                    f'{layer} of {name} does not; name another layer, such as a stage of the '
                    'backbone'
                )
            if not self._layers and found is not None:
                for key in [key for key in self._maps if key[0] == name]:
                    del self._maps[key]
            if found is not None:
                self._maps[name, layer] = found.detach()

        return record

    def _record_extra_maps(self, step: Step, losses: dict[str, Tensor]) -> None:
        for method in self._model.methods.values():
            for name, found in method.extra_maps(step).items():
                self._maps[name, name] = found.detach()

    def close(self) -> None:
        """Record no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if isinstance(self._model, Distiller):
            self._model.observers.remove(self._record_extra_maps)

    def looks(self, places: Sequence[int] | None = None) -> list[Look]:
        """Return what was recorded of images of the last batch.

        Args:
            places: Their places in it. None means all.

        Returns:
            One look per image.

        Raises:
            ValueError: If a network gave no map.
        """
        networks = networks_of(self._model)
        for name in networks:
            if not any(key[0] == name for key in self._maps):
                raise ValueError(
                    f'a network must give a map of more than one place, but no layer of {name} '
                    'does; use larger images'
                )
        places = range(len(self._samples)) if places is None else places
        outside = getattr(self._model, 'outside_ensemble', ())
        order = [*(name for name in networks if name not in outside), ENSEMBLE, *outside]

        def place_of(name: str) -> int:  # classifiers that are no students come last
            return order.index(name) if name in order else len(order)

        # Maps of a network stay in the order in which its layers ran.
        keys = sorted(self._maps, key=lambda key: place_of(key[0]))
        maps = {key: self._maps[key][list(places)] for key in keys}
        attention = {key: attention_map(m).squeeze(1).cpu().numpy() for key, m in maps.items()}
        found = scores_by_network(self._samples, single=SINGLE in networks)
        scores = {n: found[n].float().cpu().numpy() for n in sorted(found, key=place_of)}
        looks = []
        for row, place in enumerate(places):
            sample = self._samples[place]
            image = to_image(self._inputs[place], self._model.data_preprocessor, sample)
            looks.append(
                Look(
                    image,
                    _name_of(sample),
                    int(sample.gt_label) if 'gt_label' in sample else None,
                    {name: score[place] for name, score in scores.items()},
                    {key: values[row] for key, values in attention.items()},
                )
            )
        return looks


class BatchWatch:
    """Record one step of training, and what its images take from each other, without a pass.

    Args:
        model: One with relations to show; see :func:`shows_relations`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._observed = model, observed(model)
        self._relations: dict[str, Relations] = {}
        self._handle = model.register_forward_pre_hook(self._record_batch, with_kwargs=True)
        self._observed.observers.append(self._record_step)

    def _record_batch(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._inputs, self._samples = kwargs['inputs'], kwargs['data_samples']

    @torch.no_grad()
    def _record_step(self, step: Step, losses: dict[str, Tensor]) -> None:
        self._labels = step.labels
        self._relations = self._observed.relations(step)

    def close(self) -> None:
        """Record no more."""
        self._handle.remove()
        self._observed.observers.remove(self._record_step)

    def knowledge(self, count: int | None = None) -> Iterator[tuple[str, BatchKnowledge]]:
        """Return what the images took from each other, of this process's images alone.

        Args:
            count: Number of images to show, the first of the batch; None means all. Affinities
                and targets are those of the whole batch.

        Yields:
            Names of networks and what their images took from each other.
        """
        shown = slice(count)
        for name, found in self._relations.items():
            name = name or SINGLE
            labels = distributions(self._labels, found.own.shape[1])
            values = (labels, found.affinity[:, shown], found.own, found.target)
            view = view_of(self._model, self._inputs, name)[shown]
            images = to_images(view, self._model.data_preprocessor, self._samples)
            arrays = [value[shown].detach().float().cpu().numpy() for value in values]
            yield name, BatchKnowledge(images, *arrays, found.temperature, len(self._samples))


def shows_relations(model: nn.Module) -> bool:
    """Tell whether a step of a model has relations between images to show.

    Args:
        model: A Distiller, or a classifier.
    """
    networks = named_networks(model).values()
    methods = model.methods.values() if isinstance(model, Distiller) else ()
    return any(
        isinstance(getattr(network, 'head', None), DistillingHead) for network in networks
    ) or any(type(method).relations is not Method.relations for method in methods)


def view_of(model: nn.Module, inputs: Tensor | Sequence[Tensor], name: str) -> Tensor:
    """Return what a network of a model sees.

    Args:
        model: A Distiller, or a classifier.
        inputs: Images (N, C, H, W), or a list of views.
        name: The network.

    Returns:
        Images (N, C, H, W): of several views of each network, the first.
    """
    if isinstance(inputs, Tensor):
        return inputs
    by_student = model.views == 'per_student' and name in model.names
    return inputs[model.names.index(name) if by_student else 0]


def distributions(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels as distributions (N, K).

    Args:
        labels: (N,) classes, or (N, K) mixed ones.
        num_classes: K, for the former.
    """
    return (F.one_hot(labels, num_classes) if labels.ndim == 1 else labels).float()


def to_images(
    inputs: Tensor, preprocessor: ClsDataPreprocessor, samples: Sequence[DataSample]
) -> np.ndarray:
    """Turn what a network sees back into images.

    Args:
        inputs: Normalised images (N, C, H, W).
        preprocessor: What normalised them.
        samples: Of these images and others behind them; see :func:`to_image`.

    Returns:
        (N, H, W, 3) uint8, RGB.
    """
    pairs = zip(inputs, samples, strict=False)
    return np.stack([to_image(image, preprocessor, sample) for image, sample in pairs])


def to_image(inputs: Tensor, preprocessor: ClsDataPreprocessor, sample: DataSample) -> np.ndarray:
    """Turn what a network sees back into an image.

    Args:
        inputs: A normalised image (C, H, W).
        preprocessor: What normalised it.
        sample: Of the image. One that was read from a file is in BGR unless the preprocessor has
            turned it; data sets that come in arrays (CIFAR, Digits) are in RGB.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    image = inputs.detach().float()
    if preprocessor._enable_normalize:
        image = image * preprocessor.std.to(image) + preprocessor.mean.to(image)
    image = image.round().clamp(0, 255).byte().cpu()
    if len(image) == 3 and 'img_path' in sample and not preprocessor.to_rgb:
        image = image.flip(0)
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _name_of(sample: DataSample) -> str:
    if sample.get('img_path'):
        return Path(sample.img_path).stem
    return f'image {sample.sample_idx}' if 'sample_idx' in sample else ''


def _check_layer(layer: str, known: Mapping[str, nn.Module], network: str) -> None:
    """Raise ValueError for a layer that is not there."""
    if layer and layer in known:
        return
    near = difflib.get_close_matches(layer, known, n=1)
    stages = [name for name in known if name.startswith('backbone.') and name.count('.') < 2]
    hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(stages)}'
    raise ValueError(
        f'target layers must be in each network, but {network} has no {layer}; {hint}'
    )
