"""Export: the same network, without a word of distillation, or nothing at all."""

import json
import re
import sys
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, Registry, init_default_scope
from mmengine.utils import digit_version
from mmpretrain.models.heads import LinearClsHead

from kd_mm.checkpoint import load_checkpoint
from kd_mm.export import (
    choose_weights,
    export_student,
    plain_cfg,
    shipped_names,
    student_names,
    weights,
)
from kd_mm.plain import Replaceable
from tests.conftest import REPO, run
from tests.hostile import call_tool

MEAN = {'mean': [1.0], 'std': [2.0], 'to_rgb': False}
MIXUP = {'augments': [{'type': 'Mixup', 'alpha': 0.8}]}
SGD = {'type': 'SGD', 'lr': 0.1}
PACK = {'type': 'PackInputs'}
LINEAR = {'type': 'LinearClsHead', 'num_classes': 3, 'in_channels': 120}


def network(head=LINEAR, backbone=None, width=120):
    return {
        'type': 'ImageClassifier',
        'backbone': dict(backbone or {'type': 'LeNet5'}),
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {**head, 'in_channels': width},
    }


BAKE = network({**LINEAR, 'type': 'kd_mm.BAKEHead', 'omega': 0.9})


def config(model=BAKE, **kwargs):
    cfg = {
        'default_scope': 'mmpretrain',
        'custom_imports': {'imports': ['kd_mm'], 'allow_failed_imports': False},
        'data_preprocessor': {'mean': [0.0], 'std': [1.0], 'to_rgb': False},
        'model': model,
        'train_dataloader': {
            'batch_size': 4,
            'sampler': {'type': 'kd_mm.ClassInstanceSampler', 'num_instances': 2},
        },
        'test_dataloader': {'dataset': {'pipeline': [{'type': 'Resize', 'scale': (32, 32)}]}},
        'custom_hooks': [{'type': 'kd_mm.ExportHook'}, {'type': 'EMAHook', 'momentum': 0.1}],
        'work_dir': 'w',
        'load_from': 'a.pth',
        'resume': True,
        'launcher': 'pytorch',
        **kwargs,
    }
    return Config(cfg)


def cohort():
    """Two students, one of them with BAKE, each with its own optimizer and schedule."""
    views = {'type': 'mmpretrain.MultiView', 'num_views': 2, 'transforms': [[{'type': 'Flip'}]]}
    data = {'type': 'MNIST', 'pipeline': [views, PACK]}
    return config(
        {'type': 'kd_mm.KDCL', 'students': {'b': BAKE, 'a': network()}, 'deploy': 'a'},
        optim_wrapper={
            'constructor': 'kd_mm.JointOptimWrapperConstructor',
            'parts': {
                'a': {'optimizer': SGD, 'prefix': 'students.a'},
                'b': {'optimizer': {**SGD, 'lr': 0.2}},
            },
        },
        param_scheduler={'a': [{'type': 'MultiStepLR'}], 'b': [{'type': 'StepLR'}]},
        train_dataloader={
            'dataset': {'type': 'kd_mm.HoldOut', 'num_per_class': 1, 'dataset': data},
            'collate_fn': {'type': 'kd_mm.batch_collate'},
        },
        val_evaluator={'type': 'kd_mm.CohortAccuracy', 'topk': (1, 5), 'any_right': True},
        default_hooks={
            'timer': {'type': 'IterTimerHook'},
            'distiller': {'type': 'kd_mm.DistillerHook'},
            'checkpoint': {'type': 'CheckpointHook', 'save_best': 'a/accuracy/top1'},
        },
    )


def state_of(cfg):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    return MODELS.build(cfg.model).state_dict()


def saved(done):
    """Return the weights of an export, which load in stock mmpretrain."""
    weights = torch.load(done.weights, weights_only=True)['state_dict']
    plain = Config.fromfile(done.config)
    MODELS.build({**plain.model, '_scope_': 'mmpretrain'}).load_state_dict(weights)  # strict
    return weights


# The config ------------------------------------------------------------------------------------


