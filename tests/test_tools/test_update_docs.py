import json
import runpy
from types import SimpleNamespace

import pytest
import yaml

from kd_mm.analysis import step_costs
from tests.conftest import REPO

ZOO = SimpleNamespace(**runpy.run_path(str(REPO / 'tools/misc/model_zoo.py')))

HEAD = 'Collections:\n  - Name: Toys\n\n# A comment that stays.'
PUBLISHED = """
Paper:
  vanilla_plain_1xb2_digits: 70.10
  pair_plain-other_1xb2_digits: {plain: 72.0, other: null}
  wrong_net_1xb2_digits: {error: 20.5, extra GPU time: +1 %}
"""
TABLES = """
toys:
  - toys/vanilla_plain_1xb2_digits.py
  - {config: toys/pair_plain-other_1xb2_digits.py, vanilla: vanilla_plain_1xb2_digits}
  - name: pair-shared_plain-other_1xb2_digits
    config: toys/pair_plain-other_1xb2_digits.py
    options: {model.views: shared, model.students.third: {type: A}}
    published: {plain: 71.5}
"""
CONFIG = """
train_cfg = dict(max_epochs=3)
auto_scale_lr = dict(base_batch_size=2)
val_dataloader = dict(dataset=dict(type='kd_mm.Digits'))
"""
STEMS = ('vanilla_plain', 'pair_plain-other', 'wrong_net', 'new_net')
PLAIN, PAIR, WRONG, NEW = NAMES = [f'{stem}_1xb2_digits' for stem in STEMS]


def log(name, note, *lines):
    """Return a log as tools/reproduce.py writes it."""
    lines = [dict(zip(('recipe', 'network', 'top1', 'gain'), line, strict=True)) for line in lines]
    runs = [{'config': line['recipe'], 'seed': s} for line in lines for s in line['top1']]
    return json.dumps({'table': name, 'notes': ['Numbers.', note], 'lines': lines, 'runs': runs})


@pytest.fixture
def root(tmp_path):
    folder, results = tmp_path / 'configs/toys', tmp_path / 'docs/results'
    folder.mkdir(parents=True)
    results.mkdir(parents=True)
    for name in NAMES:
        (folder / f'{name}.py').write_text(CONFIG)
    (folder / 'metafile.yml').write_text(f'{HEAD}\nModels:\n')
    (tmp_path / 'configs/published.yml').write_text(PUBLISHED)
    (tmp_path / 'configs/tables.yml').write_text(TABLES)
    whole = log(
        'whole',
        f'{ZOO.WHOLE} of each recipe.',
        (PLAIN, 'network', {0: 70.0, 1: 72.0}, None),
        (PAIR, 'plain', {0: 71.0, 1: 73.0}, {0: 1.0, 1: 1.0}),
        (PAIR, 'ensemble', {0: 80.0, 1: 82.0}, None),
        (WRONG, 'network', {0: 79.0, 1: 81.0}, {0: 1.0, 1: 3.0}),
    )
    (results / 'whole.json').write_text(whole)
    short = log('short', '**The schedule was shortened**', (NEW, 'network', {0: 10.0}, None))
    (results / 'short.json').write_text(short)
    return tmp_path


def table(root, names):
    """Return the rows of a README's table as dicts."""
    text = f'before\n<!-- models: {names} -->\nold\n<!-- end of models -->\nafter'
    models = ZOO.read_models(root)
    text = ZOO.fill_tables(text, models, root / 'configs/toys')
    assert text.startswith(f'before\n<!-- models: {names} -->\n\n| Config |')
    assert text.endswith('|\n\n<!-- end of models -->\nafter')
    lines = [line[2:-2].split(' | ') for line in text.splitlines() if '|' in line]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


REPRODUCED = 'reproduced ([log](../../docs/results/whole.md), 2 seeds)'


