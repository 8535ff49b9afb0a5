"""Which OpenMMLab packages are installed, and whether kd_mm runs with them.

Each of MMEngine, MMCV and mmpretrain is published twice under one import name: the original, no
longer released, and the maintained fork ``onedl-*``. Some pairs of versions install together but
fail much later, on resuming or on reading a base config; those are refused here, at import.
"""

import importlib.util
import warnings
from collections.abc import Mapping
from importlib import import_module, metadata
from itertools import chain
from types import ModuleType

from packaging.specifiers import SpecifierSet

# Import name -> the versions that kd_mm was run with.
BOUNDS = {'mmengine': '>=0.10.7,<1.0', 'mmcv': '>=2.1.0,<2.4', 'mmpretrain': '>=1.2.0,<2.0'}
# Import name -> distributions that provide it; the version of the first one found counts.
PROVIDERS = {
    'mmengine': ['onedl-mmengine', 'mmengine'],
    'mmcv': ['onedl-mmcv', 'mmcv', 'mmcv-lite'],
    'mmpretrain': ['onedl-mmpretrain', 'mmpretrain'],
}

INSTALL_FORKS = (
    'pip install "onedl-mmengine>=0.10.12,<1.0" "onedl-mmcv>=2.3.6,<2.4" '
    '"onedl-mmpretrain>=1.3.6,<2.0"'
)
INSTALL_ORIGINALS = 'pip install "mmengine==0.10.7" "mmcv-lite==2.1.0" "mmpretrain==1.2.0"'
SWITCH_TO_FORKS = f'pip uninstall -y mmengine mmcv mmcv-lite mmpretrain && {INSTALL_FORKS}'


def installed_versions() -> dict[str, str | None]:
    """Return the versions of the distributions that decide whether kd_mm runs, by name.

    None is imported. A package that lies on the Python path without being installed is listed
    under its import name, with None.
    """
    found: dict[str, str | None] = {}
    for name in (*chain.from_iterable(PROVIDERS.values()), 'torch', 'setuptools'):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    for module in BOUNDS:
        if not _providers(module, found):
            spec = importlib.util.find_spec(module)
            # A mere folder of that name, such as a clone next to the script, has no origin.
            if spec is not None and spec.origin is not None:
                found[module] = None
    return found


def _providers(module: str, found: Mapping[str, str | None]) -> list[str]:
    """The distributions of ``module`` that were found, the one whose version counts first."""
    return [name for name in PROVIDERS[module] if name in found]


def _is(version: str | None, specifier: str) -> bool:
    """Whether ``version`` is known and lies within ``specifier``."""
    return version is not None and SpecifierSet(specifier).contains(version, prereleases=True)


def find_problem(found: Mapping[str, str | None]) -> str | None:
    """Return why kd_mm cannot run with the given versions and the command that helps, or None.

    Args:
        found: Distribution name -> version, as :func:`installed_versions` gives it. None as a
            version means unknown, and is let through.

    Examples:
        >>> forks = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6'}
        >>> find_problem({**forks, 'onedl-mmpretrain': '1.3.6', 'torch': '2.15.0'})
        >>> find_problem(forks).partition('.')[0]
        'kd_mm needs mmpretrain, which is not installed'
    """
    in_use = {module: names[0] for module in BOUNDS if (names := _providers(module, found))}
    has_forks = any(name.startswith('onedl-') for name in in_use.values())
    new_torch = _is(found.get('torch'), '>=2.6')
    if has_forks or not in_use:
        advice = f'Run: {INSTALL_FORKS}'
    else:
        advice = f'Run: {SWITCH_TO_FORKS if new_torch else INSTALL_ORIGINALS}'

    missing = [module for module in BOUNDS if module not in in_use]
    if missing:
        verb = 'is' if len(missing) == 1 else 'are'
        return (
            f'kd_mm needs {" and ".join(missing)}, which {verb} not installed. {advice} '
            '(or, in a checkout of kd_mm: pip install -e ".[all]")'
        )
    for module, bounds in BOUNDS.items():
        name = in_use[module]
        if found[name] is not None and not _is(found[name], bounds):
            return f'kd_mm needs {module}{bounds}, but found {name} {found[name]}. {advice}'

    engine, mmcv = f'mmengine {found.get("mmengine")}', in_use['mmcv']
    old_engine = in_use['mmengine'] == 'mmengine' and _is(found['mmengine'], '<=0.10.7')
    setuptools = found.get('setuptools', '(none)')
    if old_engine and new_torch:
        return (
            f'{engine} needs torch<2.6, but found torch {found["torch"]}, with which it cannot '
            f'load its own checkpoints. Run: {SWITCH_TO_FORKS}'
        )
    if old_engine and (setuptools == '(none)' or _is(setuptools, '>=82')):
        return (
            f'{engine} needs setuptools<82, but found setuptools {setuptools}; no `mmpretrain::` '
            'config can be read without its pkg_resources. Run: pip install "setuptools<82"'
        )
    original = in_use['mmpretrain'] == 'mmpretrain'
    if original and _is(found['mmpretrain'], '<=1.2.0') and _is(found[mmcv], '>=2.2.0'):
        return (
            f'mmpretrain {found["mmpretrain"]} needs mmcv<2.2.0, but found {mmcv} {found[mmcv]}. '
            f'Run: pip uninstall -y {mmcv} && pip install "mmcv-lite==2.1.0"'
        )
    return None


def find_overlap(found: Mapping[str, str | None]) -> str | None:
    """Return which distributions overwrote each other's files, and the command that helps.

    Args:
        found: Distribution name -> version, as :func:`installed_versions` gives it.

    Examples:
        >>> find_overlap({'mmengine': '0.10.7', 'onedl-mmengine': '0.10.12'}).partition(':')[0]
        'mmengine is installed more than once, and each copy overwrote files of the other'
    """
    for module in BOUNDS:
        names = _providers(module, found)
        if len(names) > 1:
            kept = names[0]
            return (
                f'{module} is installed more than once, and each copy overwrote files of the '
                f'other: {", ".join(f"{name} {found[name]}" for name in names)}. '
                f'Run: pip uninstall -y {" ".join(names)} && pip install "{kept}=={found[kept]}"'
            )
    return None


def import_optional(purpose: str, *names: str) -> list[ModuleType]:
    """Import packages that only some of kd_mm needs.

    Args:
        purpose: What needs them, for the message.
        *names: Modules, called as their packages are but for dashes.

    Raises:
        ImportError: If one is missing; the message names the command that installs all.

    Examples:
        >>> import_optional('arithmetic', 'math')[0].ceil(1.5)
        2
        >>> import_optional('arithmetic', 'math', 'no_such_package')
        Traceback (most recent call last):
        ImportError: arithmetic needs no_such_package, which is not installed. Run: pip install \
math no_such_package
    """
    try:
        return [import_module(name) for name in names]
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{purpose} needs {error.name}, which is not installed. Run: pip install '
            f'{" ".join(name.partition(".")[0] for name in names)}'
        ) from None


def check_installation() -> None:
    """Raise ImportError if the installation cannot work; kd_mm calls this when it is imported.

    A package that is installed more than once under the same import name draws a warning.
    """
    found = installed_versions()
    problem = find_problem(found)
    if problem is not None:
        raise ImportError(problem)
    overlap = find_overlap(found)
    if overlap is not None:
        warnings.warn(overlap, stacklevel=2)
