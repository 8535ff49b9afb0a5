"""What a run tells a Distiller: the clock, image numbers, held-out images, teachers that resume.

KDCL-General is the method that asks for held-out images: the value of its weights, their life in
checkpoints and logs, and refusals.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import RepeatDataset, default_collate
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from kd_mm.checkpoint import load_checkpoint
from kd_mm.datasets import InMemory
from kd_mm.engine.hooks import DistillerHook, distiller_hook
from kd_mm.engine.hooks.distiller_hook import held_out_dataloader
from kd_mm.methods import Clock, Method, SampleMemory
from kd_mm.registry import MODELS
from tests.test_engine.toy_held_out import (
    NUM_CLASSES,
    Images,
    build_model,
    expected_weights,
    parts,
)
from tests.test_engine.toy_methods import network

HOOK = {'type': 'kd_mm.DistillerHook'}


def loader(dataset, batch_size=4):
    return {
        'dataset': dataset,
        'batch_size': batch_size,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
    }


def weights_of(model):
    return model.methods['kdcl'].weights


class Watch(Hook):
    """Notes the weights at the start of each epoch, after all hooks have prepared it."""

    def __init__(self):
        self.weights = []

    def before_train_epoch(self, runner):
        self.weights.append(weights_of(runner.model).tolist())


def build_runner(
    work_dir, epochs=2, train=None, hook=None, model=None, train_dataloader=None, **kwargs
):
    own, held_out = parts()
    if train_dataloader is None:
        train_dataloader = loader(train or own)
    hook = hook or {**HOOK, 'held_out_dataloader': loader(held_out)}
    settings = {
        'train_cfg': {'by_epoch': True, 'max_epochs': epochs},
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        **kwargs,
    }
    return Runner(
        model=model or build_model(),
        work_dir=str(work_dir),
        train_dataloader=train_dataloader,
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.01}},
        custom_hooks=[hook],
        randomness={'seed': 0},
        default_scope='mmpretrain',
        experiment_name=f'weights_{work_dir.name}_{np.random.default_rng().integers(1 << 30)}',
        **settings,
    )


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, DistillerHook))


def refusal(message):
    return pytest.raises(ValueError, match=message)


# --- held-out images -------------------------------------------------------------------------


def log_of(runner):
    return next(Path(runner.log_dir).glob('*.log')).read_text()


def history(runner, name):
    return runner.message_hub.get_scalar(f'general_weight/{name}').data[0]


def test_weights_in_each_checkpoint_are_the_papers_and_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(distiller_hook, 'PROGRESS_INTERVAL', 1)
    runner, watch = build_runner(tmp_path), Watch()
    runner.register_hook(watch, 'LOWEST')
    runner.train()
    assert watch.weights[0] == [0.5, 0.5]
    found = []
    for epoch in (1, 2):
        saved = torch.load(tmp_path / f'epoch_{epoch}.pth', weights_only=False)['state_dict']
        model = build_model(seed=1)
        model.load_state_dict(saved)
        found.append(weights_of(model).tolist())
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
    hook = hook_of(runner)
    hook.before_train(runner)
    model = runner.model.train()
    model.students['a'].backbone.eval()  # a frozen part
    before = {name: module.training for name, module in model.named_modules()}
    own = 'methods.kdcl.weights'
    state = {n: v.clone() for n, v in model.state_dict().items() if n != own}
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
    runner = build_runner(tmp_path, 1, train=own, hook={**HOOK, 'held_out_dataloader': cfg})
    runner.train()
    looked_at = hook_of(runner)._held_out.dataset.dataset.read
    trained_on = runner.train_loop.dataloader.dataset.dataset.read
    assert (len(looked_at), len(trained_on)) == (6, 12)
    assert sorted(looked_at + trained_on) == list(range(18))
    assert {**cfg, 'dataset': None} == before


def split_of_images(**kwargs):
    """The config of the training part of :func:`parts`."""
    images = {'type': Images, 'labels': [i % NUM_CLASSES for i in range(18)], 'data_root': 'one'}
    return {'type': 'kd_mm.HoldOut', 'num_per_class': 2, 'dataset': images, **kwargs}


PIPELINE = [{'type': 'mmpretrain.PackInputs'}]
EVALUATED = loader({**split_of_images(), 'dataset': {'type': Images, 'pipeline': PIPELINE}})
ACCURACY = {'type': 'Accuracy', '_scope_': 'mmpretrain'}
VALIDATED = {'val_dataloader': EVALUATED, 'val_cfg': {}, 'val_evaluator': ACCURACY}
TESTED = {'test_dataloader': EVALUATED, 'test_cfg': {}, 'test_evaluator': ACCURACY}


@pytest.mark.parametrize(
    ('own', 'settings'),
    [
        ({'held_out_pipeline': PIPELINE}, {}),
        ({}, VALIDATED),  # by default, how validation reads its images, inside of its wrappers
        ({}, TESTED),
    ],
    ids=['given', 'of the validation', 'of the test, without validation'],
)
def test_a_pipeline_takes_the_images_that_training_leaves_out(tmp_path, own, settings):
    train = {
        **loader(split_of_images()),
        'sampler': {'type': 'DefaultSampler', 'shuffle': True},
        'num_batch_per_epoch': 3,
        'drop_last': True,
    }
    train['dataset']['dataset']['data_root'] = 'elsewhere'  # told at one place
    before = copy.deepcopy((train, own, settings))
    hook = {**HOOK, **own}
    runner = build_runner(tmp_path, 1, hook=hook, train_dataloader=train, **settings)
    hook_of(runner).before_train(runner)
    held_out = hook_of(runner)._held_out.dataset
    trained = runner.train_loop.dataloader.dataset._dataset  # within the three batches
    assert (trained.part, held_out.part) == ('train', 'held_out')
    assert {part.dataset.data_root for part in (trained, held_out)} == {'elsewhere'}
    assert [type(t).__name__ for t in held_out.dataset.pipeline.transforms] == ['PackInputs']
    assert trained.dataset.pipeline.transforms == []
    hook_of(runner).after_train_epoch(runner)
    # Each once and in order, whatever training does.
    assert held_out.dataset.read == [
        info['number'] for info in map(parts()[1].get_data_info, range(6))
    ]
    assert hook_of(runner)._held_out.batch_size == 4
    assert (train, own, settings) == before
    expected = expected_weights(runner.model, parts()[1])
    np.testing.assert_allclose(weights_of(runner.model).tolist(), expected, rtol=1e-4)


def test_without_any_pipeline(tmp_path):
    train = loader(split_of_images())
    with refusal('need a pipeline, but there is no val_dataloader .* a held_out_pipeline$'):
        build_runner(tmp_path, 1, hook=HOOK, train_dataloader=train).train()


@pytest.mark.parametrize(
    ('train', 'message'),
    [
        ({'type': 'CIFAR100'}, "must be dict.type='kd_mm.HoldOut'.* but got {'type': 'CIFAR100'}"),
        (split_of_images(part='held_out'), "but got {.*'part': 'held_out'}; wrap"),
        (
            parts()[0],
            'but got HoldOut; wrap the data set, or give kd_mm.DistillerHook a held_out_dataloade',
        ),
        (split_of_images(dataset=Images([0])), "but got {'type': 'kd_mm.HoldOut'}"),
    ],
)
def test_a_pipeline_without_a_hold_out(train, message):
    with refusal(message):
        held_out_dataloader({'dataset': train}, [])


def test_one_source_of_held_out_images():
    with refusal('but got both; leave one of them out'):
        DistillerHook(held_out_pipeline=[], held_out_dataloader={})


def train_with(tmp_path, held_out, **kwargs):
    hook = {**HOOK, 'held_out_dataloader': loader(held_out)}
    runner = build_runner(tmp_path, 1, hook=hook, **kwargs)
    watch = Watch()
    runner.register_hook(watch)
    try:
        runner.train()
    finally:
        assert watch.weights == []  # refused before the first epoch


def test_a_method_that_needs_no_held_out_images_reads_none(tmp_path):
    runner = build_runner(tmp_path, 1, model=build_model('naive'))
    runner.train()
    assert hook_of(runner)._held_out is None


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
    hook = {**HOOK, 'held_out_dataloader': loader(Images([0, 1, 2], views=2))}
    with refusal('one image per sample, but got 2 views; leave MultiView out'):
        build_runner(tmp_path, 1, hook=hook).train()


# --- the clock, image numbers and ends of epochs -----------------------------------------------


class Probe(Method):
    """Notes what it is told, and keeps the number of each image in a memory.

    Its teachers are twice as far from zero after each epoch as they were before.
    """

    def __init__(self, *needs):
        super().__init__()
        self.needs = frozenset(needs)
        self.memory = SampleMemory(1, torch.float64) if 'index' in needs else None
        self.clocks, self.labels, self.index, self.ends = [], [], [], []

    def losses(self, step):
        if step.clock is not None:
            self.clocks.append(step.clock)
        if 'index' in self.needs:
            self.index += step.index.tolist()
            self.labels += step.labels.tolist()
            self.memory.write(step.index, step.index[:, None] + 0.5)
        return {'a/loss_probe': 0 * step.logits()['a'].sum()}

    @torch.no_grad()
    def after_epoch(self, end):
        assert not torch.is_grad_enabled()
        self.ends.append((end.clock, list(end.students), list(end.teachers)))
        for teacher in end.teachers.values():
            for weight in teacher.parameters():
                weight.mul_(2)
        end.log('probe/epochs', len(self.ends))


def probed(*needs, **model):
    """One student and a method that needs things."""
    torch.manual_seed(0)
    model = MODELS.build({'type': 'kd_mm.Distiller', 'students': {'a': network()}, **model})
    model.methods['probe'] = Probe(*needs)
    return model


def probe_of(runner):
    return runner.model.methods['probe']


def numbered(count=10):
    return Images([i % NUM_CLASSES for i in range(count)])


def test_the_clock_of_each_step_and_epoch_in_a_resumed_run_too(tmp_path):
    def run(folder, epochs=3, **changes):
        images = RepeatDataset(numbered(), 2)
        changes |= {'model': probed('clock'), 'hook': HOOK, 'train': images}
        runner = build_runner(folder, epochs, **changes)
        runner.train()
        return probe_of(runner), runner

    whole, runner = run(tmp_path / 'whole')
    per_epoch = 5  # 20 items, of 10 images
    expected = [Clock(i // per_epoch, 3, i, 15, 10) for i in range(15)]
    assert whole.clocks == expected
    ends = [(expected[i], ['a'], []) for i in (4, 9, 14)]
    assert whole.ends == ends
    assert list(runner.message_hub.get_scalar('probe/epochs').data[0]) == [1, 2, 3]
    assert 'Epoch(held out) [2]  probe/epochs: 2.0000' in log_of(runner)

    resumed = {'resume': True, 'load_from': str(tmp_path / 'whole/epoch_2.pth')}
    rest, _ = run(tmp_path / 'rest', **resumed)
    assert (rest.clocks, rest.ends) == (expected[10:], ends[2:])


def test_the_clock_of_a_loop_that_counts_iterations(tmp_path):
    sampler = {'type': 'InfiniteSampler', 'shuffle': True}
    train = {**loader(numbered(12)), 'sampler': sampler}
    changes = {'train_cfg': {'by_epoch': False, 'max_iters': 8}, 'train_dataloader': train}
    runner = build_runner(tmp_path, hook=HOOK, model=probed('clock'), **changes)
    runner.train()
    assert probe_of(runner).clocks == [Clock(i // 3, 3, i, 8, 12) for i in range(8)]


class Stream(IterableDataset):
    """Images without an end, in an order of their own."""

    def __len__(self):
        return 4

    def __iter__(self):
        images = numbered(4)
        while True:
            yield from (images[i] for i in range(4))


def test_a_stream_of_images_has_no_number_of_them(tmp_path):
    changes = {
        'train_cfg': {'by_epoch': False, 'max_iters': 3},
        'train_dataloader': DataLoader(Stream(), batch_size=2, collate_fn=default_collate),
    }
    runner = build_runner(tmp_path, hook=HOOK, model=probed('clock'), **changes)
    runner.train()
    assert probe_of(runner).clocks == [Clock(i // 2, 2, i, 3, 0) for i in range(3)]


def test_each_image_has_its_number_and_its_row_in_a_memory(tmp_path):
    train = {**loader(numbered()), 'sampler': {'type': 'DefaultSampler', 'shuffle': True}}
    runner = build_runner(
        tmp_path, 2, hook=HOOK, model=probed('index', 'clock'), train_dataloader=train
    )
    runner.train()
    probe = probe_of(runner)
    for epoch in (slice(10), slice(10, 20)):
        assert sorted(probe.index[epoch]) == list(range(10))
    assert probe.index[:10] != sorted(probe.index[:10])
    assert probe.labels == [number % NUM_CLASSES for number in probe.index]
    assert probe.memory.values.squeeze(1).tolist() == [i + 0.5 for i in range(10)]
    saved = load_checkpoint(tmp_path / 'epoch_2.pth')['state_dict']
    assert saved['methods.probe.memory.filled'].tolist() == [True] * 10


@pytest.mark.parametrize(
    ('need', 'what'),
    [
        ('clock', 'the epoch'),
        ('index', 'the number of each image'),
        ('held_out', 'images that training leaves out'),
    ],
)
def test_what_the_hook_gives_is_missed_in_one_sentence(need, what):
    model = probed(need)
    images = numbered(2)
    batch = {
        'inputs': torch.stack([images[i]['inputs'] for i in range(2)]),
        'data_samples': [images[i]['data_samples'] for i in range(2)],
    }
    message = (
        f'kd_mm.Probe needs {what}, which kd_mm.DistillerHook gives; add default_hooks='
        "dict(distiller=dict(type='kd_mm.DistillerHook'))"
    )
    with pytest.raises(RuntimeError) as caught:
        model(**batch, mode='loss')
    assert str(caught.value) == message
    model.eval()
    model(batch['inputs'], batch['data_samples'], mode='predict')  # as ever


class Plain(nn.Module):
    """Any model of MMEngine's."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def train_step(self, data, optim_wrapper):
        loss = self.linear(torch.ones(1)).sum()
        optim_wrapper.update_params(loss)
        return {'loss': loss}


