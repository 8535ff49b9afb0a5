"""The ramp of loss weights: its values, over a resume too, and its refusals."""

import math

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from kd_mm.engine.hooks import LossWeightRampHook
from kd_mm.engine.hooks.loss_weight_ramp_hook import ramp


class Weighted(BaseModel):
    """A model that notes its weights in each step."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.linear.own_weight = 4
        self.some_weight = 10.0
        self.text = 'no number'
        self.seen = []

    def forward(self, inputs, data_samples=None, mode='loss'):
        self.seen.append((self.some_weight, self.linear.own_weight))
        return {'loss': self.linear(torch.stack(inputs)).mean()}


def build_runner(work_dir, max_epochs, by_epoch=True, names=('some_weight', 'linear.own_weight')):
    data = [{'inputs': torch.ones(1)} for _ in range(2)]
    length = {'max_epochs': max_epochs} if by_epoch else {'max_iters': max_epochs}
    return Runner(
        model=Weighted(),
        work_dir=str(work_dir),
        train_dataloader={
            'dataset': data,
            'batch_size': 1,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        train_cfg={'by_epoch': by_epoch, **length},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.01}},
        custom_hooks=[{'type': 'kd_mm.LossWeightRampHook', 'names': list(names)}],
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        experiment_name=f'ramp{max_epochs}{work_dir.name}',
        log_level='ERROR',
    )


def expected(epochs):
    """exp(-5 (1 - e / 5)^2) for e up to 5, two steps an epoch."""
    shares = [math.exp(-5 * (1 - e / 5) ** 2) if e <= 5 else 1 for e in epochs]
    return [(pytest.approx(10 * s), pytest.approx(4 * s)) for s in shares for _ in range(2)]


def test_weights_grow_by_the_epoch_and_resume_where_they_were(tmp_path):
    runner = build_runner(tmp_path, 7)
    runner.train()
    assert runner.model.seen == expected(range(1, 8))
    assert (runner.model.some_weight, runner.model.linear.own_weight) == (10.0, 4.0)

    stopped = build_runner(tmp_path / 'stopped', 3)
    stopped.train()
    resumed = build_runner(tmp_path / 'stopped', 7)
    resumed.resume(str(tmp_path / 'stopped' / 'epoch_3.pth'))
    resumed.train()
    assert stopped.model.seen + resumed.model.seen == runner.model.seen


def test_ramp_by_hand():
    assert ramp(1, 5) == pytest.approx(math.exp(-3.2))
    assert ramp(5, 5) == ramp(6, 5) == ramp(1, 1) == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'names': []}, 'names must list attributes'),
        ({'names': 'loss_weight'}, "names must list attributes .* got 'loss_weight'"),
        ({'names': ['x'], 'ramp_epochs': 0}, 'at least 1, got 0'),
        ({'names': ['x'], 'ramp_epochs': 1.5}, 'at least 1, got 1.5'),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossWeightRampHook(**arguments)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'names': ['other']}, "numbers in Weighted, but 'other' is none"),
        ({'names': ['nowhere.weight']}, "'nowhere.weight' is none"),
        ({'names': ['text']}, "'text' is a str"),
        ({'by_epoch': False}, 'counts epochs'),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_its_first_step(tmp_path, settings, message):
    runner = build_runner(tmp_path, 2, **settings)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.model.seen == []
