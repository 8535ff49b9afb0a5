"""Tables of options in the docs, from signatures and docstrings.

A table stands in a Markdown file between two comments, the first of which names a class::

    <!-- options of kd_mm.methods.KDCL -->
    ...
    <!-- end of options -->
"""

import inspect
import re
from importlib import import_module

TABLE = re.compile(r'(<!-- options of ([\w.]+) -->\n)(.*?)(<!-- end of options -->)', re.S)
ENTRY = re.compile(r'^ {4}(\*{0,2}\w+)(?: \((.*?)\))?: ', re.M)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
SECTION = re.compile(r'^Args:\n(.*?)(?=^\w|\Z)', re.S | re.M)


def fill_options(text: str) -> str:
    """Return a Markdown text with its tables of options up to date.

    Args:
        text: The text.

    Raises:
        ValueError: If a docstring and its signature do not list the same options.
    """

    def fill(match: re.Match) -> str:
        module, _, name = match[2].rpartition('.')
        table = options_table(getattr(import_module(module), name))
        return f'{match[1]}\n{table}\n\n{match[4]}'

    return TABLE.sub(fill, text)


def options_table(described: type) -> str:
    """Return the options of a class with their defaults and meanings.

    Args:
        described: A class with a docstring in Google's style.

    Raises:
        ValueError: If the docstring and the signature do not list the same options.
    """
    entries = describe(described)
    signature = inspect.signature(described.__init__).parameters
    wanted = [
        name
        for name, parameter in signature.items()
        if name != 'self' and parameter.kind not in VARIADIC
    ]
    named = {name for name in entries if not name.startswith('*')}
    missing = set(wanted) ^ named
    if missing:
        raise ValueError(
            f'{described.__name__} must describe the options that it takes, but its docstring '
            f'and its signature differ in {", ".join(sorted(missing))}'
        )
    lines = ['| option | default | meaning |', '| :-- | :-- | :-- |']
    for name, meaning in entries.items():
        if name.startswith('*'):
            lines.append(f'| other options | | {meaning} |')
            continue
        default = signature[name].default
        shown = 'required' if default is inspect.Parameter.empty else f'`{default!r}`'
        lines.append(f'| `{name}` | {shown} | {meaning} |')
    return '\n'.join(lines)


def describe(described: type) -> dict[str, str]:
    """Return the meaning of each option in Markdown, by name.

    Args:
        described: A class with a docstring in Google's style.
    """
    section = SECTION.search(inspect.getdoc(described))[1]
    _, *parts = ENTRY.split(section)
    return {name: _to_markdown(text) for name, text in zip(parts[::3], parts[2::3], strict=True)}


def _to_markdown(text: str) -> str:
    """Return a docstring's text as a cell, without the default, which has its own column."""
    text = ' '.join(text.split())
    text = re.sub(r' ?Defaults to (?:``.*?``|[^`.]|\.\d)+?(, [^.]*)?\.(?= |$)', _rest, text)
    text = re.sub(r':math:`(.*?)`', r'$\1$', text)
    text = re.sub(r':\w+:`(?:~|\w+ <)?([^`>]*)>?`', r'`\1`', text)
    return text.replace('``', '`').replace('|', r'\|').strip()


def _rest(match: re.Match) -> str:
    """Keep what the sentence adds to the default."""
    return f' Default: {match[1].removeprefix(", ")}.' if match[1] else ''
