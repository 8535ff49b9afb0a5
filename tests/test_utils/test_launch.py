import platform
import sys

import pytest

from tests.conftest import run

# The first steps grow the heap.
PAGES_TOUCHED_AGAIN = """
import resource
import torch
from kd_mm.utils.launch import hold_freed_memory

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
def test_freed_memory_is_not_mapped_anew():
    done = run([sys.executable, '-c', PAGES_TOUCHED_AGAIN])
    plain, held = map(int, done.stdout.split('pages ')[1].split())
    assert plain > 5 * 19531  # the large tensor alone, 80 MB of 4 KiB, each time
    assert held < 1000
