"""Run a function on several gloo ranks and collect what each returns."""

import pickle

import torch
import torch.distributed as dist


def _worker(rank, function, world_size, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world_size
    )
    try:
        (folder / f'{rank}.pkl').write_bytes(pickle.dumps(function(rank, *args)))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_on_ranks(function, folder, *args, world_size=2):
    """Return ``[function(rank, *args) for rank in range(world_size)]``, one process each."""
    torch.multiprocessing.start_processes(
        _worker,
        args=(function, world_size, folder, args),
        nprocs=world_size,
        start_method='fork',
    )
    return [pickle.loads((folder / f'{rank}.pkl').read_bytes()) for rank in range(world_size)]
