"""FFSD: the released code's numbers, its whole step, its ablations and its bad inputs."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample

from kd_mm.functional.ffsd import diverse_feature_map
from kd_mm.methods import Seen, Step

GOLDEN = sorted((Path(__file__).parents[1] / 'data').glob('ffsd_*.npz'))
CLOSE = {'rtol': 1e-6, 'atol': 1e-9}
WIDTHS = (4, 8, 16)


@MODELS.register_module(force=True)
class ThreeStages(BaseModule):
    """Three convolutions; the second and the third halve the resolution."""

    def __init__(self, widths=WIDTHS, out_indices=(0, 1, 2)):
        super().__init__()
        self.out_indices = out_indices
        pairs = zip((3, *widths[:-1]), widths, (1, 2, 2), strict=True)
        self.stages = torch.nn.ModuleList(
            torch.nn.Conv2d(i, o, 3, stride=s, padding=1) for i, o, s in pairs
        )

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return tuple(maps[i] for i in self.out_indices)


POOLING = {'type': 'GlobalAveragePooling'}


def student(
    head='LinearClsHead', num_classes=6, backbone='ThreeStages', width=16, neck=POOLING, **settings
):
    return {
        'type': 'ImageClassifier',
        'backbone': {'type': backbone, **settings},
        'neck': neck,
        'head': {
            'type': head,
            'num_classes': num_classes,
            'in_channels': width,
            'loss': {'type': 'CrossEntropyLoss', 'loss_weight': 1.0},
        },
    }


def build(num_common=2, with_leader=True, own=None, **settings):
    names = [f'student{i}' for i in range(num_common)] + ['leader'] * with_leader
    own = own or student()
    cfg = {'type': 'kd_mm.FFSD', 'students': {name: copy.deepcopy(own) for name in names}}
    torch.manual_seed(0)
    return MODELS.build({**cfg, **settings, '_scope_': 'mmpretrain'})


def draw(num_images=4, size=16, num_classes=6, soft=False):
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(num_images, 3, size, size, generator=rng)
    samples = [DataSample().set_gt_label(i % num_classes) for i in range(num_images)]
    if soft:
        scores = torch.rand(num_images, num_classes, generator=rng).softmax(dim=1)
        for sample, score in zip(samples, scores, strict=True):
            sample.set_gt_score(score)
    return images, samples


def backward(model, images, samples):
    losses = model(images, samples, mode='loss')
    sum(losses.values()).backward()
    return losses


def load_golden(module, golden, prefix, order):
    """Fill a module with weights whose names differ but whose order is told."""
    own = module.state_dict()
    theirs = {
        name.removeprefix(prefix): v for name, v in golden.items() if name.startswith(prefix)
    }
    assert len(own) == len(theirs)
    for ours, released in order.items():
        for name in own:
            if name.startswith(ours + '.'):
                own[name] = theirs.pop(released + name.removeprefix(ours))
    assert not theirs
    module.load_state_dict(own)


SEPARABLE = {
    'depthwise_conv.conv': 'conv1',
    'depthwise_conv.bn': 'bn1',
    'pointwise_conv.conv': 'conv1_1',
    'pointwise_conv.bn': 'bn1_1',
}


@pytest.mark.parametrize('path', GOLDEN, ids=lambda path: path.stem)
def test_every_term_equals_the_released_code(path):
    golden = {name: torch.tensor(value) for name, value in np.load(path).items()}
    num_common = golden['num_common_students'].item()
    own = student(num_classes=golden['leader.logits'].shape[1])
    model = build(num_common, own=own, diversity_weight=1.0, fusion_weight=1.0).double()
    ffsd = model.methods.ffsd
    fuse = {f'fuse.{k}': v for k, v in SEPARABLE.items()} | {'fc': 'fc2'}
    load_golden(ffsd.fusion, golden, 'fusion.', fuse)
    load_golden(ffsd.decoder, golden, 'decoder.', {f'widen.{k}': v for k, v in SEPARABLE.items()})
    blocks = {
        f'blocks.{i}.{k}': f'layer{i}.{name}'
        for i in (0, 1)
        for k, name in enumerate(('convtranpose', 'norm'))
    }
    necks = {f'student{i}': f'self_distillation{i}.' for i in range(1, num_common)}
    necks['leader'] = 'self_distillation_leader.'
    for name, prefix in necks.items():
        load_golden(ffsd.self_distillation[name], golden, prefix, blocks)

    names = list(model.students)
    logits = {name: golden[f'{name}.logits'] for name in names}
    maps = {name: tuple(golden[f'{name}.stage{i}'] for i in range(3)) for name in names}
    seen = {name: [Seen(logits[name], maps[name][-1].mean((2, 3)), maps[name])] for name in names}
    losses = ffsd.losses(Step(seen, {}, golden['labels']))

    released = {'fusion/loss_ensemble': 'fusion.loss_ensemble'}
    for name in names:
        terms = ['mutual'] if name != 'leader' else ['kd', 'fusion', 'decoder']
        terms += ['self_distillation'] if name != 'student0' else []
        terms += ['diversity'] if name not in ('student0', 'leader') else []
        released |= {f'{name}/loss_{term}': f'{name}.loss_{term}' for term in terms}
    for name, prefix in necks.items():
        for term in ('feature', 'attention'):
            released[f'{name}/loss_neck_{term}'] = f'{prefix}loss_{term}_x1000'
    assert losses.keys() == released.keys() | {'fusion/loss'}
    found = {theirs: losses[ours] for ours, theirs in released.items()}
    found |= {
        f'{name}.loss_ce': F.cross_entropy(z, golden['labels']) for name, z in logits.items()
    }

    load_golden(ffsd.fusion, golden, 'fusion.', fuse)  # without the statistics of this step
    deepest = [maps[name][-1] for name in names if name != 'leader']
    found['fusion.map'], found['fusion.logits'] = ffsd.fusion(deepest)
    found['decoder.map'] = ffsd.decoder(maps['leader'][-1])
    for i in range(1, num_common):
        diverse = diverse_feature_map(maps[f'student{i - 1}'][-1])
        found[f'student{i}.diversity_target'] = diverse
    expected = {k.removeprefix('expect.'): v for k, v in golden.items() if 'expect.' in k}
    torch.testing.assert_close(found, expected, **CLOSE)


# The released order of updates, by separate backward passes and optimizers ----------------------


def att(x):
    return x.pow(2).mean(1, keepdim=True)


def unit(x):
    return F.normalize(x.flatten(1))


def dist(x, y):
    return (unit(x) - unit(y)).pow(2).mean()


def kl(learner, teacher, t=2.0):
    log_p = F.log_softmax(learner / t, 1)
    return t * t * F.kl_div(log_p, F.softmax(teacher.detach() / t, 1), reduction='batchmean')


def inverted(y):
    flat = y.flatten(1)
    v, n = flat.norm(dim=1, keepdim=True), unit(y)
    theta = n.sort(dim=1).values[:, n.shape[1] // 3 - 1 : n.shape[1] // 3]
    return n, (v / 2 - n) * torch.sign(n - theta) + v / 2, v


def guide(neck, maps, source):
    neck.eval()
    with torch.no_grad():
        targets = neck(source)
    neck.train()
    return sum(dist(att(m), att(t)) for m, t in zip(maps, targets, strict=False))


def released_step(model, images, labels, lr=0.1):
    """One step of the released trainer: networks, fusion, leader with decoder, then the necks."""
    lambdas = {'div': 0.5, 'fus': 10.0, 'sd': 1000.0}
    ffsd = model.methods.ffsd
    nets, necks = model.students, ffsd.self_distillation
    sgd = {'lr': lr, 'momentum': 0.9, 'nesterov': True}
    common = [n for n in nets if n != 'leader']
    optimizers = {
        n: torch.optim.SGD(nets[n].parameters(), weight_decay=1e-4, **sgd) for n in common
    }
    leader_side = [*nets['leader'].parameters(), *ffsd.decoder.parameters()]
    optimizers['leader'] = torch.optim.SGD(leader_side, weight_decay=1e-4, **sgd)
    optimizers['fusion'] = torch.optim.SGD(ffsd.fusion.parameters(), weight_decay=1e-5, **sgd)
    adam = {
        n: torch.optim.Adam(m.parameters(), lr=1e-3, weight_decay=1e-4) for n, m in necks.items()
    }

    maps = {n: nets[n].backbone(images) for n in nets}
    z = {n: nets[n].head(nets[n].neck(maps[n][-1:])) for n in nets}
    deep = torch.cat([maps[n][-1].detach() for n in common], 1)
    fused, z_f = ffsd.fusion([maps[n][-1].detach() for n in common])
    decoded = ffsd.decoder(maps['leader'][-1])
    mean = sum(z[n].detach() for n in common) / len(common)

    def update(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for i, n in enumerate(common):
        loss = F.cross_entropy(z[n], labels)
        loss = loss + sum(kl(z[n], z[o]) for o in common if o != n) / (len(common) - 1)
        if i:
            other = maps[common[i - 1]][-1].detach()
            a = att(other)
            attention, target, v = inverted(a)
            loss = loss + lambdas['div'] * (unit(att(maps[n][-1])) - target).pow(2).mean()
            shifted = other + ((target - attention) * v / other.shape[1]).view_as(a)
            loss = loss + lambdas['div'] * guide(necks[n], maps[n], shifted)
        update(optimizers[n], loss)
    update(optimizers['fusion'], F.cross_entropy(z_f, labels) + kl(z_f, mean))
    fused = fused.detach()
    own = maps['leader']
    loss = F.cross_entropy(z['leader'], labels) + kl(z['leader'], z_f)
    loss = loss + lambdas['fus'] * (dist(att(own[-1]), att(fused)) + dist(att(decoded), att(deep)))
    update(optimizers['leader'], loss + lambdas['fus'] * guide(necks['leader'], own, fused))
    for n, neck in necks.items():
        goal = [m.detach() for m in maps[n]]
        pairs = list(zip(neck(goal[-1]), goal, strict=False))
        loss = sum(dist(r, f) + dist(att(r), att(f)) for r, f in pairs)
        update(adam[n], lambdas['sd'] * loss)


SGD = {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'nesterov': True}
OPTIMIZERS = {
    'constructor': 'kd_mm.JointOptimWrapperConstructor',
    'parts': {
        'networks': {
            'prefix': ['students', 'methods.ffsd.decoder'],
            'optimizer': {**SGD, 'weight_decay': 1e-4},
        },
        'fusion': {
            'prefix': 'methods.ffsd.fusion',
            'optimizer': {**SGD, 'weight_decay': 1e-5},
        },
        'self_distillation': {
            'prefix': 'methods.ffsd.self_distillation',
            'optimizer': {'type': 'Adam', 'lr': 1e-3, 'weight_decay': 1e-4},
        },
    },
}


@pytest.mark.parametrize('num_common', [2, 3])
def test_a_whole_step_equals_the_released_order_of_updates(num_common):
    ours = build(num_common, diversity_weight=0.5).double()
    theirs = copy.deepcopy(ours)
    images, samples = draw()
    images = images.double()
    labels = torch.cat([sample.gt_label for sample in samples])
    for _ in range(2):  # the second step begins with moved statistics
        optimizer = build_optim_wrapper(ours, copy.deepcopy(OPTIMIZERS))
        start = copy.deepcopy(ours.state_dict())
        optimizer.update_params(ours.parse_losses(ours(images, samples, mode='loss'))[0])
        released_step(theirs, images, labels)
        expected = theirs.state_dict()
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-9)
            moved = value.dtype == torch.int64 or not torch.equal(value, start[name])
            assert moved, name


# Ablations and composition ----------------------------------------------------------------------

COMMON = {f'student{i}/loss_mutual' for i in range(2)}
DIVERSITY = {'student1/loss_diversity'}
SD_COMMON = {
    f'student1/{k}' for k in ('loss_self_distillation', 'loss_neck_feature', 'loss_neck_attention')
}
SD_LEADER = {key.replace('student1', 'leader') for key in SD_COMMON}
FUSION = {'fusion/loss', 'fusion/loss_ensemble'}
LEADER = {'leader/loss', 'leader/loss_kd'}
TRANSFER = {'leader/loss_fusion', 'leader/loss_decoder'}
ALL = COMMON | DIVERSITY | SD_COMMON | SD_LEADER | FUSION | LEADER | TRANSFER
OWN = {'student0/loss', 'student1/loss'}


@pytest.mark.parametrize(
    ('settings', 'terms'),
    [
        ({}, ALL),
        ({'diversity': 'l2'}, ALL),
        ({'diversity': None}, ALL - DIVERSITY),
        ({'self_distillation': 'common'}, ALL - SD_LEADER),
        ({'self_distillation': 'leader'}, ALL - SD_COMMON),
        ({'self_distillation': None}, ALL - SD_COMMON - SD_LEADER),
        ({'fusion': False}, ALL - FUSION - TRANSFER),
        ({'leader': None}, ALL - SD_LEADER - LEADER - TRANSFER),
        ({'leader': None, 'fusion': False}, COMMON | DIVERSITY | SD_COMMON),
        ({'diversity': None, 'self_distillation': None}, COMMON | FUSION | LEADER | TRANSFER),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_each_ablation_leaves_out_its_terms_and_trains_every_parameter(settings, terms):
    model = build(with_leader=settings.get('leader', 'leader') is not None, **settings)
    losses = backward(model, *draw())
    assert losses.keys() == terms | OWN
    assert all(torch.isfinite(loss) for loss in losses.values())
    optimizer = build_optim_wrapper(model, copy.deepcopy(OPTIMIZERS))
    ffsd = model.methods.ffsd
    lost = {'fusion': ffsd.fusion, 'self_distillation': ffsd.self_distillation}
    expected = {'networks'} | {name for name, part in lost.items() if part is not None}
    assert set(optimizer.optim_wrappers) == expected
    assert all(p.grad is not None for p in model.parameters())


def test_without_a_diverse_map_guidance_comes_from_the_own_one():
    """Then F* guides nobody; l2 pushes attention maps apart."""
    values = {}
    for diversity in ('attention', 'l2', None):
        losses = build(diversity=diversity, diversity_weight=1.0)(*draw(), mode='loss')
        values[diversity] = losses['student1/loss_self_distillation'].item()
        if diversity is not None:
            assert (losses['student1/loss_diversity'] < 0) == (diversity == 'l2')
    assert values['l2'] == values[None] != values['attention']


def test_the_teacher_of_the_leader_is_the_fusion_or_else_the_mean():
    images, samples = draw()
    model = build(fusion=False)
    loss = model(images, samples, mode='loss')['leader/loss_kd']
    logits = {n: s(images, mode='tensor') for n, s in model.students.items()}
    mean = (logits['student0'] + logits['student1']) / 2
    torch.testing.assert_close(loss, kl(logits['leader'], mean))


def test_weights_scale_their_terms():
    keys = {
        'diversity_weight': DIVERSITY | {'student1/loss_self_distillation'},
        'fusion_weight': TRANSFER | {'leader/loss_self_distillation'},
        'self_distillation_weight': {k for k in SD_COMMON | SD_LEADER if 'neck' in k},
    }
    base = build(diversity_weight=1.0, fusion_weight=1.0, self_distillation_weight=1.0)
    plain = base(*draw(), mode='loss')
    for setting, scaled in keys.items():
        others = {key: 1.0 for key in keys if key != setting}
        losses = build(**{setting: 3.0}, **others)(*draw(), mode='loss')
        for key, value in losses.items():
            torch.testing.assert_close(value, plain[key] * (3 if key in scaled else 1))


def test_mixed_labels_reach_the_fusion_classifier_too():
    images, samples = draw(soft=True)
    model = build()
    losses = model(images, samples, mode='loss')
    model = build()
    deepest = [model.students[n].backbone(images)[-1] for n in ('student0', 'student1')]
    scores = torch.stack([sample.gt_score for sample in samples])
    expected = -(scores * model.methods.ffsd.fusion(deepest)[1].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses['fusion/loss'], expected)


BACKBONES = {
    'SwinTransformer': {
        'arch': {'embed_dims': 8, 'depths': [1, 1, 1, 1], 'num_heads': [1, 1, 2, 2]},
        'window_size': 2,
    },
    'ConvNeXt': {
        'arch': {'depths': [1, 1, 1, 1], 'channels': [8, 16, 32, 64]},
        'gap_before_final_norm': False,
    },
}


@pytest.mark.parametrize('backbone', BACKBONES)
def test_transformers_and_convnexts_train_every_parameter(backbone):
    settings = {'out_indices': (0, 1, 2, 3), **BACKBONES[backbone]}
    model = build(own=student(backbone=backbone, width=64, **settings), img_size=64)
    losses = backward(model, *draw(size=64))
    assert losses.keys() == ALL | OWN
    assert all(p.grad is not None for p in model.parameters())


def test_the_image_of_zeros_suits_the_windows_of_swin():
    swin = {**BACKBONES['SwinTransformer'], 'window_size': 7, 'out_indices': (0, 1, 2, 3)}
    own = student(backbone='SwinTransformer', width=64, **swin)
    assert build(own=own).methods.ffsd.fusion.fc.in_features == 64
    with pytest.raises(ValueError, match=r'with 64 one fails: .*window size.* set model.img_size'):
        build(own=own, img_size=64)


def test_prediction_has_every_classifier_and_is_the_leaders():
    model = build().eval()
    images, samples = draw()
    predictions = model(images, samples, mode='predict')
    logits = model.students['leader'](images, mode='tensor')
    torch.testing.assert_close(model(images, mode='tensor'), logits)
    deepest = [model.students[n].backbone(images)[-1] for n in ('student0', 'student1')]
    fusion = model.methods.ffsd.fusion(deepest)[1].softmax(1)
    for i, sample in enumerate(predictions):
        torch.testing.assert_close(sample.pred_score, logits[i].softmax(0))
        assert sample.pred_label.item() == logits[i].argmax().item()
        assert sample.student_scores.keys() == {'student0', 'student1'}
        assert sample.extra_scores.keys() == {'leader', 'fusion'}
        torch.testing.assert_close(sample.extra_scores['fusion'], fusion[i])
        torch.testing.assert_close(sample.extra_scores['leader'], sample.pred_score)


def test_without_a_leader_the_first_student_answers():
    model = build(with_leader=False, leader=None)
    assert model.deploy == 'student0'
    assert build(deploy='student1').deploy == 'student1'


POOLED = BACKBONES['ConvNeXt']['arch']


def vary(**changes):
    return {n: student(**changes.get(n, {})) for n in ('student0', 'student1', 'leader')}


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'students': {'a': student(), 'leader': student()}}, 'at least two next to the leader'),
        ({'leader': 'boss'}, 'leader must name one of the students leader, student0, student1'),
        (
            {'leader': None, 'self_distillation': 'leader'},
            "'both', 'common', None, but got 'leader'",
        ),
        ({'diversity': 'cosine'}, "'attention', 'l2', None, but got 'cosine'"),
        ({'self_distillation_weight': -1.0}, 'self_distillation_weight must be finite and at'),
        ({'students': vary(leader={'out_indices': (0, 1), 'width': 8})}, 'one height and width'),
        (
            {'students': vary(student1={'out_indices': (0, 2)})},
            'halve in size.*student1.* 224 x 224',
        ),
        ({'students': vary(leader={'out_indices': (2,)})}, 'maps of several stages.*leader gives'),
        (
            {'own': student(backbone='ConvNeXt', width=64, neck=None, arch=POOLED)},
            r'must be maps \(C, H, W\), but those of student .* \(64,\).*gap_before_final_norm',
        ),
    ],
)
def test_bad_input_is_refused_when_the_model_is_built(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
