"""A data set of given labels, without images."""

from mmpretrain.datasets import BaseDataset


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
