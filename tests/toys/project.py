"""Another project on MMEngine, which knows nothing of kd_mm."""

import random

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.nn import functional as F

CONFIG = """
model = dict(type='ToyNet')
loader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='ToyData'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
train_dataloader = loader
val_dataloader = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='ToyMetric')
val_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=4)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.5, momentum=0.9))
param_scheduler = dict(type='CosineAnnealingLR', T_max=4)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='accuracy'),
)
randomness = dict(seed=3)
"""


@DATASETS.register_module()
class ToyData(BaseDataset):
    """Twenty points, which training moves by chance: by all three generators."""

    def __init__(self, **kwargs):
        super().__init__(pipeline=[self.move], serialize_data=False, **kwargs)

    def load_data_list(self):
        points = np.random.RandomState(0).randn(20, 4).astype(np.float32)
        return [{'point': point, 'label': int(point[0] > 0)} for point in points]

    def move(self, item):
        chance = random.random() + np.random.random() + torch.rand(()).item()
        return {'inputs': torch.tensor(item['point']) + 0.1 * chance, 'label': item['label']}


@MODELS.register_module()
class ToyNet(BaseModel):
    """Batch normalisation, dropout and a linear layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, inputs, label, mode='tensor'):
        logits = self.fc(F.dropout(self.norm(inputs), 0.2, self.training))
        if mode == 'loss':
            return {'loss': F.cross_entropy(logits, label)}
        return list(zip(logits.argmax(1).tolist(), label.tolist(), strict=True))


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """The share of points that are classified as they should be."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return {'accuracy': sum(guess == label for guess, label in results) / len(results)}