def test_a_run_of_any_model_holds_freed_memory(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(distiller_hook, 'hold_freed_memory', lambda: calls.append(1))
    runner = build_runner(tmp_path, 1, hook=HOOK, model=Plain(), train=numbered(4))
    assert calls == []
    runner.train()
    assert calls == [1]
    assert set(load_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']) == {
        'linear.weight',
        'linear.bias',
    }


# --- teachers --------------------------------------------------------------------------------


def teacher_file(path, seed=1):
    torch.manual_seed(seed)
    torch.save({'state_dict': MODELS.build(network()).state_dict()}, path)
    return {**network(), 'checkpoint': str(path)}


def test_a_resumed_run_has_the_teachers_that_it_began_with(tmp_path):
    path = tmp_path / 'teacher.pth'
    cfg = teacher_file(path)

    def runner(epochs, **changes):
        model = probed(teachers={'big': cfg})
        return build_runner(
            tmp_path / 'run', epochs, hook=HOOK, model=model, train=numbered(), **changes
        )

    runner(1).train()
    saved = load_checkpoint(tmp_path / 'run/epoch_1.pth')
    (digest,) = saved['meta']['teachers'].values()
    assert saved['meta']['teachers'] == {'big': digest}
    assert len(digest) == 64
    assert 'teachers' not in saved  # its weights are in its file
    runner(2, resume=True).train()
    assert load_checkpoint(tmp_path / 'run/epoch_2.pth')['meta']['teachers'] == {'big': digest}

    teacher_file(path, seed=2)
    other = rf'teacher big, {path}, has changed; put the first one back, or start another run$'
    with refusal(other):
        runner(3, resume=True).train()
    by_hand = runner(3)
    by_hand.resume(str(tmp_path / 'run/epoch_2.pth'))
    with refusal(other):
        by_hand.train()
    # Another run may begin from these weights with another teacher.
    runner(1, load_from=str(tmp_path / 'run/epoch_2.pth')).train()


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


class Teachers(Hook):
    """Notes the weights of the copied teacher and of its student when an epoch begins."""

    priority = 'LOWEST'

    def __init__(self):
        self.teacher, self.student = [], []

    def before_train_epoch(self, runner):
        self.teacher.append(state_of(runner.model.teachers.networks['mean']))
        self.student.append(state_of(runner.model.students['a']))


def test_a_teacher_that_copies_a_student_goes_on_in_a_resumed_run(tmp_path):
    def run(folder, epochs, by_hand=None, **changes):
        model = probed(teachers={'mean': {'copy_of': 'a'}})
        runner = build_runner(folder, epochs, hook=HOOK, model=model, train=numbered(), **changes)
        watch = Teachers()
        runner.register_hook(watch)
        if by_hand is not None:
            model.init_weights()  # else a Runner does so after it has loaded them
            runner.resume(str(by_hand))
        runner.train()
        return watch

    def assert_same(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    whole = run(tmp_path / 'whole', 3)
    assert_same(whole.teacher[0], whole.student[0])  # a copy, until the method acts
    key = 'backbone.conv1.weight'
    for epoch in (1, 2):
        assert_same(whole.teacher[epoch][key], 2**epoch * whole.teacher[0][key])
        saved = load_checkpoint(tmp_path / f'whole/epoch_{epoch}.pth')
        assert_same(saved['teachers'], {'mean': whole.teacher[epoch]})
        assert 'teachers' not in saved['meta']
        assert not any('teacher' in name for name in saved['state_dict'])

    middle = tmp_path / 'whole/epoch_2.pth'
    for resumed in (
        run(tmp_path / 'resumed', 3, resume=True, load_from=str(middle)),
        run(tmp_path / 'by hand', 3, by_hand=middle),
    ):
        assert_same(resumed.teacher, whole.teacher[2:])
        assert_same(resumed.student, whole.student[2:])
    started = run(tmp_path / 'started', 1, load_from=str(middle))
    assert_same(started.teacher, whole.student[2:])  # a run of its own, from those weights