def test_plain_config_has_no_word_of_kd_mm():
    cfg = config()
    before = cfg.to_dict()
    plain = plain_cfg(cfg)
    assert cfg.to_dict() == before
    assert 'kd_mm' not in plain.pretty_text
    assert plain.model.head == LINEAR
    assert plain.train_dataloader.sampler == {'type': 'DefaultSampler', 'shuffle': True}
    assert plain.custom_hooks == [{'type': 'EMAHook', 'momentum': 0.1}]
    assert (plain.launcher, plain.load_from, plain.resume) == ('none', None, False)
    assert 'work_dir' not in plain
    assert 'custom_imports' not in plain
    # Imports of others stay, and ours for a backbone that mmpretrain lacks.
    cfg.custom_imports.imports = ['kd_mm', 'another']
    assert plain_cfg(cfg).custom_imports.imports == ['another']
    cfg.model.backbone.type = 'kd_mm.CIFARResNet'
    assert plain_cfg(cfg).custom_imports.imports == ['kd_mm', 'another']


def test_plain_config_of_a_student_is_that_of_a_plain_training():
    cfg = cohort()
    # MMEngine marks each part of a config that comes by ``kd_mm::`` with our scope.
    cfg.model.students.b.backbone['_scope_'] = 'kd_mm'
    cfg.train_pipeline = [{**PACK, '_scope_': 'kd_mm'}]
    before = cfg.to_dict()
    plain = plain_cfg(cfg, 'b')
    assert cfg.to_dict() == before
    assert 'kd_mm' not in plain.pretty_text
    assert plain.model == network()
    assert plain.optim_wrapper == {'optimizer': {**SGD, 'lr': 0.2}}
    assert plain.param_scheduler == [{'type': 'StepLR'}]
    assert plain.val_evaluator == {'type': 'Accuracy', 'topk': (1, 5)}
    data = {'type': 'MNIST', 'pipeline': [{'type': 'Flip'}, PACK]}
    collate = {'type': 'default_collate'}
    assert plain.train_dataloader == {'dataset': data, 'collate_fn': collate}
    assert plain.default_hooks == {
        'timer': {'type': 'IterTimerHook'},
        'checkpoint': {'type': 'CheckpointHook', 'save_best': 'auto'},
    }
    assert plain_cfg(cfg, 'a').optim_wrapper == {'optimizer': SGD}


def test_the_preprocessor_of_a_cohort_is_that_of_its_students():
    cfg = cohort()
    crop = {'type': 'kd_mm.BatchRandomCrop', 'crop_size': 28, 'padding': 2}
    cfg.model.data_preprocessor = {'type': 'kd_mm.CohortDataPreprocessor', **MEAN}
    cfg.model.data_preprocessor.augments = [crop]
    cfg.model.train_cfg = MIXUP
    cfg.model.students.a.data_preprocessor = {'mean': [9.0]}  # which training leaves aside
    cfg.train_dataloader.dataset.dataset.pipeline.pop(0)
    plain = plain_cfg(cfg, 'a')
    assert 'kd_mm' not in plain.pretty_text
    assert plain.model.data_preprocessor == MEAN
    assert plain.model.train_cfg == MIXUP
    steps = plain.train_dataloader.dataset.pipeline
    assert [step.type for step in steps] == ['RandomCrop', 'PackInputs']


def test_the_preprocessor_of_one_network_is_that_of_its_training():
    """Its own, changed by the model's, or by the one that the run gives."""
    recipe = {**BAKE, 'data_preprocessor': {**MEAN, 'num_classes': 3}}
    model = {'type': 'kd_mm.Distiller', 'student': recipe}
    given = {'mean': [5.0]}
    for cfg in (
        config({**model, 'data_preprocessor': given}),
        config(model, data_preprocessor=given),
    ):
        plain = plain_cfg(cfg).model
        assert plain.data_preprocessor == {**MEAN, **given, 'num_classes': 3}
        trained = {'data_preprocessor': cfg.data_preprocessor, **cfg.model}
        for model_cfg in (trained, {**plain, '_scope_': 'mmpretrain'}):
            found = MODELS.build(model_cfg).data_preprocessor
            assert (found.mean.item(), found.std.item()) == (5.0, 2.0)


def test_plain_config_trains_in_bfloat16_by_mmengines_wrapper():
    wrapper = {'type': 'kd_mm.Bfloat16OptimWrapper', 'optimizer': SGD}
    plain = plain_cfg(config(optim_wrapper=wrapper)).optim_wrapper
    assert (plain.type, plain.dtype) == ('AmpOptimWrapper', 'bfloat16')


