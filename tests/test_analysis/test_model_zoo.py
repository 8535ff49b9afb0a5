import json
from types import SimpleNamespace

import pytest
import yaml

from kd_mm.analysis import model_zoo, reproduction
from kd_mm.analysis.model_zoo import fill_results, fill_tables, read_zoo
from tests.conftest import REPO, run_tool

METAFILE = """\
Collections:
  - Name: Toys

# A comment that stays.
Models:
  - Name: plain
    In Collection: Toys
    Config: configs/toys/plain.py
    Metadata:
      Training Data: Toys
      Epochs: 3
      Parameters: 1234567
      Published Top 1 Accuracy: 70.10
  - Name: pair
    In Collection: Toys
    Config: configs/toys/pair.py
    Metadata:
      Training Data: Toys
      Epochs: 3
      Vanilla: plain
      Published Top 1 Accuracy:
        a: 72.0
        b: null
  - Name: wrong
    In Collection: Toys
    Config: configs/toys/wrong.py
    Metadata:
      Training Data: Toys
      Epochs: 3
      Published Top 1 Error: 20.5
  - Name: new
    In Collection: Toys
    Config: configs/toys/new.py
    Metadata:
      Training Data: Others
      Epochs: 3
"""


def line(recipe, network, top1, gain=None):
    top1 = {str(seed): value for seed, value in enumerate(top1)}
    gain = gain and {str(seed): value for seed, value in enumerate(gain)}
    return {'recipe': recipe, 'network': network, 'top1': top1, 'gain': gain}


def log(name, lines, note, epochs=3):
    runs = [
        {'config': recipe, 'seed': seed, 'epochs': epochs}
        for recipe in dict.fromkeys(row['recipe'] for row in lines)
        for seed in range(len(lines[0]['top1']))
    ]
    return {'table': name, 'notes': ['Numbers.', note], 'lines': lines, 'runs': runs}


WHOLE = log(
    'whole',
    [
        line('plain', 'network', [70.0, 72.0]),
        line('pair', 'a', [71.0, 73.0], [1.0, 1.0]),
        line('pair', 'b', [80.0, 82.0]),
        line('wrong', 'network', [79.0, 81.0], [1.0, 3.0]),
    ],
    'The whole schedule of each recipe.',
)
SHORT = log(
    'short',
    [line('new', 'network', [10.0], [-1.0]), line('stranger', 'network', [1.0])],
    '**The schedule was shortened**: 2 epochs in place of 3. Not to compare.',
    epochs=2,
)
COLUMNS = {
    'published': '{published}',
    'a': '{published.a}',
    'b': '{published.b}',
    'measured': '{measured}',
    'gain': '{gain}',
    'status': '{status}',
}


@pytest.fixture
def root(tmp_path):
    for name, content in (('whole', WHOLE), ('short', SHORT)):
        path = tmp_path / 'docs/results' / f'{name}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    (tmp_path / 'docs/results/README.md').write_text('')
    (tmp_path / 'configs/toys').mkdir(parents=True)
    (tmp_path / 'configs/toys/metafile.yml').write_text(METAFILE)
    (tmp_path / 'configs/toys/README.md').write_text('')
    return tmp_path


def rows(root, spec, folder='configs/toys'):
    """Return the cells of a table, without its heading."""
    spec = yaml.safe_dump(spec, sort_keys=False)
    text = f'before\n<!-- table\n{spec}-->\nold\n<!-- end of table -->\nafter'
    text = fill_tables(text, read_zoo(root), root / folder)
    assert text.startswith('before\n<!-- table\n')
    assert text.endswith('\n\n<!-- end of table -->\nafter')
    assert '\nold\n' not in text
    lines = [row for row in text.splitlines() if row.startswith('|')]
    return [[text.strip() for text in row.strip('|').split('|')] for row in lines[2:]]


def test_published_reproduced_and_config_only_are_told_apart(root):
    reproduced = 'reproduced ([log](../../docs/results/whole.md), 2 seeds)'
    table = rows(root, {'rows': ['plain', 'pair', 'wrong', 'new'], 'columns': COLUMNS})
    assert table == [
        ['70.10', '70.10', '70.10', '71.00 ± 1.41', '', reproduced],
        ['', '72.0', '-', 'a 72.00 ± 1.41, b 81.00 ± 1.41', 'a +1.00 ± 0.00', reproduced],
        # An error where the paper tells errors: less is better.
        ['20.5', '20.5', '20.5', '20.00 ± 1.41', '-2.00 ± 1.41', reproduced],
        ['-', '-', '-', '', '', 'config only'],
    ]
    (root / 'docs/results/whole.json').unlink()
    table = rows(root, {'rows': ['plain', 'new'], 'columns': COLUMNS})
    assert [row[3:] for row in table] == [['', '', 'published'], ['', '', 'config only']]


@pytest.mark.parametrize(
    ('note', 'epochs'),
    [
        (SHORT['notes'][1], 3),
        (WHOLE['notes'][1], 2),  # another length than the metafile's
        ('Of no known length.', 3),
    ],
)
def test_a_run_that_is_not_whole_is_never_shown_as_reproduced(root, note, epochs):
    content = log('whole', WHOLE['lines'], note, epochs)
    (root / 'docs/results/whole.json').write_text(json.dumps(content))
    table = rows(root, {'rows': ['plain'], 'columns': COLUMNS})
    assert [row[3:] for row in table] == [['', '', 'published']]
    assert fill_results(METAFILE, read_zoo(root)) == METAFILE


