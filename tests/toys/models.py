"""One small model of each method, its images, and a short run of it by MMEngine's Runner."""

from uuid import uuid4

import torch
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from kd_mm.methods import Clock
from kd_mm.registry import MODELS

NUM_CLASSES, NUM_IMAGES, BATCH, SIZE = 3, 30, 6, 16
SGD = {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9, 'weight_decay': 1e-4}
TARGETS = ('naive', 'linear', 'min_logit', 'general')
METHODS = ('bake', 'bake_student', 'dml', *TARGETS, 'ffsd')
ALONE = METHODS[:2]  # one network, by its head and by a Distiller
FIRST = Clock(epoch=0, max_epochs=1, iteration=0, max_iters=5, num_images=NUM_IMAGES)


def network(head='mmpretrain.LinearClsHead', **backbone):
    return {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': 'kd_mm.CIFARResNet', 'depth': 8, **backbone},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': {'type': head, 'num_classes': NUM_CLASSES, 'in_channels': 64},
    }


def model_cfg(method):
    """The config of a method's model, whose preprocessor is its own."""
    if method == 'bake':
        preprocessor = {'type': 'mmpretrain.ClsDataPreprocessor'}
        return {**network('kd_mm.BAKEHead'), 'data_preprocessor': preprocessor}
    if method == 'ffsd':
        names = ('leader', 'student1', 'student2')
        students = {name: network(out_indices=(0, 1, 2)) for name in names}
        ramp = {'type': 'kd_mm.SigmoidRamp', 'value': 10.0, 'epochs': 5}
        options = {'img_size': SIZE, 'fusion_weight': ramp}
        return {'type': 'kd_mm.FFSD', 'students': students, **options}
    if method == 'bake_student':
        return {'type': 'kd_mm.BAKE', 'student': network()}
    students = {name: network() for name in ('a', 'b')}
    if method == 'dml':
        return {'type': 'kd_mm.DML', 'students': students}
    return {'type': 'kd_mm.KDCL', 'students': students, 'target': method}


def optim_cfg(method, **kwargs):
    """One optimizer for BAKE, and one per part of a cohort."""
    if method in ALONE:
        return {'optimizer': SGD, **kwargs}
    parts = {name: {'optimizer': SGD} for name in model_cfg(method)['students']}
    if method == 'ffsd':
        parts['leader']['prefix'] = ['students.leader', 'methods.ffsd']
    return {'constructor': 'kd_mm.JointOptimWrapperConstructor', 'parts': parts, **kwargs}


def build(method, **changes):
    """A model with weights that are the same each time, and predictions that differ."""
    torch.manual_seed(0)
    model = MODELS.build({**model_cfg(method), '_scope_': 'mmpretrain', **changes})
    model.init_weights()
    for key, parameter in model.named_parameters():
        if 'fc' in key:
            torch.nn.init.normal_(parameter, std=0.5)
    model._is_init = True
    model.clock = FIRST  # as the hook sets it in a run
    return model


def images():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            'inputs': torch.randn(3, SIZE, SIZE, generator=generator),
            'data_samples': DataSample().set_gt_label(index % NUM_CLASSES),
        }
        for index in range(NUM_IMAGES)
    ]


def batch():
    """A batch as a data loader gives it, with new samples each time."""
    items = images()[:BATCH]
    return {
        'inputs': torch.stack([item['inputs'] for item in items]),
        'data_samples': [item['data_samples'] for item in items],
    }


def loader(dataset, batch_size=BATCH, **changes):
    """The config of a loader that reads images in order."""
    return {
        'dataset': dataset,
        'batch_size': batch_size,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
        **changes,
    }


def runner_of(model, work_dir, data, epochs=1, **changes):
    """A Runner without validation; ``data`` is a data set or the config of a loader."""
    settings = {
        'model': model,
        'work_dir': str(work_dir),
        'train_dataloader': loader(data) if isinstance(data, list) else data,
        'train_cfg': {'by_epoch': True, 'max_epochs': epochs},
        'optim_wrapper': {'optimizer': SGD},
        'default_scope': 'mmpretrain',
        'randomness': {'seed': 0},
        'experiment_name': uuid4().hex,
        'log_level': 'ERROR',
    }
    return Runner(**{**settings, **changes})


def build_runner(method, work_dir, model=None, optim=(), **changes):
    """Five iterations per epoch, with the hooks of kd_mm's configs."""
    settings = {
        'optim_wrapper': optim_cfg(method, **dict(optim)),
        'custom_hooks': [{'type': 'kd_mm.LossGuardHook'}],
        'default_hooks': {
            'runtime_info': {'type': 'kd_mm.LazyRuntimeInfoHook'},
            'compile': {'type': 'kd_mm.CompileHook'},
            'logger': {'type': 'LoggerHook', 'interval': 2},
            'checkpoint': {'type': 'CheckpointHook', 'interval': 1},
            'seed': {'type': 'kd_mm.SeedHook'},
            'distiller': {
                'type': 'kd_mm.DistillerHook',
                'held_out_dataloader': loader(images()),
            },
            'safe_checkpoints': {'type': 'kd_mm.SafeCheckpointHook'},
        },
        'visualizer': {'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]},
    }
    return runner_of(model or build(method), work_dir, images(), **{**settings, **changes})
