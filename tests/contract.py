"""The checks that every method passes, and what a method must bring to be checked."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from kd_mm.export import choose_weights, export_student, shipped_names
from kd_mm.methods import Clock
from kd_mm.models.distiller import SINGLE, Distiller
from kd_mm.registry import MODELS
from tests.ranks import average, losses_and_gradients, run_on_ranks, shard

NUM_CLASSES, SIZE = 10, 16
# Of two ranks, step by step: full batches, then a smaller last one on either side.
STEPS = ((4, 4), (4, 2), (1, 3))
GROUP_NORM = {'type': 'GN', 'num_groups': 1}


class Row(NamedTuple):
    """One method with one set of options.

    Attributes:
        model: Config of the model, without networks: ``type`` and the options of the method.
        terms: Returns the expected terms by name from ``students``, logits, embeddings and maps
            by name as NumPy arrays, and ``labels``. None where ``golden`` checks the terms.
        golden: Compares the terms with numbers of the authors' released code.
        students: Names of the students; one alone is ``student``.
        backbone: Options of the students' backbone, by default one with a single stage.
        norms: Options of the method that name layers of normalisation.
        train_dataloader: Settings of the training's loader.
        hook: Options of ``kd_mm.DistillerHook``.
    """

    model: dict
    terms: Callable[[dict, np.ndarray], dict[str, float]] | None = None
    golden: Callable[[], None] | None = None
    students: tuple[str, ...] = ('a', 'b')
    backbone: dict = {}  # noqa: RUF012
    norms: tuple[str, ...] = ()
    train_dataloader: dict = {}  # noqa: RUF012
    hook: dict = {}  # noqa: RUF012


def network(norm_cfg, num_stages=4, **backbone):
    """A narrow ResNet of mmpretrain's."""
    last = num_stages - 1
    return {
        'type': 'ImageClassifier',
        'backbone': {
            'type': 'ResNet_CIFAR',
            'depth': 18,
            'stem_channels': 4,
            'base_channels': 4,
            'num_stages': num_stages,
            'strides': (1, 2, 2, 2)[:num_stages],
            'dilations': (1,) * num_stages,
            'out_indices': (last,),
            'norm_cfg': norm_cfg,
            **backbone,
        },
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': NUM_CLASSES, 'in_channels': 4 * 2**last},
    }


def model_cfg(row, norm_cfg=GROUP_NORM, names=None):
    """The config of a row's model."""
    own = network(norm_cfg, **{'num_stages': 1, **row.backbone})
    names = names or row.students
    networks = {'students': dict.fromkeys(names, own)}
    if names == (SINGLE,):
        networks = {'student': own}
    norms = dict.fromkeys(row.norms, norm_cfg)
    cfg = {'img_size': SIZE, **row.model, **norms, **networks, '_scope_': 'mmpretrain'}
    return copy.deepcopy(cfg)


def build(row, seed=0, **kwargs):
    """A model whose predictions differ, at the end of training, when all weights are whole."""
    torch.manual_seed(seed)
    model = MODELS.build(model_cfg(row, **kwargs))
    for name, param in model.named_parameters():
        if param.ndim > 1:
            torch.nn.init.normal_(param, std=(2 / param[0].numel()) ** 0.5)
        elif name.endswith('bias'):
            torch.nn.init.normal_(param, std=0.1)
    assert isinstance(model, Distiller)
    model.clock = Clock(9, 10, 90, 100, 50)
    return model.train()


