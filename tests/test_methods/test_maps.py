"""The memory layout of the maps that necks take."""

import pytest
import torch

from kd_mm.methods.maps import fastest_layout


@pytest.mark.parametrize(
    ('compiling', 'stride'), [(False, (60, 20, 5, 1)), (True, (60, 1, 15, 3))]
)
def test_the_gradient_of_a_map_lies_as_the_map_itself(compiling, stride, monkeypatch):
    """But for a compiler, which lays it out by itself."""
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: compiling)
    x = torch.rand(2, 3, 4, 5, requires_grad=True)
    inner = x * 1
    strides = []
    inner.register_hook(lambda grad: strides.append(grad.stride()))
    fastest_layout(inner).square().sum().backward()
    assert strides == [stride]
    torch.testing.assert_close(x.grad, 2 * x.detach())
