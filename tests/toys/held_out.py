"""A KDCL-General cohort, images with a hold-out, and what the paper's formula gives for them."""

import numpy as np
import torch
from mmpretrain.structures import DataSample

from kd_mm.datasets import HoldOut
from kd_mm.registry import MODELS
from tests.references import kdcl as reference
from tests.toys.datasets import Labelled

NUM_CLASSES = 3


class Images(Labelled):
    """Random images of given labels; the numbers of those that were read are kept."""

    def __init__(self, labels, views=None, **kwargs):
        self.views = views
        self.read = []
        super().__init__(labels, NUM_CLASSES, **kwargs)

    def load_data_list(self):
        return [{**info, 'number': i} for i, info in enumerate(super().load_data_list())]

    def prepare_data(self, idx):
        info = self.get_data_info(idx)
        self.read.append(info['number'])
        generator = torch.Generator().manual_seed(info['number'])
        image = torch.randn(3, 8, 8, generator=generator)
        image = image if self.views is None else [image] * self.views
        return {'inputs': image, 'data_samples': DataSample().set_gt_label(info['gt_label'])}


def parts(num_images=18, num_per_class=2):
    labels = [i % NUM_CLASSES for i in range(num_images)]
    return [HoldOut(Images(labels), num_per_class, part) for part in ('train', 'held_out')]


def build_model(target='general', seed=0):
    """Two students with batch norm, unlike each other in eval and in training mode."""
    student = {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': 'kd_mm.CIFARResNet', 'depth': 8},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': {'type': 'mmpretrain.LinearClsHead', 'num_classes': 3, 'in_channels': 64},
    }
    torch.manual_seed(seed)
    students = {'a': student, 'b': student}
    model = MODELS.build({'type': 'kd_mm.KDCL', 'students': students, 'target': target})
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'fc' in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def true_class_probs(model, dataset):
    """f of each student and image, one by one in eval mode: (m, n)."""
    model.eval()
    items = [dataset[i] for i in range(len(dataset))]
    f = np.empty((len(model.students), len(items)))
    for i, student in enumerate(model.students.values()):
        for n, item in enumerate(items):
            logits = student(item['inputs'][None])[0].detach().double().numpy()
            f[i, n] = reference.softmax(logits)[int(item['data_samples'].gt_label)]
    return f


def expected_weights(model, dataset):
    """The formula of the paper."""
    weights = reference.generalization_weights(true_class_probs(model, dataset))
    assert weights.min() > 0.01  # neither clipping nor rounding has a say
    return weights