# A project of its own that extends kd_mm, under its own prefix.
PROJECT = Registry('model', parent=MODELS, scope='kd_project')


@PROJECT.register_module()
class Head(Replaceable, LinearClsHead):
    """A linear head, as long as its strength is 0."""

    def __init__(self, strength, **kwargs):
        super().__init__(**kwargs)
        self.strength = strength

    def forward(self, feats):
        return super().forward(feats) + self.strength

    @classmethod
    def plain(cls, cfg):
        return {**{k: v for k, v in cfg.items() if k != 'strength'}, 'type': 'LinearClsHead'}


def test_what_a_project_derives_from_ours_is_replaced_too(tmp_path):
    own = network({**LINEAR, 'type': 'kd_project.Head', 'strength': 0})
    for model in (
        own,
        {'type': 'kd_mm.BAKE', 'student': own},
        {'type': 'kd_mm.DML', 'students': {'a': own, 'b': own}},
    ):
        cfg = config(model)
        done = export_student(cfg, state_of(cfg), tmp_path)
        assert (done.difference, done.needs) == (0, ())
        plain = Config.fromfile(done.config)
        assert 'kd_' not in plain.pretty_text
        assert plain.model == network()


# The weights -----------------------------------------------------------------------------------


def test_writes_weights_that_load_without_trust_and_answer_alike(tmp_path):
    cfg = config()
    state = state_of(cfg)
    classes = {'classes': ('a', 'b'), 'mean': [np.ones(2)], 'root': Path('x'), 'n': np.int64(3)}
    done = export_student(cfg, state, tmp_path, {'dataset_meta': classes})
    assert done.difference == 0
    meta = torch.load(done.weights, weights_only=True)['meta']
    expected = {'classes': ('a', 'b'), 'mean': [[1.0, 1.0]], 'root': 'x', 'n': 3}
    assert meta == {'dataset_meta': expected}
    assert all(torch.equal(value, state[key]) for key, value in saved(done).items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.py', 'model.pth']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: {f'module.{k}': v for k, v in s.items()}, 'none of the .* names'),
        (lambda s: {k: v for k, v in s.items() if 'head' not in k}, r'Missing key.*head\.fc'),
        (lambda s: s | {'decoder.weight': torch.ones(1)}, r'Unexpected key.*decoder\.weight'),
    ],
)
def test_weights_that_do_not_fit_write_nothing(tmp_path, change, message):
    cfg = config()
    with pytest.raises(ValueError, match=f'(?s){message}'):
        export_student(cfg, change(state_of(cfg)), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_network_that_answers_otherwise_writes_nothing(tmp_path):
    cfg = config(network({**LINEAR, 'type': 'kd_project.Head', 'strength': 1e-3}))
    with pytest.raises(ValueError, match=r'the plain model must answer .* nothing was written'):
        export_student(cfg, state_of(cfg), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_each_student_is_exported_alone(tmp_path):
    cfg = cohort()
    state = state_of(cfg)
    assert student_names(cfg) == shipped_names(cfg) == ['a', 'b']  # the deployed one first
    for name in (None, 'b'):
        done = export_student(cfg, state, tmp_path / str(name), student=name)
        prefix = f'students.{name or "a"}.'
        expected = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        torch.testing.assert_close(saved(done), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="student must be one of a, b, but got 'c'"):
        export_student(cfg, {}, tmp_path, student='c')


@pytest.mark.parametrize('place', ['of the student', 'of the model'])
def test_one_network_alone_becomes_the_plain_one(tmp_path, place):
    """A recipe of mmpretrain's, which ``kd_mm.BAKE`` takes as its student."""
    recipe, more = network(), {'train_cfg': MIXUP, 'data_preprocessor': MEAN}
    student, own = ({**recipe, **more}, {}) if place == 'of the student' else (recipe, more)
    cfg = config({'type': 'kd_mm.BAKE', 'omega': 0.9, 'student': student, **own})
    cfg.pop('data_preprocessor')
    state = state_of(cfg)
    assert student_names(cfg) == shipped_names(cfg) == student_names(config()) == []
    done = export_student(cfg, state, tmp_path)
    assert (done.difference, done.needs) == (0, ())
    plain = Config.fromfile(done.config)
    assert 'kd_mm' not in plain.pretty_text
    assert plain.model.to_dict() == {**recipe, **more}
    torch.testing.assert_close(saved(done), dict(state), rtol=0, atol=0)
    with pytest.raises(ValueError, match="trains one network, so there is no student 'student'"):
        export_student(cfg, state, tmp_path, student='student')


NORMED = {
    'type': 'SwinTransformer',
    'arch': {'embed_dims': 8, 'depths': [1, 1, 1, 1], 'num_heads': [1, 1, 2, 2]},
    'window_size': 2,
    'pad_small_map': True,
    'in_channels': 1,
    'out_indices': (0, 1, 2, 3),
}
RESNET = {'type': 'kd_mm.CIFARResNet', 'depth': 8, 'in_channels': 1, 'out_indices': (0, 1, 2)}


def ffsd(backbone):
    """An FFSD cohort whose optimizer parts hold several modules."""
    students = dict.fromkeys(('student1', 'student2', 'leader'), network(LINEAR, backbone, 64))
    networks = {'prefix': ['students', 'methods.ffsd.decoder'], 'optimizer': SGD}
    fusion = {'prefix': 'methods.ffsd.fusion', 'optimizer': {**SGD, 'lr': 0.2}}
    return config(
        {'type': 'kd_mm.FFSD', 'students': students},
        optim_wrapper={
            'constructor': 'kd_mm.JointOptimWrapperConstructor',
            'parts': {'fusion': fusion, 'networks': networks},
        },
        param_scheduler={'networks': [{'type': 'StepLR'}], 'fusion': [{'type': 'ConstantLR'}]},
    )


@pytest.mark.parametrize(
    ('backbone', 'name'), [(RESNET, None), (NORMED, None), (NORMED, 'student2')]
)
def test_a_leader_leaves_all_that_helped_it_behind(tmp_path, backbone, name):
    """The weights fit the stock network, which gives one map and has one norm for it."""
    cfg = ffsd(backbone)
    state = state_of(cfg)
    assert student_names(cfg) == ['leader', 'student1', 'student2']
    assert shipped_names(cfg) == ['leader']
    done = export_student(cfg, state, tmp_path, student=name)
    plain = Config.fromfile(done.config)
    assert plain.optim_wrapper == {'optimizer': SGD}
    assert plain.param_scheduler == [{'type': 'StepLR'}]
    assert plain.model.backbone.out_indices == backbone['out_indices'][-1:]
    stored = saved(done)
    stock = {k: v for k, v in backbone.items() if k != 'out_indices'}
    stock = MODELS.build({**plain.model, 'backbone': stock, '_scope_': 'mmpretrain'})
    stock.load_state_dict(stored)  # strict
    prefix = f'students.{name or "leader"}.'
    assert all(torch.equal(value, state[prefix + key]) for key, value in stored.items())


def test_an_ffsd_cohort_without_a_leader_ships_its_students():
    cfg = ffsd(RESNET)
    del cfg.model.students['leader']
    cfg.model.leader = None
    assert shipped_names(cfg) == ['student1', 'student2']
    cfg.optim_wrapper.parts.networks.prefix = ['students.student2', 'methods.ffsd.decoder']
    with pytest.raises(ValueError, match='must train student student1'):
        plain_cfg(cfg, 'student1')


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    cfg = config()
    export_student(cfg, state_of(cfg), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert before
    write = Path.write_bytes

    def full_disk(path, content):
        write(path, content[:10])
        if path.name.startswith('config'):
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full_disk)
    with pytest.raises(OSError, match='No space left'):
        export_student(cfg, {k: v + 1 for k, v in state_of(cfg).items()}, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# The tool, and other formats -------------------------------------------------------------------


@pytest.fixture
def averaged(tmp_path):
    """Command line of the export of a checkpoint with an average; its weights are one more."""
    cfg = config()
    state = state_of(cfg)
    average = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    trained = {'steps': torch.tensor(4), **{f'module.{k}': v for k, v in state.items()}}
    meta = {'dataset_meta': {'classes': ('a', 'b', 'c')}}
    content = {'state_dict': average, 'ema_state_dict': trained, 'meta': meta}
    torch.save(content, tmp_path / 'a.pth')
    cfg.dump(tmp_path / 'config.py')
    tool = 'model_converters/export_student.py'
    return [tool, tmp_path / 'config.py', tmp_path / 'a.pth', '--out', tmp_path / 'out'], state


@pytest.mark.parametrize(('flag', 'more'), [('--ema', 1), ('--no-ema', 0), (None, 1)])
def test_the_tool_takes_the_average_or_the_weights_without_it(
    averaged, monkeypatch, capsys, flag, more
):
    command, state = averaged
    assert call_tool(monkeypatch, *command, *([flag] if flag else [])) is None
    stored = torch.load(command[-1] / 'model.pth', weights_only=True)['state_dict']
    key = 'head.fc.weight'
    torch.testing.assert_close(stored[key], state[key] + more)
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0] == 'logits of the plain model differ by at most 0.0e+00'
    assert [line.rpartition('/')[2] for line in lines[1:]] == ['model.pth', 'config.py']


def test_the_tool_says_what_the_config_needs(averaged, monkeypatch, capsys):
    command, _ = averaged
    cfg = Config.fromfile(command[1])
    cfg.train_dataloader.dataset = {'type': 'kd_mm.Digits'}
    cfg.dump(command[1])
    call_tool(monkeypatch, *command)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'config.py needs kd_mm installed: mmpretrain has no kd_mm.Digits'


def test_an_average_that_is_not_there_is_refused():
    state = {'w': torch.ones(1)}
    assert choose_weights({'state_dict': state}, ema=False) is state
    with pytest.raises(ValueError, match=r'needs a checkpoint with ema_state_dict.* leave --ema'):
        choose_weights({'state_dict': state, 'meta': {}}, ema=True)


def test_safetensors_hold_the_same_and_are_read_by_our_tools(averaged, monkeypatch):
    reader = pytest.importorskip('safetensors.torch', reason='safetensors is not installed')
    command, state = averaged
    assert call_tool(monkeypatch, *command, '--format', 'safetensors') is None
    path = command[-1] / 'model.safetensors'
    assert sorted(p.name for p in path.parent.iterdir()) == ['config.py', path.name]
    stored = reader.load_file(path)
    MODELS.build(Config.fromfile(path.with_name('config.py')).model).load_state_dict(stored)
    torch.testing.assert_close(stored['head.fc.weight'], state['head.fc.weight'] + 1)
    again = [command[0], path.with_name('config.py'), path, '--out', command[-1] / 'pth']
    assert call_tool(monkeypatch, *again) is None
    found = torch.load(again[-1] / 'model.pth', weights_only=True)
    assert torch.equal(found['state_dict']['head.fc.weight'], stored['head.fc.weight'])
    assert found['meta'] == {'dataset_meta': {'classes': ['a', 'b', 'c']}}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match='it is damaged'):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ('file_format', 'missing', 'packages'),
    [
        ('safetensors', 'safetensors', 'safetensors'),
        ('onnx', 'onnxruntime', 'onnx onnxscript onnxruntime'),
    ],
)
def test_a_missing_package_is_named_before_anything_is_done(
    monkeypatch, file_format, missing, packages
):
    for name in ('onnx', 'onnxscript'):
        monkeypatch.setitem(sys.modules, name, sys)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f'needs {missing}, .* Run: pip install {packages}$'):
        export_student(config(), {}, 'out', file_format=file_format)


