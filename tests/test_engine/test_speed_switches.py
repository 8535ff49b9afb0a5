"""What makes a step faster changes no result: ``compile``, channels last, bfloat16, and all."""

from functools import partial

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_map

from kd_mm.engine.hooks import ChannelsLastHook
from kd_mm.engine.hooks.channels_last_hook import use_channels_last
from kd_mm.models.distiller import Distiller
from tests.test_engine.toy_cohort import assert_equal, weights
from tests.test_engine.toy_methods import METHODS, batch, build, build_runner, images, optim_cfg

BFLOAT16 = {'type': 'kd_mm.Bfloat16OptimWrapper'}
# Terms that necks take part in, which are networks and run in bfloat16.
BEHIND_NECKS = ('self_distillation', 'neck', 'decoder', 'fusion', 'leader/loss_kd')
COMPILED = {'cfg': {'compile': {'backend': 'eager'}}}


def train(method, work_dir, hooks=(), model=None, **changes):
    """The terms of five iterations, and the weights after them."""
    runner = build_runner(method, work_dir, model, **changes)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    histories = runner.message_hub.log_scalars.items()
    terms = {key: torch.tensor(h.data[0]) for key, h in histories if 'loss' in key}
    return terms, weights(runner.model)


class Formats(Hook):
    """Note whether convolutions and what enters them lie channels last, at each iteration."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.of_backbones, self.of_necks = [], []

    def before_train(self, runner):
        for name, module in runner.model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                seen = self.of_backbones if 'backbone' in name else self.of_necks
                module.register_forward_pre_hook(partial(self.look, seen))

    @staticmethod
    def look(seen, convolution, args):
        for tensor in (args[0], convolution.weight):
            if convolution.training and min(tensor.shape[1:]) > 1:  # else it is both
                seen.append(tensor.is_contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize('method', METHODS)
def test_channels_last_is_another_order_of_the_same_numbers(method, tmp_path):
    formats = [Formats(), Formats()]
    plain, _ = train(method, tmp_path / 'plain', [formats[0]])
    last, _ = train(method, tmp_path / 'last', [ChannelsLastHook(), formats[1]])
    assert not any(formats[0].of_backbones)  # necks choose for themselves
    assert all(formats[1].of_backbones + formats[1].of_necks)
    assert len(formats[1].of_backbones) >= 10
    assert bool(formats[1].of_necks) == (method == 'ffsd')
    # Of weights that are equal, and of those after a step; rounding errors grow from there.
    for key, terms in plain.items():
        torch.testing.assert_close(last[key][:2], terms[:2], rtol=1e-4, atol=1e-6)


def test_views_are_channels_last_until_the_hook_is_removed():
    model = build('dml', views='per_student').eval()
    images = batch()['inputs']
    seen = []
    for student in model.students.values():
        student.backbone.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
    given = {'inputs': [images, images], 'data_samples': batch()['data_samples']}
    handle = use_channels_last(model)
    model(**given, mode='loss')
    model(images, given['data_samples'], mode='predict')
    assert seen == [True] * 4
    assert images.is_contiguous()
    handle.remove()
    model(**given, mode='loss')
    assert seen[4:] == [False] * 2


@pytest.mark.parametrize('method', METHODS)
def test_bfloat16_trains_float32_weights_with_float32_losses(method):
    full, half = build(method), build(method)
    exact = full.train_step(batch(), build_optim_wrapper(full, optim_cfg(method)))
    heard = hear(half)
    wrapper = build_optim_wrapper(half, optim_cfg(method, **BFLOAT16))
    terms = half.train_step(batch(), wrapper)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert not torch.equal(terms['loss'], exact['loss'])
    torch.testing.assert_close(terms, exact, rtol=0.1, atol=0.05)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    # The same terms of the same logits and maps, without autocast.
    own, again = heard()
    for key, term in own.items():
        necks = any(part in key for part in BEHIND_NECKS)
        exactness = {'rtol': 0.05, 'atol': 1e-3} if necks else {'rtol': 1e-6, 'atol': 1e-7}
        torch.testing.assert_close(term, again[key], **exactness, msg=key)


def hear(model):
    """Keep what the distillation terms are made of, for them to be computed with and without."""
    kept = []
    if isinstance(model, Distiller):
        (method,) = model.methods.values()
        compute = method.losses
        method.losses = lambda step: kept.append(step) or compute(step)
    else:
        compute = model.head.terms
        model.head.terms = lambda step: kept.append(step) or compute(step)

    def again():
        (step,) = kept
        assert {z.dtype for z in step.logits().values()} == {torch.bfloat16}
        with torch.autocast('cpu', torch.bfloat16):
            own = compute(step)
        return own, compute(tree_map(widen, step))

    return again


def widen(leaf):
    half = isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bfloat16
    return leaf.float() if half else leaf


class Compilations(Hook):
    """Note after each iteration how many functions were compiled so far."""

    def __init__(self):
        self.counts = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.counts.append(counters['frames']['total'])


@pytest.mark.parametrize('method', ['bake', 'bake_student', 'min_logit'])
def test_a_compiled_step_is_the_same_to_the_last_bit_and_compiled_once(method, tmp_path):
    torch.compiler.reset()
    compilations = Compilations()
    schedule = {'type': 'CosineAnnealingLR', 'by_epoch': False, 'T_max': 5}
    switches = {'optim': BFLOAT16, 'param_scheduler': schedule}
    plain = train(method, tmp_path / 'plain', [ChannelsLastHook()], **switches)
    before = counters['frames']['total']
    hooks = [ChannelsLastHook(), compilations]
    compiled = train(method, tmp_path / 'compiled', hooks, **switches, **COMPILED)
    assert_equal(compiled, plain)
    assert compilations.counts[0] > before
    assert compilations.counts == compilations.counts[:1] * 5


def test_a_weight_that_grows_by_the_epoch_is_compiled_until_it_is_whole(tmp_path):
    torch.compiler.reset()
    compilations = Compilations()
    loader = {
        **{'dataset': images()[:6], 'batch_size': 6, 'num_workers': 0},
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
    }
    changes = {'train_cfg': {'by_epoch': True, 'max_epochs': 4}, 'train_dataloader': loader}
    ramp = {'type': 'kd_mm.SigmoidRamp', 'epochs': 2}
    plain, compiled = (
        train('ffsd', tmp_path / name, hooks, build('ffsd', fusion_weight=ramp), **cfg, **changes)
        for name, hooks, cfg in (('plain', [], {}), ('compiled', [compilations], COMPILED))
    )
    assert_equal(compiled, plain)
    first, whole, *after = compilations.counts
    assert whole <= first + 1
    assert after == [whole] * 2


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'bake'])
def test_terms_compile_as_a_whole_with_the_same_values_and_gradients(method):
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        model = build(method)
        (distillation,) = model.methods.values()
        if compiled:
            # As a whole: what breaks the graph goes on without compiling, and is not seen
            # elsewhere. Linear's solver looks whether it may stop.
            distillation.losses = torch.compile(
                distillation.losses, backend='eager', fullgraph=method != 'linear'
            )
        losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters())
        found.append((losses, {n: p.grad for n, p in model.named_parameters()}))
    assert_equal(found[1], found[0])
    assert counters['stats']['unique_graphs'] > 0


def test_activations_may_be_recomputed_in_a_compiled_step():
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        model = build('naive', with_cp=True)
        forward = torch.compile(model.forward, backend='eager') if compiled else model.forward
        losses = forward(**model.data_preprocessor(batch(), training=True), mode='loss')
        sum(losses.values()).backward()
        found.append((losses, {n: p.grad for n, p in model.named_parameters()}, weights(model)))
    assert_equal(found[1], found[0])


def test_a_run_goes_on_with_and_without_channels_last(tmp_path):
    def run(folder, *hooks, epochs=2, **changes):
        train_cfg = {'by_epoch': True, 'max_epochs': epochs}
        return train('dml', tmp_path / folder, hooks, train_cfg=train_cfg, **changes)[1]

    whole = run('whole', ChannelsLastHook())
    resumed = {'resume': True, 'load_from': str(tmp_path / 'whole/epoch_1.pth')}
    assert_equal(run('with', ChannelsLastHook(), **resumed), whole)
    without = run('without', **resumed)
    assert all(tensor.is_contiguous() for tensor in without.values())
    assert not all(tensor.is_contiguous() for tensor in whole.values())
    torch.testing.assert_close(without, whole, rtol=1e-2, atol=1e-3)
