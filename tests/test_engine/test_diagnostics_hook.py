"""The numbers in the log are the paper's for the batch of the step, and training is the same."""

import copy

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from kd_mm.analysis.run_log import read_log
from kd_mm.engine.hooks import DiagnosticsHook
from kd_mm.models.distiller import named_networks
from kd_mm.registry import MODELS
from tests.references import bake as reference
from tests.test_engine.toy_methods import FIRST

NUM_CLASSES, NUM_IMAGES, BATCH = 3, 18, 6


def network(head='mmpretrain.LinearClsHead', **backbone):
    return {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': 'kd_mm.CIFARResNet', 'depth': 8, **backbone},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': {'type': head, 'num_classes': NUM_CLASSES, 'in_channels': 64},
    }


def stages():
    return network(out_indices=(0, 1, 2))


MODEL_OF = {
    'bake': lambda: network('kd_mm.BAKEHead'),
    'bake_student': lambda: {'type': 'kd_mm.BAKE', 'student': network()},
    'dml': lambda: {
        'type': 'kd_mm.DML',
        'students': {'a': network('kd_mm.BAKEHead'), 'b': network(), 'c': network()},
    },
    'general': lambda: {
        'type': 'kd_mm.KDCL',
        'students': {'a': network(), 'b': network()},
        'target': 'general',
        'temperature': 3.0,
    },
    'ffsd': lambda: {
        'type': 'kd_mm.FFSD',
        'students': {'leader': stages(), 'student1': stages(), 'student2': stages()},
        'img_size': 16,
    },
}


def build(name, seed=0):
    torch.manual_seed(seed)
    model = MODELS.build({**MODEL_OF[name](), '_scope_': 'mmpretrain'})
    model.init_weights()
    for key, parameter in model.named_parameters():
        if 'fc' in key:  # predictions that differ
            torch.nn.init.normal_(parameter, std=0.5)
    model._is_init = True
    model.clock = FIRST  # General needs its hook after an epoch alone
    return model


def images(soft=False):
    generator = torch.Generator().manual_seed(0)
    data = []
    for index in range(NUM_IMAGES):
        sample = DataSample().set_gt_label(index % NUM_CLASSES)
        if soft:
            sample.set_gt_score(torch.rand(NUM_CLASSES, generator=generator).softmax(dim=0))
        data.append(
            {'inputs': torch.randn(3, 16, 16, generator=generator), 'data_samples': sample}
        )
    return data


def train(model, work_dir, hook=True, interval=2, soft=False):
    """Three iterations of six images; the logger writes each."""
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader={
            'dataset': images(soft),
            'batch_size': BATCH,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'default_collate'},
        },
        train_cfg={'by_epoch': True, 'max_epochs': 1},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}},
        custom_hooks=[{'type': 'kd_mm.DiagnosticsHook', 'interval': interval}] * hook,
        default_hooks={
            'logger': {'type': 'LoggerHook', 'interval': 1},
            'checkpoint': {'type': 'CheckpointHook', 'interval': 1},
        },
        visualizer={'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]},
        randomness={'seed': 0},
        experiment_name=f'diagnostics_{work_dir.parent.name}_{work_dir.name}',
        log_level='ERROR',
    )
    runner.train()
    return runner


def logged(work_dir):
    """What was measured, by iteration of the log."""
    train_log, _ = read_log(work_dir)
    prefix = 'diagnostics/'
    return [
        {key.removeprefix(prefix): v for key, v in entry.items() if key.startswith(prefix)}
        for entry in train_log
    ]


@pytest.mark.parametrize('name', MODEL_OF)
def test_training_is_the_same_to_the_last_bit_and_runs_no_network_twice(name, tmp_path):
    model = build(name)
    plain = train(copy.deepcopy(model), tmp_path / 'plain', hook=False).model
    passes = []
    for key, module in model.named_modules():
        if key.endswith('backbone'):
            module.register_forward_hook(lambda *_, key=key: passes.append(key))
    watched = train(model, tmp_path / 'watched', interval=1).model
    expected, found = plain.state_dict(), watched.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert len(passes) == 3 * len(set(passes))
    assert len(logged(tmp_path / 'watched')[0]) >= 4
    assert logged(tmp_path / 'plain') == [{}] * 3
    assert not any(module._forward_hooks for key, module in watched.named_modules()
                   if not key.endswith('backbone'))  # fmt: skip


def by_hand(model, soft=False):
    """Of the first batch: each network's logits and embeddings, and labels as distributions."""
    model = copy.deepcopy(model).train()
    data = model.data_preprocessor(default_collate(images(soft)[:BATCH]), training=True)
    logits, embeddings = {}, {}
    for key, student in named_networks(model).items():
        features = student.neck(student.backbone(data['inputs'])[-1:])
        embeddings[key] = features[-1].detach().double().numpy()
        logits[key] = student.head(features).detach().double().numpy()
    eye = np.eye(NUM_CLASSES)
    labels = [
        s.gt_score.double().numpy() if soft else eye[int(s.gt_label)] for s in data['data_samples']
    ]
    return logits, embeddings, np.array(labels)


def softmax(z):
    return np.stack([reference.softmax(row) for row in z])


def compare(distillation, classification):
    x, y = distillation.ravel(), classification.ravel()
    lengths = np.sqrt(x @ x), np.sqrt(y @ y)
    return lengths[0] / lengths[1], x @ y / lengths[0] / lengths[1]


def bake_gradient(logits, embeddings):
    """By hand: d/dz T^2 KL(Q || softmax(z / T)) = T (softmax(z / T) - Q)."""
    target = reference.ensemble_knowledge(embeddings, logits, 4.0, 0.5)
    return 4 * (softmax(logits / 4) - target)


