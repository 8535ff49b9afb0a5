"""The page in a real browser, at the width of a desktop and of a phone."""

import html
import json
import re
import shutil
import subprocess

import pytest

from kd_mm.analysis.comparison import read_recipes
from kd_mm.analysis.figures import look_of
from kd_mm.analysis.predictions import read_predictions
from kd_mm.analysis.report import write_report
from tests.conftest import run_tool
from tests.test_analysis.toy_runs import cohort, network, write_predictions, write_run

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason='no chromium on the path, which the page is opened in'
)
FLAGS = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--hide-scrollbars',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--enable-logging=stderr',
]
# Names are nobody's to trust: what of them is taken for HTML, or for mathematics, is seen.
EVIL = '<img src=x onerror=alert(1)>&"$x^2$'
LONG = 'a_recipe_with_a_very_long_name-and-another-part_of_it_8xb256-300e_in1k'
MONITORS = ('diagnostics/diversity', f'diagnostics/agreement/{EVIL}-b')
PROBE = """<script>
const wide = document.documentElement.clientWidth;
const outside = [...document.querySelectorAll('body *')].filter(e =>
  !e.closest('.scroll > *, svg') && e.getBoundingClientRect().right > wide + 0.5);
const count = selector => document.querySelectorAll(selector).length;
const shown = e => getComputedStyle(e).color !== getComputedStyle(document.body).backgroundColor;
const result = {
  width: wide, overflow: document.documentElement.scrollWidth - wide,
  outside: outside.map(e => e.outerHTML.slice(0, 80)),
  requests: performance.getEntriesByType('resource').map(e => e.name),
  tables: count('table'),
  unnamed_tables: count('table:not(:has(> caption)), .scroll:not([aria-label])'),
  figures: count('figure'), drawn: [...document.querySelectorAll('figure .plot svg')]
    .filter(e => e.getBoundingClientRect().height > 100).length,
  unnamed_figures: count('figure:not(:has(> figcaption)), .plot:not([role=img][aria-label])'),
  injected: count('img, [onerror]'), scripts: count('script'), h1: count('h1'),
  sections: [...document.querySelectorAll('h2')].map(e => e.textContent),
  dead_links: [...document.querySelectorAll('a')].filter(
    e => !document.querySelector(e.getAttribute('href'))).length,
  twice: [...document.querySelectorAll('[id]')].length - new Set(
    [...document.querySelectorAll('[id]')].map(e => e.id)).size,
  uncoloured: [...document.querySelectorAll('.plot path')].filter(
    e => !e.closest('defs') && e.style.stroke === '' && e.style.fill === '').length,
  background: getComputedStyle(document.body).backgroundColor,
  alt: [...document.querySelectorAll('.plot')].map(e => e.getAttribute('aria-label')),
};
parent.postMessage(JSON.stringify(result), '*');
</script>"""
# The window of a browser without a screen is no narrower than 500 pixels; a frame is.
FRAME = """<iframe src="probe.html" style="border: 0; width: {}px; height: 900px"></iframe>
<pre id="probe"></pre><script>
addEventListener('message', event => document.getElementById('probe').textContent = event.data);
</script>"""


@pytest.fixture(scope='module')
def work_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')
    pair = cohort(**{EVIL: network(20), 'b': network(56)})
    losses = ('loss', f'{EVIL}/loss', f'{EVIL}/loss_kdcl', 'b/loss', 'b/loss_kdcl')
    for seed in (0, 1):
        plain = write_run(root / f'vanilla_{LONG}/seed{seed}', network(20),
                          {'network': [40.0, 60.0 + seed]}, seed, f'seed{seed}')  # fmt: skip
        curves = {EVIL: [40.0, 62.5 + seed], 'b': [30.0, 50.0], 'ensemble': [45.0, 70.0]}
        ours = write_run(root / f'{LONG}/seed{seed}', pair, curves, seed, f'seed{seed}', losses,
                         monitors=MONITORS)  # fmt: skip
        classes = [EVIL, *'123456789']
        write_predictions(plain, ['network'], classes, seed=seed)
        write_predictions(ours, [EVIL, 'b', 'ensemble'], classes, seed=2 + seed)
    write_run(root / 'third', network(8), {'network': [50.0]}, None, EVIL)
    return root


