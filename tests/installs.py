"""Copies of this checkout and real installs of them, for the packaging and downstream tests."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
JUNK = shutil.ignore_patterns('.git', '.mim', '__pycache__', '*.egg-info', '.*_cache', '.venv*')
JUNK_AT_THE_TOP = {'build', 'data', 'dist', 'work_dirs'}


def source_files():
    """Paths of the files that belong to the repository, relative to it.

    What git tracks or would track; where there is no git, everything but the usual junk.
    """
    if (REPO / '.git').exists():
        command = f'git -c safe.directory={REPO} ls-files -z -c -o --exclude-standard'
        listed = subprocess.run(
            command.split(' '), cwd=REPO, capture_output=True, text=True, check=True
        ).stdout.split('\0')
        return sorted({name for name in listed if name and (REPO / name).is_file()})
    files = []
    for folder, subfolders, names in os.walk(REPO):
        ignored = JUNK(folder, subfolders)
        if Path(folder) == REPO:
            ignored |= JUNK_AT_THE_TOP
        subfolders[:] = [name for name in subfolders if name not in ignored]
        files += [Path(folder, name).relative_to(REPO) for name in names]
    return sorted(path.as_posix() for path in files)


def copy_source(target):
    """Copy the repository's own files to ``target``."""
    for name in source_files():
        destination = Path(target, name)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, destination)
    return Path(target)


def clean_environment():
    """The environment without what would put this checkout on the Python path."""
    kept = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    return {**kept, 'OMP_NUM_THREADS': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}


def run_clean(command, cwd, timeout=300):
    """Run a command without this checkout on the path; fail with its output if it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, f'{command}\n{done.stdout}'
    return done.stdout


def pip_install(python, *arguments):
    """Install from local files into an environment, whatever else is on its path."""
    options = ['--no-deps', '--no-build-isolation', '--no-index', '--ignore-installed']
    run_clean([python, '-m', 'pip', 'install', *options, *arguments], Path(python).parent)


def environment_with(target, *pip_arguments):
    """Make an environment that has what this one has, plus one real install of kd_mm.

    Args:
        target: Folder of the new environment.
        pip_arguments: What ``pip install`` gets: ``-e FOLDER``, a folder or a wheel.

    Returns:
        The new environment's interpreter.
    """
    venv.create(target, with_pip=False, symlinks=os.name != 'nt')
    python = Path(target, *(('Scripts', 'python.exe') if os.name == 'nt' else ('bin', 'python')))
    site = run_clean([python, '-c', 'import sysconfig as s; print(s.get_path("purelib"))'], target)
    shared = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
    # As where setuptools is installed: MMEngine imports distutils, which Python 3.12 has no more.
    shared.append('import _distutils_hack; _distutils_hack.add_shim()')
    Path(site.strip(), 'shared.pth').write_text('\n'.join(shared) + '\n')
    pip_install(python, *pip_arguments)
    return python


def package_folder(python, name='kd_mm'):
    """Where an interpreter finds a package, looked up without importing it."""
    code = (
        f'import importlib.util as u; print(u.find_spec({name!r}).submodule_search_locations[0])'
    )
    return Path(run_clean([python, '-c', code], Path(python).parent).strip())