@pytest.fixture
def onnx():
    if digit_version(torch.__version__) < digit_version('2.6'):
        pytest.skip('export to ONNX needs torch 2.6')
    for name in ('onnx', 'onnxscript'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    return pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


def test_a_graph_answers_as_the_student_for_any_number_of_images(onnx, tmp_path, monkeypatch):
    """Windows of Swin, shifted in the second block, are what fixes the number in a graph."""
    arch = {'embed_dims': 8, 'depths': [2], 'num_heads': [1]}
    swin = {**NORMED, 'arch': arch, 'window_size': 4, 'out_indices': (0,)}
    cfg = config({'type': 'kd_mm.DML', 'students': {'a': network(LINEAR, swin, 8), 'b': BAKE}})
    state = state_of(cfg)
    done = export_student(cfg, state, tmp_path, file_format='onnx')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.py', 'model.onnx']
    assert done.difference <= 1e-4
    session = onnx.InferenceSession(str(done.weights), providers=['CPUExecutionProvider'])
    assert [node.name for node in session.get_inputs()] == ['images']
    whole = MODELS.build(cfg.model).eval()
    whole.load_state_dict(state)
    images = torch.randn(5, 1, 32, 32)
    for count in (1, 5):
        (found,) = session.run(['logits'], {'images': images[:count].numpy()})
        with torch.no_grad():
            expected = whole.students['a'](images[:count])
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)

    run_onnx = weights.run_onnx
    monkeypatch.setattr(weights, 'run_onnx', lambda graph, images: run_onnx(graph, images) + 1e-3)
    monkeypatch.setattr(weights, 'onnx_graph', lambda *_: done.weights.read_bytes())
    with pytest.raises(ValueError, match=r'the ONNX graph must answer .* nothing was written'):
        export_student(cfg, state, tmp_path / 'out', file_format='onnx')
    assert not (tmp_path / 'out').exists()


