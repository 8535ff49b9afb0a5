"""Measured costs of training steps: records in a folder, and tables of them in a Markdown page.

The tables lie between two comments, the first with the folder of the configs::

    <!-- steps of kdcl -->
    ...
    <!-- end of steps -->

``steps of kdcl, switched`` is for recipes whose options were changed, compared with others whose
options were not.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STEPS = re.compile(r'(<!-- steps of (\w+(?:, switched)?) -->\n)(.*?)(<!-- end of steps -->)', re.S)


def save(report: Mapping, folder: Path) -> Path:
    """Write a report without its single values; one of the same conditions is replaced.

    Args:
        report: Of :func:`kd_mm.analysis.benchmark.compare_steps`, with ``recipe`` (path of the
            config from the folder of configs, without ending), ``command``, ``options`` (what of
            the config was changed: values by key) and ``undistilled`` (whether it is compared
            with itself undistilled, options and all).
        folder: Made if missing.

    Returns:
        The path of the record.
    """
    settings, machine = report['settings'], report['machine']
    parts = [
        report['recipe'].split('/')[-1],
        *(f'{key}={value}' for key, value in report['options'].items()),
        f'{settings["batch_size"]}x{settings["img_size"]}px',
        machine['device'],
        f'{machine["threads"]}threads',
        settings['clock'],
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r'[^\w.=-]+', '-', '_'.join(parts)) + '.json')
    kept = {key: value for key, value in report.items() if key != 'pairs'}
    path.write_text(json.dumps(kept, indent=1) + '\n')
    return path


def read(folder: Path) -> list[dict]:
    """Return all records of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]


def place_of(recipe: str, options: Mapping, undistilled: bool, **others: object) -> str:
    """Return whose table in a page shows a record, by three of its entries.

    Examples:
        >>> place_of('kdcl/a', {'compile': True}, undistilled=False)
        'kdcl, switched'
    """
    return recipe.split('/')[0] + ', switched' * (bool(options) and not undistilled)


def fill(text: str, records: Sequence[Mapping]) -> str:
    r"""Return a page with its tables of steps replaced.

    Args:
        text: The page.
        records: Of :func:`read`.

    Raises:
        ValueError: If a record has no place in the page.

    Examples:
        >>> page = '<!-- steps of bake -->\nold\n<!-- end of steps -->'
        >>> fill(page, [])
        '<!-- steps of bake -->\n<!-- end of steps -->'
    """
    missing = {place_of(**r) for r in records} - {found[2] for found in STEPS.finditer(text)}
    for place in sorted(missing):
        raise ValueError(
            f'the page must have a table for {place}, but has no line <!-- steps of {place} -->; '
            'add it, and <!-- end of steps --> below it'
        )

    def tables(found: re.Match) -> str:
        own = [record for record in records if place_of(**record) == found[2]]
        return found[1] + (f'\n{section(own)}\n' if own else '') + found[4]

    return STEPS.sub(tables, text)


def section(records: Sequence[Mapping]) -> str:
    """Return a table of records for each machine, and their commands, in Markdown."""
    lines = []
    for machine in dict.fromkeys(machine_line(record['machine']) for record in records):
        own = [_row(r) for r in records if machine_line(r['machine']) == machine]
        lines += [table(own), '', f'- {machine}.', '']
    commands = dict.fromkeys(record['command'] for record in records)
    return '\n'.join([*lines, '```bash', *commands, '```', ''])


def _row(record: Mapping) -> dict[str, str | None]:
    """Return a line of the table, by column."""
    settings, own, plain = record['settings'], record['config'], record['sum']
    peaks = [side['peak_memory_bytes'] / 2**20 for side in (own, plain)]
    other = 'without' if place_of(**record).endswith('switched') else 'plain'
    row = {
        'recipe': record['recipe'].split('/')[-1],
        'with': ', '.join(f'`{k}={v}`' for k, v in record['options'].items()) or None,
        'images, px, classes': f'{settings["batch_size"]}, {settings["img_size"]}, '
        f'{settings["num_classes"]:,}',
        'clock, threads': f'{settings["clock"]}, {record["machine"]["threads"]}',
        'pairs': str(settings['steps']),
        'step, ms': f'{own["step_ms"]["median"]:,.1f}',
        f'{other}, ms': f'{plain["step_ms"]["median"]:,.1f}',
        'ratio (95 % interval)': _with_interval(record['ratio'], '.3f'),
        'peak, MiB': f'{peaks[0]:,.0f}',
        f'{other}, MiB': f'{peaks[1]:,.0f}',
        'ratio': f'{peaks[0] / peaks[1]:.3f}',
    }
    if record['distillation']:
        extra, share = record['distillation']['extra_ms'], record['distillation']['overhead']
        row['distillation, ms (95 % interval)'] = _with_interval(extra, '.2f')
        row['of the plain step'] = _with_interval(share, '+.2%')
    return row


def _with_interval(value: Mapping, form: str) -> str:
    low, high = (format(end, form) for end in value['interval'])
    return f'{value["median"]:{form}} ({low} to {high})'


def machine_line(machine: Mapping) -> str:
    """Return what :func:`kd_mm.analysis.benchmark.describe_machine` returns, in one line."""
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    return f'{machine["device"]}; {versions}'


def table(rows: Iterable[Mapping]) -> str:
    """Return a Markdown table; columns without a value are left out.

    Examples:
        >>> print(table([{'name': 'a', 'ms': '1.50', 'with': None}]))
        | name   | ms   |
        |:-------|:-----|
        | a      | 1.50 |
    """
    import pandas as pd

    frame = pd.DataFrame(rows).dropna(axis=1, how='all').fillna('')
    return frame.to_markdown(index=False, disable_numparse=True)
