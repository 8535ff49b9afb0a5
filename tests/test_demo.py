"""The notebook runs from top to bottom, and the demo takes what it has trained."""

import ast
import json
import runpy
import sys

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.conftest import REPO

NOTEBOOK = json.loads((REPO / 'demo/demo.ipynb').read_text())
CELLS = [cell for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code']
TINY = {
    'model.backbone.depth': 8,
    'train_cfg.max_epochs': 1,
    'train_dataloader.batch_size': 16,
    'train_dataloader.dataset.indices': 16,
    'val_dataloader.dataset.indices': 16,
    'test_dataloader.dataset.indices': 16,
    'default_hooks.logger.interval': 100,
}


@pytest.fixture(scope='module')
def played(tmp_path_factory):
    """A folder in which the cells ran, and what each one shows at its end."""
    folder = tmp_path_factory.mktemp('demo')
    names, shown = {}, []
    for number, cell in enumerate(CELLS):
        lines = [line for line in cell['source'] if not line.startswith('%')]
        tree = ast.parse(''.join(lines))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f'cell {number}', 'exec'), names)
        if number == 0:
            names.update(WORK_DIR=folder / names['WORK_DIR'].name, OPTIONS=TINY)
        shown.append(last and eval(compile(ast.Expression(last.value), 'last', 'eval'), names))
    return folder, names, shown


def test_the_notebook_runs_and_shows_four_figures(played):
    folder, names, shown = played
    assert [isinstance(what, Figure) for what in shown] == [False, False, *[True] * 4]
    assert (folder / 'resnet20_1xb64_digits/epoch_1.pth').exists()
    assert len(names['looks']) == 4
    assert shown[3].axes[0].get_xlabel() == names['classes'][names['looks'][0].label]


def test_the_notebook_is_kept_without_outputs():
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in CELLS)
    assert len((REPO / 'demo/demo.ipynb').read_bytes()) < 20_000


def demo(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['image_demo.py', *map(str, arguments)])
    runpy.run_path(str(REPO / 'demo/image_demo.py'), run_name='__main__')


def test_the_demo_takes_files_and_writes_its_pictures(played, tmp_path, monkeypatch, capsys):
    run = played[0] / 'resnet20_1xb64_digits'
    cv2.imwrite(str(tmp_path / 'dark.png'), np.zeros((8, 8, 3), np.uint8))
    flags = ['--model', run / f'{run.name}.py', '--checkpoint', run / 'epoch_1.pth']
    demo(monkeypatch, tmp_path / 'dark.png', *flags, '--show-dir', tmp_path)
    output = capsys.readouterr().out
    said = json.loads(next(text for text in output.splitlines() if text.startswith('{')))
    assert said['image'] == 'dark'
    assert said['network']['pred_class'] in '0123456789'
    assert 0.1 <= said['network']['pred_score'] <= 1
    for name in ('attention', 'predictions'):
        assert f'wrote {tmp_path / name}.png' in output
        assert cv2.imread(str(tmp_path / f'{name}.png')).shape[1] > 300


def test_without_a_checkpoint_the_demo_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'error: .* must hold a checkpoint, but has none'):
        demo(monkeypatch)
    assert not list(tmp_path.iterdir())
