"""Reading configs, with one sentence for what is wrong in them."""

import inspect
import re
import textwrap
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from kd_mm.checks import nearest

# What a user can correct. Other errors are mistakes of a program, and keep their traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError)
# How a dict begins that is a whole value or stands in a list.
DICT = re.compile(r'(^|[\[(,])\s*(dict\(|\{\s*[\'"])')


class OptionsAction(DictAction):
    """MMEngine's ``key=value`` pairs, whose mistakes end as those of other flags do."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        """Parse the pairs."""
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


@contextmanager
def explained(what: str, fix: str) -> Iterator[None]:
    """Turn what a library raises over a user's settings into one sentence.

    Errors of kd_mm itself, and of imports, pass as they are. A missing file stays a
    FileNotFoundError; anything else becomes a ValueError.

    Args:
        what: What went wrong, the beginning of the sentence.
        fix: What the user may do.
    """
    try:
        yield
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        module = frames[-1].f_globals.get('__name__', '')
        ours = module.partition('.')[0] == 'kd_mm'
        if isinstance(error, ImportError) or (ours and isinstance(error, USER_ERRORS)):
            raise
        text = (str(error).strip().splitlines() or [''])[0]
        if not text:  # of an assertion without words: its condition
            text = traceback.extract_tb(error.__traceback__)[-1].line or ''
        reason = textwrap.shorten(f'{type(error).__name__}: {text}', 400)
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f'{what} ({reason}); {fix}') from error


def read_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config of a run.

    Args:
        path: A file of MMEngine's config language.
        options: Settings that override it, by keys that dots join.

    Raises:
        FileNotFoundError: If there is no such file, or none that it inherits.
        ValueError: If it cannot be read, it has no model, or an option does not fit it.
    """
    if not Path(path).is_file():
        inherit = f"; to inherit it, write _base_ = '{path}' into a file" * ('::' in str(path))
        raise FileNotFoundError(f'no config at {path}; check the path{inherit}')
    fix = 'fix this file, or one of the files in its _base_'
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program
        if isinstance(error, RecursionError):
            raise ValueError(f'{path} inherits itself through _base_; {fix}') from None
        if 'model-index.yml' in str(error):  # which a package on the Python path alone lacks
            fix = 'a package whose configs are inherited must be installed, by pip install -e .'
        if 'Duplicate key' in str(error):
            more = 'custom_hooks = [*_base_.custom_hooks, ...]'
            fix = f'inherit one of them and add what the other has, such as {more}'
        with explained(f'{path} cannot be read', fix):
            raise
    for key in options or {}:
        top, known = key.partition('.')[0], [*cfg, *inspect.signature(Runner).parameters]
        near = nearest(top, known, likeness=0.8)
        if top not in known and near:
            raise ValueError(f'--cfg-options: the config has no {top}; did you mean {near}?')
    given = ' '.join(f'{key}={value}' for key, value in (options or {}).items())
    fix_keys = 'dots join keys of dicts and places in lists'
    with explained(f'--cfg-options {given} does not fit {path}', fix_keys):
        cfg.merge_from_dict(options or {})
    if not isinstance(cfg.get('model'), Mapping) or 'type' not in cfg.model:
        raise ValueError(f'a config must have a model with a type, but {path} has none; {fix}')
    return cfg
