"""Chance as a function of the seed and of where a run stands."""

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import broadcast, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset, Sampler

from kd_mm.registry import HOOKS
from kd_mm.resume.generators import seed_generators
from kd_mm.resume.seeded import SeededBatchSampler, seed_views

# What the main process draws for; first part of its keys.
EPOCH, ITERATION, VALIDATION = range(1, 4)
INFO = 'kd_mm_seeds'  # in the message hub, which checkpoints carry


@HOOKS.register_module()
class SeedHook(Hook):
    """Let what is drawn depend on the seed and on where the run stands, not on its history.

    A run that was stopped and resumed then draws what it would have drawn, with any number of
    workers:

    - Random augmentation of a training image depends on (seed, epoch, image, view) alone. Where
      a sampler has an image several times in an epoch, each time differs, and so does each rank,
      unless the sampler is MMEngine's ``DefaultSampler``, which deals each image to one; where
      the loop knows no epochs, the iteration takes the place of the epoch.
    - What the main process draws (Mixup and its kin, dropout, stochastic depth, the order of a
      sampler without a seed) depends on (seed, rank, iteration).
    - The seed is the one of the first start, and so is the sampler's, also where
      ``randomness`` gives none.

    Of a checkpoint that was written inside an epoch, the batches that are done are passed over.

    Python's, NumPy's and torch's global generators are covered; one that a transform keeps for
    itself is not. Our tools add this hook to each run that has none.

    Args:
        enabled (bool): False: leave all to MMEngine, which seeds each process once. Defaults to
            True.
    """

    priority = 'VERY_HIGH'

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._seed: int | None = None  # until training begins
        self._batches: SeededBatchSampler | None = None

    def before_train(self, runner: Runner) -> None:
        """Agree on the seed, and give each training image its own.

        Args:
            runner: The runner whose training begins.
        """
        if not self.enabled:
            return
        seed = torch.tensor(runner.seed)  # another on each rank under diff_rank_seed
        broadcast(seed)
        self._seed = seed.item()
        self._rank = get_rank()
        loader = runner.train_loop.dataloader
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            runner.logger.warning(
                'kd_mm.SeedHook seeds images by their index, which this train_dataloader does '
                'not have: its random augmentation depends on the number of workers, and a '
                'resumed run is another one; use a data set with indices'
            )
            return
        done = self._restore(runner, loader)
        seed_views(loader.dataset)
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop)
        # It deals each image to one rank; others may give several ranks the same one.
        rank = 0 if isinstance(_sampler(loader), DefaultSampler) else self._rank
        self._batches = SeededBatchSampler(
            loader.batch_sampler, loader.dataset, self._seed, rank, by_iteration
        )
        if by_iteration:
            # MMEngine moves a sampler that can skip, and reads all batches of another again.
            skips = callable(getattr(loader.sampler, 'skip', None))
            self._batches.epoch = runner.iter if skips else 0
        else:
            self._batches.done = done
        # A loader refuses a new batch sampler, which would come too late once it is read.
        vars(loader)['batch_sampler'] = self._batches

    def _restore(self, runner: Runner, loader: DataLoader) -> int:
        """Take the sampler's seed from the checkpoint; return the batches done in this epoch."""
        sampler = _sampler(loader)
        hub = runner.message_hub
        now = {
            'sampler': getattr(sampler, 'seed', None),
            'batches': len(loader),
            'ranks': get_world_size(),
        }
        then = hub.runtime_info.get(INFO) or now
        if then['sampler'] is not None:
            # MMEngine built the sampler before it read the checkpoint.
            sampler.seed = now['sampler'] = then['sampler']
        hub.update_info(INFO, now)
        if now != then:
            listed = ', '.join(f'{then[key]} {key}' for key in ('batches', 'ranks'))
            runner.logger.warning(
                f'the checkpoint is of a run with {listed} per epoch, but this one has '
                f'{now["batches"]} and {now["ranks"]}: it goes on, but is not the run that was '
                'stopped'
            )
            return 0
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return 0
        done = runner.iter - runner.epoch * len(loader)
        if not 0 <= done <= len(loader):
            runner.logger.warning(
                f'iteration {runner.iter} is not in epoch {runner.epoch + 1} of {len(loader)} '
                'batches: the epoch begins anew, and the run is not the one that was stopped'
            )
            return 0
        return done

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed what is drawn as an epoch begins.

        Args:
            runner: The runner that trains.
        """
        if self._seed is None:
            return
        if self._batches is not None and not self._batches.by_iteration:
            self._batches.epoch = runner.epoch
        seed_generators(self._seed, EPOCH, self._rank, runner.epoch, devices=True)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Seed what the model draws in this iteration.

        Args:
            runner: The runner that trains.
            batch_idx: Unused.
            data_batch: Unused.
        """
        if self._seed is not None:
            seed_generators(self._seed, ITERATION, self._rank, runner.iter, devices=True)

    def before_val_epoch(self, runner: Runner) -> None:
        """Seed what is drawn in a validation inside of training.

        Args:
            runner: The runner that validates.
        """
        if self._seed is not None:
            seed_generators(self._seed, VALIDATION, self._rank, runner.iter, devices=True)


def _sampler(loader: DataLoader) -> Sampler:
    """Return what orders the images."""
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)
