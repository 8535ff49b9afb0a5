"""Data sets of given labels: without images, and with images that no other has."""

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.transforms import PackInputs


class Labelled(BaseDataset):
    """One item for each label; class names 'a', 'b', .. if their number is given."""

    def __init__(self, labels, num_classes=None, key='gt_label', **kwargs):
        self.given = [{key: label} for label in labels]
        names = None if num_classes is None else [chr(ord('a') + i) for i in range(num_classes)]
        # Serialising collects all garbage of the process: 0.3 s each time.
        defaults = {'ann_file': '', 'classes': names, 'serialize_data': False}
        super().__init__(**{**defaults, **kwargs})

    def load_data_list(self):
        return [dict(info) for info in self.given]


class Images(Labelled):
    """Images (1, 1, 3) of one value each: ``first``, ``first + 1``, .."""

    def __init__(self, first, count, labels=None, pipeline=None, **kwargs):
        self.first = first
        labels = labels or [i % 2 for i in range(count)]
        super().__init__(labels, pipeline=pipeline or [PackInputs()], **kwargs)

    def load_data_list(self):
        infos = enumerate(super().load_data_list(), self.first)
        return [{**info, 'img': np.full((1, 1, 3), value, np.uint8)} for value, info in infos]
