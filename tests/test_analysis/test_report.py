"""The page holds every section, and takes no name for HTML."""

import re

import numpy as np
import pytest

from kd_mm.analysis.comparison import read_recipes
from kd_mm.analysis.predictions import read_predictions
from kd_mm.analysis.report import write_report
from tests import forked
from tests.toys.logs import cohort, network, write_predictions, write_run

EVIL = '<img src=x onerror=alert(1)>&"$x^2$'
MONITORS = ('diagnostics/diversity', f'diagnostics/agreement/{EVIL}-b')


@pytest.fixture(scope='module')
def work_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')
    pair = cohort(**{EVIL: network(20), 'b': network(56)})
    losses = ('loss', f'{EVIL}/loss', f'{EVIL}/loss_kdcl', 'b/loss', 'b/loss_kdcl')
    for seed in (0, 1):
        plain = write_run(root / f'vanilla/seed{seed}', network(20),
                          {'network': [40.0, 60.0 + seed]}, seed, f'seed{seed}',
                          result={'config': 'vanilla_20', 'seconds': 8.0})  # fmt: skip
        curves = {EVIL: [40.0, 62.5 + seed], 'b': [30.0, 50.0], 'ensemble': [45.0, 70.0]}
        ours = write_run(root / f'pair/seed{seed}', pair, curves, seed, f'seed{seed}', losses,
                         monitors=MONITORS)  # fmt: skip
        classes = [EVIL, *'123456789']
        write_predictions(plain, ['network'], classes, seed=seed)
        write_predictions(ours, [EVIL, 'b', 'ensemble'], classes, seed=2 + seed)
    write_run(root / 'third', network(8), {'network': [50.0]}, None, EVIL)
    return root


def read(work_dirs):
    recipes = read_recipes([work_dirs])
    runs = [run.work_dir for recipe in recipes for run in recipe.runs.values()]
    return recipes, {path: found for path in runs if (found := read_predictions(path))}


def test_page_holds_gains_figures_and_what_is_missing(work_dirs):
    page = work_dirs / 'out' / 'report.html'
    write_report(*read(work_dirs), page)
    html = page.read_text()
    text = re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', html))
    assert re.findall('<h2>(.*?)</h2>', html) == [
        'Results', 'Learning curves', 'Loss terms', 'Diagnostics', 'Cost', 'Calibration',
        'Gain by class', 'Runs',
    ]  # fmt: skip
    assert '63.00 ± 0.71 +2.50 ± 0.00 +2.50 to +2.50 2' in text
    assert '1 of the runs has no predictions. Add --predict' in text
    assert 'third has gone 1 of 2 epochs.' in text
    assert 'fewer than three seeds' in text
    # Seeds; curves and losses of three recipes; two monitors; calibration of two; classes of one.
    assert html.count('src="data:image/svg+xml;base64,') == 1 + 3 + 3 + 2 + 2 + 1
    assert '<img src=x' not in html


def test_page_of_a_run_without_validation(tmp_path):
    write_run(tmp_path / 'run', network(), {'network': [50.0]})
    log = next(tmp_path.glob('run/*/vis_data/scalars.json'))
    log.write_text('\n'.join(line for line in log.read_text().splitlines() if 'top1' not in line))
    write_report(read_recipes([tmp_path]), {}, tmp_path / 'report.html')
    assert 'No run has been validated yet.' in (tmp_path / 'report.html').read_text()


def test_calibration_error_by_hand(work_dirs, tmp_path):
    recipes, predictions = read(work_dirs)
    errors = []
    for run in recipes[0].runs.values():  # the vanilla recipe
        own = predictions[run.work_dir]
        bins = np.floor(own.confidence[0] * 15)
        gap = (own.predicted[0] == own.labels) - own.confidence[0]
        errors.append(100 / len(gap) * sum(abs(gap[bins == b].sum()) for b in range(15)))
    write_report(recipes, predictions, tmp_path / 'report.html')
    cell = f'<td>{np.mean(errors):.3f} ± {np.std(errors, ddof=1):.3f}</td>'
    assert cell in (tmp_path / 'report.html').read_text()


def test_tool_writes_the_page(work_dirs, tmp_path):
    out = tmp_path / 'new' / 'page.html'
    tool = 'analysis_tools/compare_runs.py'
    done = forked.run_tool(tool, work_dirs, '--out', out, '--vanilla', 'vanilla_20', '--predict')
    assert f'wrote {out}' in done.stdout
    assert '\npredict' not in done.stdout  # all that have a checkpoint have predictions
    assert '<h2>Results</h2>' in out.read_text()
