_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(
    leader=None,
    students=dict(
        _delete_=True,
        student1=_base_.model.students.student1,
        student2=_base_.model.students.student2,
    ),
    deploy='student1',
)
