"""The memory of training images, against loops that write one row at a time."""

import copy

import numpy as np
import pytest
import torch
from mmengine.dist import get_rank
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn

from kd_mm.methods.memory import SampleMemory
from tests.ranks import run_on_ranks

NUM_IMAGES, NUM_VALUES = 7, 3


def build(num_images=NUM_IMAGES, dtype=torch.float16):
    memory = SampleMemory(NUM_VALUES, dtype)
    memory.resize(num_images)
    return memory


def batches(sizes, seed=0):
    """Batches that share many images."""
    random = np.random.RandomState(seed)
    return [
        (random.randint(NUM_IMAGES, size=size), random.randn(size, NUM_VALUES)) for size in sizes
    ]


def written(steps):
    """The rows and their flags after a list of batches, in float64."""
    values, filled = np.zeros((NUM_IMAGES, NUM_VALUES)), np.zeros(NUM_IMAGES, bool)
    for index, rows in steps:
        seen = set()
        for image, row in zip(index, rows, strict=True):
            if image not in seen:
                values[image], filled[image] = row, True
            seen.add(image)
    return values, filled


def write(memory, index, rows):
    memory.write(torch.from_numpy(index), torch.from_numpy(rows))


def contents(memory):
    return memory.values.clone(), memory.filled.clone()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_writes_in_their_order(dtype):
    memory, steps = build(dtype=dtype), batches([5, 9, 1, 4])
    for count, step in enumerate(steps, 1):
        write(memory, *step)
        values, filled = written(steps[:count])
        assert torch.equal(memory.values, torch.from_numpy(values).to(dtype))
        assert memory.filled.tolist() == filled.tolist()
        index = torch.tensor([6, 0, 0, 3])
        found, known = memory.read(index)
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.from_numpy(values[index]).to(dtype).float())
        assert known.tolist() == filled[index].tolist()


def test_many_occurrences():
    """The order in which threads write has no say in it."""
    memory = build()
    index = torch.arange(5_000) % 3
    memory.write(index, torch.arange(5_000.0)[:, None].expand(-1, NUM_VALUES))
    assert memory.values[:3, 0].tolist() == [0, 1, 2]


def test_nothing_carries_gradient_or_aliases():
    memory, rows = build(dtype=torch.float32), torch.ones(2, NUM_VALUES, requires_grad=True)
    memory.write(torch.tensor([0, 1]), 2 * rows)
    assert not memory.values.requires_grad
    before, _ = memory.read(torch.tensor([0]))
    assert not before.requires_grad
    memory.write(torch.tensor([0]), rows[:1])
    assert before.tolist() == [[2, 2, 2]]
    assert not list(memory.parameters())


def test_the_rows_follow_the_module():
    memory = SampleMemory(NUM_VALUES).to('meta').double()
    memory.resize(2)
    assert memory.values.device.type == memory.filled.device.type == 'meta'
    assert (memory.values.dtype, memory.filled.dtype) == (torch.float64, torch.bool)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.memory = SampleMemory(NUM_VALUES)


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
@pytest.mark.parametrize('resized', [False, True])
def test_a_resumed_run_goes_on_exactly(load, resized, tmp_path, capsys):
    steps, whole, resumed = batches([4, 5, 4]), Model(), Model()
    whole.memory.resize(NUM_IMAGES)
    for step in steps[:2]:
        write(whole.memory, *step)
    torch.save(get_state_dict(whole), tmp_path / 'stopped.pth')
    if resized:
        resumed.memory.resize(NUM_IMAGES)
    load(resumed, torch.load(tmp_path / 'stopped.pth'))
    resumed.memory.resize(NUM_IMAGES)
    for model in (whole, resumed):
        write(model.memory, *steps[2])
    assert all(map(torch.equal, contents(resumed.memory), contents(whole.memory)))
    values, _ = written(steps)
    assert torch.equal(resumed.memory.values, torch.from_numpy(values).half())
    assert 'match' not in capsys.readouterr().out  # MMEngine warns, and goes on


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_a_checkpoint_of_other_data(load):
    state = build(5).state_dict()
    loaded = SampleMemory(NUM_VALUES)
    load(loaded, state)
    with pytest.raises(ValueError, match='holds 5 images and is given 7; train on the data'):
        loaded.resize(NUM_IMAGES)
    with pytest.raises(ValueError, match='holds 7 images and is given 5; train on the data'):
        load(build(), state)
    with pytest.raises(ValueError, match=r'of 4 values .* checkpoint has \(3,\); load'):
        load(SampleMemory(4), state)


