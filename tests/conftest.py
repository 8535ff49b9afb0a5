"""Fixtures that several test modules share."""

import gc
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import mmengine.config.utils
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

REPO = Path(__file__).resolve().parents[1]

# Two cores and many small networks: threads cost more than they bring.
torch.set_num_threads(1)

# For each base in another package MMEngine reads all of that package's metafiles: 0.2 s.
mmengine.config.utils.load = cache(mmengine.config.utils.load)


def pytest_collection_finish():
    """Keep what is imported out of MMEngine's garbage collections, one per data set."""
    gc.freeze()


@pytest.fixture(autouse=True)
def mmpretrains_scope():
    """Types without a prefix are mmpretrain's, whatever a test before has left."""
    init_default_scope('mmpretrain')


def run(command, cwd=REPO, check=True, **env):
    """Run a command line as a user would and return its exit code and joined output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def run_tool(name, *arguments, **kwargs):
    """Run ``python tools/NAME ARGUMENTS`` as a user would, imports and all.

    Once per tool: :func:`tests.forked.run_tool` saves five seconds.
    """
    return run([sys.executable, REPO / 'tools' / name, *arguments], **kwargs)


def write_image_folder(root, num_classes=4, per_class=4, size=40):
    """Write an ImageNet-style folder whose class is the colour, and its two list files."""
    rng = np.random.default_rng(0)
    for split, count in (('train', per_class), ('val', 2)):
        lines = []
        for label in range(num_classes):
            folder = root / split / f'n{label:08d}'
            folder.mkdir(parents=True)
            colour = np.array([255 * (label & 1), 255 * (label >> 1 & 1), 128])
            for index in range(count):
                noise = rng.integers(0, 60, size=(size, size, 3))
                image = np.clip(0.7 * colour + noise, 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f'{split}_{index}.JPEG'), image)
                lines.append(f'{folder.name}/{split}_{index}.JPEG {label}')
        (root / 'meta').mkdir(exist_ok=True)
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    return root


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
    """An ImageNet-style folder: 4 classes, 4 training and 2 validation images each, 40 px."""
    return write_image_folder(tmp_path_factory.mktemp('imagenet'))
