"""Plain weights and config, written after comparing logits."""

import io
import json
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from kd_mm.checkpoint import check_keys
from kd_mm.checks import check_choice
from kd_mm.config import explained
from kd_mm.installation import import_optional
from kd_mm.models.distiller import SINGLE, Distiller
from kd_mm.registry import MODELS

from .config import choose_student, our_types, plain_cfg, preprocessor_of
from .onnx import onnx_graph, require_onnx, run_onnx

FORMATS = ('pth', 'safetensors', 'onnx')
# What a logit may differ by. ONNX Runtime computes in another order: relative to the largest one,
# where that is above 1.
TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4


class Export(NamedTuple):
    """What an export wrote.

    Attributes:
        weights: Path of the plain weights, ``model.pth``, ``.safetensors`` or ``.onnx``.
        config: Path of the plain config.
        difference: Largest absolute difference of a logit between the trained and the plain
            model, or its ONNX graph, on random images.
        needs: Types in the config that only kd_mm has.
    """

    weights: Path
    config: Path
    difference: float
    needs: tuple[str, ...]


def choose_weights(checkpoint: Mapping[str, Any], ema: bool | None = None) -> Mapping[str, Tensor]:
    """Return the weights of a model, averaged ones or those that the optimizer saw.

    In a checkpoint of a run with MMEngine's ``EMAHook``, ``state_dict`` holds the average, which
    validation looks at, and ``ema_state_dict`` the weights that were trained, as ``module.*``.

    Args:
        checkpoint: What a run wrote.
        ema: True for the average, False for the weights without it (a run without average has
            one set), None for ``state_dict``, whatever it is.

    Raises:
        ValueError: If there is no average to give.

    Examples:
        >>> checkpoint = {'state_dict': {'w': 1}, 'ema_state_dict': {'steps': 9, 'module.w': 2}}
        >>> choose_weights(checkpoint, ema=True), choose_weights(checkpoint, ema=False)
        ({'w': 1}, {'w': 2})
    """
    trained = checkpoint.get('ema_state_dict')
    if ema and trained is None:
        raise ValueError(
            'an average of weights needs a checkpoint with ema_state_dict, as a run with an '
            f'EMAHook writes it, but this one has {", ".join(checkpoint)}; leave --ema out'
        )
    if ema is not False or trained is None:
        return checkpoint['state_dict']
    prefix = 'module.'
    return {key.removeprefix(prefix): w for key, w in trained.items() if key.startswith(prefix)}


def random_images(cfg: Config, count: int) -> Tensor:
    """Return images of the shape that the config's test pipeline ends in."""
    height = width = 224
    loader = cfg.get('test_dataloader') or {}
    for transform in loader.get('dataset', {}).get('pipeline', []):
        size = transform.get('crop_size', transform.get('scale'))
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else (size[1], size[0])
    mean = preprocessor_of(cfg).get('mean')
    channels = len(mean) if isinstance(mean, (list, tuple)) else 3
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, height, width, generator=generator)


