"""What is recorded of networks equals what they compute, and they are left as they were."""

import copy

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.structures import DataSample

from kd_mm.analysis.pictures import networks
from kd_mm.analysis.pictures.networks import (
    BatchWatch,
    as_map,
    look,
    networks_of,
    to_image,
)
from kd_mm.models.distiller import observed
from tests.references import bake as batch_ensemble
from tests.references import ffsd as reference
from tests.toys import pictures as toys


def hooks_of(model):
    return [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]


def transformer(backbone, in_channels, neck=None):
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 3, 'in_channels': in_channels}
    return {'type': 'mmpretrain.ImageClassifier', 'backbone': backbone, 'neck': neck, 'head': head}


def test_tokens_lie_in_rows():
    tokens = torch.arange(7.0)[None, :, None]  # a class token and 2 x 3 places
    found = as_map(tokens, (32, 48), extra_tokens=1)
    assert found[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    sized = as_map((tokens[:, 1:], (3, 2)), (32, 32))
    assert sized[0, 0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert as_map(tokens, (32, 48)) is None  # 7 places
    assert as_map(torch.zeros(2, 5), (32, 32)) is None


@torch.no_grad()
def test_each_student_leader_and_fusion_by_hand():
    model, item = toys.build('ffsd'), toys.samples(5)[4]
    before = hooks_of(model)
    found = look(model, item)
    assert hooks_of(model) == before
    assert model.observers == []
    names = ['student1', 'student2', 'leader']
    keys = [*((name, 'backbone') for name in names), ('fusion', 'fusion')]
    assert list(found.attention) == keys
    assert list(found.scores) == [*names, 'ensemble', 'fusion']
    inputs = model.data_preprocessor(default_collate([item]))['inputs']
    maps = {n: student.backbone(inputs)[-1] for n, student in model.students.items()}
    logits = {n: s.head(s.neck((maps[n],))) for n, s in model.students.items()}
    ffsd = model.methods.ffsd
    maps['fusion'], logits['fusion'] = ffsd.fusion([maps[name] for name in ffsd.common])
    for (name, _), attention in found.attention.items():
        expected = reference.attention_map(maps[name].double().numpy())[0, 0]
        np.testing.assert_allclose(attention, expected, rtol=1e-5)
    probs = {n: z.softmax(dim=1)[0] for n, z in logits.items()}
    probs['ensemble'] = (probs['student1'] + probs['student2']) / 2
    for name, scores in found.scores.items():
        np.testing.assert_allclose(scores, probs[name], rtol=1e-5)
    assert (found.label, found.name) == (1, 'image 4')
    np.testing.assert_array_equal(found.image, item['inputs'].permute(1, 2, 0))


def test_target_layers_in_the_order_in_which_they_run():
    layers = ['backbone.layer2', 'backbone.layer1']
    (item,) = toys.samples(1)
    found = look(toys.build('plain'), item, layers).attention
    assert {layer: m.shape for (_, layer), m in found.items()} == {
        'backbone.layer1': (16, 16),
        'backbone.layer2': (8, 8),
    }
    names = [name for name, _ in look(toys.build('ffsd'), item, layers).attention]
    assert names == [*('student1',) * 2, *('student2',) * 2, *('leader',) * 2, 'fusion']


@pytest.mark.parametrize(
    ('layer', 'sentence'),
    [
        ('backbone.layer9', r'network has no backbone.layer9; did you mean backbone\.layer\d\?'),
        ('stage', r'has no stage; there are backbone\.conv1, '),
        ('head.fc', r'must give a map \(N, C, H, W\) .* but head.fc of network does not'),
    ],
)
def test_wrong_target_layers_are_named(layer, sentence):
    with pytest.raises(ValueError, match=sentence):
        look(toys.build('plain'), toys.samples(1)[0], [layer])


def test_a_network_without_places_is_refused(monkeypatch):
    monkeypatch.setattr(networks, 'as_map', lambda *args: None)
    with pytest.raises(ValueError, match='no layer of network does; use larger images'):
        look(toys.build('plain'), toys.samples(1)[0])


@pytest.mark.parametrize(
    ('backbone', 'neck', 'layer'),
    [
        (
            {
                'type': 'mmpretrain.SwinTransformer',
                'arch': {'embed_dims': 8, 'depths': [1, 1], 'num_heads': [1, 2]},
                **{'img_size': 16, 'patch_size': 2, 'window_size': 4, 'out_indices': (1,)},
            },
            {'type': 'mmpretrain.GlobalAveragePooling'},
            'stages.1',
        ),
        (
            {
                'type': 'mmpretrain.VisionTransformer',
                'arch': dict(embed_dims=16, num_layers=1, num_heads=1, feedforward_channels=8),
                **{'img_size': 16, 'patch_size': 4},
            },
            None,
            'layers.0',
        ),
    ],
    ids=['swin', 'vit'],
)
def test_transformers_are_recorded_before_their_last_normalisation(backbone, neck, layer):
    """Behind it, all places have nearly the same mean square."""
    torch.manual_seed(0)
    model = toys.alone(transformer(backbone, 16, neck)).eval()
    seen = []
    model.backbone.get_submodule(layer).register_forward_hook(lambda *args: seen.append(args[-1]))
    ((key, found),) = look(model, toys.samples(1)[0]).attention.items()
    assert key == ('network', f'backbone.{layer}')
    tokens = seen[0][0] if isinstance(seen[0], tuple) else seen[0][:, 1:]
    np.testing.assert_allclose(found, tokens[0].square().mean(dim=1).reshape(4, 4), rtol=1e-5)


def test_maps_and_scores_of_other_classifiers_come_last():
    """Of a method of a project: its name and place come from the method alone."""
    students = {name: toys.network() for name in 'ab'}
    methods = {'gate': {'type': 'tests.Gate'}}
    cfg = {'type': 'kd_mm.Distiller', 'students': students, 'methods': methods, 'img_size': 16}
    model = toys.alone(cfg).eval()
    model.methods.gate.extra_maps = lambda step: {'gate': step.students['a'][0].maps[-1]}
    found = look(model, toys.samples(1)[0])
    assert list(found.scores) == ['a', 'b', 'ensemble', 'gate']
    assert list(found.attention) == [('a', 'backbone'), ('b', 'backbone'), ('gate', 'gate')]


@pytest.mark.parametrize('to_rgb', [True, False])
@pytest.mark.parametrize('from_file', [True, False])
def test_an_image_comes_back_as_it_was(to_rgb, from_file):
    rgb = torch.randint(256, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    # mmcv reads files as BGR; arrays of data sets are RGB, unless the preprocessor turns them.
    given = rgb.flip(0) if from_file or to_rgb else rgb
    preprocess = ClsDataPreprocessor(mean=[9.0, 99.0, 50.0], std=[3.0, 7.0, 11.0], to_rgb=to_rgb)
    sample = DataSample(metainfo={'img_path': 'a.png'} if from_file else {})
    inputs = preprocess({'inputs': given[None].byte()})['inputs'][0]
    np.testing.assert_array_equal(to_image(inputs, preprocess, sample), rgb.permute(1, 2, 0))


def test_grey_images_without_normalisation():
    found = to_image(torch.tensor([[[7.0, 300.0]]]), ClsDataPreprocessor(), DataSample())
    assert found.tolist() == [[[7, 7, 7], [255, 255, 255]]]


def learn(model, views=1, count=4):
    """Compute the losses of a batch of six once. Return what was recorded, and the inputs."""
    batch = default_collate(toys.samples(6))
    if views > 1:
        batch['inputs'] = [batch['inputs'], 255 - batch['inputs']]
    data = model.data_preprocessor(batch, training=True)
    watch = BatchWatch(model.train())
    model(**data, mode='loss')
    return watch.close(count), data['inputs']


@pytest.mark.parametrize('kind', ['bake', 'bake_student'])
def test_affinities_and_targets_by_hand(kind):
    model = toys.build(kind)
    again = copy.deepcopy(networks_of(model)['network']).train()
    before = hooks_of(model)
    found, inputs = learn(model)
    assert hooks_of(model) == before
    assert observed(model).observers == []
    batch = found['network']
    features = again.neck(again.backbone(inputs))[-1]
    f, z = (x.detach().double().numpy() for x in (features, again.head.fc(features)))
    np.testing.assert_allclose(batch.affinity, batch_ensemble.affinity(f)[:4, :4], rtol=1e-4)
    assert (batch.affinity.diagonal() == 0).all()
    target = batch_ensemble.ensemble_knowledge(f, z, 4.0, 0.5)
    np.testing.assert_allclose(batch.target, target[:4], rtol=1e-4)
    own = np.stack([batch_ensemble.softmax(row / 4) for row in z])
    np.testing.assert_allclose(batch.own, own[:4], rtol=1e-4)
    np.testing.assert_array_equal(batch.labels, np.eye(3)[[0, 1, 2, 0]])
    assert (batch.temperature, batch.size) == (4.0, 6)
    image = toys.samples(6)[3]['inputs'].permute(1, 2, 0)
    np.testing.assert_array_equal(batch.images[3], image)


def test_a_student_is_shown_its_own_view():
    found, _ = learn(toys.build('dml'), views=2)
    assert list(found) == ['b']  # the second by name, so that it sees the second view
    image = toys.samples(6)[0]['inputs'].permute(1, 2, 0)
    np.testing.assert_array_equal(found['b'].images[0], 255 - image)
