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
    sides = [
        {
            'name': recipe,
            'step_ms': {'median': median, 'quartiles': [1.0, 2.0], 'all': [median] * 3},
            'peak_memory_bytes': peak * 2**30,
        }
        for median, peak in ((1234.0, 3), (1000.0, 2))
    ]
    return {
        'machine': {'device': 'Fast (x)', 'threads': 2, 'versions': {'torch': '9.8'}},
        'settings': {
            'batch_size': 32,
            'img_size': 224,
            'num_classes': 1000,
            'steps': 3,
            'clock': 'wall',
            'amp': False,
        },
        'config': sides[0],
        'against': sides[1:],
        'sum': sides[1],
        'ratio': {'median': 1.23456789, 'interval': [1.2, 1.3], 'pairs': [1.2, 1.3, 1.23456789]},
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


def test_a_record_keeps_no_single_steps_and_leaves_the_report_as_it_is(tmp_path):
    given = report()
    before = copy.deepcopy(given)
    kept = json.loads(step_costs.save(given, tmp_path).read_text())
    assert given == before
    assert 'pairs' not in kept['ratio']
    assert 'all' not in kept['config']['step_ms']
    assert kept['ratio']['median'] == 1.234568
    assert kept['config']['peak_memory_bytes'] == 3 * 2**30


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
    common = '| 3 | 1,234.0 | 1,000.0 | 1.235 (1.200 to 1.300) | 3,072 | 2,048 | 1.500 |'
    assert (
        f'| one | 32, 224, 1,000 | wall, 2 | A {common} 0.50 (0.25 to 0.75) | +0.50% (+0.25% to '
        '+0.75%) |'
    ) in bake
    assert '- A: Fast (x); torch 9.8.' in bake
    assert 'python benchmark.py configs/bake/one.py' in bake
    assert 'old' not in page
    assert f'| one | `compile=True` | 32, 224, 1,000 | wall, 2 | A {common}\n' in switched
    assert f'| two | 32, 224, 1,000 | wall, 2 | B {common}\n' in ffsd
    assert f'| two with `compile=True` | 32, 224, 1,000 | wall, 2 | A {common}\n' in ffsd
    assert '- B: Slow; torch 9.8.' in ffsd
    assert '- A: Slow' not in page
    assert page.startswith('# Costs\n')


def test_filling_again_changes_nothing_and_new_figures_replace_the_old(tmp_path):
    page = filled(tmp_path, report())
    records = step_costs.read(tmp_path)
    assert step_costs.fill(page, records) == page
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
        {'settings': {**report()['settings'], 'amp': True}},
        {'machine': {**report()['machine'], 'threads': 1}},
    ],
)
def test_other_conditions_are_another_record(tmp_path, change):
    assert step_costs.save(report(), tmp_path) != step_costs.save(report(**change), tmp_path)


def test_a_record_without_a_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match='has no line <!-- steps of kdcl -->; add it'):
        filled(tmp_path, report('kdcl/three'))
    with pytest.raises(ValueError, match='<!-- steps of ffsd, switched -->'):
        step_costs.check_place(PAGE, 'ffsd/two', True)
