"""What every network of a finished run predicts for the validation images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from kd_mm.checkpoint import bare_model, check_keys, load_checkpoint
from kd_mm.config import explained
from kd_mm.models.distiller import named_networks
from kd_mm.resume.find import pointed_at
from kd_mm.run import rehearsal

from .run_log import SINGLE

FILENAME = 'predictions.npz'


class Loaded(NamedTuple):
    """A model in evaluation mode, and the names of its classes; empty where nobody knows them."""

    model: nn.Module
    classes: tuple[str, ...]


def load_model(cfg: Config, path: str | Path, device: str = 'cpu') -> Loaded:
    """Build the model of a run, load its weights and the names of its classes.

    Args:
        cfg: Config of the run. Left as it is.
        path: A checkpoint, a file or an address, read without running what it holds.
        device: Where the model computes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the model cannot be built, the checkpoint cannot be read safely or is
            another model's, or there is no such device.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    with explained(f'--device must be one that torch has here, but got {device}', 'use cpu'):
        torch.empty(0, device=device)
    checkpoint = load_checkpoint(path)
    model = bare_model(rehearsal.build_model(cfg))
    weights = {k.removeprefix('module.'): v for k, v in checkpoint['state_dict'].items()}
    check_keys(weights, model.state_dict(), str(path))
    with explained(f'{path} does not fit the model', 'use the config in its work dir'):
        model.load_state_dict(weights)
    meta = (checkpoint.get('meta') or {}).get('dataset_meta')
    return Loaded(model.to(device).eval(), classes_of(meta))


def classes_of(meta: dict | None) -> tuple[str, ...]:
    """Return the names of the classes in the meta information of a data set."""
    return tuple(map(str, (meta or {}).get('classes') or ()))


class Predictions(NamedTuple):
    """Predictions of m networks for n images.

    Attributes:
        networks: (m,) names as in the log.
        classes: (K,) names of the classes; their numbers where the data set has no names.
        labels: (n,) true classes.
        predicted: (m, n) most probable classes.
        confidence: (m, n) their probabilities.
        true_prob: (m, n) probabilities of the true classes.
        checkpoint: Name, size and time of the checkpoint.
    """

    networks: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    true_prob: np.ndarray
    checkpoint: np.ndarray


def last_checkpoint(work_dir: Path) -> Path | None:
    """Return the checkpoint that a run wrote last; None if there is none."""
    path = pointed_at(work_dir)
    return path if path is not None and path.is_file() else None


def fingerprint(checkpoint: Path) -> str:
    """Return what changes when a checkpoint is written again."""
    stat = checkpoint.stat()
    return f'{checkpoint.name} {stat.st_size} {stat.st_mtime_ns}'


def read_predictions(work_dir: Path) -> Predictions | None:
    """Read what :func:`predict` wrote; None if there is nothing or the run has gone on since."""
    path, checkpoint = work_dir / FILENAME, last_checkpoint(work_dir)
    if not path.exists() or checkpoint is None:
        return None
    with np.load(path, allow_pickle=False) as kept:
        if set(kept) != set(Predictions._fields):  # of an older version
            return None
        found = Predictions(**kept)
    return found if str(found.checkpoint) == fingerprint(checkpoint) else None


@torch.no_grad()
def predict(work_dir: Path, cfg: Config) -> Predictions:
    """Run the last checkpoint over the validation images, and write ``predictions.npz``.

    Args:
        work_dir: Work dir of a run.
        cfg: The config that the run dumped.

    Raises:
        FileNotFoundError: If there is no checkpoint, or no data.
        ValueError: If the checkpoint cannot be read safely or is another model's.
    """
    checkpoint = last_checkpoint(work_dir)
    if checkpoint is None:
        raise FileNotFoundError(
            f'{work_dir} must hold a checkpoint to predict with, but its last one is gone; leave '
            'out --predict, or this run'
        )
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = load_model(cfg, checkpoint, device).model
    loader = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    labels, columns = [], []
    for batch in loader:
        samples = model.val_step(batch)
        own = torch.cat([sample.gt_label for sample in samples])
        by_network = scores_by_network(samples, single='' in named_networks(model))
        scores = torch.stack(list(by_network.values()))  # (m, n, K)
        confidence, predicted = scores.max(dim=2)
        true_prob = scores[:, torch.arange(len(own)), own]
        labels.append(own.cpu())
        columns.append(torch.stack([predicted, confidence, true_prob]).cpu())
    predicted, confidence, true_prob = torch.cat(columns, dim=2).numpy()
    names = loader.dataset.metainfo.get('classes') or range(scores.shape[2])
    found = Predictions(
        networks=np.array(list(by_network)),
        classes=np.array(list(map(str, names))),
        labels=torch.cat(labels).numpy(),
        predicted=predicted.astype(int),
        confidence=confidence,
        true_prob=true_prob,
        checkpoint=np.array(fingerprint(checkpoint)),
    )
    np.savez_compressed(work_dir / FILENAME, **found._asdict())
    return found


def scores_by_network(samples: list[DataSample], single: bool = False) -> dict[str, Tensor]:
    """Return the class probabilities of each network that the log has an accuracy of.

    Args:
        samples: Predictions of a Distiller or of a classifier.
        single: Whether one network predicts, which has no name in the log.

    Returns:
        (n, K) by name: the students, their ensemble, and classifiers that are no part of it; of
        one network, its own in place of the first two.
    """
    if single or 'student_scores' not in samples[0]:
        scores = {SINGLE: torch.stack([sample.pred_score for sample in samples])}
    else:
        scores = {
            name: torch.stack([sample.student_scores[name] for sample in samples])
            for name in samples[0].student_scores
        }
        scores['ensemble'] = torch.stack(list(scores.values())).mean(dim=0)
    for name in samples[0].get('extra_scores', {}):
        scores[name] = torch.stack([sample.extra_scores[name] for sample in samples])
    return scores
