"""Each mistake of the issue is named before the first iteration, with its value and its fix."""

import copy
import logging
import shutil

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.datasets import CustomDataset

from kd_mm.run.dry_run import quiet
from kd_mm.run.preflight import (
    USER_ERRORS,
    check_config,
    check_parts,
    check_same_classes,
    check_types,
    options,
)
from tests.conftest import REPO
from tests.forked import run_tool

DIGITS = 'configs/bake/resnet20_1xb64_digits.py'
SWIN = 'configs/bake/swin-t_8xb128_in1k.py'
PAIR = 'configs/kdcl/kdcl-minlogit_resnet20-wrn16-1_1xb64_digits.py'
GENERAL = 'configs/kdcl/kdcl-general_resnet20-wrn16-1_1xb64_digits.py'
MUTUAL = 'configs/dml/dml_resnet20-wrn16-1_1xb64_digits.py'
TRAIN = 'train_dataloader'


def refused(config, error, message, loaders=(TRAIN,), **options_):
    cfg = Config.fromfile(REPO / config)
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options_.items()})
    before = cfg.to_dict()
    with pytest.raises(error, match=message):
        check_config(cfg, loaders)
    assert cfg.to_dict() == before
    assert error in USER_ERRORS or issubclass(error, USER_ERRORS)


@pytest.mark.parametrize(
    ('options_', 'error', 'message'),
    [
        ({'model__head__omega': 1.0}, ValueError, r'omega must lie in \[0, 1\), but got 1\.0'),
        ({'model__head__temperature': 0.0}, ValueError, 'temperature must be positive .* got 0'),
        (
            {f'{TRAIN}__batch_size': 63},
            ValueError,
            r'multiple of sampler\.num_instances.* got 63 and 2; the nearest are 62 and 64',
        ),
        (
            {f'{TRAIN}__sampler__num_instances': 1},
            ValueError,
            'num_instances must be .*2.* got 1',
        ),
        (
            {f'{TRAIN}__sampler__epoch_length': 'image'},
            ValueError,
            "epoch_length .*'anchors'.*'images'.* 'image'",
        ),
        (
            {'model__head__num_classes': 9},
            ValueError,
            r'got 9 and the label 9.*head\.num_classes=10',
        ),
        (
            {'model__head__omga': 0.5},
            TypeError,
            r'model\.head: kd_mm\.BAKEHead has no option omga; did you mean omega',
        ),
        (
            {f'{TRAIN}__sampler__num_instance': 2},
            TypeError,
            'has no option num_instance; did you mean num_instances',
        ),
        (
            {'model__head__type': 'kd_mm.BAKEHed'},
            ValueError,
            'kd_mm has no BAKEHed; did you mean BAKEHead',
        ),
        (
            {'model__head__type': 'BAKEHead'},
            ValueError,
            r"write type='kd_mm\.BAKEHead' instead of 'BAKEHead'",
        ),
        ({f'{TRAIN}__dataset__split': 'val'}, ValueError, "split .*'val'"),
        ({'load_from': 'nowhere.pth'}, FileNotFoundError, 'no checkpoint at nowhere.pth'),
        ({'optim_wrapper__type': 'AmpOptimWrapper'}, ValueError, 'leave out --amp'),
    ],
)
def test_mistakes_in_the_digits_config(options_, error, message, monkeypatch):
    monkeypatch.setattr('kd_mm.run.preflight.is_cuda_available', lambda: False)
    refused(DIGITS, error, message, **options_)


def test_a_good_config_passes(image_folder):
    check_config(Config.fromfile(REPO / DIGITS), (TRAIN, 'val_dataloader'))
    cfg = Config.fromfile(REPO / SWIN)
    cfg.merge_from_dict({f'{TRAIN}.dataset.data_root': str(image_folder)})
    check_config(cfg, (TRAIN,))


