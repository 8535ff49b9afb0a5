"""Measured costs of training steps, as records in a folder and tables of a page.

:func:`save` keeps what :func:`kd_mm.analysis.benchmark.compare_steps` reports; :func:`fill` writes
all records of a folder into a Markdown page, between two comments. The first tells whose::

    <!-- steps of kdcl -->
    ...
    <!-- end of steps -->

with the folder of the configs, or ``<folder>, switched`` for a config whose options were changed
next to others whose options were not.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .model_zoo import to_markdown

STEPS = re.compile(r'(<!-- steps of (\w+)(, switched)? -->\n)(.*?)(<!-- end of steps -->)', re.S)
MIB = 2**20


def save(report: Mapping, folder: Path) -> Path:
    """Write a report without its lists of single steps; one of the same conditions is replaced.

    Args:
        report: Of :func:`kd_mm.analysis.benchmark.compare_steps`, with ``recipe`` (path of the
            config from the folder of configs, without ending), ``command``, ``options`` (what of
            the config was changed: values by key) and ``undistilled`` (whether it is compared
            with itself undistilled, options and all).
        folder: Made if missing.

    Returns:
        The path of the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{_name(report)}.json'
    path.write_text(json.dumps(_short(report), indent=1) + '\n')
    return path


def read(folder: Path) -> list[dict]:
    """Return all records of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]


def check_place(text: str, recipe: str, switched: bool) -> None:
    """Raise ValueError unless a page has a table for a recipe.

    Args:
        text: The page.
        recipe: Path of the config from the folder of configs.
        switched: Whether options were changed that its counterpart does not have.
    """
    place = recipe.split('/')[0], switched
    if place not in {(found[2], bool(found[3])) for found in STEPS.finditer(text)}:
        mark = f'<!-- steps of {place[0]}{", switched" * place[1]} -->'
        raise ValueError(
            f'the page must have a place for {recipe}, but has no line {mark}; add it, and '
            '<!-- end of steps --> below it'
        )


def fill(text: str, records: Sequence[Mapping]) -> str:
    r"""Return a page with its tables of steps replaced.

    Args:
        text: The page.
        records: Of :func:`read`.

    Raises:
        ValueError: If a record has no place in the page; see :func:`check_place`.

    Examples:
        >>> page = '<!-- steps of bake -->\nold\n<!-- end of steps -->'
        >>> fill(page, [])
        '<!-- steps of bake -->\n<!-- end of steps -->'
    """
    for record in records:
        check_place(text, record['recipe'], _switched(record))
    machines = _machines(records)

    def table(found: re.Match) -> str:
        own = [r for r in records if _place(r) == (found[2], bool(found[3]))]
        return found[1] + (_section(own, machines) if own else '') + found[5]

    return STEPS.sub(table, text)


def _section(records: Sequence[Mapping], machines: Mapping[str, str]) -> str:
    """Return table, machines and commands."""
    headings = ['recipe', 'images, px, classes', 'clock, threads', 'machine', 'pairs']
    switched = _switched(records[0])
    if switched:
        headings.insert(1, 'with')
    headings += ['step, ms', 'without, ms' if switched else 'plain, ms', 'ratio (95 % interval)']
    headings += ['peak, MiB', 'without, MiB' if switched else 'plain, MiB', 'ratio']
    heads = any(record['distillation'] for record in records) and not switched
    if heads:
        headings += ['distillation, ms (95 % interval)', 'of the plain step']
    rows = []
    for record in records:
        settings, ratio = record['settings'], record['ratio']
        own, plain = record['config'], record['sum']
        peaks = [side['peak_memory_bytes'] / MIB for side in (own, plain)]
        row = [
            record['recipe'].split('/')[-1],
            f'{settings["batch_size"]}, {settings["img_size"]}, {settings["num_classes"]:,}',
            f'{settings["clock"]}, {record["machine"]["threads"]}' + ', AMP' * settings['amp'],
            machines[_machine(record)],
            str(settings['steps']),
            f'{own["step_ms"]["median"]:,.1f}',
            f'{plain["step_ms"]["median"]:,.1f}',
            f'{ratio["median"]:.3f} ({_span(ratio["interval"], ".3f")})',
            *(f'{peak:,.0f}' for peak in peaks),
            f'{peaks[0] / peaks[1]:.3f}',
        ]
        if switched:
            row.insert(1, _options(record))
        elif record['options']:
            row[0] += f' with {_options(record)}'
        if heads:
            row += _of_head(record['distillation'])
        rows.append(row)
    used = {machines[_machine(record)]: _machine(record) for record in records}
    lines = [to_markdown(headings, rows), '']
    lines += [f'- {letter}: {machine}.' for letter, machine in sorted(used.items())]
    lines += ['', '```bash', *dict.fromkeys(r['command'] for r in records), '```', '']
    return '\n'.join(['', *lines, ''])


def _of_head(distillation: Mapping | None) -> list[str]:
    if distillation is None:
        return ['', '']
    extra, share = distillation['extra_ms'], distillation['overhead']
    return [
        f'{extra["median"]:.2f} ({_span(extra["interval"], ".2f")})',
        f'{share["median"]:+.2%} ({_span(share["interval"], "+.2%")})',
    ]


def _place(record: Mapping) -> tuple[str, bool]:
    return record['recipe'].split('/')[0], _switched(record)


def _switched(record: Mapping) -> bool:
    return bool(record['options']) and not record['undistilled']


def _options(record: Mapping) -> str:
    return ', '.join(f'`{key}={value}`' for key, value in record['options'].items())


def _name(report: Mapping) -> str:
    """Return the name of a record, which tells its conditions."""
    settings = report['settings']
    parts = [
        report['recipe'].split('/')[-1],
        *(f'{key}={value}' for key, value in report['options'].items()),
        f'{settings["batch_size"]}x{settings["img_size"]}px',
        report['machine']['device'],
        f'{report["machine"]["threads"]}threads',
        settings['clock'] + '_amp' * settings['amp'],
    ]
    return re.sub(r'[^\w.=-]+', '-', '_'.join(parts))


def _machine(record: Mapping) -> str:
    machine = record['machine']
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    return f'{machine["device"]}; {versions}'


def _machines(records: Sequence[Mapping]) -> dict[str, str]:
    """Return a letter for each machine with its versions."""
    found = dict.fromkeys(map(_machine, records))
    return {machine: chr(ord('A') + index) for index, machine in enumerate(found)}


def _span(interval: Sequence[float], form: str) -> str:
    return ' to '.join(format(end, form) for end in interval)


def _short(value):
    """Return a copy without lists of single steps, numbers with seven digits."""
    if isinstance(value, Mapping):
        return {key: _short(v) for key, v in value.items() if key not in ('all', 'pairs')}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f'{value:.7g}') if isinstance(value, float) else value
