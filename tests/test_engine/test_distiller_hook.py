"""What a run tells a Distiller: the clock, image numbers, held-out images, teachers that resume.

KDCL-General is the method that asks for held-out images: the value of its weights, their life in
checkpoints and logs, and refusals.
"""

import copy
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import RepeatDataset, default_collate
from mmengine.hooks import Hook
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from kd_mm.checkpoint import load_checkpoint
from kd_mm.datasets import InMemory
from kd_mm.engine.hooks import DistillerHook
from kd_mm.methods import Clock, Method, SampleMemory
from kd_mm.registry import MODELS
from tests.toys.cohort import assert_equal
from tests.toys.cohort import weights as state_of
from tests.toys.held_out import (
    NUM_CLASSES,
    Images,
    build_model,
    expected_weights,
    parts,
)
from tests.toys.models import loader as loader_of
from tests.toys.models import network, runner_of

HOOK = {'type': 'kd_mm.DistillerHook'}


def loader(dataset, **changes):
    return loader_of(dataset, 4, **changes)


def weights_of(model):
    return model.methods['kdcl'].weights


class AtEpochs(Hook):
    """Record something at the start of each epoch, after all hooks have prepared it."""

    priority = 'LOWEST'

    def __init__(self, look):
        self.look, self.seen = look, []

    def before_train_epoch(self, runner):
        self.seen.append(self.look(runner.model))


def build_runner(work_dir, epochs=1, train=None, hook=None, model=None, **changes):
    """A run whose data set, or loader, is ``train``."""
    own, held_out = parts()
    train = own if train is None else train
    return runner_of(
        model or build_model(),
        work_dir,
        train if isinstance(train, (dict, DataLoader)) else loader(train),
        epochs,
        custom_hooks=[hook or {**HOOK, 'held_out_dataloader': loader(held_out)}],
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        **{'log_level': 'INFO', **changes},
    )


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, DistillerHook))


def refusal(message):
    return pytest.raises(ValueError, match=message)


def log_of(runner):
    return next(Path(runner.log_dir).glob('*.log')).read_text()


# --- held-out images -------------------------------------------------------------------------


def history(runner, name):
    return runner.message_hub.get_scalar(f'general_weight/{name}').data[0]


def test_weights_in_each_checkpoint_are_the_papers_and_resume(tmp_path):
    def train(epochs, **changes):
        watch = AtEpochs(lambda model: weights_of(model).tolist())
        runner = build_runner(tmp_path, epochs, **changes)
        runner.register_hook(watch)
        runner.train()
        return runner, watch.seen

    runner, seen = train(2)
    found = []
    for epoch in (1, 2):
        model = build_model(seed=1)
        model.load_state_dict(load_checkpoint(tmp_path / f'epoch_{epoch}.pth')['state_dict'])
        found.append(weights_of(model).tolist())
        expected = expected_weights(model, parts()[1])
        np.testing.assert_allclose(found[-1], expected, rtol=1e-4)
    assert found[0] != found[1]
    assert seen == [[0.5, 0.5], found[0]]  # the second epoch trains with them
    for i, name in enumerate('ab'):
        np.testing.assert_allclose(history(runner, name), [w[i] for w in found], rtol=1e-6)
    line = '  '.join(f'general_weight/{n}: {w:.4f}' for n, w in zip('ab', found[1], strict=True))
    assert f'Epoch(held out) [2]  {line}' in log_of(runner)

    resumed, seen = train(3, resume=True)
    assert seen == [found[1]]
    np.testing.assert_allclose(history(resumed, 'a')[:2], [w[0] for w in found], rtol=1e-6)
    assert len(history(resumed, 'a')) == 3


def test_held_out_images_run_in_eval_mode_without_gradient(tmp_path):
    runner = build_runner(tmp_path)
    hook = hook_of(runner)
    hook.before_train(runner)
    model = runner.model.train()
    model.students['a'].backbone.eval()  # a frozen part
    modes = {name: module.training for name, module in model.named_modules()}
    state = state_of(model)
    seen = []
    for module in model.modules():
        module.register_forward_hook(
            lambda m, *_: seen.append(m.training or torch.is_grad_enabled())
        )
    hook.after_train_epoch(runner)
    assert seen
    assert not any(seen)
    assert {name: module.training for name, module in model.named_modules()} == modes
    own = 'methods.kdcl.weights'
    assert_equal({**state_of(model), own: 0}, {**state, own: 0})


def test_trains_on_no_held_out_image_and_reads_each_once(tmp_path):
    own, held_out = parts()
    # A batch of 4 leaves 2 of 6 for the last one, which a drop_last would drop.
    cfg = loader(held_out, drop_last=True)
    runner = build_runner(tmp_path, train=own, hook={**HOOK, 'held_out_dataloader': cfg})
    runner.train()
    read = hook_of(runner)._held_out.dataset.dataset.read
    trained_on = runner.train_loop.dataloader.dataset.dataset.read
    assert (len(read), len(trained_on)) == (6, 12)
    assert sorted(read + trained_on) == list(range(18))


