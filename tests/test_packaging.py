"""What an install contains: sdist, wheel, wheel from the sdist, editable."""

import email
import os
import shutil
import stat
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.installs import (
    REPO,
    copy_source,
    environment_with,
    package_folder,
    pip_install,
    run_clean,
    source_files,
)

MIM = 'kd_mm/.mim/'


def is_mim_file(name):
    return name == 'model-index.yml' or name.startswith(('configs/', 'demo/', 'tools/'))


@pytest.fixture(scope='module')
def build_tree(tmp_path_factory):
    """A copy of the repository with the leftovers of earlier builds and an editable install."""
    tree = copy_source(tmp_path_factory.mktemp('tree'))
    (tree / 'kd_mm' / '.mim').mkdir()
    (tree / 'kd_mm' / '.mim' / 'configs').symlink_to('../../configs')
    stale = tree / 'build' / 'lib' / 'kd_mm' / '.mim' / 'configs'
    stale.mkdir(parents=True)
    (stale / 'stale.py').touch()
    cache = tree / 'tools' / '__pycache__'
    cache.mkdir()
    (cache / 'train.cpython-311.pyc').touch()
    return tree


def build(tree, out, *what):
    run_clean([sys.executable, '-m', 'build', '--no-isolation', *what, '--outdir', out], tree)


@pytest.fixture(scope='module')
def archives(build_tree, tmp_path_factory):
    """The sdist and the wheel, both made from the tree."""
    out = tmp_path_factory.mktemp('dist')
    build(build_tree, out, '--sdist', '--wheel')
    return next(out.glob('*.tar.gz')), next(out.glob('*.whl'))


def read_wheel(path):
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def test_wheel_holds_the_package_and_a_complete_mim(archives):
    files = [name for name in read_wheel(archives[1]) if '.dist-info/' not in name]
    expected = [name for name in source_files() if name.startswith('kd_mm/')]
    expected += [MIM + name for name in source_files() if is_mim_file(name)]
    assert sorted(files) == sorted(expected)
    assert MIM + 'configs/bake/swin-t_8xb128_in1k.py' in files


def test_wheel_keeps_contents_and_the_right_to_execute(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        for name in filter(is_mim_file, source_files()):
            assert wheel.read(MIM + name) == (REPO / name).read_bytes(), name
            mode = wheel.getinfo(MIM + name).external_attr >> 16
            assert bool(mode & stat.S_IXUSR) == os.access(REPO / name, os.X_OK), name


def test_sdist_holds_what_a_build_and_the_tests_need(archives):
    with tarfile.open(archives[0]) as sdist:
        files = {name.partition('/')[2] for name in sdist.getnames()}
    needed = [name for name in source_files() if name.startswith(('kd_mm/', 'requirements/'))]
    needed += [name for name in source_files() if is_mim_file(name) or name.startswith('tests/')]
    needed += [name for name in source_files() if name.startswith('docs/')]
    needed += ['conftest.py', 'setup.py', 'pyproject.toml', 'LICENSE', 'README.md', 'CHANGELOG.md']
    assert set(needed) <= files
    assert not [name for name in files if '.mim' in name or '__pycache__' in name]


def test_wheel_from_the_sdist_is_the_same(archives, tmp_path):
    with tarfile.open(archives[0]) as sdist:
        sdist.extractall(tmp_path, filter='data')
    (tree,) = tmp_path.iterdir()
    build(tree, tmp_path / 'dist', '--wheel')
    (wheel,) = (tmp_path / 'dist').glob('*.whl')
    assert read_wheel(wheel) == read_wheel(archives[1])


def test_metadata_names_no_openmmlab_package_outside_extras(archives):
    files = read_wheel(archives[1])
    (name,) = [name for name in files if name.endswith('.dist-info/METADATA')]
    metadata = email.message_from_bytes(files[name])
    assert metadata['Requires-Python'] == '>=3.10'
    assert set(metadata.get_all('Provides-Extra')) >= {
        'all',
        'analysis',
        'deploy',
        'docs',
        'tests',
    }
    required = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
    plain = {item.name for item in required if item.marker is None}
    of_all = {r.name for r in required if r.marker and r.marker.evaluate({'extra': 'all'})}
    forks = {'onedl-mmcv', 'onedl-mmengine', 'onedl-mmpretrain'}
    assert not any(name.startswith(('mm', 'onedl')) for name in plain)
    assert of_all >= {*forks, 'jinja2', 'pandas', 'scipy'}


def test_version_is_the_same_everywhere(archives):
    import kd_mm

    assert archives[1].name.startswith(f'kd_mm-{kd_mm.__version__}-')
    assert f'\nversion: {kd_mm.__version__}\n' in (REPO / 'CITATION.cff').read_text()
    assert f'\n## [{kd_mm.__version__}]' in (REPO / 'CHANGELOG.md').read_text()


def test_editable_install_links_to_the_checkout(tmp_path):
    tree = copy_source(tmp_path / 'tree')
    mim = tree / 'kd_mm' / '.mim'
    python = environment_with(tmp_path / 'env', '-e', tree)
    assert package_folder(python) == tree / 'kd_mm'
    for name in ('configs', 'demo', 'tools', 'model-index.yml'):
        assert (mim / name).resolve() == tree / name
        assert not Path(os.readlink(mim / name)).is_absolute(), name

    # A copy in the place of a link, as Windows makes it, and a second install.
    (mim / 'configs').unlink()
    shutil.copytree(tree / 'configs', mim / 'configs')
    pip_install(python, '-e', tree)
    assert (mim / 'configs').is_symlink()
    (tree / 'configs' / 'bake' / 'new.py').touch()
    assert (mim / 'configs' / 'bake' / 'new.py').exists()
