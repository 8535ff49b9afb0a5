"""What is recorded of networks equals what they compute, and they are left as they were."""

import copy

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.structures import DataSample

from kd_mm.analysis.pictures.networks import (
    BatchWatch,
    Watch,
    as_map,
    networks_of,
    shows_relations,
    to_image,
)
from kd_mm.models.distiller import observed
from tests.references import bake as batch_ensemble
from tests.references import ffsd as reference
from tests.test_analysis.test_pictures import toys


def look(model, layers=(), count=4, places=None):
    watch = Watch(model.eval(), layers)
    with torch.no_grad():
        model.val_step(default_collate(toys.samples(count)))
    watch.close()
    return watch.looks(places)


def preprocessed(model, count=4):
    with torch.no_grad():
        return model.data_preprocessor(default_collate(toys.samples(count)))['inputs']


def hooks_of(model):
    return [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]


def test_tokens_lie_in_rows():
    tokens = torch.arange(7.0)[None, :, None]  # a class token and 2 x 3 places
    found = as_map(tokens, (32, 48), extra_tokens=1)
    assert found[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    sized = as_map((tokens[:, 1:], (3, 2)), (32, 32))
    assert sized[0, 0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert as_map(tokens, (32, 48)) is None  # 7 places
    assert as_map(torch.zeros(2, 5), (32, 32)) is None


def test_each_student_leader_and_fusion_by_hand():
    model = toys.build('ffsd').eval()
    before = hooks_of(model)
    looks = look(model)
    assert hooks_of(model) == before
    assert model.observers == []
    keys = [(f'student{i}', 'backbone') for i in (1, 2)]
    assert list(looks[0].attention) == [*keys, ('leader', 'backbone'), ('fusion', 'fusion')]
    assert list(looks[0].scores) == ['student1', 'student2', 'ensemble', 'leader', 'fusion']
    inputs = preprocessed(model)
    with torch.no_grad():
        maps = {n: student.backbone(inputs)[-1] for n, student in model.students.items()}
        ffsd = model.methods.ffsd
        fused, fused_logits = ffsd.fusion([maps[name] for name in ffsd.common])
        logits = {n: s.head(s.neck((maps[n],))) for n, s in model.students.items()}
    probs = {n: z.softmax(dim=1) for n, z in {**logits, 'fusion': fused_logits}.items()}
    probs['ensemble'] = (probs['student1'] + probs['student2']) / 2
    for place, one in enumerate(looks):
        for name, expected in {**maps, 'fusion': fused}.items():
            layer = 'fusion' if name == 'fusion' else 'backbone'
            want = reference.attention_map(expected[place : place + 1].double().numpy())[0, 0]
            np.testing.assert_allclose(one.attention[name, layer], want, rtol=1e-5)
        for name, expected in probs.items():
            np.testing.assert_allclose(one.scores[name], expected[place], rtol=1e-5)
        assert one.label == place % toys.NUM_CLASSES
        assert one.name == f'image {place}'
        image = toys.samples(4)[place]['inputs'].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(one.image, image)


def test_places_choose_images():
    model = toys.build('plain')
    everyone, chosen = look(model), look(model, places=[3, 1])
    assert [one.name for one in chosen] == ['image 3', 'image 1']
    key = ('network', 'backbone')
    np.testing.assert_array_equal(chosen[0].attention[key], everyone[3].attention[key])
    np.testing.assert_array_equal(chosen[0].scores['network'], everyone[3].scores['network'])


def test_target_layers_in_the_order_in_which_they_run():
    layers = ['backbone.layer2', 'backbone.layer1']
    (one, *_) = look(toys.build('plain'), layers)
    assert list(one.attention) == [('network', layer) for layer in layers[::-1]]
    assert [m.shape for m in one.attention.values()] == [(16, 16), (8, 8)]
    (one, *_) = look(toys.build('ffsd'), layers)
    networks = [name for name, _ in one.attention]
    assert networks == [*('student1',) * 2, *('student2',) * 2, *('leader',) * 2, 'fusion']


@pytest.mark.parametrize(
    ('layer', 'sentence'),
    [
        ('backbone.layer9', r'network has no backbone.layer9; did you mean backbone\.layer\d\?'),
        ('stage', r'has no stage; there are backbone\.conv1, '),
        ('head.fc', r'must give a map \(N, C, H, W\) .* but head.fc of network does not'),
    ],
)
def test_wrong_target_layers_are_named(layer, sentence):
    model = toys.build('plain')
    with pytest.raises(ValueError, match=sentence):
        look(model, [layer])


SWIN = {
    'type': 'mmpretrain.SwinTransformer',
    'arch': {'embed_dims': 8, 'depths': [1, 1], 'num_heads': [1, 2]},
    'img_size': 16,
    'patch_size': 2,
    'window_size': 4,
    'out_indices': (1,),
}
VIT = {
    'type': 'mmpretrain.VisionTransformer',
    'arch': {'embed_dims': 8, 'num_layers': 1, 'num_heads': 1, 'feedforward_channels': 8},
    'img_size': 16,
    'patch_size': 4,
}


@pytest.mark.parametrize(
    ('cfg', 'layer', 'side'),
    [
        (toys.transformer(SWIN, 16, type='mmpretrain.GlobalAveragePooling'), 'stages.1', 4),
        (toys.transformer(VIT, 8), 'layers.0', 4),
    ],
    ids=['swin', 'vit'],
)
def test_transformers_are_recorded_before_their_last_normalisation(cfg, layer, side):
    """Behind it, all places have nearly the same mean square."""
    torch.manual_seed(0)
    model = toys.alone(cfg)
    seen = []
    module = model.backbone.get_submodule(layer)
    handle = module.register_forward_hook(lambda *args: seen.append(args[-1]))
    one = look(model, count=1)[0]
    handle.remove()
    ((key, found),) = one.attention.items()
    assert key == ('network', f'backbone.{layer}')
    tokens = seen[0][0] if isinstance(seen[0], tuple) else seen[0][:, 1:]
    expected = tokens[0].square().mean(dim=1).reshape(side, side)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.std() / found.mean() > 1e-3


def test_a_network_without_places_is_refused():
    backbone = {'type': 'mmpretrain.LeNet5', 'num_classes': 3}
    model = toys.alone({'type': 'mmpretrain.ImageClassifier', 'backbone': backbone,
                        'head': {'type': 'mmpretrain.ClsHead'}})  # fmt: skip
    watch = Watch(model)
    watch._samples = []
    with pytest.raises(ValueError, match='no layer of network does; use larger images'):
        watch.looks()


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
    sample = DataSample()
    found = to_image(torch.tensor([[[7.0, 300.0]]]), ClsDataPreprocessor(), sample)
    assert found.tolist() == [[[7, 7, 7], [255, 255, 255]]]


def learn(model, views=1):
    """Compute the losses of a batch of six, once; return what was recorded and the inputs."""
    batch = default_collate(toys.samples(6))
    if views > 1:
        batch['inputs'] = [batch['inputs'], 255 - batch['inputs']]
    data = model.data_preprocessor(batch, training=True)
    watch = BatchWatch(model.train())
    model(**data, mode='loss')
    watch.close()
    return watch, data['inputs']


@pytest.mark.parametrize('kind', ['bake', 'bake_student'])
def test_affinities_and_targets_by_hand(kind):
    model = toys.build(kind)
    again = copy.deepcopy(networks_of(model)['network']).train()
    before = hooks_of(model)
    watch, inputs = learn(model)
    assert hooks_of(model) == before
    assert observed(model).observers == []
    ((name, batch),) = watch.knowledge(4)
    assert name == 'network'
    features = again.neck(again.backbone(inputs))[-1]
    logits = again.head.fc(features)
    f, z = (x.detach().double().numpy() for x in (features, logits))
    affinities = batch_ensemble.affinity(f)
    np.testing.assert_allclose(batch.affinity, affinities[:4, :4], rtol=1e-4)
    assert (batch.affinity.diagonal() == 0).all()
    target = batch_ensemble.ensemble_knowledge(f, z, 4.0, 0.5)
    np.testing.assert_allclose(batch.target, target[:4], rtol=1e-4)
    own = np.stack([batch_ensemble.softmax(row / 4) for row in z])
    np.testing.assert_allclose(batch.own, own[:4], rtol=1e-4)
    np.testing.assert_array_equal(batch.labels, np.eye(3)[[0, 1, 2, 0]])
    assert (batch.temperature, batch.size) == (4.0, 6)
    image = toys.samples(1)[0]['inputs'].permute(1, 2, 0)
    np.testing.assert_array_equal(batch.images[0], image)


def test_a_student_is_shown_its_own_view():
    watch, _ = learn(toys.build('dml'), views=2)
    ((name, batch),) = watch.knowledge()
    image = toys.samples(1)[0]['inputs'].permute(1, 2, 0)
    assert name == 'b'  # the second by name, so that it sees the second view
    np.testing.assert_array_equal(batch.images[0], 255 - image)
    assert len(batch.images) == 6


def test_one_network_of_a_distiller_is_shown_as_a_classifier():
    model = toys.build('bake_student')
    plain = toys.alone(toys.network())
    plain.load_state_dict(model.state_dict())
    for one, other in zip(look(model), look(plain), strict=True):
        assert list(one.scores) == list(other.scores) == ['network']
        np.testing.assert_array_equal(one.scores['network'], other.scores['network'])
        assert one.attention.keys() == other.attention.keys() == {('network', 'backbone')}


def test_of_several_views_the_first_is_shown():
    students = {name: toys.network('kd_mm.BAKEHead') for name in 'ab'}
    methods = {'v': {'type': 'tests.TwoViews'}}
    model = toys.alone(
        {'type': 'kd_mm.Distiller', 'students': students, 'methods': methods, 'views': 2}
    )
    watch, _ = learn(model, views=2)
    image = toys.samples(1)[0]['inputs'].permute(1, 2, 0)
    for (name, batch), expected in zip(watch.knowledge(), 'ab', strict=True):
        assert name == expected
        np.testing.assert_array_equal(batch.images[0], image)


def test_maps_and_scores_of_other_classifiers_come_last():
    """Of a method of a project: its name and place come from the method alone."""
    students = {name: toys.network() for name in 'ab'}
    methods = {'gate': {'type': 'tests.Gate'}}
    cfg = {'type': 'kd_mm.Distiller', 'students': students, 'methods': methods, 'img_size': 16}
    model = toys.alone(cfg)
    model.methods.gate.extra_maps = lambda step: {'gate': step.students['a'][0].maps[-1]}
    one = look(model)[0]
    assert list(one.scores) == ['a', 'b', 'ensemble', 'gate']
    assert list(one.attention) == [('a', 'backbone'), ('b', 'backbone'), ('gate', 'gate')]
    np.testing.assert_array_equal(one.attention['gate', 'gate'], one.attention['a', 'backbone'])


@pytest.mark.parametrize(
    ('name', 'expected'),
    [('plain', False), ('bake', True), ('bake_student', True), ('dml', True), ('ffsd', False)],
)
def test_models_with_relations_to_show(name, expected):
    assert shows_relations(toys.build(name)) == expected