def test_a_checkpoint_without_a_memory():
    model = Model()
    found = model.load_state_dict(nn.ModuleDict({'layer': model.layer}).state_dict(), strict=False)
    assert found.missing_keys == ['memory.values', 'memory.filled']
    model.memory.resize(2)
    assert model.memory.filled.tolist() == [False, False]


def test_before_resize():
    memory = SampleMemory(NUM_VALUES)
    assert (memory.values.shape, memory.filled.shape) == ((0, NUM_VALUES), (0,))
    for use in (memory.read, lambda index: memory.write(index, torch.ones(1, NUM_VALUES))):
        with pytest.raises(ValueError, match=r'has no rows; call resize\(num_images\) before'):
            use(torch.tensor([0]))


@pytest.mark.parametrize(('index', 'bad'), [([0, 7], 7), ([-1, 3], -1)])
def test_numbers_out_of_range(index, bad):
    memory, index = build(), torch.tensor(index)
    for use in (memory.read, lambda index: memory.write(index, torch.ones(2, NUM_VALUES))):
        with pytest.raises(ValueError, match=f'must lie in 0..6, but got {bad}; resize'):
            use(index)


@pytest.mark.parametrize(
    ('index', 'shape'), [([0], (2, 3)), ([0, 1], (2, 1)), ([0], (3,)), ([], (0, 3))]
)
def test_shapes_that_do_not_fit(index, shape):
    with pytest.raises(ValueError, match=r'values must be \(N, 3\) for N >= 1 image .*; write'):
        build().write(torch.tensor(index, dtype=torch.int64), torch.ones(shape))


# Of each step, the images of rank 0 and of rank 1: the second step has the largest batch, and
# each has an image of both, more often than once in the last.
SHARES = [(4, 3), (2, 5), (3, 1), (5, 5), (1, 4)]


def on_a_rank(rank):
    memory = build()
    for (index, rows), (first, _) in zip(batches(map(sum, SHARES)), SHARES, strict=True):
        mine = slice(first) if rank == 0 else slice(first, None)
        write(memory, index[mine], rows[mine])
    return *contents(memory), many_images()


def many_images():
    """Image numbers that no 32-bit float holds; the rows are those of a view of one."""
    memory = SampleMemory(1, torch.uint8)
    memory.resize(2**24 + 4)
    rank = get_rank()
    index = torch.tensor([2**24 + 1 + 2 * rank])
    memory.write(index, torch.tensor([[rank + 1]], dtype=torch.uint8))
    return memory.values[-4:, 0].tolist()


def test_two_ranks_equal_one(tmp_path):
    steps = batches(map(sum, SHARES))
    assert all(set(i[:n]) & set(i[n:]) for (i, _), (n, _) in zip(steps, SHARES, strict=True))
    values, filled = written(steps)
    for found, flags, large in run_on_ranks(on_a_rank, tmp_path):
        assert torch.equal(found, torch.from_numpy(values).half())
        assert flags.tolist() == filled.tolist()
        assert large == [0, 1, 0, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs KD_MM_TEST_GPU=1 and a GPU')
def test_on_a_gpu():
    """The same rows as on a CPU, without a wait."""
    steps, on_cpu, on_gpu = batches([5, 900, 4]), build(), build().cuda()
    moved = [(torch.from_numpy(i).cuda(), torch.from_numpy(v).cuda()) for i, v in steps]
    for step in steps:
        write(on_cpu, *step)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for index, rows in moved:
            on_gpu.write(index, rows)
            on_gpu.read(index)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.equal(on_gpu.values.cpu(), on_cpu.values)
    assert torch.equal(on_gpu.filled.cpu(), on_cpu.filled)


def test_a_copy_shares_the_rows():
    memory = build()
    copied = copy.deepcopy(torch.nn.Sequential(memory))[0]
    write(memory, *batches([3])[0])
    assert copied.filled.any()
    assert torch.equal(copied.values, memory.values)
