"""What the README shows is run."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from kd_mm.run.rehearsal import check_config
from tests.conftest import REPO

README = (REPO / 'README.md').read_text()


@pytest.fixture(scope='module')
def recipe(tmp_path_factory, image_folder):
    """The README's BAKE over a recipe of mmpretrain, on a small folder."""
    (code,) = re.findall(r'```python\n(.*?)```', README, flags=re.S)
    path = tmp_path_factory.mktemp('recipe') / 'mine.py'
    path.write_text(code)
    cfg = Config.fromfile(path)
    for name in ('train_dataloader', 'val_dataloader'):
        cfg[name].dataset.data_root = str(image_folder)
    return cfg


def test_bake_over_a_recipe_of_mmpretrain_trains(recipe):
    check_config(recipe, ('train_dataloader', 'val_dataloader'))
    init_default_scope('mmpretrain')
    loader = recipe.train_dataloader.to_dict()
    loader.update(batch_size=4, num_workers=0, collate_fn={'type': 'default_collate'})
    loader.pop('persistent_workers', None)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
    assert torch.equal(labels[::2], labels[1::2])  # partners next to their anchors

    recipe.model.backbone.update(depth=18)
    recipe.model.head.in_channels = 512
    model = MODELS.build({**recipe.model, 'data_preprocessor': recipe.data_preprocessor})
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    assert {'loss', 'loss_bake'} <= losses.keys()
