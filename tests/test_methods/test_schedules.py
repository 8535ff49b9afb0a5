"""Weights that follow the epoch: their values, in the loss and over a resume, and refusals."""

import pytest
import torch
from mmengine.hooks import Hook

from kd_mm.methods import Clock, LinearRamp, SigmoidRamp, schedule
from tests.toys.models import batch, build, build_runner

VALUE = 3.0
SIGMOID = {'type': 'kd_mm.SigmoidRamp', 'value': VALUE, 'epochs': 5}
LINEAR = {'type': 'kd_mm.LinearRamp', 'value': VALUE, 'epochs': 4}
# By hand, exp(-5 (1 - e / 5)^2) and e / 4 for the epochs e = 1, 2, ...
SIGMOID_SHARES = [0.0407622, 0.1652989, 0.4493290, 0.8187308, 1, 1, 1]
LINEAR_SHARES = [0.25, 0.5, 0.75, 1, 1, 1, 1]


def at(epoch):
    """The clock in an epoch, counted from 1."""
    return Clock(epoch - 1, 20, epoch * 10, 200, 30)


@pytest.mark.parametrize(
    ('ramp', 'shares'),
    [(SigmoidRamp(5, VALUE), SIGMOID_SHARES), (LinearRamp(4, VALUE), LINEAR_SHARES)],
    ids=['sigmoid', 'linear'],
)
def test_ramps_by_hand(ramp, shares):
    found = [ramp(at(epoch)) for epoch in range(1, 8)]
    assert found == pytest.approx([VALUE * share for share in shares], rel=1e-6)
    assert ramp(at(20)) == VALUE


@pytest.mark.parametrize(
    ('method', 'option', 'term'),
    [
        ('bake_student', 'loss_weight', 'loss_bake'),
        ('dml', 'loss_weight', 'b/loss_dml'),
        ('min_logit', 'loss_weight', 'b/loss_kdcl'),
        ('ffsd', 'diversity_weight', 'student2/loss_diversity'),
        ('ffsd', 'fusion_weight', 'leader/loss_decoder'),
        ('ffsd', 'self_distillation_weight', 'leader/loss_neck_attention'),
    ],
)
def test_a_term_of_the_loss_grows_by_the_epoch(method, option, term):
    constant, ramped = (
        build(method, **{option: weight}).eval()  # no statistics change from step to step
        for weight in (VALUE, SIGMOID)
    )
    whole = losses_of(constant)[term]
    assert whole.abs() > 1e-6
    found = []
    for epoch in (1, 4, 7):
        ramped.clock = at(epoch)
        found.append((losses_of(ramped)[term] / whole).item())
    assert found == pytest.approx(SIGMOID_SHARES[::3], rel=1e-4)


def losses_of(model):
    with torch.no_grad():
        return model(**model.data_preprocessor(batch(), training=True), mode='loss')


class Weights(Hook):
    """Notes the weight of each iteration."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        method = runner.model.methods['dml']
        self.seen.append(method.loss_weight(runner.model.clock))


def train(folder, length, by_epoch=True, **changes):
    """The weight of each of five iterations per epoch, the logged terms, and the last weights."""
    train_cfg = {'by_epoch': by_epoch, 'max_epochs' if by_epoch else 'max_iters': length}
    model = build('dml', loss_weight=LINEAR)
    runner = build_runner('dml', folder, model, train_cfg=train_cfg, **changes)
    weights = Weights()
    runner.register_hook(weights)
    runner.train()
    histories = runner.message_hub.log_scalars.items()
    terms = {key: list(h.data[0]) for key, h in histories if 'loss' in key}
    return weights.seen, terms, runner.model.state_dict()


def test_a_run_ramps_by_the_epoch_and_goes_on_where_it_was(tmp_path):
    seen, terms, state = train(tmp_path / 'whole', 6)
    assert seen == [VALUE * share for share in LINEAR_SHARES[:6] for _ in range(5)]
    changes = {'resume': True, 'load_from': str(tmp_path / 'whole/epoch_2.pth')}
    again, same_terms, same_state = train(tmp_path / 'resumed', 6, **changes)
    assert again == seen[10:]
    assert same_terms == terms
    torch.testing.assert_close(same_state, state, rtol=0, atol=0)


def test_a_loop_that_counts_iterations_ramps_too(tmp_path):
    seen, _, _ = train(tmp_path, 12, by_epoch=False)
    assert seen == [VALUE * share for share in LINEAR_SHARES[:3] for _ in range(5)][:12]


def test_without_the_hook_no_step_is_taken():
    model = build('dml', loss_weight=SIGMOID)
    model.clock = None
    with pytest.raises(RuntimeError, match=r'SigmoidRamp needs the epoch.* add default_hooks='):
        losses_of(model)


def test_prediction_needs_no_epoch():
    model = build('ffsd').eval()
    model.clock = None
    data = model.data_preprocessor(batch())
    assert len(model(**data, mode='predict')) == len(batch()['inputs'])


@pytest.mark.parametrize(
    ('weight', 'error', 'message'),
    [
        ('10', ValueError, "fusion_weight must be finite and at least 0, but got '10'"),
        ({**SIGMOID, 'epochs': 0}, ValueError, 'epochs must be an integer of at least 1, .* 0'),
        ({**LINEAR, 'value': -1}, ValueError, 'value must be finite and at least 0, but got -1'),
        ({**LINEAR, 'type': 'kd_mm.LinarRamp'}, ValueError, r'did you mean kd_mm.LinearRamp\?'),
        ({'epochs': 5}, ValueError, 'fusion_weight must have the type of a schedule, .* None'),
        ({**LINEAR, 'epoch': 5}, TypeError, 'epoch'),
    ],
)
def test_bad_weights_are_refused(weight, error, message):
    with pytest.raises(error, match=message):
        schedule('fusion_weight', weight)
