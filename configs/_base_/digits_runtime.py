_base_ = './default_runtime.py'

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, save_best='auto'),
)

# The demonstration gives the same figures each time.
randomness = dict(seed=0)