@pytest.fixture(scope='module')
def page(work_dirs):
    recipes = read_recipes([work_dirs])
    runs = [run.work_dir for recipe in recipes for run in recipe.runs.values()]
    predictions = {path: found for path in runs if (found := read_predictions(path))}
    assert len(predictions) == 4
    path = work_dirs / 'out' / 'report.html'
    write_report(recipes, predictions, path)
    return path


def browse(page, tmp_path, *flags):
    """Return the page as the browser leaves it, and what it says on its console."""
    command = [CHROMIUM, *FLAGS, f'--user-data-dir={tmp_path / "profile"}',
               '--window-size=1400,900', *flags, '--dump-dom', page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def probe(page, tmp_path, width, *flags):
    """Let a script look at a copy of the page, without the policy that forbids it scripts."""
    copy = tmp_path / 'probe.html'
    text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', '', page.read_text())
    copy.write_text(text.replace('</body>', f'{PROBE}</body>'))
    frame = tmp_path / 'frame.html'
    frame.write_text(FRAME.format(width))
    dom, _ = browse(frame, tmp_path, '--virtual-time-budget=3000', *flags)
    (found,) = re.findall('<pre id="probe">(.*?)</pre>', dom, re.S)
    return json.loads(html.unescape(found))


@needs_browser
@pytest.mark.parametrize('width', [1280, 390])
def test_page_fits_and_is_whole(page, tmp_path, width):
    found = probe(page, tmp_path, width)
    assert found['width'] == width
    assert found['outside'] == []
    assert found['overflow'] == 0
    assert found['requests'] == []
    # Results, cost, calibration, runs, and one network's classes.
    assert found['tables'] == 5
    # Curves and losses of three recipes, two monitors, calibration of two, classes of one.
    assert found['figures'] == found['drawn'] == 3 + 3 + 2 + 2 + 1
    assert (found['unnamed_tables'], found['unnamed_figures']) == (0, 0)
    assert (found['injected'], found['scripts']) == (0, 1)  # the probe's own
    assert (found['h1'], found['dead_links'], found['twice'], found['uncoloured']) == (1, 0, 0, 0)
    assert found['sections'] == [
        'Results', 'Learning curves', 'Loss terms', 'Diagnostics', 'Cost', 'Calibration',
        'Gain by class', 'Runs',
    ]  # fmt: skip
    assert any(f'{EVIL} 63' in alt and 'vanilla' in alt for alt in found['alt'])


@needs_browser
def test_browser_has_nothing_to_complain_of(page, tmp_path):
    assert browse(page, tmp_path)[1] == []
    # So it would be seen: the policy lets nothing be loaded, and no script run.
    broken = tmp_path / 'broken.html'
    broken.write_text(page.read_text().replace('</main>', '<img src="a.png"></main>'))
    assert 'Content Security Policy' in browse(broken, tmp_path)[1][0]


@needs_browser
def test_page_follows_the_reader_into_the_dark(page, tmp_path):
    light = probe(page, tmp_path, 1280, '--blink-settings=preferredColorScheme=1')
    dark = probe(page, tmp_path, 1280, '--blink-settings=preferredColorScheme=0')
    assert (light['background'], dark['background']) == ('rgb(251, 251, 250)', 'rgb(20, 23, 26)')


def test_page_tells_gains_over_seeds_and_what_is_missing(page):
    text = re.sub(r'<[^>]+>|\s+', ' ', page.read_text())
    text = re.sub(r' +', ' ', text)
    assert '+2.50 ± 0.00 points: the largest mean gain' in text
    assert '2 of 2 seeds rise' in text
    assert '63.00 ± 0.71' in text
    assert '1 of the runs has no predictions. Add --predict' in text
    assert 'third has gone 1 of 2 epochs.' in text
    assert 'fewer than three seeds' in text


def test_looks_differ():
    assert len({look_of(index) for index in range(24)}) == 24
    assert len({look_of(index).dash for index in range(4)}) == 4


def test_tool_writes_the_page(work_dirs, tmp_path):
    out = tmp_path / 'new' / 'page.html'
    tool = 'analysis_tools/compare_runs.py'
    done = run_tool(tool, work_dirs, '--out', out, '--vanilla', f'vanilla_{LONG}', '--predict')
    assert f'wrote {out}' in done.stdout
    assert '\npredict' not in done.stdout  # all that have a checkpoint have predictions
    assert '10.50' in out.read_text()  # the third, over what it was told to be compared with
