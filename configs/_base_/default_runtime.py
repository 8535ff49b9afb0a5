_base_ = ['mmpretrain::_base_/default_runtime.py', './kd_mm_runtime.py']

# Keyed hooks, which stay where a user replaces the list of custom ones.
default_hooks = dict(
    runtime_info=dict(type='kd_mm.LazyRuntimeInfoHook'),
    seed=dict(type='kd_mm.SeedHook'),
    distiller=dict(type='kd_mm.DistillerHook'),
    safe_checkpoints=dict(type='kd_mm.SafeCheckpointHook'),
    compile=dict(type='kd_mm.CompileHook'),
)
