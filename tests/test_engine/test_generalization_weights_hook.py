"""The weights of KDCL-General: their value, their life in checkpoints and logs, and refusals."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_mm.datasets import InMemory
from kd_mm.engine.hooks import GeneralizationWeightsHook, generalization_weights_hook
from kd_mm.engine.hooks.generalization_weights_hook import held_out_dataloader
from tests.test_engine.toy_held_out import (
    NUM_CLASSES,
    Images,
    build_model,
    expected_weights,
    parts,
)


def loader(dataset, batch_size=4):
    return {
        'dataset': dataset,
        'batch_size': batch_size,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
    }


class Watch(Hook):
    """Notes the weights at the start of each epoch, after all hooks have prepared it."""

    def __init__(self):
        self.weights = []

    def before_train_epoch(self, runner):
        self.weights.append(runner.model.weights.tolist())


def build_runner(
    work_dir, epochs=2, train=None, hook=None, model=None, train_dataloader=None, **kwargs
):
    own, held_out = parts()
    hook = hook or {'type': 'kd_mm.GeneralizationWeightsHook', 'dataloader': loader(held_out)}
    return Runner(
        model=model or build_model(),
        work_dir=str(work_dir),
        train_dataloader=train_dataloader or loader(train or own),
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.01}},
        **{'train_cfg': {'by_epoch': True, 'max_epochs': epochs}, **kwargs},
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        custom_hooks=[hook],
        randomness={'seed': 0},
        default_scope='mmpretrain',
        experiment_name=f'weights_{work_dir.name}_{np.random.default_rng().integers(1 << 30)}',
    )


def log_of(runner):
    return next(Path(runner.log_dir).glob('*.log')).read_text()


def history(runner, name):
    return runner.message_hub.get_scalar(f'general_weight/{name}').data[0]


def test_weights_in_each_checkpoint_are_the_papers_and_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(generalization_weights_hook, 'PROGRESS_INTERVAL', 1)
    runner, watch = build_runner(tmp_path), Watch()
    runner.register_hook(watch, 'LOWEST')
    runner.train()
    assert watch.weights[0] == [0.5, 0.5]
    found = []
    for epoch in (1, 2):
        saved = torch.load(tmp_path / f'epoch_{epoch}.pth', weights_only=False)['state_dict']
        model = build_model(seed=1)
        model.load_state_dict(saved)
        found.append(model.weights.tolist())
        expected = expected_weights(model, parts()[1])
        np.testing.assert_allclose(found[-1], expected, rtol=1e-4)
    assert found[0] != found[1]
    assert watch.weights[1] == found[0]  # the second epoch trains with them
    for i, name in enumerate('ab'):
        np.testing.assert_allclose(history(runner, name), [w[i] for w in found], rtol=1e-6)
    log = log_of(runner)
    for epoch, (a, b) in enumerate(found, 1):
        line = f'[{epoch}]  general_weight/a: {a:.4f}  general_weight/b: {b:.4f}'
        assert f'Epoch(held out) {line}' in log
        assert f'Epoch(held out) [{epoch}][1/2]' in log
        assert f'Epoch(held out) [{epoch}][2/2]' in log

    resumed, watch = build_runner(tmp_path, epochs=3, resume=True), Watch()
    resumed.register_hook(watch, 'LOWEST')
    resumed.train()
    assert watch.weights == [found[1]]
    for i, name in enumerate('ab'):
        values = history(resumed, name)
        np.testing.assert_allclose(values[:2], [w[i] for w in found], rtol=1e-6)
        assert len(values) == 3


def test_looks_without_gradient_in_eval_mode_and_leaves_each_module_as_it_was(tmp_path):
    runner = build_runner(tmp_path)
    hook = next(h for h in runner.hooks if isinstance(h, GeneralizationWeightsHook))
    hook.before_train(runner)
    model = runner.model.train()
    model.students['a'].backbone.eval()  # a frozen part
    before = {name: module.training for name, module in model.named_modules()}
    state = {n: v.clone() for n, v in model.state_dict().items() if n != 'weights'}
    seen = []
    for module in model.modules():
        module.register_forward_hook(
            lambda m, *_: seen.append(m.training or torch.is_grad_enabled())
        )
    hook.after_train_epoch(runner)
    assert seen
    assert not any(seen)
    assert len(set(before.values())) == 2
    assert {name: module.training for name, module in model.named_modules()} == before
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name], value)


def test_trains_on_no_held_out_image_and_reads_each_once(tmp_path):
    own, held_out = parts()
    # A batch of 4 leaves 2 of 6 for the last one, which a drop_last would drop.
    cfg = {**loader(held_out), 'drop_last': True}
    before = copy.deepcopy({**cfg, 'dataset': None})
    hook = {'type': 'kd_mm.GeneralizationWeightsHook', 'dataloader': cfg}
    runner = build_runner(tmp_path, 1, train=own, hook=hook)
    runner.train()
    hook = next(h for h in runner.hooks if isinstance(h, GeneralizationWeightsHook))
    looked_at = hook._dataloader.dataset.dataset.read
    trained_on = runner.train_loop.dataloader.dataset.dataset.read
    assert (len(looked_at), len(trained_on)) == (6, 12)
    assert sorted(looked_at + trained_on) == list(range(18))
    assert {**cfg, 'dataset': None} == before


def split_of_images(**kwargs):
    """The config of the training part of :func:`parts`."""
    images = {'type': Images, 'labels': [i % NUM_CLASSES for i in range(18)], 'data_root': 'one'}
    return {'type': 'kd_mm.HoldOut', 'num_per_class': 2, 'dataset': images, **kwargs}


def test_a_pipeline_takes_the_images_that_training_leaves_out(tmp_path):
    train = {
        **loader(split_of_images()),
        'sampler': {'type': 'DefaultSampler', 'shuffle': True},
        'num_batch_per_epoch': 3,
        'drop_last': True,
    }
    train['dataset']['dataset']['data_root'] = 'elsewhere'  # told at one place
    pipeline = [{'type': 'mmpretrain.PackInputs'}]
    before = copy.deepcopy((train, pipeline))
    hook = {'type': 'kd_mm.GeneralizationWeightsHook', 'pipeline': pipeline}
    runner = build_runner(tmp_path, 1, hook=hook, train_dataloader=train)
    runner.train()
    hook = next(h for h in runner.hooks if isinstance(h, GeneralizationWeightsHook))
    held_out = hook._dataloader.dataset
    trained = runner.train_loop.dataloader.dataset._dataset  # within the three batches
    assert (trained.part, held_out.part) == ('train', 'held_out')
    assert {part.dataset.data_root for part in (trained, held_out)} == {'elsewhere'}
    assert [type(t).__name__ for t in held_out.dataset.pipeline.transforms] == ['PackInputs']
    assert trained.dataset.pipeline.transforms == []
    # Each once and in order, whatever training does.
    assert held_out.dataset.read == [
        info['number'] for info in map(parts()[1].get_data_info, range(6))
    ]
    assert hook._dataloader.batch_size == 4
    assert (train, pipeline) == before
    expected = expected_weights(runner.model, parts()[1])
    np.testing.assert_allclose(runner.model.weights.tolist(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ('train', 'message'),
    [
        ({'type': 'CIFAR100'}, "must be dict.type='kd_mm.HoldOut'.* but got {'type': 'CIFAR100'}"),
        (split_of_images(part='held_out'), "but got {.*'part': 'held_out'}; wrap"),
        (parts()[0], 'but got HoldOut; wrap the data set, or give the hook a dataloader'),
        (split_of_images(dataset=Images([0])), "but got {'type': 'kd_mm.HoldOut'}"),
    ],
)
def test_a_pipeline_without_a_hold_out(train, message):
    with refusal(message):
        held_out_dataloader({'dataset': train}, [])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [({}, 'but got neither'), ({'pipeline': [], 'dataloader': {}}, 'but got both')],
)
def test_one_source_of_held_out_images(arguments, message):
    with refusal(message):
        GeneralizationWeightsHook(**arguments)


def refusal(message):
    return pytest.raises(ValueError, match=message)


def train_with(tmp_path, held_out, **kwargs):
    hook = {'type': 'kd_mm.GeneralizationWeightsHook', 'dataloader': loader(held_out)}
    runner = build_runner(tmp_path, 1, hook=hook, **kwargs)
    watch = Watch()
    runner.register_hook(watch)
    try:
        runner.train()
    finally:
        assert watch.weights == []  # refused before the first epoch


def test_a_model_without_weights(tmp_path):
    with refusal(r"buffer 'weights'.*but got KDCL\(target='naive'\); set model.target"):
        train_with(tmp_path, parts()[1], model=build_model('naive'))


def test_a_loop_without_epochs(tmp_path):
    with refusal('an IterBasedTrainLoop; use'):
        train_with(tmp_path, parts()[1], train_cfg={'by_epoch': False, 'max_iters': 2})


def test_no_held_out_images(tmp_path):
    with refusal('must have images, but got 0'):
        train_with(tmp_path, Images([]))


@pytest.mark.parametrize(
    ('train', 'held_out', 'message'),
    [
        (
            parts(num_per_class=1)[0],
            parts()[1],
            r"train', num_per_class=1 and the hook's with part='held_out', num_per_class=2; use",
        ),
        (parts()[1], parts()[1], "train_dataloader.dataset with part='held_out'"),
        (parts()[0], parts()[0], "the hook's with part='train'"),
    ],
)
@pytest.mark.parametrize('in_memory', [False, True])
def test_a_hold_out_that_training_sees(train, held_out, message, in_memory, tmp_path):
    if in_memory:
        train, held_out = (InMemory(part, lazy_init=True) for part in (train, held_out))
    with refusal(message):
        train_with(tmp_path, held_out, train=train)


def test_a_pipeline_of_views(tmp_path):
    hook = {
        'type': 'kd_mm.GeneralizationWeightsHook',
        'dataloader': loader(Images([0, 1, 2], views=2)),
    }
    with refusal('one image per sample, but got 2 views; leave MultiView out'):
        build_runner(tmp_path, 1, hook=hook).train()
