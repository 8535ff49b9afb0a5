"""A run that is killed at any moment and resumed is the run that was never stopped."""

import json
import random

import pytest
import torch
from mmengine.runner import load_checkpoint

from kd_mm.utils.checkpoint import load_checkpoint
from tests.conftest import REPO
from tests.test_tools.runs import KILLED, train

DRAWS = """
_base_ = ['{repo}/configs/{recipe}.py']

custom_hooks = [dict(type='EMAHook', momentum=0.1)]
train_cfg = dict(max_epochs={epochs})
augments = [
    dict(type='RandomCrop', crop_size=16, padding=2),
    dict(type='RandomErasing', erase_prob=0.5),
]
train_pipeline = [dict(type='Resize', scale=16), *augments, dict(type='PackInputs')]
views = [
    dict(type='Resize', scale=16),
    dict(type='MultiView', num_views=2, transforms=[augments]),
    dict(type='PackInputs'),
]
loader = dict(batch_size=16, num_workers=2, persistent_workers=True)
train_dataloader = dict(loader, dataset=dict(indices=64, pipeline=train_pipeline))
val_dataloader = dict(loader, dataset=dict(indices=64))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
"""
MIXUP = "model = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))\n"
VANILLA = DRAWS + MIXUP + """
model.update(backbone=dict(depth=8))
"""


def write(path, text, recipe, epochs=3):
    path.write_text(text.format(repo=REPO, recipe=recipe, epochs=epochs))
    return path


def test_x(tmp_path):
    config = write(tmp_path/'c.py', VANILLA.replace('{', '{{').replace('}','}}') if 0 else VANILLA, 'vanilla/vanilla_resnet20_1xb64_digits')
    import time
    t=time.time()
    code = train(config, tmp_path/'w')
    print(code, time.time()-t)
    t=time.time()
    code = train(config, tmp_path/'w2', kill=('train', 6))
    print(code, time.time()-t)
    code = train(config, tmp_path/'w2', '--resume')
    print(code, time.time()-t)
    print((tmp_path/'w2/console.txt').read_text()[-12000:])
    a = load_checkpoint(tmp_path/'w/epoch_3.pth'); b = load_checkpoint(tmp_path/'w2/epoch_3.pth')
    for k in a['state_dict']:
        assert torch.equal(a['state_dict'][k], b['state_dict'][k]), k
