"""Training runs in processes of their own that are killed at a chosen moment."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests import forked
from tests.hostile import load_tool

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
            replace = os.replace
            writing.os = Shadow(os, replace=lambda *names: (countdown(), replace(*names)))
        elif kind == 'in place':
            writing._sync_folder = countdown

    def before_train(self, runner):
        if self.kind == 'time':  # seconds from here
            threading.Timer(self.number, die).start()


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


class Shadow:
    """A module of which some names are others."""

    def __init__(self, module, **names):
        self.module = module
        vars(self).update(names)

    def __getattr__(self, name):
        return getattr(self.module, name)


def _by_tool(config, work_dir, options, build):
    """Train by ``tools/train.py``, as our users do."""
    tool = load_tool('train.py')
    tool.Runner = SimpleNamespace(from_cfg=build)
    sys.argv = ['train.py', str(config), '--work-dir', str(work_dir), *options]
    tool.main()


def _by_runner(config, work_dir, options, build):
    """Train by MMEngine's Runner alone, as another project does."""
    cfg = Config.fromfile(config)
    resume = '--resume' in options
    cfg.merge_from_dict({'work_dir': str(work_dir), 'resume': resume})
    if 'WORLD_SIZE' in os.environ:
        import torch.distributed

        torch.distributed.init_process_group('gloo')
        cfg.launcher = 'pytorch'
        cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', 'device_ids': None}
    build(cfg).train()


def _train(start, config, work_dir, options, kill, env):
    os.setpgid(0, 0)
    # What a user sees goes into a file: a killed process says nothing more.
    forked.begin(Path(work_dir) / 'console.txt', env)

    def build(cfg):
        runner = Runner.from_cfg(cfg)
        if kill is not None:
            runner.register_hook(KillHook(*kill))
        return runner

    start(config, work_dir, options, build)


def train(config, work_dir, *options, kill=None, ranks=1, plain=False):
    """Train in a process per rank and return the exit code, negative where a signal ended it.

    The code is that of the first rank. Where that is killed, the others are, too.
    """
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    env = {'OMP_NUM_THREADS': '1'}
    start = _by_runner if plain else _by_tool
    if ranks > 1:
        with socket.socket() as found:
            found.bind(('127.0.0.1', 0))
            port = str(found.getsockname()[1])
        env |= {'WORLD_SIZE': str(ranks), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    processes = []
    for rank in range(ranks):
        ranked = {**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)} if ranks > 1 else env
        arguments = start, config, work_dir, options, None if rank else kill, ranked
        processes.append(forked.server().Process(target=_train, args=arguments))
    for process in processes:
        process.start()
    processes[0].join(timeout=240)
    for process in processes[1:]:
        if processes[0].exitcode != 0:
            process.kill()
        process.join()
    return processes[0].exitcode
