"""What every network of a finished run says of the validation images."""

import copy
import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import Tensor

from kd_mm.checkpoint import check_keys, load_checkpoint
from kd_mm.models.distiller import named_networks
from kd_mm.registry import MODELS
from kd_mm.resume.find import pointed_at

from .calibration import Predictions
from .run_log import SINGLE

FILENAME = 'predictions.npz'


class RunPredictions(NamedTuple):
    """Predictions of a run.

    Attributes:
        networks: Predictions by network, under the names of the log.
        classes: Names of the K classes; their numbers where the data set has no names.
    """

    networks: dict[str, Predictions]
    classes: list[str]


def last_checkpoint(work_dir: Path) -> Path | None:
    """Return the checkpoint that a run wrote last; None if there is none.

    Args:
        work_dir: Work dir of a run, which may have been moved since.
    """
    path = pointed_at(work_dir)
    return path if path is not None and path.is_file() else None


def read_predictions(work_dir: Path) -> RunPredictions | None:
    """Read what :func:`predict` kept in a work dir.

    Args:
        work_dir: Work dir of a run.

    Returns:
        The predictions; None if there are none or the run has gone on since.
    """
    path, checkpoint = work_dir / FILENAME, last_checkpoint(work_dir)
    if not path.exists() or checkpoint is None:
        return None
    with np.load(path, allow_pickle=False) as kept:
        if str(kept['checkpoint']) != fingerprint(checkpoint):
            return None
        networks = {
            str(name): Predictions(kept['labels'], kept[f'predicted{index}'],
                                   kept[f'confidence{index}'], kept[f'true_prob{index}'])
            for index, name in enumerate(kept['networks'])
        }  # fmt: skip
        return RunPredictions(networks, kept['classes'].tolist())


def fingerprint(checkpoint: Path) -> str:
    """Tell a checkpoint from another one of its name, by the sums that its file holds."""
    sums = [checkpoint.stat().st_size]
    if zipfile.is_zipfile(checkpoint):
        with zipfile.ZipFile(checkpoint) as archive:
            sums = [part.CRC for part in archive.infolist()]
    return f'{checkpoint.name} {zlib.crc32(repr(sums).encode()):08x}'


@torch.no_grad()
def predict(work_dir: Path, cfg: Config) -> RunPredictions:
    """Run the last checkpoint over the validation images and keep what it says.

    A file ``predictions.npz`` in the work dir holds, for each image and network, the predicted
    class, its probability and that of the true class.

    Args:
        work_dir: Work dir of a run.
        cfg: The config that the run dumped. Left as it is.

    Returns:
        The predictions.

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
    cfg = copy.deepcopy(cfg)  # building a model fills in its preprocessor
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    preprocessor = cfg.get('data_preprocessor')
    default = {} if preprocessor is None else {'data_preprocessor': preprocessor}
    model = MODELS.build({**default, **cfg.model})
    state_dict = load_checkpoint(checkpoint)['state_dict']
    check_keys(state_dict, model.state_dict(), str(checkpoint))
    model.load_state_dict(state_dict)
    model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()
    single = '' in named_networks(model)
    loader = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    parts: dict[str, list[Tensor]] = {}
    labels = []
    for batch in loader:
        samples = model.val_step(batch)
        own = torch.cat([sample.gt_label for sample in samples])
        labels.append(own.cpu())
        for name, scores in scores_by_network(samples, single).items():
            confidence, predicted = scores.max(dim=1)
            true_prob = scores.gather(1, own[:, None]).squeeze(1)
            columns = torch.stack([predicted.double(), confidence.double(), true_prob.double()])
            parts.setdefault(name, []).append(columns.cpu())
    _, num_classes = scores.shape
    names = loader.dataset.metainfo.get('classes') or range(num_classes)
    arrays = {
        'labels': torch.cat(labels).numpy(),
        'classes': np.array([str(name) for name in names]),
        'checkpoint': np.array(fingerprint(checkpoint)),
        'networks': np.array(list(parts)),
    }
    for index, columns in enumerate(parts.values()):
        predicted, confidence, true_prob = torch.cat(columns, dim=1).numpy()
        arrays[f'predicted{index}'] = predicted.astype(np.int64)
        arrays[f'confidence{index}'] = confidence.astype(np.float32)
        arrays[f'true_prob{index}'] = true_prob.astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    part = work_dir / f'{FILENAME}.part'
    part.write_bytes(buffer.getvalue())
    part.replace(work_dir / FILENAME)
    return read_predictions(work_dir)


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
    for name in samples[0].get('scores_beside', {}):
        scores[name] = torch.stack([sample.scores_beside[name] for sample in samples])
    return scores
