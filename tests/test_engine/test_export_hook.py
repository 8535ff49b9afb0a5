"""A short real run of each method with averaged weights, and what its checkpoints export."""

import re
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from kd_mm.checkpoint import load_checkpoint
from kd_mm.export import choose_weights, export_student

STUDENT = {
    'type': 'ImageClassifier',
    'backbone': {
        **{'type': 'ResNet', 'depth': 18, 'stem_channels': 4, 'base_channels': 4},
        'strides': (1, 1, 2, 2),
    },
    'neck': {'type': 'GlobalAveragePooling'},
    'head': {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 32},
}
BAKE_HEAD = {**STUDENT, 'head': {**STUDENT['head'], 'type': 'kd_mm.BAKEHead'}}
STAGES = {**STUDENT, 'backbone': {**STUDENT['backbone'], 'out_indices': (1, 2, 3)}}


def cohort(method, student=STUDENT, names=('a', 'b'), **settings):
    return {'type': f'kd_mm.{method}', 'students': dict.fromkeys(names, student), **settings}


MODELS_OF = {
    'vanilla': STUDENT,
    'bake': {'type': 'kd_mm.BAKE', 'student': STUDENT},
    'bake-head': BAKE_HEAD,
    'kdcl-naive': cohort('KDCL', target='naive'),
    'kdcl-linear': cohort('KDCL', target='linear', deploy='b'),
    'kdcl-minlogit': cohort('KDCL', target='min_logit'),
    'kdcl-general': cohort('KDCL', target='general'),
    'dml': cohort('DML'),
    'ffsd': cohort('FFSD', STAGES, ('student1', 'student2', 'leader')),
}


def config(name, model, work_dir, **ema):
    pipeline = [{'type': 'Resize', 'scale': 32}, {'type': 'PackInputs'}]
    whole = {'type': 'kd_mm.Digits', 'indices': 40, 'pipeline': pipeline}
    split = {'type': 'kd_mm.HoldOut', 'num_per_class': 1, 'dataset': whole}
    is_cohort = 'students' in model
    sampler = {'type': 'DefaultSampler', 'shuffle': True}
    if name.startswith('bake'):
        sampler = {'type': 'kd_mm.ClassInstanceSampler', 'num_instances': 2}
    hooks = [
        {'type': 'kd_mm.ExportHook'},
        {'type': 'kd_mm.DistillerHook'},
        {'type': 'EMAHook', 'momentum': 0.3, **ema},
    ]
    loader = {'batch_size': 10, 'num_workers': 0, 'sampler': {'type': 'DefaultSampler'}}
    tested = {**loader, 'dataset': {**whole, 'split': 'test'}}
    metric = {'type': 'kd_mm.CohortAccuracy' if is_cohort else 'Accuracy', 'topk': (1, 3, 5)}
    return Config(
        {
            'default_scope': 'mmpretrain',
            'experiment_name': work_dir.name,
            'work_dir': str(work_dir),
            'custom_imports': {'imports': ['kd_mm'], 'allow_failed_imports': False},
            'randomness': {'seed': 0},
            'model': model,
            'data_preprocessor': {
                **{'mean': [127.5] * 3, 'std': [127.5] * 3, 'num_classes': 10},
                **({'type': 'kd_mm.CohortDataPreprocessor'} if is_cohort else {}),
            },
            'train_dataloader': {
                **loader,
                'sampler': sampler,
                'dataset': split if name == 'kdcl-general' else whole,
            },
            'val_dataloader': tested,
            'test_dataloader': tested,
            'val_evaluator': metric,
            'test_evaluator': metric,
            'train_cfg': {'by_epoch': True, 'max_epochs': 2},
            'val_cfg': {},
            'test_cfg': {},
            'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.05}},
            'default_hooks': {
                'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'save_best': 'auto'}
            },
            'custom_hooks': hooks,
        }
    )


class Witness(Hook):
    """Keeps the weights that are trained and those that are validated, epoch by epoch."""

    priority = 'LOWEST'

    def __init__(self):
        self.trained, self.validated, self.metrics = [], [], []

    def after_train_epoch(self, runner):
        self.trained.append(deepcopy(runner.model.state_dict()))

    def before_val_epoch(self, runner):
        self.validated.append(deepcopy(runner.model.state_dict()))

    def after_val_epoch(self, runner, metrics=None):
        self.metrics.append(dict(metrics))


def train(name, folder, **ema):
    cfg = config(name, MODELS_OF[name], folder, **ema)
    witness = Witness()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(witness)
    runner.train()
    return SimpleNamespace(cfg=cfg, work_dir=folder, witness=witness, model=runner.model)