def split_of_images(**kwargs):
    images = {'type': Images, 'labels': [i % NUM_CLASSES for i in range(18)]}
    return {'type': 'kd_mm.HoldOut', 'num_per_class': 2, 'dataset': images, **kwargs}


PIPELINE = [{'type': 'mmpretrain.PackInputs'}]
EVALUATED = loader({**split_of_images(), 'dataset': {'type': Images, 'pipeline': PIPELINE}})
ACCURACY = {'type': 'Accuracy', '_scope_': 'mmpretrain'}


@pytest.mark.parametrize(
    ('own', 'settings'),
    [
        ({'held_out_pipeline': PIPELINE}, {}),
        # By default, how validation reads its images, inside of its wrappers.
        ({}, {'val_dataloader': EVALUATED, 'val_cfg': {}, 'val_evaluator': ACCURACY}),
        ({}, {'test_dataloader': EVALUATED, 'test_cfg': {}, 'test_evaluator': ACCURACY}),
    ],
    ids=['given', 'of the validation', 'of the test, without validation'],
)
def test_a_pipeline_takes_the_images_that_training_leaves_out(tmp_path, own, settings):
    sampler = {'type': 'DefaultSampler', 'shuffle': True}
    train = loader(split_of_images(), sampler=sampler, num_batch_per_epoch=3, drop_last=True)
    before = copy.deepcopy((train, own, settings))
    runner = build_runner(tmp_path, hook={**HOOK, **own}, train=train, **settings)
    hook_of(runner).before_train(runner)
    assert (train, own, settings) == before
    held_out = hook_of(runner)._held_out.dataset
    assert held_out.part == 'held_out'
    assert [type(t).__name__ for t in held_out.dataset.pipeline.transforms] == ['PackInputs']
    hook_of(runner).after_train_epoch(runner)
    # Each once and in order, whatever training does.
    numbers = [info['number'] for info in map(parts()[1].get_data_info, range(6))]
    assert held_out.dataset.read == numbers
    expected = expected_weights(runner.model, parts()[1])
    np.testing.assert_allclose(weights_of(runner.model).tolist(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ('train', 'pipeline', 'message'),
    [
        (split_of_images(), None, 'need a pipeline, but there is no val_dataloader'),
        ({'type': 'CIFAR100'}, [], "type='kd_mm.HoldOut'.* but got {'type': 'CIFAR100'}"),
        (split_of_images(part='held_out'), [], "but got {.*'part': 'held_out'}; wrap"),
        (parts()[0], [], 'but got HoldOut; wrap the data set, or give kd_mm.DistillerHook a held'),
        (split_of_images(dataset=Images([0])), [], "but got {'type': 'kd_mm.HoldOut'}"),
    ],
)
def test_a_loader_without_images_left_out(train, pipeline, message):
    with refusal(message):
        DistillerHook(pipeline).held_out_cfg({'dataset': train}, None)


def test_one_source_of_held_out_images():
    with refusal('but got both; leave one of them out'):
        DistillerHook(held_out_pipeline=[], held_out_dataloader={})


def test_a_method_that_needs_no_held_out_images_reads_none(tmp_path):
    runner = build_runner(tmp_path, model=build_model('naive'))
    runner.train()
    assert hook_of(runner)._held_out is None


OWN, LEFT_OUT = parts()
FEWER = parts(num_per_class=1)[0]
BY_ITERATION = {'train_cfg': {'by_epoch': False, 'max_iters': 2}}


@pytest.mark.parametrize(
    ('train', 'held_out', 'changes', 'message'),
    [
        (OWN, LEFT_OUT, BY_ITERATION, 'an IterBasedTrainLoop; use'),
        (OWN, Images([]), {}, 'must have images, but got 0'),
        (FEWER, LEFT_OUT, {}, r"part=\('train', 'held_out'\) and num_per_class=\(1, 2\); use"),
        (LEFT_OUT, LEFT_OUT, {}, r"part=\('held_out', 'held_out'\)"),
        (*[InMemory(OWN, lazy_init=True)] * 2, {}, r"part=\('train', 'train'\)"),
        (OWN, Images([0, 1, 2], views=2), {}, 'per sample, but got 2 views; leave MultiView out'),
    ],
    ids=['no epochs', 'empty', 'counts', 'parts', 'in memory', 'views'],
)
def test_held_out_images_that_do_not_fit(train, held_out, changes, message, tmp_path):
    hook = {**HOOK, 'held_out_dataloader': loader(held_out)}
    with refusal(message):
        build_runner(tmp_path, hook=hook, train=train, **changes).train()


# --- the clock, image numbers and ends of epochs -----------------------------------------------


class Probe(Method):
    """Record steps and epochs, keep image numbers in a memory, double the teachers' weights."""

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


class Stream(IterableDataset):
    """Images without an end, in an order of their own."""

    def __len__(self):
        return 4

    def __iter__(self):
        images = numbered(4)
        while True:
            yield from (images[i] for i in range(4))


@pytest.mark.parametrize(
    ('train', 'per_epoch', 'num_images'),
    [
        (loader(numbered(12), sampler={'type': 'InfiniteSampler', 'shuffle': True}), 3, 12),
        (DataLoader(Stream(), batch_size=2, collate_fn=default_collate), 2, 0),
    ],
)
def test_the_clock_of_a_loop_that_counts_iterations(tmp_path, train, per_epoch, num_images):
    changes = {'train_cfg': {'by_epoch': False, 'max_iters': 5}, 'train': train}
    runner = build_runner(tmp_path, hook=HOOK, model=probed('clock'), **changes)
    runner.train()
    epochs = -(-5 // per_epoch)
    expected = [Clock(i // per_epoch, epochs, i, 5, num_images) for i in range(5)]
    assert probe_of(runner).clocks == expected


def test_each_image_has_its_number_and_its_row_in_a_memory(tmp_path):
    train = loader(numbered(), sampler={'type': 'DefaultSampler', 'shuffle': True})
    runner = build_runner(tmp_path, 2, train, HOOK, probed('index', 'clock'))
    runner.train()
    probe = probe_of(runner)
    for epoch in (slice(10), slice(10, 20)):
        assert sorted(probe.index[epoch]) == list(range(10))
    assert probe.index[:10] != sorted(probe.index[:10])
    assert probe.labels == [number % NUM_CLASSES for number in probe.index]
    assert probe.memory.values.squeeze(1).tolist() == [i + 0.5 for i in range(10)]
    saved = load_checkpoint(tmp_path / 'epoch_2.pth')['state_dict']
    assert saved['methods.probe.memory.filled'].tolist() == [True] * 10


def test_a_model_without_the_hook_names_it():
    model = probed('index')
    batch = default_collate([numbered(2)[i] for i in range(2)])
    with pytest.raises(RuntimeError, match='Probe needs the number of each image, which'):
        model(**batch, mode='loss')
    model.eval()
    model(**batch, mode='predict')


class Plain(nn.Linear):
    """Any model of MMEngine's."""

    def train_step(self, data, optim_wrapper):
        loss = self(torch.ones(1)).sum()
        optim_wrapper.update_params(loss)
        return {'loss': loss}


def test_a_run_of_any_model_holds_freed_memory_and_is_left_as_it_is(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        'kd_mm.engine.hooks.distiller_hook.hold_freed_memory', lambda: calls.append(1)
    )
    build_runner(tmp_path, hook=HOOK, model=Plain(1, 1), train=numbered(4)).train()
    assert calls == [1]
    assert set(load_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']) == {'weight', 'bias'}


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
        return build_runner(tmp_path / 'run', epochs, numbered(), HOOK, model, **changes)

    runner(1).train()
    saved = load_checkpoint(tmp_path / 'run/epoch_1.pth')
    assert saved['meta']['teachers'] == {'big': sha256(path.read_bytes()).hexdigest()}
    assert 'teachers' not in saved  # its weights are in its file
    runner(2, resume=True).train()

    teacher_file(path, seed=2)
    with refusal(rf'teacher big, {path}, has changed; put the first one back, or start another'):
        runner(3, resume=True).train()
    # Another run may begin from these weights with another teacher.
    runner(1, load_from=str(tmp_path / 'run/epoch_2.pth')).train()


def test_a_teacher_that_copies_a_student_continues_in_a_resumed_run(tmp_path):
    def run(folder, epochs, by_hand=None, **changes):
        model = probed(teachers={'mean': {'copy_of': 'a'}})
        runner = build_runner(folder, epochs, numbered(), HOOK, model, **changes)
        teacher = AtEpochs(lambda model: state_of(model.teachers.networks['mean']))
        student = AtEpochs(lambda model: state_of(model.students['a']))
        runner.register_hook(teacher)
        runner.register_hook(student)
        if by_hand is not None:
            model.init_weights()  # otherwise a Runner does so after it has loaded them
            runner.resume(str(by_hand))
        runner.train()
        return teacher.seen, student.seen

    teacher, student = run(tmp_path / 'whole', 3)
    assert_equal(teacher[0], student[0])  # a copy, until the method acts
    key = 'backbone.conv1.weight'
    for epoch in (1, 2):
        assert_equal(teacher[epoch][key], 2**epoch * teacher[0][key])
        saved = load_checkpoint(tmp_path / f'whole/epoch_{epoch}.pth')
        assert_equal(saved['teachers'], {'mean': teacher[epoch]})
        assert 'teachers' not in saved['meta']
        assert not any('teacher' in name for name in saved['state_dict'])

    middle = tmp_path / 'whole/epoch_2.pth'
    resumed = {'resume': True, 'load_from': str(middle)}
    for found in (
        run(tmp_path / 'resumed', 3, **resumed),
        run(tmp_path / 'by hand', 3, by_hand=middle),
    ):
        assert_equal(found, (teacher[2:], student[2:]))
    found, _ = run(tmp_path / 'started', 1, load_from=str(middle))
    assert_equal(found, student[2:])  # a run of its own, from those weights