@pytest.mark.parametrize('soft', [False, True], ids=['hard labels', 'mixed labels'])
@pytest.mark.parametrize('name', ['bake', 'bake_student'])
def test_bake_by_hand(name, soft, tmp_path):
    model = build(name)
    (z,), (f,), y = (
        values if isinstance(values, np.ndarray) else values.values()
        for values in by_hand(model, soft)
    )
    train(model, tmp_path, interval=2, soft=soft)
    first, second, third = logged(tmp_path)
    assert first == {}
    assert second == third  # the second iteration's, until there are others

    again = build(name)
    train(again, tmp_path / 'each', interval=1, soft=soft)
    found, *_ = logged(tmp_path / 'each')
    affinities = reference.affinity(f)
    ratio, cosine = compare(bake_gradient(z, f), softmax(z) - y)
    inside = [row[row > 0] for row in affinities]
    entropy = np.mean([-(row * np.log(row)).sum() for row in inside]) / np.log(BATCH - 1)
    expected = {
        'gradient_ratio': ratio,
        'gradient_cosine': cosine,
        'affinity_entropy': entropy,
        'own_class_mass': np.mean((affinities * (y @ y.T)).sum(axis=1)),
    }
    assert found == pytest.approx(expected, rel=1e-3)


def test_cohort_by_hand(tmp_path):
    """Deep mutual learning of three, the first of them with BAKE beside."""
    model = build('dml')
    logits, embeddings, y = by_hand(model)
    train(model, tmp_path, interval=1)
    found, *_ = logged(tmp_path)
    p = {key: softmax(z) for key, z in logits.items()}
    classes = {key: z.argmax(axis=1) for key, z in p.items()}
    expected = {
        f'agreement/{i}-{j}': np.mean(classes[i] == classes[j]) for i, j in ('ab', 'ac', 'bc')
    }
    mean = sum(p.values()) / 3
    accuracy = [100 * np.mean(q.argmax(axis=1) == y.argmax(axis=1)) for q in (*p.values(), mean)]
    expected['ensemble_gap/mean'] = accuracy[3] - np.mean(accuracy[:3])
    expected['ensemble_gap/best'] = accuracy[3] - max(accuracy[:3])
    entropies = [-(q * np.log(q)).sum(axis=1).mean() for q in (*p.values(), mean)]
    expected['diversity'] = entropies[3] - np.mean(entropies[:3])
    for key, own in p.items():
        pull = own - (3 * mean - own) / 2
        if key == 'a':
            pull += bake_gradient(logits['a'], embeddings['a'])
        ratio, cosine = compare(pull, own - y)
        expected |= {f'gradient_ratio/{key}': ratio, f'gradient_cosine/{key}': cosine}
    for kind in ('affinity_entropy/a', 'own_class_mass/a'):  # by hand above
        expected[kind] = found[kind]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_general_by_hand(tmp_path):
    model = build('general')
    model.methods.kdcl.weights.copy_(torch.tensor([0.25, 0.75]))
    logits, _, y = by_hand(model)
    train(model, tmp_path, interval=1)
    found, *_ = logged(tmp_path)
    soft = {key: softmax(z / 3) for key, z in logits.items()}
    target = 0.25 * soft['a'] + 0.75 * soft['b']
    for key, z in logits.items():
        expected = compare(3 * (soft[key] - target), softmax(z) - y)
        assert found[f'gradient_ratio/{key}'] == pytest.approx(expected[0], rel=1e-3)
        assert found[f'gradient_cosine/{key}'] == pytest.approx(expected[1], rel=1e-3)
        assert found[f'general_weight/{key}'] == {'a': 0.25, 'b': 0.75}[key]


def test_the_leader_is_no_part_of_the_ensemble(tmp_path):
    model = build('ffsd')
    logits, _, y = by_hand(model)
    train(model, tmp_path, interval=1)
    found, *_ = logged(tmp_path)
    pairs = {key for key in found if key.startswith('agreement/')}
    assert pairs == {f'agreement/{pair}' for pair in
                     ('leader-student1', 'leader-student2', 'student1-student2')}  # fmt: skip
    p = [softmax(logits[f'student{i}']) for i in (1, 2)]
    mean = sum(p) / 2
    entropies = [-(q * np.log(q)).sum(axis=1).mean() for q in (*p, mean)]
    assert found['diversity'] == pytest.approx(entropies[2] - np.mean(entropies[:2]), rel=1e-3)
    # What acts on maps does not reach the logits: mutual learning at temperature 2 is left.
    soft = [softmax(logits[f'student{i}'] / 2) for i in (1, 2)]
    ratio, cosine = compare(2 * (soft[0] - soft[1]), p[0] - y)
    assert found['gradient_ratio/student1'] == pytest.approx(ratio, rel=1e-3)
    assert found['gradient_cosine/student1'] == pytest.approx(cosine, rel=1e-3)
    assert found['gradient_ratio/leader'] > 0


def test_a_student_alone_has_nobody_to_differ_from(tmp_path):
    torch.manual_seed(0)
    model = MODELS.build({'type': 'kd_mm.KDCL', 'students': {'a': network()}})
    train(model, tmp_path, interval=1)
    found, *_ = logged(tmp_path)
    assert found.keys() == {'gradient_ratio/a', 'gradient_cosine/a'}


@pytest.mark.parametrize('interval', [0, 2.0, True])
def test_interval_out_of_range_is_refused(interval):
    with pytest.raises(ValueError, match=f'at least 1, but got {interval}'):
        DiagnosticsHook(interval)


def test_a_plain_classifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match='but got ImageClassifier with LinearClsHead; remove'):
        train(MODELS.build({**network(), '_scope_': 'mmpretrain'}), tmp_path)
