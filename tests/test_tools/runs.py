"""Training runs in processes of their own that are killed at a chosen moment."""

import importlib.util
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from mmengine.hooks import Hook

from tests import forked
from tests.conftest import REPO

KILLED = -signal.SIGKILL


def die():
    """Kill this process and its workers, as a scheduler or a lack of memory does."""
    os.killpg(os.getpid(), signal.SIGKILL)


class Countdown:
    """Dies at the n-th call."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *args, **kwargs):
        self.calls -= 1
        if self.calls == 0:
            die()


class TornFile:
    """A file that takes the first half of what is written, and then there is no process."""

    def __init__(self, path, mode):
        self.path, self.mode = path, mode

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def write(self, content):
        with open(self.path, self.mode) as file:
            file.write(content[: len(content) // 2])
            file.flush()
        die()


class KillHook(Hook):
    """Kill the process at ``(kind, number)``: in the number-th iteration, say, or write."""

    priority = 'LOWEST'

    def __init__(self, kind, number):
        from kd_mm.resume import checkpoint_hook as writing

        self.kind, self.number = kind, number
        countdown = Countdown(number)
        if kind == 'train':
            self.before_train_iter = countdown
        elif kind == 'validation':
            self.before_val_iter = countdown
        elif kind == 'half written':

            def opened(path, mode):
                countdown.calls -= 1
                return open(path, mode) if countdown.calls else TornFile(path, mode)

            writing.open = opened
        elif kind == 'not in place':
            writing.os = Shadow(os, replace=lambda *names: (countdown(), os.replace(*names)))
        elif kind == 'in place':
            writing._sync_folder = countdown

    def before_train(self, runner):
        if self.kind == 'time':  # seconds from here
            threading.Timer(self.number, die).start()


class Shadow:
    """A module of which some names are others."""

    def __init__(self, module, **names):
        self.module = module
        vars(self).update(names)

    def __getattr__(self, name):
        return getattr(self.module, name)


def _train(arguments, log, kill, env):
    os.setpgid(0, 0)
    # What a user sees goes into a file: a killed process says nothing else.
    forked.begin(log, env)
    spec = importlib.util.spec_from_file_location('train', REPO / 'tools/train.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    if kill is not None:
        build = tool.Runner.from_cfg

        def build_doomed(cfg):
            runner = build(cfg)
            runner.register_hook(KillHook(*kill))
            return runner

        tool.Runner = SimpleNamespace(from_cfg=build_doomed)
    sys.argv = ['train.py', *map(str, arguments)]
    tool.main()


def train(config, work_dir, *arguments, kill=None, ranks=1):
    """Run ``tools/train.py`` and return its exit code, negative where a signal ended it.

    The code is that of the first rank. Where that is killed, the others are, too.
    """
    context = forked.server()
    log = Path(work_dir) / 'console.txt'
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [config, '--work-dir', work_dir, *arguments]
    env = {'OMP_NUM_THREADS': '1'}
    if ranks > 1:
        arguments += ['--launcher', 'pytorch']
        env |= {'WORLD_SIZE': str(ranks), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': _free_port()}
    processes = [
        context.Process(
            target=_train,
            args=(arguments, log, kill if rank == 0 else None, {**env, **_names(rank, ranks)}),
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    processes[0].join(timeout=240)
    for process in processes[1:]:
        if processes[0].exitcode != 0:
            process.kill()
        process.join()
    return processes[0].exitcode


def _names(rank, ranks):
    return {'RANK': str(rank), 'LOCAL_RANK': str(rank)} if ranks > 1 else {}


def _free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return str(found.getsockname()[1])
