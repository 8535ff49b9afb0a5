"""Checkpoints that would act on whoever reads them, and those who run our tools on them."""

import importlib.util
import pickle
import sys
from functools import partial

import torch

from tests.conftest import REPO


class Attack:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


FORMATS = {
    'zip': torch.save,
    'legacy': partial(torch.save, _use_new_zipfile_serialization=False),
    'pickle': lambda content, path: path.write_bytes(pickle.dumps(content)),
}


def load_tool(name):
    """Import ``tools/NAME``."""
    spec = importlib.util.spec_from_file_location('tool', REPO / 'tools' / name)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def call_tool(monkeypatch, name, *arguments):
    """Run a tool in this process; return what it gave ``sys.exit``, which prints it."""
    monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
    try:
        load_tool(name).main()
    except SystemExit as end:
        return end.code
    return None
