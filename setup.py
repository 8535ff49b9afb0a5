"""Install kd_mm with the configs and tools that OpenMMLab looks for in ``kd_mm/.mim``."""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_ITEMS = ('configs', 'demo', 'tools', 'model-index.yml')


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith('#')]


def version() -> str:
    scope = {}
    exec((ROOT / 'kd_mm' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
        )
    else:
        shutil.copy2(source, target)


class BuildPyWithMim(build_py):
    """Fill ``kd_mm/.mim``: links in an editable install, copies in a wheel.

    The usual ``add_mim_extension`` keys on ``develop`` in ``sys.argv``, which pip no longer runs.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            mim = ROOT / 'kd_mm' / '.mim'
        else:
            mim = Path(self.build_lib) / 'kd_mm' / '.mim'
        remove(mim)
        mim.mkdir(parents=True)
        for name in MIM_ITEMS:
            source, target = ROOT / name, mim / name
            if not self.editable_mode:
                copy(source, target)
                continue
            try:
                target.symlink_to(os.path.relpath(source, mim), source.is_dir())
            except OSError:  # Windows without the right to make links
                copy(source, target)


setup(
    name='kd_mm',
    version=version(),
    description='Online and self-distillation of image classifiers for the OpenMMLab stack',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='kd_mm contributors',
    license='Apache-2.0',
    keywords='knowledge distillation, self-distillation, image classification, OpenMMLab',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['kd_mm', 'kd_mm.*']),
    package_data={'kd_mm.analysis': ['*.j2']},
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require={
        'all': requirements('mminstall') + requirements('optional') + requirements('analysis'),
        'analysis': requirements('analysis'),
        'deploy': requirements('deploy'),
        'docs': requirements('docs') + requirements('analysis'),
        'tests': requirements('tests') + requirements('deploy') + requirements('analysis'),
    },
    cmdclass={'build_py': BuildPyWithMim},
    zip_safe=False,
)
