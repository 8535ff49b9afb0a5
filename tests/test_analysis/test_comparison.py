import pytest

from kd_mm.analysis.comparison import costs, lines, read_recipes
from tests.toys.logs import cohort, network, write_run

PAIR = cohort(a=network(20), b=network(56))


@pytest.fixture
def runs(tmp_path):
    """Two seeds of a pair, as the reproduction writes them, and plain runs of each network."""
    for seed, top1 in ((9, 60.0), (10, 64.0)):
        result = {'config': 'vanilla_a', 'seconds': 8.0}
        write_run(tmp_path / f'vanilla_a/seed{seed}', network(20), {'network': [1.0, top1]}, seed,
                  f'seed{seed}', time=0.1, result=result)  # fmt: skip
        curves = {'a': [1.0, 65.0], 'b': [1.0, 70.0], 'mean': [0, 0], 'ensemble': [1.0, 71.0]}
        write_run(tmp_path / f'pair/seed{seed}', PAIR, curves, seed, f'seed{seed}', time=0.6)
    write_run(tmp_path / 'vanilla_b', network(56), {'network': [1.0, 66.0]}, 5, 'vanilla_b',
              time=0.2)  # fmt: skip
    return tmp_path


def by_name(*args, **kwargs):
    return {recipe.name: recipe for recipe in read_recipes(*args, **kwargs)}


def test_runs_are_sorted_by_recipe_and_seed(runs):
    recipes = read_recipes([runs])
    assert [recipe.name for recipe in recipes] == ['vanilla_a', 'vanilla_b', 'pair']
    assert [list(recipe.runs) for recipe in recipes] == [[9, 10], [5], [9, 10]]
    assert read_recipes([runs / 'pair', runs / 'pair/seed9'])[0].networks == ['a', 'b', 'ensemble']


def test_each_network_is_compared_with_the_vanilla_recipe_of_its_backbone(runs):
    recipes = by_name([runs])
    assert recipes['pair'].vanilla == {'a': 'vanilla_a', 'b': 'vanilla_b'}
    found = {line['network']: line['gain'] for line in lines(list(recipes.values()))}
    assert found['a'] == {9: 5.0, 10: 1.0}
    assert found['b'] is None  # no seed in common
    assert found['ensemble'] is None
    write_run(runs / 'bake', {'type': 'kd_mm.BAKE', 'student': network(20)}, {'network': [50.0]},
              config='bake')  # fmt: skip
    write_run(runs / 'other', network(20), {'network': [50.0]}, config='other',
              val_dataloader={'dataset': {'type': 'kd_mm.Digits', 'split': 'train'}})  # fmt: skip
    assert by_name([runs])['bake'].vanilla == {'network': 'vanilla_a'}
    assert by_name([runs])['other'].vanilla == {}


@pytest.mark.parametrize(
    ('known', 'vanilla'),
    [
        ({}, {}),  # FFSD's leader differs from the plain network in its shortcuts
        ({'ffsd': 'vanilla_a'}, {'leader': 'vanilla_a', 'student1': 'vanilla_a'}),
        ({'ffsd': {'leader': 'vanilla_b'}}, {'leader': 'vanilla_b'}),
    ],
)
def test_a_published_recipe_names_its_vanilla(runs, known, vanilla):
    leader = cohort(leader=network(8), student1=network(8))
    write_run(runs / 'ffsd', leader, {name: [50.0] for name in ('leader', 'student1', 'fusion')},
              config='ffsd')  # fmt: skip
    assert by_name([runs], known=known)['ffsd'].vanilla == vanilla


def test_vanilla_can_be_named(runs):
    one = by_name([runs], vanilla=['vanilla_b'])
    assert one['pair'].vanilla == {'a': 'vanilla_b', 'b': 'vanilla_b'}
    assert one['vanilla_a'].vanilla == {'network': 'vanilla_b'}
    both = by_name([runs], vanilla=['vanilla_b', 'vanilla_a'])
    assert both['pair'].vanilla == {'a': 'vanilla_a', 'b': 'vanilla_b'}
    with pytest.raises(ValueError, match=r'were trained, pair, vanilla_a, .* but got nope'):
        read_recipes([runs], vanilla=['nope'])


def test_the_schedule_of_the_same_length_is_taken(runs):
    write_run(runs / 'long', network(20), {'network': [90.0]}, config='vanilla_9', max_epochs=9)
    assert by_name([runs])['pair'].vanilla['a'] == 'vanilla_a'
    write_run(runs / 'same', network(20), {'network': [90.0]}, config='vanilla_same')
    with pytest.raises(ValueError, match='vanilla_same and vanilla_a do; choose with --vanilla'):
        read_recipes([runs])


def test_settings_distinguish_runs_of_one_config(runs):
    for name, temperature in (('t2', 2), ('t4', 4), ('t2_again', 2)):
        if name == 't2_again':
            names = set(by_name([runs]))
            assert names >= {'tuned (model.temperature=2)', 'tuned (model.temperature=4)'}
        write_run(runs / name, {**PAIR, 'temperature': temperature}, {'a': [50.0]}, config='tuned')
    with pytest.raises(ValueError, match=r'different seeds, but .*t2 and .*again both have 0'):
        read_recipes([runs])


def test_random_seeds_are_no_pairs(tmp_path):
    for name in ('vanilla_a', 'mine'):
        for run in 'xy':
            write_run(tmp_path / name / run, network(), {'network': [50.0]}, None, name)
    assert [(len(line['top1']), line['gain']) for line in lines(read_recipes([tmp_path]))] == [
        (2, None),
        (2, None),
    ]


def test_cost_is_compared_with_all_networks_trained_alone(runs):
    found = costs(read_recipes([runs])).set_index('recipe')
    pair, vanilla = found.loc['pair'], found.loc['vanilla_a']
    assert pair['ms per step'] == pytest.approx(600)  # without the slow first step
    assert pair['of it waiting for data'] == pytest.approx(60)
    assert pair['steps'] == 4
    assert pair['training over vanilla'] == pytest.approx(0.6 / (0.1 + 0.2))
    assert pair[['whole run, s', 'GPU peak, MiB']].isna().all()
    assert vanilla['whole run, s'] == 8.0
    assert vanilla[['training over vanilla']].isna().all()


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'but .* has none in or below it'):
        read_recipes([tmp_path])
    with pytest.raises(FileNotFoundError, match='there is none at'):
        read_recipes([tmp_path / 'nope'])
    run = write_run(tmp_path / 'run', network(), {'network': [50.0]})
    (run / '20260101_000000/vis_data/config.py').unlink()
    with pytest.raises(ValueError, match='must have its config next to its log'):
        read_recipes([run])
