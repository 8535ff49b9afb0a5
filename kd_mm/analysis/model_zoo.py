"""Result tables of the model zoo: published numbers of the metafiles beside measured ones of logs.

A table stands in a Markdown file between two comments. The first tells in YAML what it holds::

    <!-- table
    where: {Training Data: CIFAR-100}
    columns: {Network: '{Network}', Leader: '{published.leader}', Status: '{status}'}
    -->
    ...
    <!-- end of table -->

``columns``: its columns, each with a template of its cells; see :func:`cell`. Its rows are the
folder's models with some metadata (``where``; null: without), or ``rows``: names of models, or
dicts of ``recipes``, a name or names by network, and ``cells`` that replace what the template
gives. ``shortened: true`` instead shows the runs of the folder with a shortened schedule, and
``results`` what is in the folder of logs, with a word about each.
"""

import json
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .reproduction import SHORTENED, WHOLE, mean_sd
from .run_log import SINGLE

TABLE = re.compile(r'(<!-- table\n(.*?)-->\n)(.*?)(<!-- end of table -->)', re.S)
FIELD = re.compile(r'\{([^{}:]+)(?::([^{}]*))?\}')
NUMBER = re.compile(r'[-+]?[\d,.]+( ± [\d.]+)?( %)?')
UNKNOWN = '-'
RESULTS = Path('docs/results')

Model = dict[str, Any]
Row = dict[str, Model]  # by network, or one under ''


class Log(NamedTuple):
    """A written table of runs.

    Attributes:
        name: Its name.
        lines: Its lines, as :class:`kd_mm.analysis.reproduction.Line` has them.
        runs: What each run reached.
        schedule: What was told of the length of its runs; empty if nothing was.
    """

    name: str
    lines: list[dict]
    runs: list[dict]
    schedule: str

    @property
    def whole(self) -> bool:
        """Whether each recipe had its whole schedule and all of its images."""
        return self.schedule.startswith(WHOLE)

    @property
    def shortened(self) -> str:
        """In what the runs are shorter; empty if they are not, or nothing was told."""
        return self.schedule.removeprefix(SHORTENED) if not self.whole else ''


class Zoo(NamedTuple):
    """All models and logs.

    Attributes:
        root: Folder of the repository.
        models: Entries of the metafiles by name, every value as it is written.
        logs: Tables of runs, by name.
    """

    root: Path
    models: dict[str, Model]
    logs: list[Log]

    def log_of(self, name: str) -> Log | None:
        """Return the log with the most runs of a model over its whole schedule, if any."""
        epochs = self.models[name]['Metadata']['Epochs']
        counts = {
            log.name: sum(run['config'] == name for run in log.runs)
            for log in self.logs
            if log.whole
            and all(str(run['epochs']) == epochs for run in log.runs if run['config'] == name)
        }
        best = max(counts, key=counts.get, default=None)
        return next((log for log in self.logs if log.name == best and counts[best]), None)

    def folder(self, folder: Path) -> list[str]:
        """Return the names of the models whose configs lie in a folder."""
        where = folder.relative_to(self.root).as_posix()
        return [name for name, model in self.models.items() if _parent(model) == where]


def read_zoo(root: Path) -> Zoo:
    """Read the metafiles and the logs.

    Args:
        root: Folder of the repository.
    """
    models, logs = {}, []
    for path in sorted(root.glob('configs/*/metafile.yml')):
        for model in yaml.load(path.read_text(), yaml.BaseLoader)['Models']:
            models[model['Name']] = model
    for path in sorted((root / RESULTS).glob('*.json')):
        content = json.loads(path.read_text())
        told = [note for note in content['notes'] if note.startswith((SHORTENED, WHOLE))]
        logs.append(Log(content['table'], content['lines'], content['runs'], ''.join(told)))
    return Zoo(root, models, logs)


def updates(root: Path) -> dict[Path, str]:
    """Return the files whose generated parts are not what the data say, with what they must hold.

    Args:
        root: Folder of the repository.
    """
    zoo = read_zoo(root)
    found = {}
    for path in sorted([*root.glob('configs/*/README.md'), root / RESULTS / 'README.md']):
        found[path] = fill_tables(path.read_text(), zoo, path.parent)
    for path in sorted(root.glob('configs/*/metafile.yml')):
        found[path] = fill_results(path.read_text(), zoo)
    return {path: text for path, text in found.items() if text != path.read_text()}


def fill_tables(text: str, zoo: Zoo, folder: Path) -> str:
    """Return a Markdown text with its tables made anew.

    Args:
        text: The text.
        zoo: What the tables tell of.
        folder: Folder of the text, for its links.

    Raises:
        ValueError: If a table asks for what does not exist.
    """

    def fill(match: re.Match) -> str:
        spec = yaml.safe_load(match[2])
        if 'shortened' in spec:
            body = _shortened_tables(zoo, folder)
        elif 'results' in spec:
            body = _index_of_logs(zoo, spec['results'] or {})
        else:
            body = _zoo_table(zoo, folder, spec)
        return f'{match[1]}\n{body}\n\n{match[4]}'

    return TABLE.sub(fill, text)


