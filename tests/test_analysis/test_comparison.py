import pytest

from kd_mm.analysis.comparison import costs, lines, read_recipes
from tests.test_analysis.toy_runs import cohort, network, write_run

PAIR = cohort(a=network(20), b=network(56))


@pytest.fixture
def runs(tmp_path):
    """Two seeds of a pair, as the reproduction writes them, and plain runs of each network."""
    for seed, top1 in ((0, 60.0), (1, 64.0)):
        noted = {'config': 'vanilla_a', 'seconds': 8.0}
        write_run(tmp_path / f'vanilla_a/seed{seed}', network(20), {'network': [1.0, top1]}, seed,
                  f'seed{seed}', time=0.1, noted=noted)  # fmt: skip
        curves = {'a': [1.0, 65.0], 'b': [1.0, 70.0], 'mean': [0, 0], 'ensemble': [1.0, 71.0]}
        write_run(tmp_path / f'pair/seed{seed}', PAIR, curves, seed, f'seed{seed}', time=0.6)
    write_run(tmp_path / 'vanilla_b', network(56), {'network': [1.0, 66.0]}, 5, 'vanilla_b',
              time=0.2)  # fmt: skip
    return tmp_path


def by_name(recipes):
    return {recipe.name: recipe for recipe in recipes}


def test_runs_are_sorted_by_recipe_and_seed(runs):
    recipes = read_recipes([runs])
    assert [recipe.name for recipe in recipes] == ['vanilla_a', 'vanilla_b', 'pair']
    assert [list(recipe.runs) for recipe in recipes] == [[0, 1], [5], [0, 1]]
    assert read_recipes([runs / 'pair', runs / 'pair/seed0'])[0].networks == ['a', 'b', 'ensemble']


def test_seeds_count_up(tmp_path):
    for seed in (10, 9):
        write_run(tmp_path / f'mine/seed{seed}', network(), {'network': [50.0]}, seed, 'mine')
    (recipe,) = read_recipes([tmp_path])
    assert list(recipe.runs) == [9, 10]


def test_each_network_meets_the_vanilla_recipe_of_its_backbone(runs):
    recipes = by_name(read_recipes([runs]))
    assert recipes['pair'].vanilla == {'a': 'vanilla_a', 'b': 'vanilla_b'}
    found = {line.network: line for line in lines(list(recipes.values())) if line.recipe == 'pair'}
    assert found['a'].gain == {0: 5.0, 1: 1.0}
    assert found['b'].gain is None  # no seed in common
    assert found['ensemble'].gain is None


def test_one_network_of_a_distiller_meets_its_vanilla_recipe(runs):
    write_run(runs / 'bake', {'type': 'kd_mm.BAKE', 'student': network(20)}, {'network': [50.0]},
              config='bake')  # fmt: skip
    assert by_name(read_recipes([runs]))['bake'].vanilla == {'network': 'vanilla_a'}


def test_other_data_are_not_compared(runs):
    digits = {'dataset': {'type': 'kd_mm.Digits', 'split': 'train'}}
    write_run(runs / 'other', network(20), {'network': [50.0]}, config='other',
              val_dataloader=digits)  # fmt: skip
    assert by_name(read_recipes([runs]))['other'].vanilla == {}


def test_a_published_recipe_names_its_vanilla(runs):
    """FFSD's leader differs from the plain network in its shortcuts, and is compared with it."""
    leader = cohort(leader=network(8), student1=network(8))
    curves = {'leader': [50.0], 'student1': [50.0], 'fusion': [50.0]}
    write_run(runs / 'ffsd', leader, curves, config='ffsd')
    assert by_name(read_recipes([runs]))['ffsd'].vanilla == {}
    found = by_name(read_recipes([runs], known={'ffsd': 'vanilla_a'}))['ffsd'].vanilla
    assert found == {'leader': 'vanilla_a', 'student1': 'vanilla_a'}
    found = by_name(read_recipes([runs], known={'ffsd': {'leader': 'vanilla_b'}}))['ffsd'].vanilla
    assert found == {'leader': 'vanilla_b'}


def test_vanilla_can_be_named(runs):
    one = by_name(read_recipes([runs], vanilla=['vanilla_b']))
    assert one['pair'].vanilla == {'a': 'vanilla_b', 'b': 'vanilla_b'}
    assert one['vanilla_a'].vanilla == {'network': 'vanilla_b'}
    both = by_name(read_recipes([runs], vanilla=['vanilla_b', 'vanilla_a']))
    assert both['pair'].vanilla == {'a': 'vanilla_a', 'b': 'vanilla_b'}
    with pytest.raises(ValueError, match=r'were trained, pair, vanilla_a, .* but got nope'):
        read_recipes([runs], vanilla=['nope'])


def test_the_schedule_of_the_same_length_is_taken(runs):
    write_run(runs / 'long', network(20), {'network': [1.0, 90.0]}, config='vanilla_long',
              max_epochs=9)  # fmt: skip
    assert by_name(read_recipes([runs]))['pair'].vanilla['a'] == 'vanilla_a'
    write_run(runs / 'same', network(20), {'network': [1.0, 90.0]}, config='vanilla_same')
    with pytest.raises(ValueError, match='vanilla_same and vanilla_a do; choose with --vanilla'):
        read_recipes([runs])


def test_settings_tell_runs_of_one_config_apart(runs):
    for temperature in (2, 4):
        write_run(runs / f't{temperature}', {**PAIR, 'temperature': temperature}, {'a': [50.0]},
                  config='tuned')  # fmt: skip
    names = set(by_name(read_recipes([runs])))
    assert names >= {'tuned (model.temperature=2)', 'tuned (model.temperature=4)'}
    write_run(runs / 't9_again', {**PAIR, 'temperature': 2}, {'a': [50.0]}, config='tuned')
    with pytest.raises(ValueError, match=r'different seeds, but .*t2 and .*again both have 0'):
        read_recipes([runs])


def test_seeds_left_to_chance_are_no_pairs(tmp_path):
    for name in ('vanilla_a', 'mine'):
        for run in 'xy':
            write_run(tmp_path / name / run, network(), {'network': [50.0]}, None, name)
    plain, mine = read_recipes([tmp_path])
    assert len(plain.runs) == len(mine.runs) == 2
    assert lines([plain, mine])[1].gain is None


def test_cost_is_held_against_all_networks_trained_alone(runs):
    found = costs(read_recipes([runs]))
    pair = found['pair']
    assert pair.step_ms == pytest.approx(600)  # without the slow first step
    assert pair.data_ms == pytest.approx(60)
    assert (pair.steps, pair.run_s, pair.gpu_mib, pair.host_mib) == (4, None, None, None)
    assert pair.times_vanilla == pytest.approx(0.6 / (0.1 + 0.2))
    assert found['vanilla_a'].run_s == 8.0
    assert found['vanilla_a'].times_vanilla is None


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'but .* has none in or below it'):
        read_recipes([tmp_path])
    with pytest.raises(FileNotFoundError, match='there is none at'):
        read_recipes([tmp_path / 'nope'])
    run = write_run(tmp_path / 'run', network(), {'network': [50.0]})
    (run / '20260101_000000/vis_data/config.py').unlink()
    with pytest.raises(ValueError, match='must have its config beside its log'):
        read_recipes([run])
