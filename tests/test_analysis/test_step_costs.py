"""Records of step costs and the tables that they fill."""

import copy
import json

import pytest

from kd_mm.analysis import step_costs

PAGE = """# Costs

<!-- steps of bake -->
old
<!-- end of steps -->

<!-- steps of bake, switched -->
<!-- end of steps -->

words <!-- steps of ffsd -->
<!-- end of steps -->
"""


def report(recipe='bake/one', options=None, **changes):
    """Return a report of a step of 1.234 s by 1 s, with 3 GiB by 2 GiB."""
    settings = {'batch_size': 32, 'img_size': 224, 'num_classes': 1000, 'steps': 3}
    return {
        'machine': {'device': 'Fast (x)', 'threads': 2, 'versions': {'torch': '9.8'}},
        'settings': {**settings, 'clock': 'wall'},
        'config': {'step_ms': {'median': 1234.0}, 'peak_memory_bytes': 3 * 2**30},
        'sum': {'step_ms': {'median': 1000.0}, 'peak_memory_bytes': 2 * 2**30},
        'ratio': {'median': 1.23456789, 'interval': [1.2, 1.3]},
        'pairs': {'ratio': [1.2, 1.3, 1.23456789]},
        'distillation': None,
        'recipe': recipe,
        'options': options or {},
        'undistilled': not options,
        'command': f'python benchmark.py configs/{recipe}.py',
        **changes,
    }


def filled(tmp_path, *reports):
    for one in reports:
        step_costs.save(one, tmp_path)
    return step_costs.fill(PAGE, step_costs.read(tmp_path))


def cells(text):
    """Rows of the tables in a text, without their headings."""
    rows = [line.strip('| ').split('|') for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_a_record_keeps_no_single_values(tmp_path):
    given = report()
    before = copy.deepcopy(given)
    kept = json.loads(step_costs.save(given, tmp_path).read_text())
    assert given == before
    assert kept == {key: value for key, value in before.items() if key != 'pairs'}


def test_a_page_shows_each_record_in_its_place(tmp_path):
    head = {
        'extra_ms': {'median': 0.5, 'interval': [0.25, 0.75]},
        'overhead': {'median': 0.005, 'interval': [0.0025, 0.0075]},
    }
    page = filled(
        tmp_path,
        report(distillation=head),
        report('bake/one', {'compile': True}),
        report('ffsd/two', {'compile': True}, undistilled=True),
        report('ffsd/two', machine={**report()['machine'], 'device': 'Slow'}),
    )
    bake, rest = page.split('<!-- steps of bake, switched -->')
    switched, ffsd = rest.split('<!-- steps of ffsd -->')
    sizes = ['32, 224, 1,000', 'wall, 2', '3', '1,234.0', '1,000.0']
    common = [*sizes, '1.235 (1.200 to 1.300)', '3,072', '2,048', '1.500']
    added = ['0.50 (0.25 to 0.75)', '+0.50% (+0.25% to +0.75%)']
    assert cells(bake) == [['one', *common, *added]]
    assert cells(switched) == [['one', '`compile=True`', *common]]
    slow, fast = ffsd.split('- Slow; torch 9.8.')
    assert cells(fast) == [['two', '`compile=True`', *common]]
    assert cells(slow) == [['two', *common]]
    assert '- Fast (x); torch 9.8.' in fast
    assert 'python benchmark.py configs/bake/one.py' in bake
    assert 'old' not in page
    assert page.startswith('# Costs\n')
    assert step_costs.fill(page, step_costs.read(tmp_path)) == page


def test_new_figures_replace_the_old(tmp_path):
    filled(tmp_path, report())
    faster = report(ratio={'median': 1.1, 'interval': [1.0, 1.2]})
    assert '1.100 (1.000 to 1.200)' in filled(tmp_path, faster)
    assert len(step_costs.read(tmp_path)) == 1


@pytest.mark.parametrize(
    'change',
    [
        {'recipe': 'bake/other'},
        {'options': {'compile': True}},
        {'settings': {**report()['settings'], 'clock': 'cpu'}},
        {'settings': {**report()['settings'], 'img_size': 32}},
        {'machine': {**report()['machine'], 'threads': 1}},
    ],
)
def test_other_conditions_are_another_record(tmp_path, change):
    assert step_costs.save(report(), tmp_path) != step_costs.save(report(**change), tmp_path)


def test_a_record_without_a_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match='has no line <!-- steps of kdcl -->; add it'):
        filled(tmp_path, report('kdcl/three'))
