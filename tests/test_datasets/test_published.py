"""The published data sets, on small trees in the published layout."""

import cv2
import numpy as np
import pytest
from mmpretrain.registry import DATASETS
from scipy.io import savemat

from kd_mm.datasets import MITIndoor67, StanfordDogs, TinyImageNet

DOGS = ['n02085620-Chihuahua', 'n02085782-Japanese_spaniel', 'n02116738-African_hunting_dog']


def write(path, text=''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cell(strings):
    """A MATLAB column of strings, as in the published lists."""
    column = np.empty((len(strings), 1), dtype=object)
    column[:, 0] = strings
    return column


def listing(data):
    """The images, relative to the root, and their labels."""
    infos = [data.get_data_info(i) for i in range(len(data))]
    return [(i['img_path'].removeprefix(f'{data.data_root}/'), i['gt_label']) for i in infos]


@pytest.fixture
def tiny(tmp_path):
    # Not in sorted order, as in the published file.
    write(tmp_path / 'wnids.txt', 'n02\nn03\nn01\n')
    for wnid in ('n01', 'n02', 'n03'):
        write(tmp_path / f'train/{wnid}/{wnid}_boxes.txt')
        for i in (1, 0):
            write(tmp_path / f'train/{wnid}/images/{wnid}_{i}.JPEG')
    lines = ['val_0.JPEG\tn03\t0\t32\t44\t62', 'val_1.JPEG\tn01\t52\t55\t57\t59']
    write(tmp_path / 'val/val_annotations.txt', '\n'.join(lines) + '\n')
    write(tmp_path / 'val/images/val_0.JPEG')
    write(tmp_path / 'val/images/val_1.JPEG')
    return tmp_path


@pytest.fixture
def dogs(tmp_path):
    for split, count in (('train', 2), ('test', 1)):
        labels = [1, 2, 3] * count
        files = [f'{DOGS[label - 1]}/{split}_{i}.jpg' for i, label in enumerate(labels)]
        content = {
            'file_list': cell(files),
            'annotation_list': cell([file.removesuffix('.jpg') for file in files]),
            'labels': np.array(labels, dtype=np.float64)[:, None],
        }
        savemat(tmp_path / f'{split}_list.mat', content, do_compression=True)
        for file in files:
            write(tmp_path / 'Images' / file)
    return tmp_path


@pytest.fixture
def indoor(tmp_path):
    # 'bar' has no test image, 'winecellar' no training image.
    write(tmp_path / 'TrainImages.txt', 'kitchen/a b.jpg\nbar/c.jpg\nkitchen/d.jpg')
    write(tmp_path / 'TestImages.txt', 'winecellar/e.jpg\nkitchen/f.jpg\n')
    for name in ('kitchen/a b', 'bar/c', 'kitchen/d', 'winecellar/e', 'kitchen/f'):
        write(tmp_path / f'Images/{name}.jpg')
    return tmp_path


class TestTinyImageNet:
    def test_train(self, tiny):
        data = TinyImageNet(str(tiny))
        assert listing(data) == [
            (f'train/n0{label + 1}/images/n0{label + 1}_{i}.JPEG', label)
            for label in range(3)
            for i in range(2)
        ]
        assert data.metainfo['classes'] == ('n01', 'n02', 'n03')
        assert not data.test_mode

    def test_val(self, tiny):
        data = TinyImageNet(str(tiny), split='val')
        assert listing(data) == [('val/images/val_0.JPEG', 2), ('val/images/val_1.JPEG', 0)]
        assert data.metainfo['classes'] == ('n01', 'n02', 'n03')
        assert data.test_mode

    def test_an_empty_class_folder(self, tiny):
        for image in (tiny / 'train/n02/images').iterdir():
            image.unlink()
        with pytest.raises(ValueError, match=r'n02/images.* holds no \.JPEG file'):
            TinyImageNet(str(tiny))

    def test_an_unknown_class(self, tiny):
        write(tiny / 'val/val_annotations.txt', 'val_0.JPEG\tn99\t0\t0\t1\t1\n')
        with pytest.raises(ValueError, match=r"'val_0\.JPEG' the class 'n99'.*not in wnids\.txt"):
            TinyImageNet(str(tiny), split='val')

    def test_no_image(self, tiny):
        write(tiny / 'val/val_annotations.txt', '\n')
        with pytest.raises(ValueError, match="no image of the split 'val'"):
            TinyImageNet(str(tiny), split='val')

    def test_class_names_given(self, tiny):
        data = TinyImageNet(str(tiny), classes=['fish', 'toad', 'bird'])
        assert data.metainfo['classes'] == ('fish', 'toad', 'bird')


class TestStanfordDogs:
    @pytest.mark.parametrize('folder', ['.', 'lists'])
    def test_both_splits(self, dogs, folder):
        (dogs / folder).mkdir(exist_ok=True)
        for split in ('train', 'test'):
            (dogs / f'{split}_list.mat').rename(dogs / folder / f'{split}_list.mat')
        train = StanfordDogs(str(dogs), split='train')
        test = StanfordDogs(str(dogs), split='test')
        assert listing(train) == [(f'Images/{DOGS[i % 3]}/train_{i}.jpg', i % 3) for i in range(6)]
        assert listing(test) == [(f'Images/{DOGS[i]}/test_{i}.jpg', i) for i in range(3)]
        assert train.metainfo['classes'] == test.metainfo['classes'] == tuple(DOGS)

    @pytest.mark.parametrize('labels', [[1, 3, 3], [1, 1, 2], [0, 1, 2]])
    def test_labels_that_do_not_name_one_folder_each(self, dogs, labels):
        content = {
            'file_list': cell([f'{name}/x.jpg' for name in DOGS]),
            'labels': np.array(labels, dtype=np.float64)[:, None],
        }
        savemat(dogs / 'train_list.mat', content)
        with pytest.raises(ValueError, match=r'must be 1\.\.K, each naming one folder'):
            StanfordDogs(str(dogs))


class TestMITIndoor67:
    def test_classes_are_of_both_lists(self, indoor):
        train = MITIndoor67(str(indoor), split='train')
        test = MITIndoor67(str(indoor), split='test')
        assert listing(train) == [
            ('Images/kitchen/a b.jpg', 1),
            ('Images/bar/c.jpg', 0),
            ('Images/kitchen/d.jpg', 1),
        ]
        assert listing(test) == [('Images/winecellar/e.jpg', 2), ('Images/kitchen/f.jpg', 1)]
        assert train.metainfo['classes'] == test.metainfo['classes']
        assert train.metainfo['classes'] == ('bar', 'kitchen', 'winecellar')


@pytest.mark.parametrize(
    ('cls', 'tree', 'split', 'missing'),
    [
        (TinyImageNet, 'tiny', 'train', 'wnids.txt'),
        (TinyImageNet, 'tiny', 'train', 'train/n02'),
        (TinyImageNet, 'tiny', 'val', 'val/val_annotations.txt'),
        (StanfordDogs, 'dogs', 'train', 'Images'),
        (StanfordDogs, 'dogs', 'test', 'test_list.mat'),
        (MITIndoor67, 'indoor', 'test', 'TrainImages.txt'),
    ],
)
def test_a_missing_file_is_named_with_the_layout(cls, tree, split, missing, request):
    root = request.getfixturevalue(tree)
    (root / missing).rename(root / 'elsewhere')
    with pytest.raises(FileNotFoundError) as caught:
        cls(str(root), split=split)
    assert f"{cls.__name__} looked for '{root}/{missing}" in str(caught.value)
    assert cls.LAYOUT in str(caught.value)


def test_works_in_mmpretrain_by_name_with_a_pipeline(indoor):
    image = np.full((5, 7, 3), 200, dtype=np.uint8)
    cv2.imwrite(str(indoor / 'Images/kitchen/a b.jpg'), image)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    data = DATASETS.build(dict(type='kd_mm.MITIndoor67', data_root=str(indoor), pipeline=pipeline))
    item = data[0]
    assert item['inputs'].shape == (3, 5, 7)
    assert item['data_samples'].gt_label.item() == 1