def _load(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights that must fit to the name."""
    check_keys(state_dict, model.state_dict(), 'the checkpoint')
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(
            f'the checkpoint must hold exactly the weights of the config; use the config that '
            f'was dumped with it. {error}'
        ) from None


def _check_difference(found: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """Return the largest difference of a logit, if it is small."""
    difference = (found - expected).abs().max().item()
    if not difference <= tolerance:
        raise ValueError(
            f'{what} must answer as the trained model, up to {tolerance:.1e}, but a logit '
            f'differs by {difference:.1e}; nothing was written'
        )
    return difference


def _plain_values(node: Any) -> Any:
    """Return what any reader takes: what is no container, number or text becomes text."""
    if isinstance(node, Mapping):
        return {str(key): _plain_values(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(map(_plain_values, node))
    if isinstance(node, (np.ndarray, np.generic)):
        return node.tolist()
    return node if node is None or isinstance(node, (str, int, float)) else str(node)


def _weights_file(file_format: str, state_dict: dict[str, Tensor], meta: dict) -> bytes:
    """Return what the file of the weights holds."""
    if file_format == 'safetensors':
        (safetensors,) = import_optional('--format safetensors', 'safetensors.torch')
        words = {name: json.dumps(value) for name, value in meta.items()}
        return safetensors.save(state_dict, {'format': 'pt', **words})
    buffer = io.BytesIO()
    torch.save({'state_dict': state_dict, 'meta': meta}, buffer)
    return buffer.getvalue()


def _put(files: Mapping[Path, bytes]) -> None:
    """Write files, each under another name first, so that none is ever there by half."""
    parts = {path: path.with_name(f'{path.name}.part') for path in files}
    try:
        for path, content in files.items():
            parts[path].write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


@torch.no_grad()
def export_student(
    cfg: Config,
    state_dict: Mapping[str, Tensor],
    out_dir: str | Path,
    meta: dict | None = None,
    student: str | None = None,
    file_format: str = 'pth',
) -> Export:
    """Write plain mmpretrain weights and config, after comparing their logits with the original.

    Args:
        cfg: Config of the kd_mm run.
        state_dict: Weights of its model; see :func:`choose_weights`.
        out_dir: Folder for ``model.<file_format>`` and ``config.py``; made if missing. The two
            files are replaced if they are there.
        meta: What else a checkpoint holds, such as ``dataset_meta`` with the classes.
        student: Name of a student of a cohort; by default the deployed one.
        file_format: ``'pth'``: a checkpoint that ``torch.load(weights_only=True)`` reads.
            ``'safetensors'``: tensors by name; ``meta`` is JSON in its metadata. ``'onnx'``: a
            graph from preprocessed ``images`` (N, C, H, W) in float32, any N, with the size of
            the config's test pipeline, to ``logits`` (N, K).

    Returns:
        The two paths, the largest difference of a logit on random images, and the types of kd_mm
        that the config needs.

    Raises:
        ValueError: If there is no such student or format, the weights do not fit the config, or
            the plain model or its graph answers differently. Nothing is written then.
        ImportError: If the format takes a package that is not installed.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    check_choice('file_format', file_format, FORMATS)
    if file_format == 'safetensors':
        import_optional('--format safetensors', 'safetensors')
    if file_format == 'onnx':
        require_onnx()
    name = choose_student(cfg, student)
    plain = plain_cfg(cfg, name)
    with explained('the model cannot be built', 'use the config that was dumped with it'):
        trained, network = (MODELS.build(deepcopy(c.model)).eval() for c in (cfg, plain))
    _load(trained, state_dict)
    if isinstance(trained, Distiller):
        trained = trained.students[name or SINGLE]
        # The norms of maps that a deployed backbone does not give. The logits tell if it is more.
        wanted = network.state_dict()
        state_dict = {
            key: weight
            for key, weight in trained.state_dict().items()
            if key in wanted or not key.startswith('backbone.')
        }
    _load(network, state_dict)
    images = random_images(plain, 3)
    expected = trained(images)
    difference = _check_difference(network(images), expected, TOLERANCE, 'the plain model')
    if file_format == 'onnx':
        content = onnx_graph(network, images[:2])
        tolerance = ONNX_TOLERANCE * max(1, expected.abs().max().item())
        # Another number of images than the graph was drawn with, and one alone.
        found = torch.cat([run_onnx(content, images), run_onnx(content, images[:1])])
        expected = torch.cat([expected, expected[:1]])
        difference = _check_difference(found, expected, tolerance, 'the ONNX graph')
    else:
        content = _weights_file(file_format, dict(network.state_dict()), _plain_values(meta or {}))
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    weights, config = out_dir / f'model.{file_format}', out_dir / 'config.py'
    _put({weights: content, config: plain.pretty_text.encode()})
    return Export(weights, config, difference, tuple(sorted(our_types(plain.to_dict()))))