@pytest.mark.parametrize(
    ('path', 'more'),
    [
        (DIGITS, {'optim_wrapper.paramwise_cfg.norm_decay_mult': 0.0}),
        ('configs/ffsd/ffsd_resnet20_1xb64_digits.py', {}),  # an optimizer for each part
    ],
)
def test_what_makes_a_step_faster_passes(path, more):
    cfg = Config.fromfile(REPO / path)
    cfg.merge_from_dict(
        {
            **more,
            'compile': True,
            'default_hooks.channels_last.type': 'kd_mm.ChannelsLastHook',
            'optim_wrapper.type': 'kd_mm.Bfloat16OptimWrapper',
            'optim_wrapper.accumulative_counts': 2,
        }
    )
    check_config(cfg, (TRAIN, 'val_dataloader'))
    cfg.optim_wrapper.dtype = 'float16'
    with pytest.raises(TypeError, match='Bfloat16OptimWrapper has no option dtype'):
        check_config(cfg, (TRAIN, 'val_dataloader'))


def test_missing_and_empty_data_folders(tmp_path):
    key = {f'{TRAIN}__dataset__data_root': str(tmp_path / 'no')}
    refused(
        SWIN,
        FileNotFoundError,
        rf'{tmp_path}/no does not exist; .*--cfg-options {TRAIN}\.dataset\.data_root=FOLDER',
        **key,
    )
    key = {f'{TRAIN}__dataset__data_root': str(tmp_path)}
    refused(SWIN, FileNotFoundError, rf'{tmp_path} is empty', **key)


def test_a_class_that_validation_lacks(image_folder, tmp_path):
    """Folders are numbered as they come, so that labels would shift."""
    root = shutil.copytree(image_folder, tmp_path / 'data')
    cfg = Config.fromfile(REPO / SWIN)
    for loader, prefix in ((TRAIN, 'train'), ('val_dataloader', 'val')):
        cfg[loader].dataset.pop('split')
        cfg[loader].dataset.update(type='CustomDataset', data_root=str(root), data_prefix=prefix)
    cfg.val_dataloader.dataset.classes = [f'n0000000{i}' for i in (1, 0, 2, 3)]
    with pytest.raises(ValueError, match=r'must number the same classes, .* the order differs; s'):
        check_config(cfg, (TRAIN, 'val_dataloader'))
    del cfg.val_dataloader.dataset.classes
    (root / 'val' / 'n00000001').rename(root / 'val' / 'n00000009')
    only = r'must number the same classes, .* has n00000001, n00000009; set'
    with pytest.raises(ValueError, match=only):
        check_config(cfg, (TRAIN, 'val_dataloader'))
    for wrapper in (
        {'type': 'RepeatDataset', 'times': 2},
        {'type': 'kd_mm.HoldOut', 'num_per_class': 1},
    ):
        wrapped = copy.deepcopy(cfg)
        wrapped[TRAIN].dataset = {**wrapper, 'dataset': cfg[TRAIN].dataset}
        with pytest.raises(ValueError, match=only):
            check_config(wrapped, (TRAIN, 'val_dataloader'))
    shutil.rmtree(root / 'val' / 'n00000009')
    with pytest.raises(ValueError, match=r'must number the same classes, .* has n00000001; set'):
        check_config(cfg, (TRAIN, 'val_dataloader'))


def test_classes_that_look_alike(tmp_path):
    """A Mac may write a letter and its accent as two characters."""
    sets = {}
    for name, folder in (('train', 'h\u00fcndin'), ('val', 'hu\u0308ndin')):
        (tmp_path / name / folder).mkdir(parents=True)
        (tmp_path / name / folder / '1.png').touch()
        sets[name] = CustomDataset(str(tmp_path), data_prefix=name)
    with pytest.raises(
        ValueError, match=r"'hu\\u0308ndin' in one and 'h\\xfcndin' in the other; r"
    ):
        check_same_classes(sets)


def test_more_folders_than_classes(image_folder):
    """A folder that is no class, such as a notebook's, is found by its name."""
    cfg = Config.fromfile(REPO / SWIN)
    cfg[TRAIN].dataset.pop('split')
    cfg[TRAIN].dataset.update(
        type='CustomDataset', data_root=str(image_folder), data_prefix='train'
    )
    cfg.model.head.num_classes = 3
    with pytest.raises(
        ValueError, match=r'whose classes are n00000000, n0.* and 1 more; set head'
    ):
        check_config(cfg, (TRAIN,))


