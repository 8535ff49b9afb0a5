"""Each misspelt type and option is named with its place and the nearest known one."""

import pytest
from mmengine.config import Config

from kd_mm.models.heads import BAKEHead
from kd_mm.run.check_types import check_types
from tests.conftest import REPO

DIGITS = 'configs/bake/resnet20_1xb64_digits.py'
PAIR = 'configs/kdcl/kdcl-minlogit_resnet20-wrn16-1_1xb64_digits.py'
FFSD = 'configs/ffsd/ffsd_resnet20_1xb64_digits.py'
TRAIN = 'train_dataloader'


@pytest.mark.parametrize(
    ('config', 'key', 'value', 'error', 'message'),
    [
        (
            DIGITS,
            'model.head.type',
            'kd_mm.BAKEHed',
            ValueError,
            r'head: .*mean kd_mm.BAKEHead',
        ),
        (DIGITS, 'model.head.type', 'BAKEHead', ValueError, r'no BAKEHead .*mean kd_mm.BAKEHead'),
        (DIGITS, 'model.head.omga', 0.5, TypeError, r'head: kd_mm\.BAKEHead has no option omga; '),
        (
            PAIR,
            'model.type',
            'KDCL',
            ValueError,
            r'no KDCL .*did you mean kd_mm.KDCL',
        ),
        (
            PAIR,
            'model.temprature',
            1,
            TypeError,
            'no option temprature; .* temperature',
        ),
        (
            PAIR,
            'model.students.wrn16_1.neck.type',
            'GlobalAveragePoling',
            ValueError,
            r'students\.wrn16_1\.neck: no GlobalAveragePoling .*; did you mean GlobalAveragePool',
        ),
        (FFSD, 'model.fusion_weight.type', 'kd_mm.SigmoidRampp', ValueError, 'kd_mm.SigmoidRamp'),
        (FFSD, 'model.fusion_weight.epoch', 1, TypeError, 'SigmoidRamp has no option epoch; did'),
        (DIGITS, 'val_evaluator.type', 'Acuracy', ValueError, 'evaluator: no Acuracy .* Accuracy'),
        (DIGITS, 'default_hooks.logger.type', 'LossGuardHok', ValueError, 'kd_mm.LossGuardHook'),
        (DIGITS, 'default_hooks.timer.prioritty', 1, TypeError, 'no option prioritty'),
        (
            DIGITS,
            'optim_wrapper.optimizer.type',
            'Xyzzy',
            ValueError,
            r'optim_wrapper\.optimizer: no Xyzzy is registered; install what it needs, or import',
        ),
        (DIGITS, f'{TRAIN}.sampler.num_instance', 2, TypeError, 'did you mean num_instances'),
        (
            DIGITS,
            f'{TRAIN}.dataset.pipeline.1.paddings',
            1,
            TypeError,
            r'pipeline\[1\]: RandomCrop has no option paddings; did you mean padding\?',
        ),
    ],
)
def test_a_misspelt_name(config, key, value, error, message):
    cfg = Config.fromfile(REPO / config)
    check_types(cfg.to_dict())
    cfg.merge_from_dict({key: value})
    with pytest.raises(error, match=message):
        check_types(cfg.to_dict())


def test_what_plain_training_takes_passes():
    check_types({'norm_cfg': {'type': 'SyncBN', 'requires_grad': True}})
    check_types({'clip_grad': {'type': 'norm', 'max_norm': 1}})  # no name of a registry
    check_types({'head': {'type': BAKEHead, 'omega': 0.5}})  # as in Python configs
    check_types({'model': {'type': 'collections.OrderedDict', 'part': {'type': 'anything'}}})
    check_types({'hook': {'type': 'CheckpointHook', 'save_optimizer': True, 'priority': 'LOW'}})
    methods = {'kdcl': {'type': 'KDCL', 'target': 'naive'}}
    check_types({'model': {'type': 'kd_mm.Distiller', 'students': {}, 'methods': methods}})


def test_one_name_of_two_registries_takes_the_options_of_either():
    """COCOCaption is a metric, and where its data set is installed a data set, too."""
    with pytest.raises(TypeError, match='COCOCaption has no option an_file; did you mean ann_f'):
        check_types({'type': 'COCOCaption', 'an_file': 'a.json'})


@pytest.mark.parametrize('config', [DIGITS, FFSD])
def test_types_of_a_config_that_another_project_inherits(config):
    """MMEngine then marks each variable's types as ours, also the pipeline's, which are not."""
    cfg = Config.fromfile(REPO / config).to_dict()
    inherited = Config(Config._dict_to_config_dict(cfg, 'kd_mm'))
    assert inherited.train_pipeline[0]['_scope_'] == 'kd_mm'
    check_types(inherited.to_dict())


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
