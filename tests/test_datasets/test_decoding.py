"""A photo is decoded once, however many views are drawn of it."""

from pathlib import Path

import mmcv
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

CONFIGS = Path(__file__).parents[2] / 'configs/_base_/datasets'


@pytest.mark.parametrize('num_views', [None, 2, 5])
def test_one_decode_per_image(num_views, image_folder, monkeypatch):
    name = 'imagenet_bs256.py' if num_views is None else 'imagenet_bs256_2views.py'
    cfg = Config.fromfile(CONFIGS / name).train_dataloader.dataset
    cfg.data_root = str(image_folder)
    for transform in cfg.pipeline:
        if transform.type == 'MultiView':
            assert transform.num_views == 2
            transform.num_views = num_views
    decoded = []
    decode = mmcv.imfrombytes
    monkeypatch.setattr(
        mmcv, 'imfrombytes', lambda *args, **kw: decoded.append(1) or decode(*args, **kw)
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg)
    for count in (1, 2, 3):
        inputs = dataset[count]['inputs']
        assert len(decoded) == count
    views = [inputs] if num_views is None else inputs
    assert [tuple(view.shape) for view in views] == [(3, 224, 224)] * (num_views or 1)
    assert len({view.numpy().tobytes() for view in views}) == len(views)
