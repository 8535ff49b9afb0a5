"""scikit-learn's handwritten digits: real images that come inside its wheel."""

from typing import ClassVar

import numpy as np
from mmpretrain.datasets import BaseDataset

from kd_mm.checks import check_choice
from kd_mm.registry import DATASETS

__all__ = ['Digits']

_TEST_IMAGES = 599  # a third of 1,797


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 scans of handwritten digits in scikit-learn: nothing to download.

    Source: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
    C. Kaynak, UCI Machine Learning Repository, 1998) by ``sklearn.datasets.load_digits``. Its
    grey levels v = 0..16 become ``floor(255 v / 16 + 1/2)``, the same in three channels: key
    ``img``, (8, 8, 3) uint8, as in mmpretrain's CIFAR and MNIST data sets.

    The split is always the same: ``train_test_split`` on the image numbers, stratified by class,
    with 599 test images and ``random_state=0``, each part in ascending order of the numbers.

    Args:
        split: ``'train'`` (1,198 images) or ``'test'`` (599 images).
        **kwargs: As in mmpretrain's ``BaseDataset``.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If the split is unknown.

    Examples:
        >>> len(Digits(split='train')), len(Digits(split='test'))
        (1198, 599)
        >>> Digits(split='test')[0]['img'][0, :, 0].tolist()
        [0, 0, 0, 191, 207, 80, 0, 0]
    """

    METAINFO: ClassVar[dict] = {'classes': tuple('0123456789')}

    def __init__(self, split: str = 'train', **kwargs) -> None:
        check_choice('split', split, ('train', 'test'))
        self.split = split
        super().__init__(ann_file='', **{'test_mode': split == 'test', **kwargs})

    def load_data_list(self) -> list[dict]:
        """Read ``img`` (8, 8, 3) uint8 and ``gt_label``, an int in 0..9, of each image."""
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise ImportError(
                'kd_mm.Digits reads the images inside scikit-learn, which is not installed. '
                'Run: pip install scikit-learn'
            ) from error
        digits = load_digits()
        numbers = np.arange(len(digits.target))
        train, test = train_test_split(
            numbers, test_size=_TEST_IMAGES, stratify=digits.target, random_state=0
        )
        chosen = np.sort(train if self.split == 'train' else test)
        levels = (digits.images[chosen].astype(np.int64) * 255 + 8) // 16
        images = np.repeat(levels[..., None], 3, axis=-1).astype(np.uint8)
        labels = digits.target[chosen].tolist()
        return [
            {'img': image, 'gt_label': label} for image, label in zip(images, labels, strict=True)
        ]