@pytest.fixture(scope='module', params=MODELS_OF)
def finished(request, tmp_path_factory):
    """A run of two epochs with an average of weights."""
    return train(request.param, tmp_path_factory.mktemp(request.param))


GENERAL = 'methods.kdcl.weights'


def same(found, expected):
    assert found.keys() == expected.keys()
    # General's own weights are set after the average is taken.
    return all(torch.equal(found[key], expected[key]) for key in expected.keys() - {GENERAL})


def deployed(model):
    """Name of the student that the method deploys, None for one network."""
    students = model.get('students')
    if students is None:
        return None
    return model.get('deploy', 'leader' if 'leader' in students else next(iter(students)))


def test_an_average_is_told_from_the_weights_without_it(finished):
    witness = finished.witness
    best = next(finished.work_dir.glob('best_*.pth'))
    epochs = {'epoch_1.pth': 1, 'epoch_2.pth': 2, best.name: int(best.stem.rpartition('_')[2])}
    for name, epoch in epochs.items():
        checkpoint = load_checkpoint(finished.work_dir / name)
        validated, trained = witness.validated[epoch - 1], witness.trained[epoch - 1]
        assert not same(validated, trained)
        assert same(choose_weights(checkpoint), validated)
        assert same(choose_weights(checkpoint, ema=True), validated)
        assert same(choose_weights(checkpoint, ema=False), trained)


def test_each_checkpoint_exports_what_its_model_predicts(finished, tmp_path):
    init_default_scope('mmpretrain')
    images = torch.randn(3, 3, 32, 32)
    best = next(finished.work_dir.glob('best_*.pth'))
    for path, ema in ((finished.work_dir / 'epoch_1.pth', False), (best, True)):
        state = choose_weights(load_checkpoint(path), ema)
        done = export_student(finished.cfg, state, tmp_path)
        assert set(re.findall(r'[\w.]*kd_mm[\w.]*', done.config.read_text())) == {
            'kd_mm',  # in custom_imports
            'kd_mm.Digits',
        }
        assert done.difference <= 1e-5
        assert done.needs == ('kd_mm.Digits',)
        plain = MODELS.build(Config.fromfile(done.config).model).eval()
        plain.load_state_dict(torch.load(done.weights, weights_only=True)['state_dict'])
        whole = MODELS.build(finished.cfg.model).eval()
        whole.load_state_dict(state)
        with torch.no_grad():
            scores = plain(images).softmax(dim=1)
            expected = torch.stack([sample.pred_score for sample in whole.predict(images)])
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


def test_training_ends_with_the_weights_that_validation_saw(finished):
    name = deployed(finished.cfg.model)
    students = finished.cfg.model.get('students')
    folder = finished.work_dir / 'deploy'
    if students is not None:
        shipped = {'leader'} if 'leader' in students else set(students)
        assert {path.name for path in folder.iterdir()} == shipped
        folder = folder / name
    saved = torch.load(folder / 'model.pth', weights_only=True)
    prefix = '' if name is None else f'students.{name}.'
    validated = finished.witness.validated[-1]
    assert saved['meta']['dataset_meta']['classes'] == tuple('0123456789')
    assert same(finished.model.state_dict(), finished.witness.trained[-1])
    for key, weight in saved['state_dict'].items():
        assert torch.equal(weight, validated[prefix + key])


def test_deployed_folder_tests_as_validation_did(finished, tmp_path):
    """As mmpretrain's tool does it; MMEngine averages nothing here, although the hook is there."""
    name = deployed(finished.cfg.model)
    folder = finished.work_dir / 'deploy' / (name or '')
    cfg = Config.fromfile(folder / 'config.py')
    assert 'EMAHook' in str(cfg.custom_hooks)
    cfg.update(load_from=str(folder / 'model.pth'), work_dir=str(tmp_path))
    cfg.experiment_name = tmp_path.name
    found = Runner.from_cfg(cfg).test()
    prefix = '' if name is None else f'{name}/'
    for key in ('accuracy/top1', 'accuracy/top3', 'accuracy/top5'):
        assert found[key] == pytest.approx(finished.witness.metrics[-1][prefix + key], abs=1e-4)


def test_without_an_average_in_validation_the_original_is_shipped(tmp_path):
    run = train('vanilla', tmp_path, evaluate_on_ema=False, evaluate_on_origin=True)
    saved = torch.load(tmp_path / 'deploy/model.pth', weights_only=True)['state_dict']
    assert same(saved, run.witness.validated[-1])
    assert same(saved, run.witness.trained[-1])