# What others make of the folder ----------------------------------------------------------------

# Run where kd_mm cannot be imported: mmpretrain's test tool and inferencer, and the backbone of
# another project, built as a detector builds it.
DEPLOYED = """
import json, runpy, sys
from pathlib import Path

import torch
from mmengine.registry import MODELS, Registry

try:
    import kd_mm
except ImportError:
    print('without kd_mm')
deploy, image = Path(sys.argv[1]), sys.argv[2]
config, weights = str(deploy / 'config.py'), str(deploy / 'model.pth')

import mmpretrain
from mmpretrain import ImageClassificationInferencer

result = ImageClassificationInferencer(config, pretrained=weights)(image)[0]
print('inferred', result['pred_class'], json.dumps(result['pred_scores'].tolist()))

DETECTOR = Registry('model', parent=MODELS, scope='detector')
backbone = DETECTOR.build(dict(
    type='mmpretrain.ResNet', depth=18, stem_channels=4, base_channels=4, out_indices=(0, 1, 2, 3),
    init_cfg=dict(type='Pretrained', checkpoint=weights, prefix='backbone'),
))
backbone.init_weights()
torch.save(backbone.state_dict(), 'backbone.pth')

tool = Path(mmpretrain.__file__).parent / '.mim/tools/test.py'
sys.argv = ['test.py', config, weights, '--work-dir', 'tested', '--out', 'predictions.pkl']
runpy.run_path(str(tool), run_name='__main__')
"""