def test_precise_statistics_of_a_cohort():
    hook = {'type': 'PreciseBNHook', 'num_samples': 8}
    check_parts(Config({'model': {}, 'custom_hooks': [hook]}))
    with pytest.raises(ValueError, match='PreciseBNHook sees the deployed student of a cohort al'):
        check_parts(Config({'model': {'students': {}}, 'custom_hooks': [hook]}))


def test_an_empty_class_folder(image_folder, tmp_path):
    root = shutil.copytree(image_folder, tmp_path / 'data')
    shutil.rmtree(root / 'meta')
    for picture in (root / 'train' / 'n00000002').iterdir():
        picture.unlink()
    key = {
        f'{TRAIN}__dataset__data_root': str(root),
        f'{TRAIN}__dataset__type': 'CustomDataset',
        f'{TRAIN}__dataset__data_prefix': 'train',
        'val_cfg': None,
        'val_dataloader': None,
        'val_evaluator': None,
        'model__head__num_classes': 4,
    }
    cfg = Config.fromfile(REPO / SWIN)
    cfg[TRAIN].dataset.pop('split')
    cfg.merge_from_dict({k.replace('__', '.'): v for k, v in key.items()})
    cfg.dump(tmp_path / 'config.py')
    done = run_tool('train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'w', check=False)
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert 'n00000002' in last
    assert not (tmp_path / 'w').exists()


def test_an_unreadable_image_is_named_with_its_path(image_folder, tmp_path):
    from mmengine.registry import DATASETS

    root = shutil.copytree(image_folder, tmp_path / 'data')
    broken = next((root / 'train').glob('*/*.JPEG'))
    broken.write_bytes(b'no picture')
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(REPO / SWIN)[TRAIN].dataset
    cfg.data_root = str(root)
    dataset = DATASETS.build(cfg)
    index = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))].index(str(broken))
    with pytest.raises(Exception, match=str(broken)):
        dataset[index]
    assert cv2.imread(str(broken)) is None


def test_a_checkpoint_of_another_model_stops_the_run(tmp_path):
    torch.save({'state_dict': {'other.weight': torch.ones(2)}}, tmp_path / 'other.pth')
    done = run_tool(
        'test.py', DIGITS, tmp_path / 'other.pth', '--work-dir', tmp_path / 'w', check=False
    )
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith('error: at least one weight of the model must be in the checkpoint')
    assert 'none of the 1 names in' in last
    assert not (tmp_path / 'w').exists()


def test_options_follow_the_arguments_that_are_passed_on():
    from kd_mm.models.heads import BAKEHead

    assert options(BAKEHead) >= {'omega', 'gather', 'num_classes', 'loss', 'topk', 'init_cfg'}
    assert 'kwargs' not in options(BAKEHead)


ONE = {
    'type': 'ImageClassifier',
    'backbone': {'type': 'kd_mm.CIFARResNet', 'depth': 8},
    'neck': {'type': 'GlobalAveragePooling'},
    'head': {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 64},
}
VIEWS = f'{TRAIN}__dataset__pipeline__1__num_views'


