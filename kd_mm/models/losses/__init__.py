"""Loss modules: thin shells around kd_mm.functional."""

from .bake_loss import BAKELoss
from .global_batch import BatchGatherer, GlobalBatch

__all__ = ['BAKELoss', 'BatchGatherer', 'GlobalBatch']
