"""FFSD's necks: prediction without a trace of it."""

import copy

import pytest
import torch

from kd_mm.models.necks import SelfDistillationNeck


@pytest.mark.parametrize(
    'norm_cfg',
    [
        {'type': 'BN'},
        {'type': 'BN', 'affine': False},
        {'type': 'SyncBN'},
        {'type': 'GN', 'num_groups': 2},
        {'type': 'BN', 'track_running_stats': False},
    ],
)
def test_a_neck_predicts_as_in_evaluation_mode(norm_cfg):
    """With BN folded into the convolutions, in either mode, and without a trace."""
    torch.manual_seed(0)
    neck = SelfDistillationNeck((4, 6, 8), norm_cfg).double()
    for norm in (block[1] for block in neck.blocks):
        for tensor in (norm.weight, norm.bias, *norm.buffers()):
            if tensor is not None and tensor.is_floating_point():
                torch.nn.init.uniform_(tensor, 0.5, 2)
    before = copy.deepcopy(neck.state_dict())
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        predicted = neck.train(training).predict(x)
        assert neck.training is training
        assert not any(level.requires_grad for level in predicted)
        torch.testing.assert_close(predicted, neck.eval()(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(neck.state_dict(), before, rtol=0, atol=0)
