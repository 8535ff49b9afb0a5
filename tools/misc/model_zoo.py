"""Result tables of READMEs, and metafiles, from configs, published numbers and logs of runs.

A README holds a table between two comments. The first one names its models, or patterns of names::

    <!-- models: vanilla_resnet*_in1k kdcl-*_in1k -->
    ...
    <!-- end of models -->
"""

import json
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from fnmatch import filter as names_like
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from mmengine.config import Config

from kd_mm.analysis.reproduction import WHOLE, mean_sd
from kd_mm.analysis.run_log import SINGLE

TABLE = re.compile(r'(<!-- models:(.*?)-->\n)(.*?)(<!-- end of models -->)', re.S)
NUMBER = re.compile(r'-|[-+]?[\d.]+( ± [\d.]+)?( %)?')
RESULTS = 'docs/results'
# Measures of published.yml, and their keys in metafiles; its other keys are networks of a cohort.
MEASURES = {
    'accuracy': 'Published Top 1 Accuracy',
    'error': 'Published Top 1 Error',
    'extra GPU time': 'Published Extra GPU Time',
}
DATA = {'ImageNet': 'ImageNet-1k', 'CIFAR100': 'CIFAR-100'}  # others have the data set's name


class Model(NamedTuple):
    """A config, or a row of ``tables.yml`` that changes one by options."""

    name: str
    config: Path
    options: Mapping[str, Any] = {}
    published: Mapping[str, str] = {}  # numbers as they are written, by measure or network
    paper: str = ''
    log: str = ''  # the log of its runs, all of them over the whole schedule
    seeds: int = 0
    lines: Sequence[dict] = ()  # of the log, one for each network


def updates(root: Path, read: Callable[[Path], Config] = Config.fromfile) -> dict[Path, str]:
    """Return a repository's READMEs and metafiles that are not up to date, with the right text."""
    models, found = read_models(root), {}
    for path in sorted(root.glob('configs/*/README.md')):
        found[path] = fill_tables(path.read_text(), models, path.parent)
    for path in sorted(root.glob('configs/*/metafile.yml')):
        found[path] = fill_metafile(path.read_text(), models, path.parent, read)
    return {path: text for path, text in found.items() if text != path.read_text()}


def read_models(root: Path) -> dict[str, Model]:
    """Return the models of a repository by name, with published numbers and logs."""
    models = {p.stem: Model(p.stem, p) for p in sorted(root.glob('configs/[!_]*/*.py'))}
    papers = yaml.load((root / 'configs/published.yml').read_text(), yaml.BaseLoader)
    for paper, numbers in papers.items():
        for name, number in numbers.items():
            models[name] = models[name]._replace(published=by_measure(number), paper=paper)
    tables = yaml.safe_load((root / 'configs/tables.yml').read_text())
    rows = [row for table in tables.values() for row in table if isinstance(row, dict)]
    for row in (row for row in rows if 'options' in row):
        config, numbers = models[Path(row['config']).stem].config, row.get('published', {})
        models[row['name']] = Model(row['name'], config, row['options'], by_measure(numbers))
    for path in sorted((root / RESULTS).glob('*.json')):
        log = json.loads(path.read_text())
        if any(note.startswith(WHOLE) for note in log['notes']):
            for name in {run['config'] for run in log['runs']} & models.keys():
                seeds = len({run['seed'] for run in log['runs'] if run['config'] == name})
                if seeds > models[name].seeds:
                    lines = [line for line in log['lines'] if line['recipe'] == name]
                    models[name] = models[name]._replace(log=path.stem, seeds=seeds, lines=lines)
    return models


def by_measure(number: Any) -> dict[str, str]:
    """Return published numbers by measure or network; a single one is the accuracy."""
    number = number if isinstance(number, dict) else {'accuracy': number}
    return {key: str(value) for key, value in number.items()}


