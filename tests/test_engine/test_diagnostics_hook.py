"""The numbers in the log are the paper's for the batch of the step, and training is the same."""

import copy

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.structures import DataSample

from kd_mm.analysis.run_log import read_log
from kd_mm.engine.hooks import DiagnosticsHook
from kd_mm.models.distiller import named_networks
from kd_mm.registry import MODELS
from tests.references import bake as reference
from tests.toys.models import BATCH, NUM_CLASSES, build, network, runner_of

METHODS = ('bake', 'bake_student', 'dml', 'general', 'ffsd')


def build_of(name):
    """A model; ``dml`` has three students, of which the first has a BAKE head as well."""
    if name != 'dml':
        return build(name)
    students = {'a': network('kd_mm.BAKEHead'), 'b': network(), 'c': network()}
    model = build('dml', students=students)
    torch.nn.init.constant_(model.students.b.head.fc.bias[:1].detach(), 9.0)  # always class 0
    return model


def images(soft=False):
    generator = torch.Generator().manual_seed(0)
    data = []
    for index in range(3 * BATCH):
        sample = DataSample().set_gt_label(index % NUM_CLASSES)
        if soft:
            sample.set_gt_score(torch.rand(NUM_CLASSES, generator=generator).softmax(dim=0))
        image = torch.randn(3, 16, 16, generator=generator)
        data.append({'inputs': image, 'data_samples': sample})
    return data


