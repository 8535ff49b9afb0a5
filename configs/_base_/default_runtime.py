_base_ = ['mmpretrain::_base_/default_runtime.py', './kd_mm_runtime.py']
