"""Each tool draws its picture in a process of its own, by the command of docs/visualization.md."""

import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from kd_mm.registry import MODELS
from tests.conftest import REPO
from tests.forked import run_tool

STUDENTS = ('student1', 'student2', 'leader')
SMALL = """
_base_ = {base!r}
model = dict({model})
train_dataloader = dict(batch_size=12, dataset=dict(indices=36))
val_dataloader = dict(dataset=dict(indices=4))
test_dataloader = dict(dataset=dict(indices=4))
"""


def write(folder, name, base, model):
    (folder / f'{name}.py').write_text(SMALL.format(base=str(REPO / base), model=model))
    cfg = Config.fromfile(folder / f'{name}.py')
    torch.manual_seed(0)
    model = MODELS.build({**cfg.model.to_dict(), '_scope_': 'mmpretrain'})
    torch.save({'state_dict': model.state_dict()}, folder / f'{name}.pth')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """FFSD and BAKE in small with random weights, and two pictures."""
    folder = tmp_path_factory.mktemp('pictures')
    small = ', '.join(f'{name}=dict(backbone=dict(depth=8))' for name in STUDENTS)
    ffsd = 'configs/ffsd/ffsd_resnet20_1xb64_digits.py'
    write(folder, 'ffsd', ffsd, f'students=dict({small})')
    bake = 'configs/bake/resnet20_1xb64_digits.py'
    write(folder, 'bake', bake, 'backbone=dict(depth=8)')
    noise = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    (folder / 'pictures').mkdir()
    for name, image in zip('ab', noise, strict=True):
        cv2.imwrite(str(folder / f'pictures/{name}.png'), image)
    return folder


def columns(path):
    """Count what white columns part in the first row of images."""
    picture = cv2.imread(str(path))
    band = picture[len(picture) // 6 : len(picture) // 4]
    return int((np.diff((band == 255).all(axis=(0, 2)).astype(int)) == -1).sum())


def test_attention_of_students_leader_and_fusion(world):
    out = world / 'new/attention.png'
    said = run_tool(
        'visualization/vis_attention.py', world / 'ffsd.py', world / 'ffsd.pth',
        world / 'pictures', '--save-path', out,
    ).stdout  # fmt: skip
    networks = re.findall(r'^(\w+): attention of (\w+)$', said, flags=re.M)
    assert networks == [*((name, 'backbone') for name in STUDENTS), ('fusion', 'fusion')]
    assert said.rstrip().endswith(f'wrote {out}')
    assert columns(out) == 1 + len(networks)


def test_predictions(world):
    out = world / 'predictions.png'
    run_tool(
        'visualization/vis_predictions.py', world / 'ffsd.py', world / 'ffsd.pth', '--phase',
        'val', '-n', 2, '--topk', 10, '--save-path', out,
    )  # fmt: skip
    height, width = cv2.imread(str(out)).shape[:2]
    assert height > 2 * 10 * 0.2 * 200  # inches of a bar, at 200 dpi
    assert width > 5 * 1.45 * 200  # students, ensemble, leader and fusion


def test_affinity(world):
    out = world / 'affinity.png'
    run_tool(
        'visualization/vis_affinity.py', world / 'bake.py', world / 'bake.pth', '--number', 8,
        '--index', 1, '--seed', 2, '--save-path', out,
    )  # fmt: skip
    height, width = cv2.imread(str(out)).shape[:2]
    assert width > height > 800


def test_views(world):
    config = REPO / 'configs/kdcl/kdcl-minlogit_resnet20-wrn16-1_1xb64_digits.py'
    out = world / 'views.png'
    run_tool(
        'visualization/vis_views.py', config, '-n', 2, '--seed', 1, '--save-path', out,
        '--cfg-options', 'train_dataloader.dataset.indices=70',
    )  # fmt: skip
    assert columns(out) == 3  # the image and two students
