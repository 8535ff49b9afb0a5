"""Random numbers as a function of the seed and of where a run stands."""

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import broadcast, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset, Sampler

from kd_mm.registry import HOOKS
from kd_mm.resume.seeded import SeededBatchSampler, seed_generators, seed_views

# What the main process draws for; first part of its keys.
EPOCH, ITERATION, VALIDATION = range(1, 4)
INFO = 'kd_mm_seeds'  # in the message hub, which checkpoints carry


@HOOKS.register_module()
class SeedHook(Hook):
    """Let what is drawn depend on the seed and on where the run stands, not on its history.

    A run that was stopped and resumed then draws what it would have drawn, with any number of
    workers, from Python's, NumPy's and torch's global generators:

    - Random augmentation of a training image depends on (seed, epoch, image, view) alone; see
      :class:`~kd_mm.resume.seeded.SeededBatchSampler` for images that come several times.
    - What the main process draws (Mixup, dropout, stochastic depth, the order of a sampler without
      a seed) depends on (seed, rank, iteration).
    - The seed, and the sampler's, is the one of the first start, also if that drew it.
    - Batches of an epoch that were done before its checkpoint was written are passed over.

    Args:
        enabled (bool): False: leave all to MMEngine, which seeds each process once.
    """

    priority = 'VERY_HIGH'

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._seed: int | None = None  # until training begins
        self._batches: SeededBatchSampler | None = None

    def before_train(self, runner: Runner) -> None:
        """Agree on the seed, and give each training image its own."""
        if not self.enabled:
            return
        seed = torch.tensor(runner.seed)  # another on each rank under diff_rank_seed
        broadcast(seed)
        self._seed, self._rank = seed.item(), get_rank()
        loader = runner.train_loop.dataloader
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            runner.logger.warning(
                'kd_mm.SeedHook seeds images by their index, which this train_dataloader does '
                'not have: its random augmentation depends on the number of workers, and a '
                'resumed run is another one; use a data set with indices'
            )
            return
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop)
        done = self._restore(runner, loader, sampler, by_iteration)
        seed_views(loader.dataset)
        # It deals each image to one rank; others may give several ranks the same one.
        rank = 0 if isinstance(sampler, DefaultSampler) else self._rank
        self._batches = SeededBatchSampler(
            loader.batch_sampler, len(loader.dataset), self._seed, rank, by_iteration
        )
        self._batches.done = done
        if by_iteration and callable(getattr(loader.sampler, 'skip', None)):
            # MMEngine moves a sampler that can skip, and reads all batches of another again.
            self._batches.epoch = runner.iter
        # A loader refuses a new batch sampler, which would come too late once it is read.
        vars(loader)['batch_sampler'] = self._batches

    @staticmethod
    def _restore(runner: Runner, loader: DataLoader, sampler: Sampler, by_iteration: bool) -> int:
        """Take the sampler's seed from the checkpoint; return the batches done in this epoch."""
        seed = getattr(sampler, 'seed', None)
        now = {'sampler': seed, 'batches': len(loader), 'ranks': get_world_size()}
        then = runner.message_hub.runtime_info.get(INFO) or now
        if then['sampler'] is not None:
            # MMEngine built the sampler before it read the checkpoint.
            sampler.seed = now['sampler'] = then['sampler']
        runner.message_hub.update_info(INFO, now)
        done = 0 if by_iteration else runner.iter - runner.epoch * len(loader)
        if now == then and 0 <= done <= len(loader):
            return done
        runner.logger.warning(
            f'the checkpoint is from iteration {runner.iter} and epoch {runner.epoch} of a run '
            f'with {then["batches"]} batches per epoch on {then["ranks"]} ranks, but this one has '
            f'{now["batches"]} and {now["ranks"]}: it continues from the beginning of the epoch, '
            'but is not the run that was stopped'
        )
        return 0

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed what is drawn as an epoch begins."""
        if self._batches is not None and not self._batches.by_iteration:
            self._batches.epoch = runner.epoch
        self._seed_main(EPOCH, runner.epoch)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Seed what the model draws in this iteration."""
        self._seed_main(ITERATION, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Seed what is drawn in a validation inside of training."""
        self._seed_main(VALIDATION, runner.iter)

    def _seed_main(self, purpose: int, number: int) -> None:
        """Seed the main process, in training."""
        if self._seed is not None:
            seed_generators(self._seed, purpose, self._rank, number, devices=True)
