"""Reading checkpoints without running what they contain."""

import codecs
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


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

# What a checkpoint of MMEngine's Runner holds beside tensors and plain Python values: the log
# history, and NumPy arrays and scalars.
SAFE_GLOBALS = [
    HistoryBuffer,
    _statistics_of_history,
    np.ndarray,
    np.dtype,
    np.empty(0).__reduce__()[0],
    np.float64(0).__reduce__()[0],
    codecs.encode,  # how NumPy 1 writes bytes
    *(
        type(np.dtype(name))
        for name in ('bool', 'int32', 'int64', 'uint32', 'uint64', 'float32', 'float64')
    ),
]


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint file onto the CPU; a file that holds code is refused, not run.

    Args:
        path: A local file written by MMEngine, mmpretrain or ``torch.save``.

    Returns:
        The checkpoint, with its weights under ``'state_dict'``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds more than tensors, plain Python values,
            NumPy arrays and MMEngine's log history.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}; check the path')
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f'{path} is not a checkpoint that can be read safely: it is damaged, or holds more '
            'than tensors, plain values and the log history of MMEngine, and what it holds was '
            f'not run. Use the file as training wrote it. ({str(error).splitlines()[0]})'
        ) from None
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'a checkpoint must be a dict with its weights under "state_dict", but {path} holds '
            f'a {type(checkpoint).__name__}'
        )
    return checkpoint if 'state_dict' in checkpoint else {'state_dict': checkpoint}


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model inside a distributed or a test-time augmentation wrapper.

    Args:
        model: The model of a runner.

    Returns:
        The model that checkpoints are written from and read into.
    """
    if is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        return bare_model(model.module)
    return model


def check_keys(found: Iterable[str], wanted: Iterable[str], source: str) -> None:
    """Raise ValueError if none of a model's weights is in a checkpoint.

    MMEngine itself only warns, and the run starts from random weights.

    Args:
        found: Names in the checkpoint.
        wanted: Names in the model.
        source: The checkpoint, for the message.

    Raises:
        ValueError: If ``found`` and ``wanted`` have no name in common.

    Examples:
        >>> check_keys(['fc.weight'], ['fc.weight', 'fc.bias'], 'a.pth')
        >>> check_keys(['module.fc.weight'], ['fc.weight'], 'a.pth')
        Traceback (most recent call last):
        ValueError: at least one weight of the model must be in the checkpoint, but none of the \
1 names in a.pth (module.fc.weight, ...) is one of the model's (fc.weight, ...); it belongs to \
another model, or its names carry a prefix
    """
    found, wanted = list(found), list(wanted)
    if not set(found) & set(wanted):
        raise ValueError(
            'at least one weight of the model must be in the checkpoint, but none of the '
            f"{len(found)} names in {source} ({', '.join(found[:3])}, ...) is one of the model's "
            f'({", ".join(wanted[:3])}, ...); it belongs to another model, or its names carry a '
            'prefix'
        )
