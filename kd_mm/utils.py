"""Registration of all modules. ``mmengine.hub`` looks for it in a module of this name."""

import importlib

__all__ = ['register_all_modules']


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register all modules of kd_mm and mmpretrain; ``mmengine.hub`` calls this.

    Args:
        init_default_scope: Whether to make ``mmpretrain`` the default scope. It is mmpretrain and
            not kd_mm, since types without a prefix in our configs are mmpretrain's.
    """
    # Imported here: mmpretrain takes seconds.
    from mmpretrain.utils import register_all_modules as register_mmpretrain

    for name in ('datasets', 'engine', 'models', 'resume'):
        importlib.import_module(f'kd_mm.{name}')
    register_mmpretrain(init_default_scope)
