"""What pictures are made of: a model with its weights, images, and batches of training."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, init_default_scope
from mmengine.runner import Runner

from kd_mm.analysis.predictions import Loaded, classes_of
from kd_mm.analysis.predictions import load_model as load_model
from kd_mm.checkpoint import bare_model, safe_files
from kd_mm.checks import check_int
from kd_mm.config import OptionsAction, explained
from kd_mm.datasets.numbered import number_images
from kd_mm.methods.base import labels_of
from kd_mm.models.distiller import Distiller
from kd_mm.models.networks import num_classes_of
from kd_mm.resume.seeded import seed_generators
from kd_mm.run import rehearsal
from kd_mm.run.errors import plain_errors
from kd_mm.run.launch import add_trust_argument

from .networks import (
    BatchKnowledge,
    BatchWatch,
    Look,
    distributions,
    look,
    networks_of,
    shows_relations,
    view_of,
)

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.tif', '.tiff', '.webp')
FORMATS = ('.png', '.pdf', '.svg', '.jpg')  # of pictures


def arguments(
    description: str, save_path: str, number: int, checkpoint: bool = True, images: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the flags that the tools of pictures share.

    Args:
        description: Of the tool.
        save_path: Default of ``--save-path``.
        number: Default of ``--number``.
        checkpoint: Whether it needs one.
        images: Whether it looks at files or images of a data set, or at a training batch.
    """
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add('config', help='config of the run, such as the one in its work dir')
    if checkpoint:
        add('checkpoint', help='checkpoint of the run, a file or an address')
        add('--device', default='cpu', help='device that computes (cpu)')
        add_trust_argument(parser)
    if images:
        add('img', nargs='*', help='images, or folders of them; by default those of --phase')
        add('--phase', choices=['test', 'val'], default='test', help='the data set (test)')
    else:
        add('--seed', type=int, default=0, help='seed of the training batch (0)')
    shown = 'spread over all there are' if images else 'the first of the batch'
    add('-n', '--number', type=int, default=number, help=f'images, {shown} ({number})')
    add('--save-path', type=Path, default=Path(save_path), help=f'the picture ({save_path})')
    add('--cfg-options', nargs='+', action=OptionsAction, help='settings, as key=value pairs')
    return parser


@contextmanager
def user_errors(args: argparse.Namespace) -> Iterator[None]:
    """End the tool in one line where the user made a mistake; read checkpoints safely."""
    with plain_errors():
        path = getattr(args, 'save_path', None)
        if path is not None and (path.suffix not in FORMATS or path.is_dir()):
            raise ValueError(f'--save-path must be a file in {", ".join(FORMATS)}, but got {path}')
        with safe_files(getattr(args, 'trust_checkpoint', False)):
            yield