def test_exported_folder_runs_in_mmpretrain_and_in_a_detector(tmp_path, image_folder):
    cfg = Config.fromfile(REPO / 'configs/bake/resnet50_8xb64_in1k.py')
    cfg.model.backbone.update(depth=18, stem_channels=4, base_channels=4)
    cfg.model.head.update(in_channels=32, num_classes=4, topk=(1,))
    cfg.data_preprocessor.num_classes = 4
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(image_folder), metainfo={'classes': list('abcd')})
    cfg.val_evaluator = cfg.test_evaluator = {'type': 'Accuracy', 'topk': (1,)}
    state = state_of(cfg)
    state['head.fc.weight'] *= 30  # answers far apart
    meta = {'dataset_meta': {'classes': list('abcd')}}
    export_student(cfg, state, tmp_path / 'deploy', meta)
    blocked = tmp_path / 'blocked' / 'kd_mm'
    blocked.mkdir(parents=True)
    (blocked / '__init__.py').write_text("raise ImportError('kd_mm is not installed')")
    (tmp_path / 'deployed.py').write_text(DEPLOYED)
    image = sorted((image_folder / 'val').rglob('*.JPEG'))[0]
    output = run(
        [sys.executable, 'deployed.py', tmp_path / 'deploy', image],
        cwd=tmp_path,
        PYTHONPATH=str(blocked.parent),
    ).stdout
    assert 'without kd_mm' in output

    # Scores of the validation images by the trained network itself, in the list's order.
    init_default_scope('mmpretrain')
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).eval()
    model.load_state_dict(state)
    samples = list(DATASETS.build(cfg.test_dataloader.dataset))
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    expected = torch.stack([sample.pred_score for sample in model.test_step(batch)])
    found = [sample['pred_score'] for sample in mmengine.load(tmp_path / 'predictions.pkl')]
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-5)
    ((name, scores),) = re.findall(r'inferred (\w+) (\[.*?\])', output)
    assert name == 'abcd'[expected[0].argmax()]
    assert json.loads(scores) == pytest.approx(expected[0].tolist(), abs=1e-5)
    backbone = torch.load(tmp_path / 'backbone.pth', weights_only=True)
    torch.testing.assert_close(backbone, dict(model.backbone.state_dict()), rtol=0, atol=0)
