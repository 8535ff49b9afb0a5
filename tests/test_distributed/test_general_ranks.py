"""KDCL-General's weights on two ranks are those of one process on all held-out images."""

import logging
from types import SimpleNamespace

import numpy as np
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from kd_mm.engine.hooks import DistillerHook
from tests.ranks import run_on_ranks
from tests.toys.held_out import Images, build_model, expected_weights, true_class_probs

# Held-out images: alike on both ranks; 3 and 2, where MMEngine would pad with the first one.
SIZES = (6, 5)
LOGGED = ('general_weight/a', 'general_weight/b')


def held_out(num_images):
    return Images([i % 3 for i in range(num_images)])


def weights_on_a_rank(rank, sizes):
    found = []
    for size in sizes:
        model = build_model().train()
        runner = SimpleNamespace(
            model=MMDistributedDataParallel(model, device_ids=None),
            train_loop=SimpleNamespace(dataloader=DataLoader(held_out(4))),
            _train_dataloader={},
            _val_dataloader=None,
            _test_dataloader=None,
            build_dataloader=Runner.build_dataloader,
            seed=0,
            _randomness_cfg={},
            message_hub=MessageHub.get_instance(f'rank_{size}'),
            logger=logging.getLogger('rank'),
            epoch=0,
            iter=0,
            max_epochs=1,
            max_iters=4,
        )
        hook = DistillerHook(
            held_out_dataloader={
                'dataset': held_out(size),
                'batch_size': 2,
                'sampler': {'type': 'DefaultSampler', 'shuffle': False, 'round_up': True},
                'collate_fn': {'type': 'default_collate'},
            }
        )
        hook.before_train(runner)
        hook.after_train_epoch(runner)
        assert model.training
        weights = model.methods.kdcl.weights.tolist()
        logged = {name: runner.message_hub.get_scalar(name) for name in LOGGED}
        assert [scalar.current() for scalar in logged.values()] == weights
        found.append(weights)
    return found


def test_two_ranks_equal_one_process(tmp_path):
    first, second = run_on_ranks(weights_on_a_rank, tmp_path, (*SIZES, 1))
    assert first == second
    for size, weights in zip(SIZES, first, strict=False):
        expected = expected_weights(build_model(), held_out(size))
        np.testing.assert_allclose(weights, expected, rtol=1e-4)
    # One image leaves a rank without any; all weight goes to the student that errs less.
    f = true_class_probs(build_model(), held_out(1))[:, 0]
    np.testing.assert_allclose(first[-1], [f[0] > f[1], f[1] > f[0]], atol=1e-6)