def look_at(
    loaded: Loaded,
    cfg: Config,
    images: Sequence[str | Path] = (),
    phase: str = 'test',
    number: int = 6,
    layers: Sequence[str] = (),
) -> tuple[list[Look], tuple[str, ...]]:
    """Show images to a model.

    Args:
        loaded: The model.
        cfg: Its config, for the pipeline and the data set.
        images: Files, or folders of them. By default images of a data set.
        phase: Data loader whose pipeline is taken, and whose images: ``'test'`` or ``'val'``.
        number: How many images, spread over all there are: data sets may go by class.
        layers: See :func:`kd_mm.analysis.pictures.networks.look`.

    Returns:
        A look for each image, and names of the classes.

    Raises:
        FileNotFoundError: If an image or the data set is missing.
        ValueError: If the model or a transform does not take an image, or a layer is missing.
    """
    check_int('--number', number)
    name = f'{phase}_dataloader'
    if not (cfg.get(name) or {}).get('dataset'):
        raise ValueError(
            f'the config must have a {name} with its data set; choose another --phase'
        )
    dataset = None if images else rehearsal.check_dataloader(cfg, name)
    every = _files(images) if images else range(len(dataset))
    count = min(number, len(every))
    looks = []
    for place in (place * len(every) // count for place in range(count)):
        if images:
            item = _read(every[place], cfg[name].dataset)
        else:
            with explained(f'images of {name} cannot be read', 'look at its files and pipeline'):
                item = dataset[place]
        with explained('the model fails on an image', rehearsal.FIT):
            looks.append(look(loaded.model, item, layers))
        if images:
            looks[-1] = looks[-1]._replace(name=every[place].stem)
    return looks, loaded.classes or classes_of(dataset and dataset.metainfo)


def _files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files that are meant, those of folders in the order of their names."""
    files = []
    for path in map(Path, paths):
        found = sorted(file for file in path.rglob('*') if file.suffix.lower() in IMAGES)
        if not found and not path.is_file():
            raise FileNotFoundError(f'no image at {path}; check the path')
        files += found or [path]
    return files


def _read(path: Path, dataset: Config) -> dict:
    """Read an image through the pipeline of a data set."""
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    steps = deepcopy(list(dataset.get('pipeline') or ()))
    with explained(f'{path} cannot be read', 'give an image, and a pipeline that takes it'):
        data: dict[str, Any] = {'img_path': str(path)}  # says that the image is BGR
        if not any('LoadImage' in str(step['type']) for step in steps):
            image = mmcv.imread(str(path), channel_order='rgb')  # as data sets of arrays
            data = {'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}
        return Compose([TRANSFORMS.build(step) for step in steps])(data)


def train_batch(cfg: Config, seed: int = 0, numbered: bool = False) -> tuple[dict, Any]:
    """Return the first batch of a recipe's own training loader, and its data set.

    Args:
        cfg: Config of a run. Left as it is.
        seed: Of the sampler and of what the pipeline draws, at least 0.
        numbered: Whether samples carry the number of their image.
    """
    check_int('--seed', seed, 0)
    if not (cfg.get('train_dataloader') or {}).get('dataset'):
        raise ValueError('the config must have a train_dataloader, whose batch is shown')
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    dataset = rehearsal.check_dataloader(cfg, 'train_dataloader')
    loader = {'collate_fn': {'type': 'default_collate'}, **deepcopy(dict(cfg.train_dataloader))}
    loader.update(dataset=dataset, num_workers=0, persistent_workers=False, pin_memory=False)
    with rehearsal.quiet(), explained('train_dataloader cannot be read', 'look at its options'):
        batches = Runner.build_dataloader(loader, seed=seed)
        if numbered:
            number_images(batches)
        seed_generators(seed)
        return next(iter(batches)), dataset


@torch.no_grad()
def batch_knowledge(
    loaded: Loaded, cfg: Config, number: int = 16, seed: int = 0
) -> tuple[dict[str, BatchKnowledge], tuple[str, ...]]:
    """Return what images of a training batch take from each other, by network, and the classes.

    Args:
        loaded: The model. Left as it is.
        cfg: Its config.
        number: Images to show, the first of the batch.
        seed: Of the batch.

    Raises:
        ValueError: If they take nothing, or the batch cannot be had.
    """
    check_int('--number', number)
    model = deepcopy(loaded.model).train()  # whose statistics the batch may change
    if not shows_relations(model):
        raise ValueError(
            'affinities need a method by which images learn from each other, but '
            f'{type(model).__name__} has none; use a recipe such as those of configs/bake'
        )
    numbered = isinstance(model, Distiller) and 'index' in model.needs
    batch, dataset = train_batch(cfg, seed, numbered)
    rehearsal.set_last_epoch(model, len(dataset))
    if isinstance(model, Distiller) and not model.teachers.ready:
        model.teachers.load()
    watch = BatchWatch(model)
    with explained('the model fails on a batch of training', rehearsal.FIT):
        model(**model.data_preprocessor(batch, True), mode='loss')
    return watch.close(number), loaded.classes or classes_of(dataset.metainfo)


@torch.no_grad()
def recipe_views(
    cfg: Config, number: int = 4, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[str, ...]]:
    """Return what the networks of a recipe see in training.

    Args:
        cfg: Config of a run. Left as it is.
        number: N, images, the first of the batch.
        seed: Of the batch and of its augmentation.

    Returns:
        Images (N, H, W, 3) uint8, RGB, by network, or one for all that share a view; labels
        (N, K), one-hot, or mixed by batch augmentation; names of the classes.

    Raises:
        FileNotFoundError: If the data are missing.
        ValueError: If the batch cannot be had, or has not as many views as there are students.
    """
    check_int('--number', number)
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    model = bare_model(rehearsal.build_model(cfg))  # first: it draws initial weights
    batch, dataset = train_batch(cfg, seed)
    with explained('the data preprocessor fails on a batch of training', rehearsal.FIT):
        data = model.data_preprocessor(batch, True)
    inputs, samples = data['inputs'], data['data_samples']
    networks = networks_of(model)
    names = list(networks)
    if isinstance(model, Distiller):
        model.check_views(inputs)
        if model.views != 'per_student' and len(names) > 1:
            names = ['all students']
    views = {name: view_of(model, inputs, samples, name, number) for name in names}
    num_classes = num_classes_of(next(iter(networks.values())))
    labels = distributions(labels_of(samples), num_classes)[:number].cpu().numpy()
    return views, labels, classes_of(dataset.metainfo)
