_base_ = './digits_runtime.py'

# The best checkpoint is the leader's.
default_hooks = dict(checkpoint=dict(save_best='leader/accuracy/top1'))
