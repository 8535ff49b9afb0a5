"""Two ranks with the stock distributed wrapper equal one process on the concatenated batch."""

from mmengine.model import MMDistributedDataParallel

from tests.ranks import run_on_ranks
from tests.toys.cohort import (
    ADAM,
    assert_equal,
    build_cohort,
    build_joint,
    draw,
    in_double,
    weights,
)

STEPS = 5
B = {'optimizer': ADAM, 'clip_grad': {'max_norm': 0.05}}


def half(batch, rank):
    mine = slice(0, 4) if rank == 0 else slice(4, None)
    return {key: value[mine] for key, value in batch.items()}


def train(model, counts, batches):
    """Return the weights after each step, and the norms of the gradients that remain."""
    joint = build_joint(model, b=B, accumulative_counts=counts)
    joint.initialize_count_status(model, 0, STEPS)
    trained, remaining = [], []
    for batch in batches:
        model.train_step(batch, joint)
        trained.append({n.removeprefix('module.'): w for n, w in weights(model).items()})
        gradient = next(model.parameters()).grad
        remaining.append(0.0 if gradient is None else gradient.norm().item())
    return trained, remaining


def train_on_a_rank(rank):
    results = {}
    for counts in (1, 2):
        model = in_double(build_cohort(seed=rank))  # the wrapper gives all ranks the first's
        ddp = MMDistributedDataParallel(model, device_ids=None)
        batches = [half(draw(8, seed=step), rank) for step in range(STEPS)]
        results[counts] = train(ddp, counts, batches)
    return results


def test_two_ranks_equal_one_process(tmp_path):
    ranks = run_on_ranks(train_on_a_rank, tmp_path)
    for counts in (1, 2):
        (first, kept), (second, others) = (rank[counts] for rank in ranks)
        one, _ = train(in_double(build_cohort()), counts, [draw(8, seed=s) for s in range(STEPS)])
        for step in range(STEPS):
            assert_equal(first[step], second[step])
            # Adam divides by the root of tiny squares: 1e-9 is far above its rounding.
            assert_equal(first[step], one[step], rtol=1e-9, atol=1e-9)
        # Between updates nothing is sent: each rank keeps the gradients of its own images.
        unsent = [a != b for a, b in zip(kept, others, strict=True)]
        assert unsent == [counts == 2 and step in (0, 2) for step in range(STEPS)]
