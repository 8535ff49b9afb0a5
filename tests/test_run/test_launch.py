import os
import platform
import sys
import time
from argparse import Namespace

import pytest
import torch
from mmengine.config import Config

from kd_mm.resume import SeedHook
from kd_mm.run import launch
from tests import forked
from tests.conftest import run

# The first steps grow the heap.
PAGES_TOUCHED_AGAIN = """
import resource
import torch
from kd_mm.engine.allocator import hold_freed_memory

def step():
    several = [torch.ones(2_000_000) for _ in range(4)]
    large = torch.ones(20_000_000)

def touched(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

step()
plain = touched(5)
hold_freed_memory()
touched(5)
print('pages', plain, touched(5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc alone has this setting')
def test_freed_memory_is_kept():
    done = run([sys.executable, '-c', PAGES_TOUCHED_AGAIN])
    plain, held = map(int, done.stdout.split('pages ')[1].split())
    assert plain > 5 * 19531  # the large tensor alone, 80 MB of 4 KiB, each time
    assert held < 1000


@pytest.fixture
def environment(monkeypatch):
    """Of a process that no launcher has started; changes end with the test."""
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', *filter(is_of_a_cluster, os.environ)):
        monkeypatch.setenv(name, '')  # otherwise what a test adds would stay
        monkeypatch.delenv(name)
    return monkeypatch


def is_of_a_cluster(name):
    return name.startswith(('OMPI_COMM_WORLD_', 'SLURM_'))


@pytest.mark.parametrize(
    ('variables', 'first', 'alone', 'local_rank'),
    [
        ({}, True, True, '0'),
        ({'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0'}, True, False, '0'),
        ({'RANK': '3', 'WORLD_SIZE': '4', 'LOCAL_RANK': '1'}, False, False, '1'),
        ({'SLURM_PROCID': '3', 'SLURM_NTASKS': '4'}, False, False, '0'),  # MMEngine sets it later
        ({'OMPI_COMM_WORLD_RANK': '0', 'OMPI_COMM_WORLD_SIZE': '4'}, True, False, '0'),
        (
            {
                'OMPI_COMM_WORLD_RANK': '3',
                'OMPI_COMM_WORLD_SIZE': '4',
                'OMPI_COMM_WORLD_LOCAL_RANK': '1',
                'SLURM_PROCID': '0',  # of mpirun, inside of a job
                'SLURM_NTASKS': '1',
            },
            False,
            False,
            '1',
        ),
    ],
)
def test_rank_and_number_of_processes_by_launcher(
    environment, variables, first, alone, local_rank
):
    for name, value in variables.items():
        environment.setenv(name, value)
    assert (launch.is_first_process(), launch.is_alone()) == (first, alone)
    launch.set_launcher(Config(), Namespace(local_rank=0, launcher='none'))
    assert os.environ['LOCAL_RANK'] == local_rank


def be_torchrun(connection, launcher):
    """Start a process that lives on, unless it ends with this one."""
    if os.fork() == 0:
        os.environ.update(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1')
        launch.set_launcher(Config(), Namespace(local_rank=0, launcher=launcher))
        connection.send('ready')
    time.sleep(20)


@pytest.mark.skipif(platform.system() != 'Linux', reason='only Linux signals the end of a parent')
@pytest.mark.parametrize(('launcher', 'ends'), [('pytorch', True), ('none', False)])
def test_a_process_ends_with_its_torchrun(launcher, ends):
    context = forked.server()
    connection, theirs = context.Pipe()
    process = context.Process(target=be_torchrun, args=(theirs, launcher))
    process.start()
    theirs.close()
    assert connection.recv() == 'ready'
    process.kill()
    assert connection.poll(5 if ends else 0.5) == ends  # the end of all who hold the other end
    if ends:
        with pytest.raises(EOFError):
            connection.recv()


@pytest.mark.parametrize(('there', 'added'), [([], launch.HOOKS), ([SeedHook], launch.HOOKS[:-1])])
def test_a_training_has_each_hook_that_it_needs_once(there, added):
    hooks = [hook() for hook in there]
    runner = Namespace(hooks=hooks, register_hook=hooks.append)
    for _ in range(2):
        launch.register_hooks(runner)
        assert [type(hook) for hook in hooks] == [*there, *added]


@pytest.mark.skipif(os.environ.get('KD_MM_TEST_GPU') == '1', reason='tests of a GPU were asked')
def test_tests_see_no_gpu_unless_asked():
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''
    assert not torch.cuda.is_available()
