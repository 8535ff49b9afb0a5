# The leader learns from the students' mean logits alone.
_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(fusion=False)
