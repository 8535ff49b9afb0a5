"""TinyImageNet, Stanford Dogs and MIT Indoor Scenes, read in their published layout."""

from abc import ABCMeta, abstractmethod
from itertools import chain

import mat4py
from mmengine.fileio import get_file_backend, list_from_file
from mmpretrain.datasets import BaseDataset

from kd_mm.checks import check_choice
from kd_mm.registry import DATASETS

__all__ = ['MITIndoor67', 'PublishedDataset', 'StanfordDogs', 'TinyImageNet']


class PublishedDataset(BaseDataset, metaclass=ABCMeta):
    """Base of data sets that are read from a folder as their authors published it.

    A subclass names its ``SPLITS``, the first of them for training, and its ``LAYOUT``, and reads
    its files in :meth:`read_split`. The class names come from the files.

    Args:
        data_root: The folder that holds the published files.
        split: One of ``SPLITS``.
        **kwargs: As in mmpretrain's ``BaseDataset``.

    Raises:
        FileNotFoundError: If a file or folder of the layout is missing.
        ValueError: If the split is unknown or has no image, or the files disagree.
    """

    SPLITS: tuple[str, ...]
    LAYOUT: str

    def __init__(self, data_root: str, split: str = 'train', **kwargs) -> None:
        check_choice('split', split, self.SPLITS)
        self.split = split
        self.backend = get_file_backend(data_root, enable_singleton=True)
        test_mode = split != self.SPLITS[0]
        super().__init__(ann_file='', data_root=data_root, **{'test_mode': test_mode, **kwargs})

    @abstractmethod
    def read_split(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Read the class names in the order of their labels, and (path, label) of each image."""

    def load_data_list(self) -> list[dict]:
        """Read ``img_path`` and ``gt_label`` of each image of the split."""
        classes, samples = self.read_split()
        if not samples:
            raise ValueError(
                f'{type(self).__name__} found no image of the split {self.split!r} under '
                f'{self.data_root!r}. Expected:\n{self.LAYOUT}'
            )
        self._metainfo.setdefault('classes', tuple(classes))
        return [{'img_path': path, 'gt_label': label} for path, label in samples]

    def find(self, *parts: str) -> str:
        """Return the path of a file or folder under ``data_root``, which must exist."""
        path = self.backend.join_path(self.data_root, *parts)
        if not self.backend.exists(path):
            raise FileNotFoundError(
                f'{type(self).__name__} looked for {path!r} and did not find it. Set data_root '
                f'to a folder like this:\n{self.LAYOUT}'
            )
        return path

    def lines(self, *parts: str) -> list[str]:
        """Return the lines of a text file under ``data_root`` that are not empty."""
        return list(filter(None, map(str.strip, list_from_file(self.find(*parts)))))


@DATASETS.register_module()
class TinyImageNet(PublishedDataset):
    """TinyImageNet: 200 classes of ImageNet at 64 px, 500 training and 50 validation images each.

    Source: Stanford's course CS231n, ``tiny-imagenet-200.zip``. Class i is the i-th WordNet id
    of ``wnids.txt`` in sorted order.

    Args:
        data_root: The unpacked ``tiny-imagenet-200``.
        split: ``'train'`` or ``'val'``; the published test images have no labels.
        **kwargs: As in the base class.
    """

    SPLITS = ('train', 'val')
    LAYOUT = (
        'data_root/\n'
        '  wnids.txt                          one WordNet id a line\n'
        '  train/<wnid>/images/*.JPEG\n'
        '  val/val_annotations.txt            <file> <tab> <wnid> <tab> box\n'
        '  val/images/*.JPEG'
    )

    def read_split(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Read ``wnids.txt`` and the split's images."""
        wnids = sorted(self.lines('wnids.txt'))
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        samples = []
        if self.split == 'train':
            for wnid, label in labels.items():
                folder = self.find('train', wnid, 'images')
                names = self.backend.list_dir_or_file(folder, list_dir=False, suffix='.JPEG')
                images = [(self.backend.join_path(folder, name), label) for name in sorted(names)]
                if not images:
                    raise ValueError(
                        f'Every class must have an image, but {folder!r} holds no .JPEG file. '
                        'Unpack the data set again.'
                    )
                samples += images
            return wnids, samples
        lines = self.lines('val', 'val_annotations.txt')
        folder = self.find('val', 'images')
        for name, wnid, *_ in (line.split('\t') for line in lines):
            if wnid not in labels:
                raise ValueError(
                    f'val_annotations.txt gives {name!r} the class {wnid!r}, which is not in '
                    'wnids.txt. Unpack the data set again.'
                )
            samples.append((self.backend.join_path(folder, name), labels[wnid]))
        return wnids, samples


@DATASETS.register_module()
class StanfordDogs(PublishedDataset):
    """Stanford Dogs: 120 breeds, 12,000 training and 8,580 test images.

    Source: A. Khosla et al., "Novel Dataset for Fine-Grained Image Categorization", 2011. The
    published labels 1..120 become 0..119; a class is named by its folder.

    Args:
        data_root: The folder in which ``images.tar`` and ``lists.tar`` were unpacked; the lists
            may also lie in ``lists/`` below it.
        split: ``'train'`` or ``'test'``.
        **kwargs: As in mmpretrain's ``BaseDataset``.
    """

    SPLITS = ('train', 'test')
    LAYOUT = (
        'data_root/\n'
        '  Images/<wnid>-<breed>/*.jpg\n'
        '  train_list.mat, test_list.mat      or both in lists/'
    )

    def read_split(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Read the split's ``.mat`` list."""
        folder = self.find('Images')
        name = f'{self.split}_list.mat'
        nested = self.backend.join_path('lists', name)
        in_lists = self.backend.exists(self.backend.join_path(self.data_root, nested))
        path = self.find(nested if in_lists else name)
        content = mat4py.loadmat(path)
        # Column vectors arrive as lists of one-element rows.
        files = list(chain.from_iterable(content['file_list']))
        labels = [int(label) - 1 for label in chain.from_iterable(content['labels'])]
        breeds = {(label, file.split('/')[0]) for file, label in zip(files, labels, strict=True)}
        classes = [breed for _, breed in sorted(breeds)]
        if sorted(label for label, _ in breeds) != list(range(len(set(classes)))):
            raise ValueError(
                f'The labels of {path!r} must be 1..K, each naming one folder of Images/, but '
                f'{len(set(labels))} labels name {len(set(classes))} folders. Unpack lists.tar '
                'again.'
            )
        join = self.backend.join_path
        return classes, [(join(folder, f), label) for f, label in zip(files, labels, strict=True)]


@DATASETS.register_module()
class MITIndoor67(PublishedDataset):
    """MIT Indoor Scenes: 67 classes, 5,360 training and 1,340 test images.

    Source: A. Quattoni and A. Torralba, "Recognizing Indoor Scenes", CVPR 2009. Class i is the
    i-th folder name of the two lists together, in sorted order.

    Args:
        data_root: The folder in which the images' archive was unpacked, with the two lists.
        split: ``'train'`` or ``'test'``.
        **kwargs: As in mmpretrain's ``BaseDataset``.
    """

    SPLITS = ('train', 'test')
    LAYOUT = (
        'data_root/\n'
        '  Images/<class>/*.jpg\n'
        '  TrainImages.txt, TestImages.txt    <class>/<file>.jpg a line'
    )

    def read_split(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Read the two lists."""
        folder = self.find('Images')
        lists = {'train': self.lines('TrainImages.txt'), 'test': self.lines('TestImages.txt')}
        classes = sorted({line.split('/')[0] for line in chain.from_iterable(lists.values())})
        labels = {name: label for label, name in enumerate(classes)}
        join = self.backend.join_path
        samples = [(join(folder, line), labels[line.split('/')[0]]) for line in lists[self.split]]
        return classes, samples
