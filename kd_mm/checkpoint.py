"""Reading checkpoints without running what they contain."""

import codecs
import json
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule, BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import nn

from kd_mm.checks import few
from kd_mm.installation import import_optional

_torch_load = torch.load
_trusting: ContextVar[bool] = ContextVar('trusting', default=False)


class UnsafeFileError(ValueError):
    """A checkpoint is damaged, or holds what would have to be run."""


def _statistics_of_history(owner: type, name: str) -> object:
    """What ``builtins.getattr`` may do in a checkpoint: name a method of MMEngine's log history.

    The real one would let a file reach any attribute of any allowed object.
    """
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'a checkpoint must not read {name} of {owner}')
    return getattr(owner, name)


# torch.load matches an allowed function by its module and name.
_statistics_of_history.__module__ = 'builtins'
_statistics_of_history.__name__ = _statistics_of_history.__qualname__ = 'getattr'

# What a checkpoint of MMEngine's Runner holds in addition to tensors and plain Python values: the
# log history, and NumPy arrays and scalars of numbers and text.
_CODES = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?SU'
SAFE_GLOBALS = [
    HistoryBuffer,
    _statistics_of_history,
    np.ndarray,
    np.dtype,
    np.empty(0).__reduce__()[0],
    np.float64(0).__reduce__()[0],
    codecs.encode,  # how NumPy 1 writes bytes
    *{type(np.dtype(code)) for code in _CODES},
]


def _read_plain(f: Any, **kwargs: Any) -> Any:
    """Read :data:`SAFE_GLOBALS`, and what the user allowed torch.load before; no more."""
    if str(f).endswith('.safetensors'):
        (safetensors,) = import_optional('a .safetensors file', 'safetensors')
        with safetensors.safe_open(f, 'pt') as file:
            meta = json.loads((file.metadata() or {}).get('dataset_meta', '{}'))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {'state_dict': weights, 'meta': {'dataset_meta': meta}}
    start = f.tell() if hasattr(f, 'tell') else None
    # torch before 2.6 runs these formats in spite of weights_only.
    if tarfile.is_tarfile(f):
        raise pickle.UnpicklingError('it is in the tar format of old versions of torch')
    if zipfile.is_zipfile(f):
        with zipfile.ZipFile(f) as archive:
            if any(Path(name).name == 'constants.pkl' for name in archive.namelist()):
                raise pickle.UnpicklingError('it is a TorchScript program')
    if start is not None:
        f.seek(start)
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    # MMEngine, which may call from inside its own list, allows the real getattr.
    others = [allowed for allowed in before if allowed is not getattr]
    torch.serialization.add_safe_globals([*others, *SAFE_GLOBALS])
    try:
        return _torch_load(f, weights_only=True, **kwargs)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _load(f: Any, map_location: Any = None, pickle_module: Any = None, **kwargs: Any) -> Any:
    """Stand in for ``torch.load``: read plain data, whatever the caller asks for."""
    is_path = isinstance(f, (str, os.PathLike))
    f = os.fspath(f) if is_path else f
    name = f if is_path else getattr(f, 'name', 'a checkpoint')
    start = None if is_path else f.tell()
    try:
        content = _read_plain(f, map_location=map_location, mmap=kwargs.get('mmap'))
        meta = content.get('meta') if isinstance(content, dict) else None
        if isinstance(meta, dict) and not _trusting.get():
            meta.pop('config', None)  # resuming runs it as Python; none of MMEngine's has one
        return content
    except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError):
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).partition('\n')[0]
    if not _trusting.get():
        raise UnsafeFileError(
            f'{name} is not a checkpoint that can be read safely: it is damaged, or holds more '
            'than tensors, plain values and the log history of MMEngine, and what it holds was '
            'not run. Use the file as training wrote it; if you know who made it, '
            f'--trust-checkpoint runs what it holds. ({reason})'
        )
    print(
        f'warning: {name} holds more than plain data and is read with all rights, as '
        '--trust-checkpoint says; it may run any code',
        file=sys.stderr,
    )
    if not is_path:
        f.seek(start)
    try:
        return _torch_load(f, map_location, pickle_module, **{**kwargs, 'weights_only': False})
    except Exception as error:
        raise UnsafeFileError(f'{name} cannot be read, even with all rights: {error}') from error