@pytest.mark.parametrize(
    ('config', 'options_', 'message'),
    [
        (
            PAIR,
            {'model__students__wrn16_1__head__num_classes': 12},
            'same number of classes, but got resnet20: 10, wrn16_1: 12; set',
        ),
        (
            MUTUAL,
            {'model__students': {'_delete_': True, 'one': ONE}, 'model__deploy': None},
            'at least two students, but got one; add',
        ),
        (
            PAIR,
            {'model__target': 'minlogit'},
            "one of 'naive', 'linear', 'min_logit', 'general', but got 'minlogit'",
        ),
        (
            PAIR,
            {'model__students': {'res.net': ONE}},
            "word without dots, but got 'res.net'",
        ),
        (PAIR, {'model__deploy': 'wrn'}, "one of the students resnet20, wrn16_1, but got 'wrn'"),
        (PAIR, {'model__temperature': 0.0}, r'temperature must be positive .* got 0\.0'),
        (MUTUAL, {'model__temperature': -1.0}, r'temperature must be positive .* got -1\.0'),
        (PAIR, {VIEWS: 3}, "'per_student' with 2 students needs 2 views .* gives 3 views"),
        (PAIR, {VIEWS: 1}, "'per_student' with 2 students needs 2 views .* gives 1 views"),
        (PAIR, {'model__views': 'shared'}, "'shared' .* needs one image .* gives 2 views"),
        (MUTUAL, {'model__views': 'per_student'}, 'needs 2 views .* gives one image'),
        (
            GENERAL,
            {f'{TRAIN}__dataset__num_per_class': 1000},
            'num_per_class=1000 empties 10 of 10 classes',
        ),
        (
            GENERAL,
            {f'{TRAIN}__dataset__part': 'held_out'},
            "must be dict.type='kd_mm.HoldOut', part='train'.* 'part': 'held_out'",
        ),
    ],
)
def test_mistakes_in_a_cohorts_config(config, options_, message):
    refused(config, ValueError, message, **options_)


@pytest.mark.parametrize('part', ['', '__backbone'])
def test_a_students_checkpoint_that_fits_nothing(part, tmp_path):
    path = tmp_path / 'other.pth'
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    changes = {f'model__students__wrn16_1{part}__init_cfg': init_cfg}
    refused(PAIR, FileNotFoundError, f'no checkpoint at {path}', **changes)
    torch.save({'state_dict': {'other.weight': torch.ones(2)}}, path)
    where = f'students.wrn16_1{part}'.replace('__', '.')
    refused(PAIR, ValueError, f'none of the 1 names in {path} of {where}', **changes)
    cfg = Config.fromfile(REPO / PAIR)
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    check_config(cfg, ('val_dataloader',))  # testing starts from another checkpoint


def test_good_cohorts_pass():
    for config in (PAIR, GENERAL, MUTUAL):
        check_config(Config.fromfile(REPO / config), (TRAIN, 'val_dataloader'))
    cfg = Config.fromfile(REPO / MUTUAL)
    one = {'_delete_': True, 'type': 'kd_mm.KDCL', 'students': {'one': ONE}}
    cfg.merge_from_dict({'model': one})
    check_config(cfg, (TRAIN,))  # plain training


def test_held_out_images_are_read_as_those_of_the_test_where_nothing_validates():
    cfg = Config.fromfile(REPO / GENERAL)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    check_config(cfg, (TRAIN,))
    cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None)
    with pytest.raises(ValueError, match=r'no val_dataloader .*; give kd_mm.DistillerHook a held'):
        check_config(cfg, (TRAIN,))


@pytest.mark.parametrize('config', [DIGITS, GENERAL, 'configs/ffsd/ffsd_resnet20_1xb64_digits.py'])
def test_good_configs_pass_where_another_project_inherits_them(config):
    # MMEngine then marks each variable's types as ours, also the pipeline's, which are not.
    cfg = Config.fromfile(REPO / config).to_dict()
    inherited = Config(Config._dict_to_config_dict(cfg, 'kd_mm'))
    assert inherited.train_pipeline[0]['_scope_'] == 'kd_mm'
    check_config(inherited, (TRAIN,))


def test_the_tool_ends_in_one_line_and_writes_nothing(tmp_path):
    options_ = ('--cfg-options', 'model.target=median')
    done = run_tool('train.py', PAIR, '--work-dir', tmp_path / 'w', *options_, check=False)
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(
        "error: target must be one of 'naive', 'linear', 'min_logit', 'general'"
    )
    assert 'Traceback' not in done.stdout
    assert not (tmp_path / 'w').exists()


def cohort(**changes):
    """The parts of a config that check_parts looks at."""
    cfg = Config(
        {
            'model': {'type': 'kd_mm.KDCL', 'target': 'general', 'students': {}},
            'train_cfg': {'max_epochs': 1},
            'optim_wrapper': {'parts': {'a': {}, 'b': {}}},
            'param_scheduler': {'a': [], 'b': []},
        }
    )
    cfg.merge_from_dict(changes)
    return cfg


