"""The guard also holds where no preflight ran: checkpoints from the web, other programs."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseTTAModel

from kd_mm.resume import CheckpointGuardHook


class Mirrored(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


def runner(wrap=False):
    class Model(torch.nn.Linear):
        def test_step(self, data):
            return data

    model = Model(2, 2)
    return SimpleNamespace(model=Mirrored(model) if wrap else model, _load_from='a.pth')


@pytest.mark.parametrize('wrap', [False, True], ids=['plain', 'test-time augmentation'])
def test_refuses_a_checkpoint_of_which_nothing_fits(wrap):
    hook = CheckpointGuardHook()
    weights = torch.nn.Linear(2, 2).state_dict()
    hook.after_load_checkpoint(runner(wrap), {'state_dict': weights})
    prefixed = {f'module.{name}': weight for name, weight in weights.items()}  # of a DDP model
    hook.after_load_checkpoint(runner(wrap), {'state_dict': prefixed})
    hook.after_load_checkpoint(runner(wrap), weights)  # bare weights
    with pytest.raises(ValueError, match=r'none of the 1 names in a\.pth \(fc\.weight'):
        hook.after_load_checkpoint(runner(wrap), {'state_dict': {'fc.weight': torch.ones(1)}})
