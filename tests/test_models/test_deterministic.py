"""``randomness=dict(deterministic=True)`` trains each method on a GPU."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from tests.toys.models import METHODS, batch, build

# Of what torch.use_deterministic_algorithms refuses on a GPU, in any version that we run on, the
# operations that a classifier or a loss may come across.
REFUSED = {
    'aten::_adaptive_avg_pool2d_backward',
    'aten::adaptive_max_pool2d_backward',
    'aten::cumsum',
    'aten::grid_sampler_2d_backward',
    'aten::histc',
    'aten::kthvalue',
    'aten::median.dim',
    'aten::nll_loss2d_forward',
    'aten::put_',
    'aten::reflection_pad2d_backward',
    'aten::scatter_reduce.two',
    'aten::upsample_bilinear2d_backward',
}


class Names(TorchDispatchMode):
    """Note the operations, forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('method', METHODS)
def test_no_operation_is_refused(method):
    model = build(method)
    with Names() as names:
        data = model.data_preprocessor(batch(), True)
        total, _ = model.parse_losses(model(**data, mode='loss'))
        total.backward()
    assert 'aten::convolution_backward' in names.seen
    assert names.seen.isdisjoint(REFUSED)
