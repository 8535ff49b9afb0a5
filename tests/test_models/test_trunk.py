"""Students that share their first stages: one trunk, whole networks."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS as ROOT_MODELS

from kd_mm.export import export_student
from kd_mm.registry import MODELS
from tests import contract
from tests.ranks import average, losses_and_gradients, run_on_ranks

# Backbones whose first stages a second student takes over: options, width, image size.
BACKBONES = {
    'ResNet': ({'type': 'ResNet', 'depth': 18, 'base_channels': 8}, 64, 32),
    'MobileNetV2': ({'type': 'MobileNetV2', 'widen_factor': 0.25}, 1280, 32),
    'ConvNeXt': ({'type': 'ConvNeXt', 'arch': {'depths': [1] * 4, 'channels': [8] * 4}}, 8, 64),
    'SwinTransformer': (
        {
            'type': 'SwinTransformer',
            'arch': {'embed_dims': 8, 'depths': [1] * 4, 'num_heads': [1, 2, 2, 4]},
            'img_size': 64,
            'window_size': 2,
        },
        64,
        64,
    ),
    'kd_mm.CIFARWideResNet': (
        {'type': 'kd_mm.CIFARWideResNet', 'depth': 10, 'widen_factor': 1},
        64,
        32,
    ),
}


def build(own=None, names=('a', 'b', 'c'), stages=2, img_size=contract.SIZE, **kwargs):
    own = own or contract.network(contract.GROUP_NORM)
    torch.manual_seed(0)
    model = MODELS.build(
        {
            'type': 'kd_mm.DML',
            'students': {name: copy.deepcopy(own) for name in names},
            'shared_stages': stages,
            'img_size': img_size,
            '_scope_': 'mmpretrain',
            **kwargs,
        }
    )
    for param in model.parameters():
        if param.ndim > 1:
            torch.nn.init.normal_(param, std=(2 / param[0].numel()) ** 0.5)
    return model.train()


@pytest.mark.parametrize(('backbone', 'width', 'size'), BACKBONES.values(), ids=BACKBONES)
def test_trunk_runs_once_and_students_are_whole(backbone, width, size):
    own = contract.network(contract.GROUP_NORM)
    own['backbone'] = backbone
    own['head']['in_channels'] = width
    if backbone['type'] == 'ConvNeXt':
        own['neck'] = None
    model = build(own, ('a', 'b'), img_size=size)
    images = torch.randn(3, 3, size, size)
    _, samples = contract.batch(3)
    computed = []
    clear = model.trunk.clear
    model.trunk.clear = lambda: (computed.extend(len(o.calls) for o in model.trunk.once), clear())
    losses = model(images, samples, mode='loss')
    sum(losses.values()).backward()
    assert len(computed) > 1
    assert set(computed) == {1}
    shared = {id(p) for p in model.students['a'].parameters()}
    shared &= {id(p) for p in model.students['b'].parameters()}
    assert shared
    assert len(shared) < len(list(model.students['a'].parameters()))
    # Each student by itself is a plain network with these weights.
    for name in 'ab':
        plain = ROOT_MODELS.build({**copy.deepcopy(own), '_scope_': 'mmpretrain'})
        weights = {
            key.removeprefix(f'students.{name}.'): value
            for key, value in model.state_dict().items()
            if key.startswith(f'students.{name}.')
        }
        plain.load_state_dict(weights, strict=True)
        model.eval(), plain.eval()
        torch.testing.assert_close(model.students[name](images), plain(images))
        clear()


def test_stem_and_first_stages_are_shared_and_no_more():
    model = build(stages=2)
    names = ('conv1', 'gn1', 'relu', 'layer1', 'layer2')
    assert model.trunk.paths == [f'backbone.{name}' for name in names]
    a, b = model.students['a'].backbone, model.students['b'].backbone
    assert a.layer2 is b.layer2
    assert a.layer3 is not b.layer3


def test_loss_and_gradients_equal_an_explicit_trunk():
    model = build().double()
    images, samples = contract.batch(dtype=torch.float64)
    losses = model(images, samples, mode='loss')
    sum(losses.values()).backward()
    apart = build(stages=0).double()
    apart.load_state_dict(model.state_dict())
    expected = apart(images, samples, mode='loss')
    sum(expected.values()).backward()
    torch.testing.assert_close(losses, expected)
    grads = dict(apart.named_parameters())
    for name, param in model.named_parameters():
        path = name.split('.', 2)[2]
        shared = path.startswith(tuple(f'{p}.' for p in model.trunk.paths))
        owners = 'abc' if shared else [name.split('.')[1]]
        total = sum(grads[f'students.{owner}.{path}'].grad for owner in owners)
        torch.testing.assert_close(param.grad, total, rtol=1e-8, atol=1e-10)


def test_nothing_is_kept_after_a_step_or_an_error():
    model = build()
    images, samples = contract.batch()
    model(images, samples, mode='loss')
    assert not any(once.calls for once in model.trunk.once)
    model(images, mode='predict')
    assert not any(once.calls for once in model.trunk.once)
    with pytest.raises(ValueError, match='needs one image'):
        model([images, images], samples, mode='loss')
    assert not any(once.calls for once in model.trunk.once)


def test_statistics_of_batch_norm_move_once_and_survive_a_conversion_and_a_copy():
    model = build(contract.network({'type': 'BN'}))
    images, samples = contract.batch()
    other = copy.deepcopy(model)
    other(images, samples, mode='loss')
    assert other.students['a'].backbone.layer1 is other.students['b'].backbone.layer1
    counts = {int(b) for n, b in other.named_buffers() if n.endswith('num_batches_tracked')}
    assert counts == {1}
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert not converted.trunk.is_linked(converted.students)
    converted.trunk.link(converted.students)
    assert converted.trunk.is_linked(converted.students)


def test_every_student_exports_as_a_plain_network(tmp_path):
    model = build().eval()
    students = {name: contract.network(contract.GROUP_NORM) for name in 'abc'}
    cfg = {'type': 'kd_mm.DML', 'students': students, 'shared_stages': 2, 'img_size': 16}
    loader = {'dataset': {'pipeline': [{'type': 'CenterCrop', 'crop_size': contract.SIZE}]}}
    cfg = Config({'model': cfg, 'default_scope': 'mmpretrain', 'test_dataloader': loader})
    images, _ = contract.batch()
    for name in 'ac':
        done = export_student(cfg, model.state_dict(), tmp_path / name, student=name)
        plain = ROOT_MODELS.build({**Config.fromfile(done.config).model, '_scope_': 'mmpretrain'})
        plain.load_state_dict(torch.load(done.weights)['state_dict'], strict=True)
        torch.testing.assert_close(plain.eval()(images), model.students[name](images))
        model.trunk.clear()


def step_on_a_rank(rank):
    ddp = MMDistributedDataParallel(build().double(), device_ids=None)
    images, samples = contract.batch(6, dtype=torch.float64)
    mine = slice(0, 4) if rank == 0 else slice(4, None)
    return losses_and_gradients(ddp, images[mine], samples[mine])


def test_two_ranks_equal_one(tmp_path):
    ranks = run_on_ranks(step_on_a_rank, tmp_path)
    model = build().double()
    images, samples = contract.batch(6, dtype=torch.float64)
    losses, gradients = losses_and_gradients(model, images, samples)
    torch.testing.assert_close(average([rank[0] for rank in ranks]), losses)
    for name, expected in gradients.items():
        torch.testing.assert_close(ranks[0][1]['module.' + name], expected)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'stages': 4}, 'shared_stages must be below the number of stages, 4 of the backbone'),
        ({'stages': 0.5}, 'shared_stages must be an integer of at least 0, but got 0.5'),
        ({'with_cp': True}, 'without with_cp, but got 3 students'),
        ({'views': 'per_student'}, 'that see the same images'),
    ],
)
def test_bad_trunks(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_students_of_different_kinds_share_nothing():
    wide = contract.network(contract.GROUP_NORM, stem_channels=8)
    students = {'a': contract.network(contract.GROUP_NORM), 'b': wide}
    with pytest.raises(ValueError, match=r'must be alike in them, but their backbone\.conv1'):
        build(students=students)
