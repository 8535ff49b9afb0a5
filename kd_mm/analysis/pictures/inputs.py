"""What pictures are made of: a model with its weights, images, and batches of training."""

import argparse
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import BaseDataset, default_collate
from mmengine.registry import TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import nn

from kd_mm.checkpoint import bare_model, check_keys, load_checkpoint, safe_files
from kd_mm.config import OptionsAction, explained
from kd_mm.datasets.numbered import number_images
from kd_mm.methods.base import labels_of
from kd_mm.models.distiller import Distiller
from kd_mm.models.networks import num_classes_of
from kd_mm.resume.generators import seed_generators
from kd_mm.run import dry_run, preflight
from kd_mm.run.errors import plain_errors
from kd_mm.run.launch import add_trust_argument

from .figures import FORMATS
from .networks import (
    BatchKnowledge,
    BatchWatch,
    Look,
    Views,
    Watch,
    distributions,
    networks_of,
    shows_relations,
    to_images,
    view_of,
)

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.tif', '.tiff', '.webp')


class Loaded(NamedTuple):
    """A model that can be asked.

    Attributes:
        model: In evaluation mode, on its device.
        classes: Names of the classes; empty where nobody knows them.
    """

    model: nn.Module
    classes: tuple[str, ...]


def arguments(
    description: str, save_path: str, checkpoint: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with the flags that all tools of pictures have.

    Args:
        description: Of the tool.
        save_path: Where its picture goes by default.
        checkpoint: Whether it needs one.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config of the run, such as the one in its work dir')
    if checkpoint:
        parser.add_argument('checkpoint', help='checkpoint of the run, a file or an address')
        parser.add_argument('--device', default='cpu', help='device that computes (cpu)')
        add_trust_argument(parser)
    parser.add_argument(
        '--save-path',
        type=Path,
        default=Path(save_path),
        help=f'the picture, {", ".join(FORMATS)} ({save_path})',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='override settings of the config, as key=value pairs; dots join nested keys',
    )
    return parser


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of tools that look at images.

    Args:
        parser: Of the tool.
    """
    parser.add_argument(
        'img', nargs='*', help='images, or folders of them; by default those of --phase'
    )
    parser.add_argument(
        '--phase', choices=['test', 'val'], default='test', help='the data set (test)'
    )
    parser.add_argument(
        '-n', '--number', type=int, default=6, help='images, spread over all there are (6)'
    )


@contextmanager
def user_errors(args: argparse.Namespace) -> Iterator[None]:
    """End the tool in one line where the user made a mistake; read checkpoints safely.

    Args:
        args: Parsed flags.
    """
    with plain_errors():
        path = getattr(args, 'save_path', None)
        if path is not None and (path.suffix not in FORMATS or path.is_dir()):
            raise ValueError(f'--save-path must be a file in {", ".join(FORMATS)}, but got {path}')
        with safe_files(getattr(args, 'trust_checkpoint', False)):
            yield


def check_number(name: str, value: int) -> None:
    """Raise ValueError unless a flag is a number of at least 1."""
    if value < 1:
        raise ValueError(f'{name} must be at least 1, but got {value}')


def load_model(cfg: Config, path: str | Path, device: str = 'cpu') -> Loaded:
    """Build the model of a run and load its weights.

    Args:
        cfg: Config of the run. Left as it is.
        path: A checkpoint, a file or an address, read without running what it holds.
        device: Where the model computes.

    Returns:
        The model, and the names of the classes that the checkpoint knows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the model cannot be built, the checkpoint cannot be read safely or is
            another model's, or there is no such device.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's, of a build without CUDA
        raise ValueError(
            f'--device must be one that torch has here, such as cpu or cuda, but got {device} '
            f'({str(error).splitlines()[0]})'
        ) from None
    checkpoint = load_checkpoint(path)
    model = bare_model(dry_run.build_model(cfg))
    weights = {k.removeprefix('module.'): v for k, v in checkpoint['state_dict'].items()}
    check_keys(weights, model.state_dict(), str(path))
    preflight.check_tensors(weights, str(path))
    preflight.check_whole(weights, model, str(path))
    with explained(f'{path} does not fit the model', 'use the config that was dumped beside it'):
        model.load_state_dict(weights)
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    return Loaded(model.to(device).eval(), tuple(map(str, meta.get('classes') or ())))


@torch.no_grad()
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
        number: How many images, spread over all there are; at least 1.
        layers: See :class:`kd_mm.analysis.pictures.networks.Watch`.

    Returns:
        A look for each image, and names of the classes.

    Raises:
        FileNotFoundError: If an image or the data set is missing.
        ValueError: If the model or a transform does not take an image, or a layer is missing.
    """
    check_number('--number', number)
    name = f'{phase}_dataloader'
    if not (cfg.get(name) or {}).get('dataset'):
        raise ValueError(
            f'the config must have a {name} with its data set; choose another --phase'
        )
    classes = loaded.classes
    files = _spread(_files(images), number)
    if files:
        items = [_read(path, cfg[name].dataset) for path in files]
    else:
        dataset = preflight.check_dataloader(cfg, name)
        classes = classes or dataset.metainfo.get('classes') or ()
        with explained(f'images of {name} cannot be read', 'look at its files and its pipeline'):
            items = [dataset[index] for index in _spread(range(len(dataset)), number)]
    watch = Watch(loaded.model, layers)
    looks = []
    try:
        for item in items:  # one by one: files may differ in size
            with explained('the model fails on an image', dry_run.FIT):
                loaded.model.val_step(default_collate([item]))
                looks += watch.looks()
    finally:
        watch.close()
    if files:
        looks = [look._replace(name=path.stem) for look, path in zip(looks, files, strict=True)]
    return looks, tuple(map(str, classes))


def _spread(items: Sequence, number: int) -> list:
    """Return so many of some items, at equal distances: data sets may go by class.

    Examples:
        >>> _spread('abcdef', 3), _spread('ab', 3)
        (['a', 'c', 'e'], ['a', 'b'])
    """
    number = min(number, len(items))
    return [items[place * len(items) // number] for place in range(number)]


def _files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files that are meant, those of folders in the order of their names."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = [file for file in sorted(path.rglob('*')) if file.suffix.lower() in IMAGES]
            if not found:
                raise FileNotFoundError(f'{path} holds no image ({", ".join(IMAGES)})')
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f'no image at {path}; check the path')
    return files


def _read(path: Path, dataset: Config) -> dict:
    """Read an image through the pipeline of a data set."""
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    steps = deepcopy(list(dataset.get('pipeline') or ()))
    data: dict[str, Any] = {'img_path': str(path)}  # which tells that the image is BGR
    if not any('LoadImage' in str(step['type']) for step in steps):
        # The data set gives arrays in RGB.
        with explained(f'{path} cannot be read', 'give an image'):
            image = mmcv.imread(str(path), channel_order='rgb')
            data = {'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}
    with explained(f'{path} cannot be read', 'give an image, and a pipeline that takes it'):
        return Compose([TRANSFORMS.build(step) for step in steps])(data)


def train_batch(cfg: Config, seed: int = 0, numbered: bool = False) -> tuple[dict, Any]:
    """Return the first batch of a recipe's own training loader.

    Args:
        cfg: Config of a run. Left as it is.
        seed: Of the sampler and of what the pipeline draws, at least 0.
        numbered: Whether samples carry the number of their image, as some methods need it.

    Returns:
        The batch as the loader gives it, and the data set.

    Raises:
        FileNotFoundError: If the data are missing.
        ValueError: If the loader cannot be built, or an image cannot be read.
    """
    if seed < 0:
        raise ValueError(f'--seed must be at least 0, but got {seed}')
    if not (cfg.get('train_dataloader') or {}).get('dataset'):
        raise ValueError('the config must have a train_dataloader, whose batch is shown')
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    dataset = preflight.check_dataloader(cfg, 'train_dataloader')
    loader = {'collate_fn': {'type': 'default_collate'}, **deepcopy(dict(cfg.train_dataloader))}
    loader.update(dataset=dataset, num_workers=0, persistent_workers=False, pin_memory=False)
    with dry_run.quiet(), explained('train_dataloader cannot be read', 'look at its options'):
        batches = Runner.build_dataloader(loader, seed=seed)
        if numbered:
            number_images(batches)
        seed_generators(seed)
        return next(iter(batches)), dataset


@torch.no_grad()
def batch_knowledge(
    loaded: Loaded, cfg: Config, number: int = 16, seed: int = 0
) -> tuple[dict[str, BatchKnowledge], tuple[str, ...]]:
    """Pass a batch of training through a model as training does; record its images' relations.

    Args:
        loaded: The model. Left as it is.
        cfg: Its config.
        number: Images to show, the first of the batch.
        seed: Of the batch.

    Returns:
        What images take from each other, by network, and the names of the classes.

    Raises:
        ValueError: If they take nothing, or the batch cannot be had.
    """
    check_number('--number', number)
    model = deepcopy(loaded.model).train()  # whose statistics the batch may change
    found = {}
    if shows_relations(model):
        numbered = isinstance(model, Distiller) and 'index' in model.needs
        batch, dataset = train_batch(cfg, seed, numbered)
        dry_run.set_last_epoch(model, len(dataset))
        dry_run.load_teachers(model)
        watch = BatchWatch(model)
        try:
            with explained('the model fails on a batch of training', dry_run.FIT):
                model(**model.data_preprocessor(batch, True), mode='loss')
            found = dict(watch.knowledge(number))
        finally:
            watch.close()
    if not found:
        raise ValueError(
            'affinities need a method by which images learn from each other, but '
            f'{type(model).__name__} has none; use a recipe such as those of configs/bake'
        )
    return found, loaded.classes or tuple(map(str, dataset.metainfo.get('classes') or ()))


@torch.no_grad()
def recipe_views(cfg: Config, number: int = 4, seed: int = 0) -> tuple[Views, tuple[str, ...]]:
    """Draw what each student sees, by the recipe's own loader and data preprocessor.

    Args:
        cfg: Config of a run. Left as it is.
        number: Images, the first of the batch, at least 1.
        seed: Of the batch and of its augmentation.

    Returns:
        The views, and the names of the classes.

    Raises:
        FileNotFoundError: If the data are missing.
        ValueError: If the batch cannot be had, or has not as many views as there are students.
    """
    check_number('--number', number)
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    model = bare_model(dry_run.build_model(cfg))  # first: it draws initial weights
    batch, dataset = train_batch(cfg, seed)
    with explained('the data preprocessor fails on a batch of training', dry_run.FIT):
        data = model.data_preprocessor(batch, True)
    inputs, samples = data['inputs'], data['data_samples']
    names = list(networks_of(model))
    if isinstance(model, Distiller):
        model.check_views(inputs)
        if model.views != 'per_student' and len(names) > 1:
            names = ['all students']
    views = {
        name: to_images(view_of(model, inputs, name)[:number], model.data_preprocessor, samples)
        for name in names
    }
    classes = tuple(map(str, dataset.metainfo.get('classes') or ()))
    classifier = next(iter(networks_of(model).values()))
    labels = distributions(labels_of(samples), num_classes_of(classifier))[:number].cpu().numpy()
    found = [_original(dataset, sample) for sample in samples[:number]]
    originals = [] if any(image is None for image in found) else found
    return Views(originals, views, labels), classes


def _original(dataset: Any, sample: DataSample) -> np.ndarray | None:
    """Return an image as its data set has it, (H, W, 3) uint8 in RGB, if it can be told."""
    if sample.get('img_path'):
        return mmcv.imread(sample.img_path, channel_order='rgb')
    while isinstance(getattr(dataset, 'dataset', None), Sized):  # a wrapper
        dataset = dataset.dataset
    if 'sample_idx' not in sample or not isinstance(dataset, BaseDataset):
        return None
    image = dataset.get_data_info(sample.sample_idx).get('img')
    if image is None:
        return None
    image = np.atleast_3d(np.asarray(image))
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
