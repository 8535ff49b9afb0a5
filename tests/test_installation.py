"""What is installed decides whether kd_mm can be imported; tried on tables, nothing installed."""

import re
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from kd_mm import installation as versions
from kd_mm.installation import find_overlap, find_problem, installed_versions
from tests.conftest import REPO

FORKS = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmpretrain': '1.3.6',
    'torch': '2.15.0',
    'setuptools': '84.2.1',
}
ORIGINALS = {
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmpretrain': '1.2.0',
    'torch': '2.4.1+cu121',
    'setuptools': '65.5.0',
}


def without(found, *names):
    return {name: version for name, version in found.items() if name not in names}


@pytest.mark.parametrize(
    'found',
    [
        FORKS,
        without(FORKS, 'setuptools'),
        {**FORKS, 'onedl-mmcv': '2.3.7rc1'},
        ORIGINALS,
        {**ORIGINALS, 'setuptools': '81.0.0', 'torch': '2.5.1'},
        {**without(ORIGINALS, 'mmcv-lite'), 'mmcv': '2.1.0'},
        # The fork of mmpretrain takes the originals of the other two, and the fork of mmengine
        # neither minds the new torch nor the new setuptools.
        {**without(ORIGINALS, 'mmpretrain'), 'onedl-mmpretrain': '1.3.6', 'mmcv-lite': '2.2.0'},
        {**without(FORKS, 'onedl-mmpretrain', 'onedl-mmcv'), **without(ORIGINALS, 'mmengine')},
        # On the Python path, not installed: nothing to compare.
        {'mmengine': None, 'mmcv': None, 'mmpretrain': None, 'torch': '2.15.0'},
    ],
)
def test_working_stacks_pass(found):
    assert find_problem(found) is None


@pytest.mark.parametrize(
    ('found', 'words'),
    [
        (
            {},
            'needs mmengine and mmcv and mmpretrain, which are not installed.*'
            'pip install "onedl-mmengine.*in a checkout of kd_mm: pip install -e ".\\[all\\]"',
        ),
        (
            without(FORKS, 'onedl-mmcv'),
            'needs mmcv, which is not installed.*pip install "onedl-mmengine',
        ),
        (
            {**FORKS, 'onedl-mmcv': '2.4.0'},
            'needs mmcv>=2.1.0,<2.4, but found onedl-mmcv 2.4.0. Run: pip install "onedl-mmengine',
        ),
        (
            {**ORIGINALS, 'mmengine': '0.10.6'},
            'needs mmengine>=0.10.7,<1.0, but found mmengine 0.10.6. '
            'Run: pip install "mmengine==0.10.7"',
        ),
        (
            {**ORIGINALS, 'torch': '2.6.0+cpu'},
            'needs torch<2.6, but found torch 2.6.0.cpu.*own checkpoints.*pip uninstall',
        ),
        (
            {**ORIGINALS, 'setuptools': '82.0.0'},
            'needs setuptools<82, but found setuptools 82.0.0.*pip install "setuptools<82"',
        ),
        (without(ORIGINALS, 'setuptools'), r'needs setuptools<82, but found setuptools \(none\)'),
        (
            {**without(ORIGINALS, 'mmcv-lite'), 'mmcv': '2.2.0'},
            'mmpretrain 1.2.0 needs mmcv<2.2.0, but found mmcv 2.2.0. '
            'Run: pip uninstall -y mmcv && pip install "mmcv-lite==2.1.0"',
        ),
    ],
)
def test_each_problem_names_versions_and_the_command(found, words):
    assert re.search(words, find_problem(found)), find_problem(found)


def test_overlap_names_both_copies_and_keeps_the_fork():
    both = find_overlap({**FORKS, 'mmengine': '0.10.7'})
    assert 'onedl-mmengine 0.10.12, mmengine 0.10.7' in both
    assert 'pip uninstall -y onedl-mmengine mmengine' in both
    assert both.endswith('pip install "onedl-mmengine==0.10.12"')
    assert 'mmcv 2.1.0, mmcv-lite 2.1.0' in find_overlap({**ORIGINALS, 'mmcv': '2.1.0'})
    assert find_overlap(FORKS) is None
    assert find_overlap(ORIGINALS) is None


def test_commands_agree_with_the_requirements():
    lines = (REPO / 'requirements' / 'mminstall.txt').read_text().split()
    assert sorted(re.findall('"(.*?)"', versions.INSTALL_FORKS)) == sorted(lines)
    for requirement in map(Requirement, lines):
        lowest = next(bound.version for bound in requirement.specifier if '>=' in str(bound))
        assert find_problem({**FORKS, requirement.name: lowest}) is None


def test_installed_versions_are_those_of_the_running_interpreter():
    found = installed_versions()
    assert found['torch'] == metadata.version('torch')
    assert find_problem(found) is None


def run_python(code):
    return subprocess.run(
        [sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True, timeout=120
    )


def test_import_of_kd_mm_runs_the_check():
    done = run_python(
        'import importlib.metadata, importlib.util\n'
        'def absent(name): raise importlib.metadata.PackageNotFoundError(name)\n'
        'importlib.metadata.version = absent\n'
        'importlib.util.find_spec = lambda name: None\n'
        'import kd_mm'
    )
    assert done.returncode == 1
    assert (
        'ImportError: kd_mm needs mmengine and mmcv and mmpretrain, which are not' in done.stderr
    )


IMPORTS = """
import sys, kd_mm
print([name for name in ('torch', 'mmcv', 'mmpretrain', 'kd_mm.registry') if name in sys.modules])

# MMEngine imports kd_mm.registry by the scope; mmpretrain's types are found under it, too.
from mmengine import registry
from mmengine.config.utils import MODULE2PACKAGE
print(registry.MODELS.get('kd_mm.BAKEHead').__module__, 'kd_mm' in MODULE2PACKAGE)
names = {
    'TRANSFORMS': 'RandomResizedCrop',
    'MODELS': 'LinearClsHead',
    'DATASETS': 'CIFAR100',
    'DATA_SAMPLERS': 'RepeatAugSampler',
    'HOOKS': 'PreciseBNHook',
    'METRICS': 'SingleLabelMetric',
    'OPTIMIZERS': 'Lamb',
    'VISUALIZERS': 'UniversalVisualizer',
}
for root, name in names.items():
    with getattr(registry, root).switch_scope_and_registry('kd_mm') as found:
        print(found.get(name).__module__.split('.')[0], found.get('kd_mm.None'))

from kd_mm.utils import register_all_modules
register_all_modules(init_default_scope=False)
print(registry.DefaultScope.get_current_instance())
register_all_modules()
print(registry.DefaultScope.get_current_instance().scope_name)
models, datasets = (root.children['kd_mm'] for root in (registry.MODELS, registry.DATASETS))
print('BatchRandomCrop' in models.module_dict, 'Digits' in datasets.module_dict)
"""


def test_importing_is_light_and_our_scope_finds_all_types():
    """In a process of its own, where nobody imported anything before."""
    done = run_python(IMPORTS)
    assert [line for line in done.stdout.splitlines() if 'OneDL' not in line] == [
        '[]',
        'kd_mm.models.heads.bake_head True',
        *['mmpretrain None'] * 8,
        'None',
        'mmpretrain',
        'True True',
    ], done.stderr


def test_a_package_that_is_installed_twice_draws_a_warning(monkeypatch):
    monkeypatch.setattr(versions, 'installed_versions', lambda: {**FORKS, 'mmengine': '0.10.7'})
    with pytest.warns(UserWarning, match='mmengine is installed more than once'):
        versions.check_installation()