@contextmanager
def safe_files(trust: bool = False) -> Iterator[None]:
    """Let every checkpoint be read without running what it contains.

    Inside, ``torch.load`` is one that reads :data:`SAFE_GLOBALS` and no more, whatever its caller
    asks for. MMEngine would run a file with a warning where that fails: in ``load_from``,
    resuming, ``init_cfg`` and addresses in the web.

    Args:
        trust: Read other content too, with a warning, as ``torch.load(weights_only=False)`` does.

    Raises:
        UnsafeFileError: Where a file is read that is damaged or holds more, and is not trusted.
    """
    before, token = torch.load, _trusting.set(trust)
    torch.load = _load
    try:
        yield
    finally:
        torch.load = before
        _trusting.reset(token)


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint onto the CPU; one that holds code is refused, not run.

    Args:
        path: A file written by MMEngine, mmpretrain, ``torch.save`` or safetensors, or its address
            in the web, which MMEngine downloads into torch's cache.

    Returns:
        The checkpoint, with its weights under ``'state_dict'``.

    Raises:
        OSError: If there is no such file, or it cannot be fetched.
        ValueError: If it is unsafe (:func:`safe_files`), or holds no weights by name.
    """
    path = os.fspath(path)
    if '://' in path:
        try:
            with safe_files(_trusting.get()):
                checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        except (OSError, KeyError) as error:
            raise OSError(f'no checkpoint at {path}; check the address ({error})') from None
    else:
        if not os.path.isfile(path):
            raise FileNotFoundError(f'no checkpoint at {path}; check the path')
        checkpoint = _load(path, map_location='cpu')
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    weights = checkpoint['state_dict']
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ValueError(
            f'a checkpoint must hold weights by name, but {path} holds a '
            f'{type(weights).__name__}; use a file that torch.save wrote of a model.state_dict()'
        )
    return checkpoint


def check_init_checkpoints(model: nn.Module) -> None:
    """Raise unless each checkpoint of an ``init_cfg`` has a weight of its module."""
    for name, module in model.named_modules():
        init_cfg = module.init_cfg if isinstance(module, BaseModule) else None
        if not isinstance(init_cfg, Mapping) or init_cfg.get('type') != 'Pretrained':
            continue
        path, prefix = init_cfg.get('checkpoint'), (init_cfg.get('prefix') or '').rstrip('.')
        where = name or 'the model'
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(
                f"the init_cfg of {where} must be dict(type='Pretrained', checkpoint=FILE), but "
                f'its checkpoint is {path!r}'
            )
        found = load_checkpoint(path)['state_dict']
        found = [key.removeprefix(f'{prefix}.') for key in found]
        check_keys(found, module.state_dict(), f'{path} of {where}')


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model inside a distributed or a test-time augmentation wrapper."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def check_keys(found: Iterable[str], wanted: Iterable[str], source: str) -> None:
    """Raise ValueError if none of a model's weights is in a checkpoint; MMEngine only warns.

    Args:
        found: Names in the checkpoint.
        wanted: Names in the model.
        source: The checkpoint, for the message.

    Examples:
        >>> check_keys(['module.fc.weight'], ['fc.weight'], 'a.pth')
        Traceback (most recent call last):
        ValueError: at least one weight of the model must be in the checkpoint, but none of the \
1 names in a.pth (module.fc.weight) is one of the model's (fc.weight); it belongs to another \
model, or its names carry a prefix
    """
    found, wanted = list(found), list(wanted)
    if not set(found) & set(wanted):
        raise ValueError(
            'at least one weight of the model must be in the checkpoint, but none of the '
            f"{len(found)} names in {source} ({few(found)}) is one of the model's "
            f'({few(wanted)}); it belongs to another model, or its names carry a prefix'
        )
