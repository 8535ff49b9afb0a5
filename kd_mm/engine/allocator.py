"""Memory of the C library in training on a CPU."""

import ctypes
import platform


def hold_freed_memory() -> None:
    """Keep glibc from returning freed memory to the system and taking it back at each step.

    Otherwise the pages of each large tensor on the CPU are mapped, cleared and unmapped again,
    which costs several percent of a step. The process stays as large as it ever was.
    """
    if platform.libc_ver()[0] == 'glibc':
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)