def test_published_reproduced_and_config_only_are_told_apart(root):
    marks, *rows = table(root, f'{PLAIN} {PAIR} {NEW}')
    headings = ['Config', 'plain, published', 'other, published', 'Measured', 'Gain', 'Status']
    pair = 'plain 72.00 ± 1.41, ensemble 81.00 ± 1.41'
    assert [list(row) for row in rows] == [headings] * 3
    assert [list(row.values()) for row in (marks, *rows)] == [
        [':--', '--:', '--:', ':--', ':--', ':--'],
        # Numbers as they are written; a dash is one that the paper does not give.
        [f'[{PLAIN}]({PLAIN}.py)', '70.10', '', '71.00 ± 1.41', '', REPRODUCED],
        [f'[{PAIR}]({PAIR}.py)', '72.0', '-', pair, 'plain +1.00 ± 0.00', REPRODUCED],
        [f'[{NEW}]({NEW}.py)', '', '', '', '', 'config only'],
    ]


def test_rows_with_options_link_to_their_config_and_show_the_options(root):
    _, *rows = table(root, 'pair*')
    assert rows[1]['Config'] == f'[pair-shared_plain-other_1xb2_digits]({PAIR}.py)'
    assert rows[1]['Options'] == '`model.views=shared`, `model.students.third`'
    assert (rows[1]['plain, published'], rows[1]['Status']) == ('71.5', 'published')
    with pytest.raises(ValueError, match=r'must name models, but there is none like .nobody'):
        table(root, 'nobody*')
    _, row = table(root, WRONG)  # whose paper gives an error
    assert (row['Published'], row['extra GPU time, published']) == ('20.5', '+1 %')
    assert (row['Measured'], row['Gain']) == ('20.00 ± 1.41', '-2.00 ± 1.41')


def test_metafile_is_made_from_config_published_numbers_and_log(root):
    path = root / 'configs/toys/metafile.yml'
    (stale,) = ZOO.updates(root).items()
    assert stale[0] == path
    assert stale[1].startswith(f'{HEAD}\nModels:\n')
    models = {model['Name']: model for model in yaml.safe_load(stale[1])['Models']}
    assert set(models) == set(NAMES)
    pair = models[PAIR]
    assert (pair['In Collection'], pair['Config']) == ('Toys', f'configs/toys/{PAIR}.py')
    assert pair['Metadata'] == {
        'Training Data': 'Digits',
        'Epochs': 3,
        'Batch Size': 2,
        'Published Top 1 Accuracy': {'plain': 72.0, 'other': None},
        'Published By': 'the paper of Paper',
    }
    (result,) = pair['Results']
    assert result['Metrics'] == {'Top 1 Accuracy (plain)': 72.0, 'Top 1 Accuracy (ensemble)': 81.0}
    assert models[WRONG]['Metadata']['Published Top 1 Error'] == 20.5
    path.write_text(stale[1])
    assert ZOO.updates(root) == {}


def test_tool_names_stale_files_and_writes_them(root, monkeypatch, capsys):
    tool = runpy.run_path(str(REPO / 'tools/misc/update_docs.py'))
    monkeypatch.setitem(tool['main'].__globals__, 'REPO', root)
    (root / 'docs/benchmarks.md').write_text('')
    monkeypatch.setattr('sys.argv', ['update_docs.py', '--check'])
    with pytest.raises(SystemExit, match=r'run python tools/misc/update_docs\.py'):
        tool['main']()
    assert capsys.readouterr().out == 'stale configs/toys/metafile.yml\n'
    monkeypatch.setattr('sys.argv', ['update_docs.py'])
    tool['main']()
    assert capsys.readouterr().out == 'wrote configs/toys/metafile.yml\n'


def test_step_costs_of_the_docs_are_up_to_date():
    page = REPO / 'docs/benchmarks.md'
    assert (
        step_costs.fill(page.read_text(), step_costs.read(page.with_suffix('')))
        == page.read_text()
    )