def test_schedules_by_part_name_the_parts_of_the_optimizer():
    with pytest.raises(ValueError, match=r'param_scheduler has a, b, c and .* has a, b'):
        check_parts(cohort(**{'param_scheduler.c': []}))
    check_parts(cohort(param_scheduler=[{'type': 'MultiStepLR'}]))  # one schedule for all


def test_a_student_is_checked_with_the_recipe_that_it_changes():
    """What a student of a ``cfg_path`` says of its head is not all that the head gets."""
    student = {
        'cfg_path': 'mmpretrain::_base_/models/resnet18.py',
        'head': {'type': 'kd_mm.BAKEHead', 'omega': 0.5},
    }
    check_types({'students': {'a': student}})
    student['head']['omga'] = 0.5
    with pytest.raises(TypeError, match=r'students\.a\.head: kd_mm.BAKEHead has no option omga'):
        check_types({'students': {'a': student}})


FFSD = 'configs/ffsd/ffsd_resnet20_1xb64_digits.py'


@pytest.mark.parametrize(
    ('config', 'options_', 'error', 'message'),
    [
        (
            PAIR,
            {'model__students__wrn16_1__neck__type': 'GlobalAveragePoling'},
            ValueError,
            r'students\.wrn16_1\.neck: no GlobalAveragePoling .*; did you mean GlobalAveragePool',
        ),
        (
            DIGITS,
            {'val_evaluator__type': 'Acuracy'},
            ValueError,
            r'val_evaluator: no Acuracy is registered; did you mean Accuracy\?',
        ),
        (
            DIGITS,
            {'default_hooks__logger__type': 'LossGuardHok'},
            ValueError,
            r'default_hooks\.logger: no LossGuardHok .*; did you mean kd_mm\.LossGuardHook\?',
        ),
        (
            DIGITS,
            {'optim_wrapper__optimizer__type': 'Xyzzy'},
            ValueError,
            r'optim_wrapper\.optimizer: no Xyzzy is registered; install what it needs, or import',
        ),
        (
            DIGITS,
            {f'{TRAIN}__dataset__pipeline__1__paddings': 1},
            TypeError,
            r'pipeline\[1\]: RandomCrop has no option paddings; did you mean padding\?',
        ),
        (
            FFSD,
            {'optim_wrapper__parts__fusion__prefix': 'fusoin'},
            ValueError,
            r"parts\.fusion: prefix must name a module of the model, but got 'fusoin'; did you",
        ),
        (DIGITS, {'work_dir': '/dev/null/a/b'}, NotADirectoryError, '/dev/null is a file'),
    ],
)
def test_mistakes_that_were_tracebacks(config, options_, error, message):
    refused(config, error, message, **options_)


def test_a_work_dir_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr('os.access', lambda path, mode: path != tmp_path)
    refused(DIGITS, PermissionError, f'{tmp_path} is not; choose', work_dir=f'{tmp_path}/a/b')


def test_one_name_of_two_registries_takes_the_options_of_either():
    """COCOCaption is a metric, and where its data set is installed a data set, too."""
    with pytest.raises(TypeError, match='COCOCaption has no option an_file; did you mean ann_f'):
        check_types({'type': 'COCOCaption', 'an_file': 'a.json'})
    check_types({'norm_cfg': {'type': 'SyncBN', 'requires_grad': True}})
    check_types({'clip_grad': {'type': 'norm', 'max_norm': 1}})


def test_what_the_run_will_log_is_not_said_before():
    """MMEngine's logger remembers that it is loud; a recipe has a line for each parameter."""
    logger, lines = MMLogger.get_current_instance(), []
    logger.addHandler(handler := logging.Handler(logging.INFO))
    handler.emit = lambda record: lines.append(record.msg)
    try:
        logger.info('loud')
        cfg = Config.fromfile(REPO / 'configs/bake/swin-t_8xb128_in1k.py')
        with pytest.raises(FileNotFoundError, match='data folder data/imagenet does not exist'):
            check_config(cfg, ('train_dataloader',))
        with quiet():
            logger.info('held back')
        logger.info('loud again')
    finally:
        logger.removeHandler(handler)
    assert lines == ['loud', 'loud again']
