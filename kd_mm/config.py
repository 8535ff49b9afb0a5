"""Reading configs, with one sentence for what is wrong in them."""

import difflib
import inspect
import re
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

ENDINGS = ('.py', '.yml', '.yaml', '.json')
OURS = 'kd_mm'
# What a user can mend. Other errors are mistakes of a program, and keep their traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError)
# How a dict begins that is a whole value or stands in a list.
DICT = re.compile(r'(^|[\[(,])\s*(dict\(|\{\s*[\'"])')
LIKE = 0.8  # how near a misspelt key is to the one that was meant


class OptionsAction(DictAction):
    """MMEngine's ``key=value`` pairs, whose mistakes end as those of other flags do."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        """Parse the pairs.

        Args:
            parser: The parser of the tool.
            namespace: What it has parsed so far.
            values: The pairs as text.
            option: Name of the flag.
        """
        for pair in values:
            key, equals, value = pair.partition('=')
            if not equals or not all(key.split('.')):
                parser.error(f'{option} takes key=value pairs such as a.b=1, but got {pair!r}')
            if DICT.search(value):
                parser.error(
                    f'{option} takes no dicts, but {pair} holds one; set its keys one by one, '
                    f'such as {key}.type=..., or write a config that inherits this one by _base_'
                )
        try:
            super().__call__(parser, namespace, values, option)
        except Exception as error:  # of text that is no value
            parser.error(f'{option} cannot read {" ".join(values)}: {error}')


def reason(error: BaseException) -> str:
    """Say in a line what an error of another library means.

    Args:
        error: What was raised.

    Returns:
        Its type and its first line, or, where an assertion has no words, its condition.

    Examples:
        >>> reason(KeyError('inputs'))
        "KeyError: 'inputs'"
    """
    text = (str(error).strip().splitlines() or [''])[0]
    if not text and error.__traceback__ is not None:
        text = traceback.extract_tb(error.__traceback__)[-1].line or ''
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


@contextmanager
def explained(what: str, fix: str) -> Iterator[None]:
    """Turn what a library raises over a user's settings into one sentence.

    What kd_mm itself refuses passes as it is: it says its own sentence.

    Args:
        what: What went wrong, the beginning of the sentence.
        fix: What the user may do.

    Raises:
        FileNotFoundError: If a file was missing.
        ValueError: If a library raised anything else.

    Examples:
        >>> with explained('the model cannot be built', 'look at model.backbone'):
        ...     inspect.signature(3)
        Traceback (most recent call last):
        ValueError: the model cannot be built (TypeError: 3 is not a callable object); look at \
model.backbone
    """
    try:
        yield
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        module = frames[-1].f_globals.get('__name__', '')
        ours = module == OURS or module.startswith(f'{OURS}.')
        if isinstance(error, ImportError) or (ours and isinstance(error, USER_ERRORS)):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f'{what} ({reason(error)}); {fix}') from error


def read_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config of a run.

    Args:
        path: A file of MMEngine's config language.
        options: Settings that override it, by keys that dots join.

    Returns:
        The config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or one that it inherits cannot be read, it has no model, or an
            option does not fit it.
    """
    if not isinstance(path, (str, Path)) or Path(path).suffix not in ENDINGS:
        raise ValueError(f'a config must be a file in {", ".join(ENDINGS)}, but got {path}')
    if not Path(path).is_file():
        fix = 'check the path'
        if '::' in str(path):
            fix = f"inherit a package's config: write _base_ = '{path}' into a file of your own"
        raise FileNotFoundError(f'no config at {path}; {fix}')
    fix = 'mend this file or one that it inherits by _base_'
    try:
        cfg = Config.fromfile(path)
    except RecursionError:
        raise ValueError(f'{path} inherits itself through _base_; {fix}') from None
    except Exception as error:  # a config is a program
        if isinstance(error, FileNotFoundError) and 'model-index.yml' in str(error):
            fix = (
                'a package whose configs are inherited must be installed, by pip install -e . in '
                'its checkout; on the Python path alone, it has none'
            )
        if 'Duplicate key' in str(error):
            fix = (
                'inherit one of them and add what the other has, such as '
                'custom_hooks = [*_base_.custom_hooks, ...]'
            )
        raise ValueError(f'{path} cannot be read ({reason(error)}); {fix}') from error
    for key in options or {}:
        _check_key(cfg, key)
    with explained(
        f'--cfg-options {" ".join(f"{k}={v}" for k, v in (options or {}).items())} does not fit '
        f'{path}',
        'dots join keys of dicts and places in lists',
    ):
        cfg.merge_from_dict(options or {})
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise ValueError(
            f'a config must have a model, a dict with a type, but that of {path} is '
            f'{dict(model) if isinstance(model, Mapping) else model!r}; {fix}'
        )
    return cfg


def _check_key(cfg: Config, key: str) -> None:
    """Refuse a new key beside those of a run whose name is nearly one of them."""
    top = key.partition('.')[0]
    known = [*cfg, *inspect.signature(Runner).parameters]
    near = difflib.get_close_matches(top, known, n=1, cutoff=LIKE)
    if top not in known and near:
        raise ValueError(f'--cfg-options: the config has no {top}; did you mean {near[0]}?')