def train(model, work_dir, interval=1, soft=False):
    """Three iterations; what was measured, by line of the log."""
    runner = runner_of(
        model,
        work_dir,
        images(soft),
        custom_hooks=[{'type': 'kd_mm.DiagnosticsHook', 'interval': interval}],
        default_hooks={'logger': {'type': 'LoggerHook', 'interval': 1}},
        visualizer={'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]},
    )
    runner.train()
    prefix = 'diagnostics/'
    return [
        {key.removeprefix(prefix): v for key, v in line.items() if key.startswith(prefix)}
        for line in read_log(work_dir)[0]
    ]


@pytest.mark.parametrize('name', METHODS)
def test_training_is_the_same_to_the_last_bit_and_runs_no_network_twice(name, tmp_path):
    plain, observed = build_of(name), build_of(name)
    assert train(plain, tmp_path / 'plain', interval=4) == [{}] * 3
    passes = []
    for key, module in observed.named_modules():
        if key.endswith('backbone'):
            module.register_forward_hook(lambda *_, key=key: passes.append(key))
    lines = train(observed, tmp_path / 'observed')
    expected, found = plain.state_dict(), observed.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert len(passes) == 3 * len(set(passes))
    assert all(len(line) >= 4 for line in lines)


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


def entropy(p):
    return -(p * np.log(p)).sum(axis=1).mean()


def compared(name, distillation, classification):
    x, y = distillation.ravel(), classification.ravel()
    lengths = np.sqrt(x @ x), np.sqrt(y @ y)
    key = f'/{name}' if name else ''
    return {
        f'gradient_ratio{key}': lengths[0] / lengths[1],
        f'gradient_cosine{key}': x @ y / lengths[0] / lengths[1],
    }


def bake_gradient(logits, embeddings):
    """By hand: d/dz T^2 KL(Q || softmax(z / T)) = T (softmax(z / T) - Q)."""
    target = reference.ensemble_knowledge(embeddings, logits, 4.0, 0.5)
    return 4 * (softmax(logits / 4) - target)


def bake_by_hand(name, z, f, y):
    affinities = reference.affinity(f)
    inside = [row[row > 0] for row in affinities]
    uniform = np.log(BATCH - 1)
    key = f'/{name}' if name else ''
    return {
        f'affinity_entropy{key}': np.mean([-(r * np.log(r)).sum() for r in inside]) / uniform,
        f'own_class_mass{key}': np.mean((affinities * (y @ y.T)).sum(axis=1)),
    }


@pytest.mark.parametrize('soft', [False, True], ids=['hard labels', 'mixed labels'])
@pytest.mark.parametrize('name', ['bake', 'bake_student'])
def test_bake_by_hand(name, soft, tmp_path):
    model = build(name)
    logits, embeddings, y = by_hand(model, soft)
    (z,), (f,) = logits.values(), embeddings.values()
    expected = compared('', bake_gradient(z, f), softmax(z) - y) | bake_by_hand('', z, f, y)
    assert train(model, tmp_path / 'each', soft=soft)[0] == pytest.approx(expected, rel=1e-3)
    first, second, third = train(build(name), tmp_path / 'second', interval=2, soft=soft)
    assert first == {} != second == third  # the second iteration's, until there are others


def test_cohort_by_hand(tmp_path):
    """Deep mutual learning of three, the first of which learns by BAKE as well."""
    model = build_of('dml')
    logits, embeddings, y = by_hand(model, soft=True)
    p = {key: softmax(z) for key, z in logits.items()}
    classes = {key: z.argmax(axis=1) for key, z in p.items()}
    expected = {
        f'agreement/{i}-{j}': np.mean(classes[i] == classes[j]) for i, j in ('ab', 'ac', 'bc')
    }
    mean = sum(p.values()) / 3
    accuracy = [100 * np.mean(q.argmax(axis=1) == y.argmax(axis=1)) for q in (*p.values(), mean)]
    assert min(accuracy[:3]) < max(accuracy[:3])
    expected['ensemble_gap/mean'] = accuracy[3] - np.mean(accuracy[:3])
    expected['ensemble_gap/best'] = accuracy[3] - max(accuracy[:3])
    expected['diversity'] = entropy(mean) - np.mean([entropy(q) for q in p.values()])
    expected |= bake_by_hand('a', logits['a'], embeddings['a'], y)
    for key, own in p.items():
        pull = own - (3 * mean - own) / 2
        if key == 'a':
            pull += bake_gradient(logits['a'], embeddings['a'])
        expected |= compared(key, pull, own - y)
    assert train(model, tmp_path, soft=True)[0] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_general_by_hand(tmp_path):
    model = build('general', temperature=3.0)
    model.methods.kdcl.weights.copy_(torch.tensor([0.25, 0.75]))
    logits, _, y = by_hand(model)
    found, *_ = train(model, tmp_path)
    soft = {key: softmax(z / 3) for key, z in logits.items()}
    target = 0.25 * soft['a'] + 0.75 * soft['b']
    expected = {'general_weight/a': 0.25, 'general_weight/b': 0.75}
    for key, z in logits.items():
        expected |= compared(key, 3 * (soft[key] - target), softmax(z) - y)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3)


def test_the_leader_is_no_part_of_the_ensemble(tmp_path):
    model = build('ffsd')
    logits, _, y = by_hand(model)
    found, *_ = train(model, tmp_path)
    assert len([key for key in found if key.startswith('agreement/')]) == 3
    p = [softmax(logits[f'student{i}']) for i in (1, 2)]
    # What acts on maps does not reach the logits: mutual learning at temperature 2 is left.
    soft = [softmax(logits[f'student{i}'] / 2) for i in (1, 2)]
    expected = compared('student1', 2 * (soft[0] - soft[1]), p[0] - y)
    expected['diversity'] = entropy(sum(p) / 2) - np.mean([entropy(q) for q in p])
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    assert found['gradient_ratio/leader'] > 0


def test_a_student_alone_has_nobody_to_differ_from(tmp_path):
    found, *_ = train(build('naive', students={'a': network()}), tmp_path)
    assert found.keys() == {'gradient_ratio/a', 'gradient_cosine/a'}


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r'interval must be .* at least 1, but got 0'):
        DiagnosticsHook(0)
    plain = MODELS.build({**network(), '_scope_': 'mmpretrain'})
    with pytest.raises(ValueError, match='but got ImageClassifier with LinearClsHead; remove'):
        train(plain, tmp_path)
