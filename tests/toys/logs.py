"""Work dirs of trainings that never ran."""

import json

import numpy as np
from mmengine.config import Config

from kd_mm.analysis.predictions import FILENAME, fingerprint


def network(depth=20, **head):
    return {
        'type': 'ImageClassifier',
        'backbone': {'type': 'kd_mm.CIFARResNet', 'depth': depth},
        'head': {'type': 'LinearClsHead', **head},
    }


def cohort(**students):
    return {'type': 'kd_mm.KDCL', 'students': students}


def write_run(
    work_dir,
    model,
    top1,
    seed=0,
    config='recipe',
    losses=('loss',),
    time=0.1,
    max_epochs=2,
    monitors=(),
    result=None,
    **settings,
):
    """Write config and log; ``top1`` holds the curve of each network."""
    folder = work_dir / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    cfg = {
        'model': model,
        'train_cfg': {'by_epoch': True, 'max_epochs': max_epochs},
        'val_dataloader': {'dataset': {'type': 'kd_mm.Digits', 'split': 'test'}},
        'work_dir': str(work_dir),
        'randomness': {} if seed is None else {'seed': seed},
        **settings,
    }
    cfg = Config(cfg)
    cfg.dump(folder / 'config.py')
    cfg.dump(work_dir / f'{config}.py')
    lines = []
    for epoch in range(max(map(len, top1.values()))):
        for step in (2 * epoch + 1, 2 * epoch + 2):
            values = {key: (1 + index) / step for index, key in enumerate(losses)}
            values |= {key: index + step / 10 for index, key in enumerate(monitors)}
            # The first step is slow.
            times = {'time': 9.0 if step == 1 else time, 'data_time': time / 10}
            place = {'epoch': epoch + 1, 'iter': step, 'step': step}
            lines.append({**values, **times, 'lr': 0.1, **place})
        val = {
            'accuracy/top1' if name == 'network' else f'{name}/accuracy/top1': curve[epoch]
            for name, curve in top1.items()
        }
        lines.append({**val, 'time': 0.1, 'step': epoch + 1})
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    if result is not None:
        (work_dir / 'result.json').write_text(json.dumps(result))
    return work_dir


def write_predictions(work_dir, networks, classes, num_images=60, seed=0):
    """Write random predictions, and a checkpoint that they belong to."""
    (work_dir / 'epoch_2.pth').touch()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    rng = np.random.default_rng(seed)
    shape = (len(networks), num_images)
    labels = np.arange(num_images) % len(classes)
    predicted = np.where(rng.random(shape) < 0.7, labels, 0)
    confidence = rng.uniform(0.4, 1, shape)
    np.savez(
        work_dir / FILENAME,
        networks=networks,
        classes=classes,
        labels=labels,
        predicted=predicted,
        confidence=confidence,
        true_prob=np.where(predicted == labels, confidence, 0.1),
        checkpoint=fingerprint(work_dir / 'epoch_2.pth'),
    )
