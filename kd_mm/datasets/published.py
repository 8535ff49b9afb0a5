"""Data sets that BAKE was published with and mmpretrain lacks, read in their published layout."""

from abc import ABCMeta, abstractmethod
from itertools import chain

import mat4py
from mmengine.fileio import get_file_backend, list_from_file
from mmpretrain.datasets import BaseDataset

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
        ValueError: If the split is unknown, has no image, or is at odds with the class names.
    """

    SPLITS: tuple[str, ...]
    LAYOUT: str

    def __init__(self, data_root: str, split: str = 'train', **kwargs) -> None:
        if split not in self.SPLITS:
            raise ValueError(f'split must be one of {self.SPLITS}; got {split!r}.')
        self.split = split
        self.backend = get_file_backend(data_root, enable_singleton=True)
        test_mode = split != self.SPLITS[0]
        super().__init__(ann_file='', data_root=data_root, **{'test_mode': test_mode, **kwargs})

    @abstractmethod
    def read_split(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Read the published files.

        Returns:
            The class names in the order of their labels, and (image path, label) of each image.
        """

    def load_data_list(self) -> list[dict]:
        """Read the images and labels of the split.

        Returns:
            One dict per image: ``img_path`` and ``gt_label``.
        """
        classes, samples = self.read_split()
        if not samples:
            raise ValueError(
                f'{type(self).__name__} found no image of the split {self.split!r} under '
                f'{self.data_root!r}. Expected:\n{self.LAYOUT}'
            )
        given = self._metainfo.setdefault('classes', tuple(classes))
        if len(given) != len(classes):
            raise ValueError(
                f'{type(self).__name__} under {self.data_root!r} has {len(classes)} classes, but '
                f'{len(given)} class names were given. Leave them out to take them from the files.'
            )
        return [{'img_path': path, 'gt_label': label} for path, label in samples]

    def find(self, *parts: str) -> str:
        """Give the path of a file or folder of the layout.

        Args:
            *parts: Its path under ``data_root``.

        Returns:
            The path, joined.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        path = self.backend.join_path(self.data_root, *parts)
        if not self.backend.exists(path):
            raise FileNotFoundError(
                f'{type(self).__name__} looked for {path!r} and did not find it. Set data_root '
                f'to a folder like this:\n{self.LAYOUT}'
            )
        return path

    def extra_repr(self) -> list[str]:
        """Name the folder and the split in ``repr``."""
        return [f'Root of dataset: \t{self.data_root}', f'Split: \t{self.split}']


@DATASETS.register_module()
class TinyImageNet(PublishedDataset):
    """TinyImageNet: 200 classes of ImageNet at 64 px, 500 training and 50 validation images each.

    Source: Stanford's course CS231n, ``tiny-imagenet-200.zip``. Class i is the i-th WordNet id
    of ``wnids.txt`` in sorted order.

    Args:
        data_root: The unpacked ``tiny-imagenet-200``.
        split: ``'train'`` or ``'val'``; the published test images have no labels.
        **kwargs: As in mmpretrain's ``BaseDataset``.

    Raises:
        FileNotFoundError: If a file or folder of the layout is missing.
        ValueError: If the split is unknown, a class folder has no image, or a validation image
            is of an unknown class.

    Examples:
        >>> len(TinyImageNet('data/tiny-imagenet-200'))  # doctest: +SKIP
        100000
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
        """Read ``wnids.txt`` and the split's images.

        Returns:
            As the base class.
        """
        wnids = sorted(filter(None, map(str.strip, list_from_file(self.find('wnids.txt')))))
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        samples = []
        if self.split == 'train':
            for wnid, label in labels.items():
                folder = self.find('train', wnid, 'images')
                names = sorted(
                    self.backend.list_dir_or_file(folder, list_dir=False, suffix='.JPEG')
                )
                if not names:
                    raise ValueError(
                        f'Every class must have an image, but {folder!r} holds no .JPEG file. '
                        'Unpack the data set again.'
                    )
                samples += [(self.backend.join_path(folder, name), label) for name in names]
            return wnids, samples
        annotations = self.find('val', 'val_annotations.txt')
        folder = self.find('val', 'images')
        for line in filter(str.strip, list_from_file(annotations)):
            name, wnid = line.split('\t')[:2]
            if wnid not in labels:
                raise ValueError(
                    f'{annotations!r} gives {name!r} the class {wnid!r}, which is not in '
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

    Raises:
        FileNotFoundError: If a file or folder of the layout is missing.
        ValueError: If the split is unknown, or the labels of the list are not 1..K, each naming
            one folder.

    Examples:
        >>> len(StanfordDogs('data/stanford_dogs', split='test'))  # doctest: +SKIP
        8580
    """

    SPLITS = ('train', 'test')
    LAYOUT = (
        'data_root/\n'
        '  Images/<wnid>-<breed>/*.jpg\n'
        '  train_list.mat, test_list.mat      or both in lists/'
    )

    def read_split(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Read the split's ``.mat`` list.

        Returns:
            As the base class.
        """
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

    Raises:
        FileNotFoundError: If a file or folder of the layout is missing.
        ValueError: If the split is unknown, or its list is empty.

    Examples:
        >>> len(MITIndoor67('data/mit67', split='test'))  # doctest: +SKIP
        1340
    """

    SPLITS = ('train', 'test')
    LAYOUT = (
        'data_root/\n'
        '  Images/<class>/*.jpg\n'
        '  TrainImages.txt, TestImages.txt    <class>/<file>.jpg a line'
    )

    def read_split(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Read the two lists.

        Returns:
            As the base class.
        """
        folder = self.find('Images')
        lists = {
            split: list(filter(None, map(str.strip, list_from_file(self.find(file)))))
            for split, file in (('train', 'TrainImages.txt'), ('test', 'TestImages.txt'))
        }
        classes = sorted({line.split('/')[0] for line in chain.from_iterable(lists.values())})
        labels = {name: label for label, name in enumerate(classes)}
        join = self.backend.join_path
        samples = [(join(folder, line), labels[line.split('/')[0]]) for line in lists[self.split]]
        return classes, samples
