"""Training runs in processes of their own that are killed at a chosen moment."""

import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.hooks import Hook

from tests.conftest import REPO

KILLED = -signal.SIGKILL
PRELOAD = ['mmpretrain', 'mmpretrain.apis', 'mmpretrain.engine', 'mmpretrain.evaluation', 'mmpretrain.visualization', 'kd_mm.utils.preflight', 'kd_mm.engine', 'kd_mm.evaluation', 'kd_mm.export', 'sklearn.datasets']


def die():
    os.kill(os.getpid(), signal.SIGKILL)


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
        from kd_mm.engine.hooks import safe_checkpoint_hook as writing

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


def _train(arguments, log, kill):
    # What a user sees goes into a file: a killed process says nothing else.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
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


def train(config, work_dir, *arguments, kill=None):
    """Run ``tools/train.py`` and return its exit code, negative where a signal ended it."""
    context = multiprocessing.get_context('forkserver')
    multiprocessing.set_forkserver_preload(PRELOAD)
    log = Path(work_dir) / 'console.txt'
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [config, '--work-dir', work_dir, *arguments]
    process = context.Process(target=_train, args=(arguments, log, kill))
    process.start()
    process.join(timeout=240)
    return process.exitcode