def test_the_log_with_most_seeds_counts(root):
    more = log('more', [line('plain', 'network', [50.0, 51.0, 52.0])], WHOLE['notes'][1])
    (root / 'docs/results/more.json').write_text(json.dumps(more))
    ((measured, status),) = rows(
        root, {'rows': ['plain'], 'columns': {'m': '{measured}', 's': '{status}'}}
    )
    assert (measured, status) == (
        '51.00 ± 1.00', 'reproduced ([log](../../docs/results/more.md), 3 seeds)'
    )  # fmt: skip


def test_rows_are_chosen_joined_and_overridden(root):
    columns = {'n': '{Parameters:,}', 'config': '{config}'}
    toys = rows(root, {'where': {'Training Data': 'Toys'}, 'columns': columns})
    links = ['[plain](plain.py)', '[pair](pair.py)', '[wrong](wrong.py)']
    assert [row[1] for row in toys] == links
    assert len(rows(root, {'where': {'Vanilla': None}, 'columns': columns})) == 3
    spec = {
        'rows': [{'recipes': {'a': 'plain', 'b': 'wrong'}, 'cells': {'word': 'mine'}}],
        'columns': {
            'n': '{Parameters:,}',
            'word': 'theirs',
            'a': '{published.a}',
            'b': '{published.b}',
            'config': '{config}',
        },
    }
    assert rows(root, spec) == [
        ['1,234,567', 'mine', '70.10', '20.5', '[plain](plain.py), [wrong](wrong.py)']
    ]
    spec = {'rows': ['pair'], 'columns': {'plain': '{vanilla.published}, {vanilla.config}'}}
    assert rows(root, spec, 'docs/results') == [['70.10, [plain](../../configs/toys/plain.py)']]
    with pytest.raises(ValueError, match='no metafile has a model nobody'):
        rows(root, {'rows': ['nobody'], 'columns': columns})


def test_shortened_runs_have_a_table_of_their_own_with_their_length(root):
    text = '<!-- table\nshortened: true\n-->\n<!-- end of table -->'
    filled = fill_tables(text, read_zoo(root), root / 'configs/toys')
    assert '**Shortened**: 2 epochs in place of 3. Not to compare.' in filled
    assert '| [new](new.py) | network | 10.00 | -1.00 | 1 |' in filled
    assert 'stranger' not in filled  # of no metafile
    assert 'plain' not in filled
    (root / 'docs/results/short.json').unlink()
    assert 'There is no log' in fill_tables(text, read_zoo(root), root / 'configs/toys')


def test_logs_are_listed(root):
    text = '<!-- table\nresults: {whole: all of it}\n-->\n<!-- end of table -->'
    filled = fill_tables(text, read_zoo(root), root / 'docs/results')
    assert '| [whole](whole.md) | all of it | 2 | whole (3 epochs) |' in filled
    assert '| [short](short.md) |  | 1 | **shortened**: 2 epochs in place of 3. Not' in filled


def test_metafile_gets_results_of_whole_runs_alone(root):
    filled = fill_results(METAFILE, read_zoo(root))
    models = {model['Name']: model for model in yaml.safe_load(filled)['Models']}
    (result,) = models['pair']['Results']
    assert result == {
        'Task': 'Image Classification',
        'Dataset': 'Toys',
        'Metrics': {'Top 1 Accuracy (a)': 72.0, 'Top 1 Accuracy (b)': 81.0},
    }
    assert models['plain']['Results'][0]['Metrics'] == {'Top 1 Accuracy': 71.0}
    assert 'Results' not in models['new']
    assert '# A comment that stays.' in filled
    (root / 'configs/toys/metafile.yml').write_text(filled)
    assert fill_results(filled, read_zoo(root)) == filled
    (root / 'docs/results/whole.json').unlink()
    assert fill_results(filled, read_zoo(root)) == METAFILE


def test_length_is_told_as_reproduce_writes_it():
    row = reproduction.load_table('digits', REPO / 'configs')[0]
    done = SimpleNamespace(row=row, result={'config': row.name})
    for settings, told in (
        (reproduction.Settings(), model_zoo.WHOLE),
        (reproduction.Settings(epochs=20), model_zoo.WHOLE),
        (reproduction.Settings(epochs=1), model_zoo.SHORTENED),
        (reproduction.Settings(subset=64), model_zoo.SHORTENED),
    ):
        (note,) = [
            note
            for note in reproduction.notes(settings, [done], 1, 'command')
            if note.startswith((model_zoo.WHOLE, model_zoo.SHORTENED))
        ]
        assert note.startswith(told)


def test_plain_recipes_are_those_that_gains_are_taken_from():
    vanilla = reproduction.vanilla_recipes(REPO / 'configs')
    models = read_zoo(REPO).models
    both = [name for name in vanilla if 'Vanilla' in models[name]['Metadata']]
    assert len(both) > 10
    for name in both:
        assert models[name]['Metadata']['Vanilla'] == vanilla[name]


def test_the_repository_is_up_to_date():
    done = run_tool('misc/update_docs.py', '--check', check=False)
    assert done.returncode == 0, done.stdout


def test_stale_files_are_named_and_mended(root):
    readme = root / 'configs/toys/README.md'
    readme.write_text('<!-- table\nrows: [plain]\ncolumns: {p: "{published}"}\n-->\n'
                      '<!-- end of table -->\n')  # fmt: skip
    stale = model_zoo.updates(root)
    assert set(stale) == {readme, root / 'configs/toys/metafile.yml'}
    for path, text in stale.items():
        path.write_text(text)
    assert model_zoo.updates(root) == {}
    path = root / 'configs/toys/metafile.yml'
    path.write_text(path.read_text().replace('70.10', '70.20'))
    assert '| 70.20 |' in model_zoo.updates(root)[readme]