def batch(num_images=6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    samples = [DataSample().set_gt_label(label) for label in labels]
    for number, sample in enumerate(samples):
        sample.set_field(number, 'image_number', field_type='metainfo')
    return images.to(dtype), samples


def check_terms(row):
    """(1) The terms equal the NumPy reference, or the authors' numbers."""
    if row.golden is not None:
        row.golden()
        return
    model = build(row).double()
    seen = {}

    def observe(step, losses):
        for name, (first, *_) in step.students.items():
            seen[name] = {
                'logits': first.logits.detach().numpy(),
                'embedding': first.embedding.detach().numpy(),
                'maps': [level.detach().numpy() for level in first.maps],
            }

    model.observers.append(observe)
    images, samples = batch(dtype=torch.float64)
    losses = model(images, samples, mode='loss')
    expected = row.terms(seen, np.array([int(s.gt_label) for s in samples]))
    own = {key for key in losses if key.rpartition('/')[2] == 'loss'}
    assert set(losses) - own == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(losses[key].item(), value, rtol=1e-5, err_msg=key)
    assert all(value != 0 for value in expected.values())


def check_gradients(row):
    """(2) A term of a network reaches that network and modules of methods, nothing more."""
    model = build(row)
    losses = model(*batch(), mode='loss')
    for key, value in losses.items():
        names = [name for name, _ in model.named_parameters()]
        grads = torch.autograd.grad(
            value, list(model.parameters()), retain_graph=True, allow_unused=True
        )
        reached = {n for n, g in zip(names, grads, strict=True) if g is not None and g.any()}
        owner = key.rpartition('/')[0] or SINGLE
        allowed = (f'students.{owner}.', 'methods.')
        assert reached, f'{key} reaches nothing'
        assert all(n.startswith(allowed) for n in reached), (key, sorted(reached)[:3])


SYNC_BN = {'type': 'SyncBNOnCPU'}


def step_on_a_rank(rank, rows):
    """What one rank of two makes of each step, for each row."""
    results = {}
    for name, row in rows.items():
        model = build(row, norm_cfg=SYNC_BN).double()
        ddp = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
        results[name] = []
        for step, sizes in enumerate(STEPS):
            images, samples = batch(sum(sizes), step, torch.float64)
            mine = shard(rank, sizes)
            found = losses_and_gradients(ddp, images[mine], samples[mine])
            results[name].append((*found, copy.deepcopy(dict(model.named_buffers()))))
    return results


def on_two_ranks(rows, folder):
    """What both ranks make of all rows; functions do not travel to other processes."""
    rows = {name: row._replace(terms=None, golden=None) for name, row in rows.items()}
    return run_on_ranks(step_on_a_rank, folder, rows)


def check_two_ranks(row, ranks):
    """(3) Two ranks equal one: losses, gradients and statistics, also of unequal batches."""
    model = build(row, norm_cfg=SYNC_BN).double()
    for step, sizes in enumerate(STEPS):
        images, samples = batch(sum(sizes), step, torch.float64)
        losses, gradients = losses_and_gradients(model, images, samples)
        close = {'rtol': 1e-6, 'atol': 1e-9, 'msg': lambda m, s=sizes: f'{s}: {m}'}
        torch.testing.assert_close(average([rank[step][0] for rank in ranks]), losses, **close)
        for rank in ranks:  # DDP has averaged
            found = {name.removeprefix('module.'): g for name, g in rank[step][1].items()}
            torch.testing.assert_close(found, gradients, **close)
            torch.testing.assert_close(rank[step][2], dict(model.named_buffers()), **close)


def check_autocast(row):
    """(4) Under autocast the terms are float32, finite, and near those without it."""
    model = build(row)
    plain = model(*batch(), mode='loss')
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(*batch(), mode='loss')
    for key, value in losses.items():
        assert value.dtype == torch.float32, key
        torch.testing.assert_close(value, plain[key], rtol=0.25, atol=0.25)


def check_compiled(row):
    """(5) A compiled model gives the same losses and gradients."""
    results = []
    for compiles in (False, True):
        model = build(row)
        run = torch.compile(model, backend='eager') if compiles else model
        losses = run(*batch(), mode='loss')
        sum(losses.values()).backward()
        results.append((losses, {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0])
    torch._dynamo.reset()


def check_accumulation(row):
    """(6) The step after two passes is that of the mean of their gradients."""
    weights = []
    for count in (1, 2):
        model = build(row)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapper = OptimWrapper(sgd, accumulative_counts=count)
        wrapper.initialize_count_status(model, 0, 2)
        losses = [sum(model(*batch(seed=seed), mode='loss').values()) for seed in (0, 1)]
        for loss in losses if count == 2 else [sum(losses) / 2]:
            wrapper.update_params(loss)
        weights.append(dict(model.named_parameters()))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


def check_state_dict(row):
    """(7) Weights that are stored and loaded give the same losses."""
    model, other = build(row), build(row, seed=1)
    expected = model(*batch(), mode='loss')
    assert other(*batch(), mode='loss') != expected
    model = build(row)
    other.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    torch.testing.assert_close(other(*batch(), mode='loss'), expected)


def check_export(row, folder):
    """(8) Exported networks are the deployed ones, and load in stock mmpretrain."""
    model = build(row, norm_cfg={'type': 'BN'}).eval()
    cfg = Config(
        {
            'model': model_cfg(row, norm_cfg={'type': 'BN'}),
            'default_scope': 'mmpretrain',
            'data_preprocessor': {'mean': [0.0] * 3, 'std': [1.0] * 3},
            'test_dataloader': {
                'dataset': {'pipeline': [{'type': 'CenterCrop', 'crop_size': SIZE}]}
            },
        }
    )
    images, _ = batch()
    names = shipped_names(cfg) or [None]
    for name in names:
        done = export_student(cfg, model.state_dict(), folder / (name or ''), student=name)
        plain = Config.fromfile(done.config)
        assert not done.needs
        assert 'kd_mm' not in plain.pretty_text
        network = ROOT_MODELS.build({**plain.model, '_scope_': 'mmpretrain'}).eval()
        weights = torch.load(done.weights, weights_only=True)
        network.load_state_dict(choose_weights(weights), strict=True)
        trained = model.students[name or SINGLE]
        torch.testing.assert_close(network(images), trained(images), rtol=1e-5, atol=1e-5)
    assert (names[0] or SINGLE) == model.deploy


def check_permutation(row):
    """(9) The order in which a config names the students changes nothing."""
    model = build(row)
    turned = build(row, seed=1, names=tuple(reversed(row.students)))
    turned.load_state_dict(model.state_dict())
    assert list(turned.state_dict()) == list(model.state_dict())
    assert turned.deploy == model.deploy
    torch.testing.assert_close(turned(*batch(), mode='loss'), model(*batch(), mode='loss'))


def check_evaluation(row):
    """(10) Nothing learns in prediction."""
    model = build(row, norm_cfg={'type': 'BN'}).eval()
    before = copy.deepcopy(model.state_dict())
    images, samples = batch()
    with torch.no_grad():
        first = model(images, samples, mode='predict')[0].pred_score
        second = model(images, mode='predict')[0].pred_score
    assert torch.equal(first, second)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


class Images(list):
    """A data set of images in memory."""

    metainfo = {'classes': tuple('abcdefghij')}  # noqa: RUF012


def runner(row, work_dir, images=None, **settings):
    """A run of three iterations per epoch on images in memory, with the hooks of our configs."""
    pictures, samples = batch(12)
    items = [
        {'inputs': picture, 'data_samples': DataSample().set_gt_label(sample.gt_label)}
        for picture, sample in zip(pictures, samples, strict=True)
    ]
    loader = {
        'dataset': Images(items) if images is None else images,
        'batch_size': 4,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': True},
        'collate_fn': {'type': 'default_collate'},
        **row.train_dataloader,
    }
    model = model_cfg(row, norm_cfg={'type': 'BN'})
    defaults = {
        'model': {**model, 'data_preprocessor': {'type': 'kd_mm.CohortDataPreprocessor'}},
        'work_dir': str(work_dir),
        'train_dataloader': loader,
        'train_cfg': {'by_epoch': True, 'max_epochs': 2},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}},
        'default_hooks': {
            'distiller': {'type': 'kd_mm.DistillerHook', **row.hook},
            'checkpoint': {'type': 'CheckpointHook', 'interval': 1},
            'seed': {'type': 'kd_mm.SeedHook'},
            'safe_checkpoints': {'type': 'kd_mm.SafeCheckpointHook'},
        },
        'default_scope': 'mmpretrain',
        'randomness': {'seed': 0},
        'log_level': 'ERROR',
        'experiment_name': f'contract_{work_dir.parent.name}_{work_dir.name}',
    }
    return Runner(**{**defaults, **settings})


def check_resume(row, folder):
    """(11) A run that is stopped and resumed ends as one that is not, to the last bit."""
    whole = runner(row, folder / 'whole')
    whole.train()
    stopped = runner(row, folder / 'stopped', train_cfg={'by_epoch': True, 'max_epochs': 1})
    stopped.train()
    resumed = runner(row, folder / 'stopped', resume=True)
    resumed.train()
    expected, found = (
        torch.load(folder / name / 'epoch_2.pth', weights_only=False)['state_dict']
        for name in ('whole', 'stopped')
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    first = torch.load(folder / 'whole' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert any(not torch.equal(first[key], expected[key]) for key in expected)


CHECKS = (
    check_terms,
    check_gradients,
    check_autocast,
    check_compiled,
    check_accumulation,
    check_state_dict,
    check_permutation,
    check_evaluation,
)
CHECKS_OF_FILES = (check_export, check_resume)