def fill_tables(text: str, models: Mapping[str, Model], folder: Path) -> str:
    """Return the README of a folder with its tables up to date.

    Raises:
        ValueError: If a table names no model.
    """

    def fill(match: re.Match) -> str:
        chosen = []
        for pattern in match[2].split():
            names = names_like(models, pattern)
            if not names:
                raise ValueError(f'a table must name models, but there is none like {pattern!r}')
            chosen += [models[name] for name in names]
        measures = dict.fromkeys(key for model in chosen for key in model.published)
        rows = [_row(model, list(measures), folder) for model in chosen]
        headings = [heading for heading in rows[0] if any(row[heading] for row in rows)]
        cells = [[row[heading] for heading in headings] for row in rows]
        columns = [[cell for cell in column if cell] for column in zip(*cells, strict=True)]
        marks = ['--:' if all(map(NUMBER.fullmatch, column)) else ':--' for column in columns]
        table = '\n'.join(f'| {" | ".join(line)} |' for line in (headings, marks, *cells))
        return f'{match[1]}\n{table}\n\n{match[4]}'

    return TABLE.sub(fill, text)


def _row(model: Model, measures: Sequence[str], folder: Path) -> dict[str, str]:
    """Return the cells of a model by heading."""
    published, network = dict(model.published), model.name.split('_')[1].replace('-', '_')
    if network in measures and 'accuracy' in published:  # of a network alone, next to cohorts
        published[network] = published.pop('accuracy')
    options = (k if isinstance(v, dict | list) else f'{k}={v}' for k, v in model.options.items())
    row = {
        'Config': f'[{model.name}]({os.path.relpath(model.config, folder)})',
        'Options': ', '.join(f'`{option}`' for option in options),
    }
    for key in measures:
        heading = 'Published' if key in ('accuracy', 'error') else f'{key}, published'
        row[heading] = published.get(key, '').replace('null', '-')
    for heading, key in (('Measured', 'top1'), ('Gain', 'gain')):
        row[heading] = ', '.join(_measured(model, line, key) for line in model.lines if line[key])
    row['Status'] = 'published' if model.published else 'config only'
    if model.log:
        page = f'../../{RESULTS}/{model.log}.md'
        row['Status'] = f'reproduced ([log]({page}), {model.seeds} seeds)'
    return row


def _measured(model: Model, line: Mapping[str, Any], key: str) -> str:
    """Return a network's accuracy or gain; the error where an error was published."""
    values = list(line[key].values())
    if 'error' in model.published:
        values = [-value if key == 'gain' else 100 - value for value in values]
    text = mean_sd(values, sign=key == 'gain')
    return text if line['network'] == SINGLE else f'{line["network"]} {text}'


def fill_metafile(
    text: str, models: Mapping[str, Model], folder: Path, read: Callable[[Path], Config]
) -> str:
    """Return the metafile of a folder with its models up to date.

    The text above ``Models:`` stays. It describes the collection of all the folder's models.
    """
    head = text.partition('\nModels:\n')[0]
    collection = yaml.safe_load(head)['Collections'][0]['Name']
    entries = []
    for model in models.values():
        if model.config.parent != folder or model.options:
            continue
        cfg = read(model.config)
        data = cfg.val_dataloader.dataset.type.removeprefix('kd_mm.')
        data = DATA.get(data, data)
        metadata = {'Training Data': data, 'Epochs': cfg.train_cfg.max_epochs}
        metadata['Batch Size'] = cfg.auto_scale_lr.base_batch_size
        numbers = {key: yaml.safe_load(number) for key, number in model.published.items()}
        networks = {key: numbers.pop(key) for key in model.published if key not in MEASURES}
        numbers |= {'accuracy': networks} if networks else {}
        metadata |= {MEASURES[key]: number for key, number in numbers.items()}
        metadata |= {'Published By': f'the paper of {model.paper}'} if model.paper else {}
        entry = {'Name': model.name, 'In Collection': collection}
        entry['Config'] = f'configs/{folder.name}/{model.config.name}'
        entry['Metadata'] = metadata
        metrics = {}
        for line in model.lines:
            key = '' if line['network'] == SINGLE else f' ({line["network"]})'
            metrics[f'Top 1 Accuracy{key}'] = round(statistics.mean(line['top1'].values()), 2)
        if metrics:
            result = {'Task': 'Image Classification', 'Dataset': data, 'Metrics': metrics}
            entry['Results'] = [result]
        entries.append(entry)
    return f'{head}\n{yaml.safe_dump({"Models": entries}, sort_keys=False, width=99)}'
