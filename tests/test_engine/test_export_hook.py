"""A short real run with averaged weights, and what it exports."""

from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_mm.checkpoint import load_checkpoint
from kd_mm.export import choose_weights

STUDENT = {
    'type': 'ImageClassifier',
    'backbone': {
        **{'type': 'ResNet', 'depth': 18, 'stem_channels': 4, 'base_channels': 4},
        'strides': (1, 1, 2, 2),
    },
    'neck': {'type': 'GlobalAveragePooling'},
    'head': {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 32},
}
STAGES = {**STUDENT, 'backbone': {**STUDENT['backbone'], 'out_indices': (1, 2, 3)}}
FFSD_NAMES = ('student1', 'student2', 'leader')
# The model, the names that are exported, and the name that predicts.
CASES = {
    'vanilla': (STUDENT, [''], ''),
    'bake-head': ({**STUDENT, 'head': {**STUDENT['head'], 'type': 'kd_mm.BAKEHead'}}, [''], ''),
    'general': (
        {
            **{'type': 'kd_mm.KDCL', 'students': dict.fromkeys('ab', STUDENT)},
            **{'target': 'general', 'deploy': 'b'},
        },
        ['a', 'b'],
        'b',
    ),
    'ffsd': (
        {'type': 'kd_mm.FFSD', 'students': dict.fromkeys(FFSD_NAMES, STAGES)},
        ['leader'],
        'leader',
    ),
}


def config(name, work_dir, **ema):
    model = CASES[name][0]
    pipeline = [{'type': 'Resize', 'scale': 32}, {'type': 'PackInputs'}]
    whole = {'type': 'kd_mm.Digits', 'indices': 40, 'pipeline': pipeline}
    split = {'type': 'kd_mm.HoldOut', 'num_per_class': 1, 'dataset': whole}
    is_cohort = 'students' in model
    loader = {'batch_size': 10, 'num_workers': 0, 'sampler': {'type': 'DefaultSampler'}}
    sampler = {'type': 'DefaultSampler', 'shuffle': True}
    if name == 'bake-head':
        sampler = {'type': 'kd_mm.ClassInstanceSampler', 'num_instances': 2}
    dataset = split if name == 'general' else whole
    tested = {**loader, 'dataset': {**whole, 'split': 'test'}}
    metric = {'type': 'kd_mm.CohortAccuracy' if is_cohort else 'Accuracy', 'topk': (1, 5)}
    preprocessor = {'mean': [127.5] * 3, 'std': [127.5] * 3, 'num_classes': 10}
    if is_cohort:
        preprocessor['type'] = 'kd_mm.CohortDataPreprocessor'
    hooks = ({'type': 'kd_mm.ExportHook'}, {'type': 'kd_mm.DistillerHook'})
    return Config(
        {
            'default_scope': 'mmpretrain',
            'experiment_name': work_dir.name,
            'work_dir': str(work_dir),
            'custom_imports': {'imports': ['kd_mm'], 'allow_failed_imports': False},
            'randomness': {'seed': 0},
            'model': model,
            'data_preprocessor': preprocessor,
            'train_dataloader': {**loader, 'sampler': sampler, 'dataset': dataset},
            **{'val_dataloader': tested, 'val_evaluator': metric, 'val_cfg': {}},
            **{'test_dataloader': tested, 'test_evaluator': metric, 'test_cfg': {}},
            'train_cfg': {'by_epoch': True, 'max_epochs': 2},
            'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.05}},
            'default_hooks': {
                'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'save_best': 'auto'}
            },
            'custom_hooks': [*hooks, {'type': 'EMAHook', 'momentum': 0.3, **ema}],
            'log_level': 'WARNING',
        }
    )


class Witness(Hook):
    """Keep the weights that are trained and those that are validated, epoch by epoch."""

    priority = 'LOWEST'

    def __init__(self):
        self.trained, self.validated = [], []

    def after_train_epoch(self, runner):
        self.trained.append(deepcopy(runner.model.state_dict()))

    def before_val_epoch(self, runner):
        self.validated.append(deepcopy(runner.model.state_dict()))

    def after_val_epoch(self, runner, metrics=None):
        self.metrics = dict(metrics)


def train(name, folder, **ema):
    runner, witness = Runner.from_cfg(config(name, folder, **ema)), Witness()
    runner.register_hook(witness)
    runner.train()
    return witness, runner.model


def same(found, expected):
    assert found.keys() == expected.keys()
    # General's own weights are set after the average is taken.
    compared = expected.keys() - {'methods.kdcl.weights'}
    return all(torch.equal(found[key], expected[key]) for key in compared)


@pytest.mark.parametrize('name', CASES)
def test_the_average_is_exported_and_tests_as_validation_did(name, tmp_path):
    _, exported, deployed = CASES[name]
    witness, model = train(name, tmp_path / 'run')
    trained, validated = witness.trained[-1], witness.validated[-1]
    assert not same(validated, trained)
    assert same(model.state_dict(), trained)
    checkpoint = load_checkpoint(tmp_path / 'run/epoch_2.pth')
    assert same(choose_weights(checkpoint), validated)
    assert same(choose_weights(checkpoint, ema=False), trained)

    deploy = tmp_path / 'run/deploy'
    if exported != ['']:
        assert sorted(path.name for path in deploy.iterdir()) == exported
    for student in exported:
        saved = torch.load(deploy / student / 'model.pth', weights_only=True)
        assert saved['meta']['dataset_meta']['classes'] == tuple('0123456789')
        prefix = f'students.{student}.' if student else ''
        for key, weight in saved['state_dict'].items():
            assert torch.equal(weight, validated[prefix + key])

    # As mmpretrain's tool tests it; MMEngine averages nothing here, although the hook is there.
    cfg = Config.fromfile(deploy / deployed / 'config.py')
    assert 'EMAHook' in str(cfg.custom_hooks)
    cfg.update(load_from=str(deploy / deployed / 'model.pth'), work_dir=str(tmp_path / 'test'))
    cfg.experiment_name = f'{name}_tested'
    found = Runner.from_cfg(cfg).test()
    for key in ('accuracy/top1', 'accuracy/top5'):
        expected = witness.metrics[f'{deployed}/{key}' if deployed else key]
        assert found[key] == pytest.approx(expected, abs=1e-4)


def test_without_an_average_in_validation_the_original_is_exported(tmp_path):
    witness, _ = train('vanilla', tmp_path, evaluate_on_ema=False, evaluate_on_origin=True)
    saved = torch.load(tmp_path / 'deploy/model.pth', weights_only=True)['state_dict']
    assert same(saved, witness.validated[-1])
    assert same(saved, witness.trained[-1])
