"""Our tools in processes of their own that start with what they import in memory."""

import gc
import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import numpy as np
import torch

from tests.conftest import REPO

PRELOAD = [
    'kd_mm.engine',
    'kd_mm.evaluation',
    'kd_mm.run.rehearsal',
    'kd_mm.analysis.pictures.inputs',
    'matplotlib.figure',
    'matplotlib.pyplot',
    'mmpretrain.apis',
    'mmpretrain.evaluation',
    'mmpretrain.visualization',
    'sklearn.datasets',
]


def server():
    """Return the context of a server that has imported all of that and is forked per process."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    return multiprocessing.get_context('forkserver')


def begin(log, env=None):
    """Make a fork what a new process would be, whose output goes into a file."""
    os.environ.update(env or {})
    np.random.seed()  # else each process starts from the state that it was forked with
    gc.freeze()  # MMEngine collects garbage whenever it loads data
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)


def _main(name, arguments, cwd, log, env):
    begin(log, env)
    os.chdir(cwd)
    tool = str(REPO / 'tools' / name)
    sys.argv = [tool, *arguments]
    sys.path.insert(0, str(Path(tool).parent))
    runpy.run_path(tool, run_name='__main__')


def start_tool(name, *arguments, log, cwd=REPO, **env):
    """Start ``python tools/NAME ARGUMENTS``, whose output goes into a file."""
    arguments = [str(word) for word in arguments]
    env = {'OMP_NUM_THREADS': '1', **env}
    process = server().Process(target=_main, args=(name, arguments, cwd, log, env))
    process.start()
    return process


def run_tool(name, *arguments, cwd=REPO, check=True, **env):
    """Run ``python tools/NAME ARGUMENTS`` and return its exit code and joined output."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / 'console.txt'
        process = start_tool(name, *arguments, log=log, cwd=cwd, **env)
        process.join(timeout=300)
        if process.is_alive():
            process.kill()
            process.join()
        done = CompletedProcess([name, *arguments], process.exitcode, log.read_text())
    assert not check or done.returncode == 0, done.stdout
    return done