def _zoo_table(zoo: Zoo, folder: Path, spec: Mapping[str, Any]) -> str:
    """Return a table of models."""
    if 'rows' in spec:
        entries = [
            entry if isinstance(entry, dict) else {'recipes': entry} for entry in spec['rows']
        ]
    else:
        entries = [
            {'recipes': name}
            for name in zoo.folder(folder)
            if _agrees(zoo.models[name], spec['where'])
        ]
    rows = []
    for entry in entries:
        row, own = _row(zoo, entry['recipes']), entry.get('cells', {})
        rows.append(
            [
                own.get(heading, cell(template, row, zoo, folder))
                for heading, template in spec['columns'].items()
            ]
        )
    return to_markdown(list(spec['columns']), rows)


def _row(zoo: Zoo, recipes: str | Mapping[str, str]) -> Row:
    """Return models by network."""
    names = {'': recipes} if isinstance(recipes, str) else recipes
    missing = set(names.values()) - zoo.models.keys()
    if missing:
        raise ValueError(f'no metafile has a model {", ".join(sorted(missing))}')
    return {network: zoo.models[name] for network, name in names.items()}


def _agrees(model: Model, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a model has the metadata that a table wants."""
    has = {**model['Metadata'], 'In Collection': model['In Collection']}
    return all(has.get(key) == value for key, value in wanted.items())


def to_markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are flush right.

    Args:
        headings: One for each column.
        rows: Their cells.

    Examples:
        >>> print(to_markdown(['name', 'top-1'], [['a', '99.1'], ['b', '-']]))
        | name | top-1 |
        | :-- | --: |
        | a | 99.1 |
        | b | - |
    """
    marks = []
    for column in zip(*rows, strict=True):
        filled = [text for text in column if text not in ('', UNKNOWN)]
        numbers = bool(filled) and all(map(NUMBER.fullmatch, filled))
        marks.append('--:' if numbers else ':--')
    return '\n'.join(f'| {" | ".join(row)} |' for row in (headings, marks, *rows))


def cell(template: str, row: Row, zoo: Zoo, folder: Path) -> str:
    """Return a cell's text.

    Args:
        template: A text with fields in braces: ``config``, a link; ``status``: ``published`` (a
            paper's number, not trained here), ``reproduced`` (trained here over the whole
            schedule, with the log) or ``config only``; ``published``, ``measured`` and ``gain``,
            of a network with ``.NAME``; any key of the metadata; and after ``vanilla.`` the same
            of the plain recipe. ``{Parameters:,}`` formats a whole number.
        row: Models by network.
        zoo: All models.
        folder: Folder of the text, for links.

    Raises:
        ValueError: If a model has no such field.
    """

    def value(match: re.Match) -> str:
        text = _value(match[1], row, zoo, folder)
        return format(int(text), match[2]) if match[2] and text else text

    return FIELD.sub(value, template).strip()


def _value(field: str, row: Row, zoo: Zoo, folder: Path) -> str:
    """Return the text of a field; see :func:`cell`."""
    key, _, network = field.partition('.')
    if key == 'vanilla':
        (model,) = row.values()
        return _value(network, _row(zoo, model['Metadata']['Vanilla']), zoo, folder)
    if network in row:  # one network of a row of several recipes
        row, network = {'': row[network]}, ''
    if key == 'config':
        return _joined(row, lambda model: _link(model, zoo.root, folder))
    if key == 'status':
        return _joined(row, lambda model: _status(model, zoo, folder))
    if key == 'published':
        return _joined(row, lambda model: _published(model, network))
    if key in ('measured', 'gain'):
        return _joined(row, lambda model: _measured(model, key, network, zoo))
    return _joined(row, lambda model: model['Metadata'].get(field, ''))


def _joined(row: Row, text_of: Callable[[Model], str]) -> str:
    """Return what is told of the models of a row, each text once."""
    return ', '.join(dict.fromkeys(text for text in map(text_of, row.values()) if text))


def _parent(model: Model) -> str:
    return Path(model['Config']).parent.as_posix()


def _link(model: Model, root: Path, folder: Path) -> str:
    return f'[{model["Name"]}]({os.path.relpath(root / model["Config"], folder)})'


def _told(model: Model) -> tuple[str, Any]:
    """Return the measure and the published number or numbers, as they are written."""
    for measure in ('Accuracy', 'Error'):
        told = model['Metadata'].get(f'Published Top 1 {measure}')
        if told is not None:
            return measure, told
    return 'Accuracy', None


def _status(model: Model, zoo: Zoo, folder: Path) -> str:
    """Return where a model's numbers come from."""
    log = zoo.log_of(model['Name'])
    if log is None:
        return 'config only' if _told(model)[1] is None else 'published'
    seeds = len({run['seed'] for run in log.runs if run['config'] == model['Name']})
    page = os.path.relpath(zoo.root / RESULTS / f'{log.name}.md', folder)
    return f'reproduced ([log]({page}), {seeds} seed{"s" * (seeds > 1)})'


def _published(model: Model, network: str) -> str:
    """Return a published number as it is written; that of the leader where none is named."""
    told = _told(model)[1]
    if isinstance(told, Mapping):
        told = told.get(network or 'leader', '')
    return UNKNOWN if told in (None, 'null') else told


def _measured(model: Model, key: str, network: str, zoo: Zoo) -> str:
    """Return mean and spread of what was measured, or of the gain over plain training."""
    log = zoo.log_of(model['Name'])
    if log is None:
        return ''
    lines = {line['network']: line for line in log.lines if line['recipe'] == model['Name']}
    network = network or next((name for name in (SINGLE, 'leader') if name in lines), '')
    texts = []
    for name, line in lines.items():
        values = line['top1' if key == 'measured' else 'gain']
        if network not in ('', name) or not values:
            continue
        values, error = list(values.values()), _told(model)[0] == 'Error'
        if error:
            values = [100 - value if key == 'measured' else -value for value in values]
        text = mean_sd(values, sign=key == 'gain')
        texts.append(text if network else f'{name} {text}')
    return ', '.join(texts)


def _shortened_tables(zoo: Zoo, folder: Path) -> str:
    """Return what was measured of the models of a folder in shortened runs, with the length."""
    own = set(zoo.folder(folder))
    parts = []
    for log in zoo.logs:
        if log.whole or not own & {line['recipe'] for line in log.lines}:
            continue
        known = [line for line in log.lines if line['recipe'] in zoo.models]
        lines = [
            line
            for line in known
            if line['recipe'] in own or _parent(zoo.models[line['recipe']]).endswith('/vanilla')
        ]
        page = os.path.relpath(zoo.root / RESULTS / f'{log.name}.md', folder)
        told = f'**Shortened**{log.shortened}' if log.shortened else 'Of unknown length.'
        rows = [
            [
                _link(zoo.models[line['recipe']], zoo.root, folder),
                line['network'],
                mean_sd(list(line['top1'].values())),
                mean_sd(list(line['gain'].values()), sign=True) if line['gain'] else '',
                str(len(line['top1'])),
            ]
            for line in lines
        ]
        headings = ['Config', 'network', 'measured, shortened', 'gain', 'seeds']
        parts.append(f'[{log.name}]({page}). {told}\n\n{to_markdown(headings, rows)}')
    if not parts:
        return 'There is no log of shortened runs of these configs.'
    return '\n\n'.join(['Too short to be compared with a published number:', *parts])


def _index_of_logs(zoo: Zoo, what: Mapping[str, str]) -> str:
    """Return the list of all logs."""
    rows = []
    for log in zoo.logs:
        epochs = ' or '.join(str(n) for n in sorted({run['epochs'] for run in log.runs}))
        seeds = sorted({len(line['top1']) for line in log.lines})
        length = f'whole ({epochs} epochs)' if log.whole else f'**shortened**{log.shortened}'
        rows.append(
            [
                f'[{log.name}]({log.name}.md)',
                what.get(log.name, ''),
                ' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1])))),
                length,
            ]
        )
    return to_markdown(['table', 'what', 'seeds', 'schedule'], rows)


def fill_results(text: str, zoo: Zoo) -> str:
    """Return a metafile with the results of the models that were trained over the whole schedule.

    Args:
        text: The metafile; what it says of results is replaced, all else stays.
        zoo: Models and logs.
    """
    head, *entries = re.split(r'^(?=  - Name: )', text, flags=re.M)
    filled = []
    for entry in entries:
        name = entry.partition('\n')[0].removeprefix('  - Name: ')
        entry = re.sub(r'^    Results:\n(?: {5,}.*\n)*', '', entry, flags=re.M)
        log = zoo.log_of(name) if name in zoo.models else None
        if log is not None:
            metrics = {
                _metric(line['network']): round(statistics.mean(line['top1'].values()), 2)
                for line in log.lines
                if line['recipe'] == name
            }
            entry += (
                '    Results:\n      - Task: Image Classification\n'
                f'        Dataset: {zoo.models[name]["Metadata"]["Training Data"]}\n'
                '        Metrics:\n'
            ) + ''.join(f'          {key}: {value}\n' for key, value in metrics.items())
        filled.append(entry)
    return head + ''.join(filled)


def _metric(network: str) -> str:
    """Return the name of a metric in a metafile."""
    return 'Top 1 Accuracy' if network == SINGLE else f'Top 1 Accuracy ({network})'
