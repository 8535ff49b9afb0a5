"""How many images per second one core can make ready for a network."""

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from kd_mm.analysis.benchmark import describe_machine, summarize
from kd_mm.models.distiller import as_distiller


def compare_loaders(
    configs: Sequence[Config], data_root: str | None = None, batches: int = 50, rounds: int = 7
) -> dict:
    """Time the training loaders of several recipes with their data preprocessors.

    What is timed reaches from the sampler to what the network takes: reading, augmentation,
    collation, normalisation, all views. It runs in this process on one thread, without workers,
    in processor time, which is blind to what else the machine runs. The recipes take turns.

    Args:
        configs: The recipes, which are not changed. The first is what others are compared with.
        data_root: Replaces that of the data sets.
        batches: Batches of each recipe in a round, at least 1. One more before the first round is
            not timed.
        rounds: Rounds, at least 1.

    Returns:
        dict: ``machine`` and ``rows``, a dict for each recipe: ``name``, ``views``, ``batch_size``
        and ``images_per_s``, median and quartiles over rounds.

    Raises:
        ValueError: If a number is out of range.
    """
    if batches < 1 or rounds < 1:
        raise ValueError(f'batches and rounds must be at least 1, but got {batches} and {rounds}')
    init_default_scope('mmpretrain')
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1), cv2.setNumThreads(1)
    try:
        machine = describe_machine('cpu')
        feeds = [_Feed(config, data_root) for config in configs]
        for feed in feeds:
            feed.take(1)
        speeds = [[feed.take(batches) for feed in feeds] for _ in range(rounds)]
    finally:
        torch.set_num_threads(threads[0]), cv2.setNumThreads(threads[1])
    rows = [
        {
            'name': feed.name,
            'views': feed.views,
            'batch_size': feed.batch_size,
            'images_per_s': summarize(column),
        }
        for feed, column in zip(feeds, zip(*speeds, strict=True), strict=True)
    ]
    return {'machine': machine, 'rows': rows}


class _Feed:
    """One recipe's loader and preprocessor."""

    def __init__(self, config: Config, data_root: str | None) -> None:
        self.name = Path(config.filename).stem if config.filename else 'recipe'
        loader = copy.deepcopy(config.train_dataloader)
        loader.setdefault('collate_fn', {'type': 'default_collate'})
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
        dataset = loader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        if data_root is not None:
            dataset.data_root = data_root
        self.batch_size = loader.batch_size
        distills = as_distiller(config.model) is not None
        kind = 'kd_mm.CohortDataPreprocessor' if distills else 'mmpretrain.ClsDataPreprocessor'
        self._preprocess = MODELS.build({'type': kind, **config.data_preprocessor})
        self._batches = _endless(Runner.build_dataloader(loader, seed=0))

    def take(self, batches: int) -> float:
        """Make some batches ready and return the images per second."""
        images, start = 0, time.process_time()
        for _ in range(batches):
            data = self._preprocess(next(self._batches), training=True)
            images += len(data['data_samples'])
        seconds = time.process_time() - start
        self.views = len(data['inputs']) if isinstance(data['inputs'], list) else 1
        return images / seconds


def _endless(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def to_markdown(report: dict) -> str:
    """Write a report of :func:`compare_loaders` as a Markdown section.

    Args:
        report: What :func:`compare_loaders` returned, with the command line under ``command``.

    Returns:
        str: Table, machine and command.
    """
    first = report['rows'][0]['images_per_s']['median']
    lines = [
        '| recipe | batch | views | images/s (quartiles) | microseconds per image '
        '| by the first |',
        '|---|---|---|---|---|---|',
    ]
    for row in report['rows']:
        speed = row['images_per_s']
        low, high = speed['quartiles']
        lines.append(
            f'| {row["name"]} | {row["batch_size"]} | {row["views"]} | {speed["median"]:,.0f} '
            f'({low:,.0f} to {high:,.0f}) | {1e6 / speed["median"]:,.1f} '
            f'| {speed["median"] / first:.2f} x |'
        )
    machine = report['machine']
    versions = ', '.join(f'{package} {v}' for package, v in machine['versions'].items())
    lines += [
        '',
        f'- Processor time on {machine["device"]}, 1 thread, no workers; {versions}.',
        f'- `{report["command"]}`',
        '',
    ]
    return '\n'.join(lines)
