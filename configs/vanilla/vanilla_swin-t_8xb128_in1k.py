_base_ = ['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', '../_base_/kd_mm_runtime.py']

# The stock batch of 1024 on 8 GPUs instead of 16.
train_dataloader = dict(batch_size=128)
default_hooks = dict(
    runtime_info=dict(type='kd_mm.LazyRuntimeInfoHook'),
    seed=dict(type='kd_mm.SeedHook'),
    safe_checkpoints=dict(type='kd_mm.SafeCheckpointHook'),
    compile=dict(type='kd_mm.CompileHook'),
)
