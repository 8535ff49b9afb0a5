# Images as those of CUB-200-2011.
_base_ = './cub_bs32_224.py'

dataset_type = 'kd_mm.StanfordDogs'
data_root = 'data/stanford_dogs'
data_preprocessor = dict(num_classes=120)

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = val_dataloader
