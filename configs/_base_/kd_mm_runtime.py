# What kd_mm adds to a run. A recipe of mmpretrain takes this file as a second base.
custom_imports = dict(imports=['kd_mm'], allow_failed_imports=False)
custom_hooks = [
    dict(type='kd_mm.LossGuardHook'),
    dict(type='kd_mm.LearningCurveHook'),
    dict(type='kd_mm.ExportHook'),
]
