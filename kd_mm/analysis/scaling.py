"""What grows with the number of ranks, and with the number of images."""

import multiprocessing
import resource
import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kd_mm.analysis.benchmark import summarize
from kd_mm.datasets import ClassInstanceSampler
from kd_mm.functional.bake import affinity, ensemble_knowledge

_BYTES = 4  # of float32


def ensembling_cost(ranks: int, images: int, features: int, classes: int) -> dict[str, int]:
    r"""Operations and bytes of BAKE's ensembling on one rank, by formula.

    With W ranks of n images, D features and K classes, N = W n:

    .. math:: 2 N^2 D + N^3 / 3 + 2 N^2 \min(n, K) + 2 n N K

    for cosines, Cholesky factor, triangular solves and product with the predictions (the last
    only where n < K; the solves run on the predictions themselves else). Elementwise operations
    are left out. A rank gets D + K + 1 numbers of each image of the others, and holds N^2.

    Args:
        ranks: W, of the group that gathers.
        images: n, of a rank.
        features: D.
        classes: K.

    Returns:
        dict: ``operations`` (an addition or a multiplication each), ``received_bytes`` and
        ``matrix_bytes``.

    Examples:
        >>> ensembling_cost(8, images=128, features=768, classes=1000)
        {'operations': 2499106133, 'received_bytes': 6340096, 'matrix_bytes': 4194304}
    """
    total = ranks * images
    operations = 2 * total**2 * features + total**3 // 3 + 2 * total**2 * min(images, classes)
    if images < classes:
        operations += 2 * images * total * classes
    return {
        'operations': operations,
        'received_bytes': _BYTES * (total - images) * (features + classes + 1),
        'matrix_bytes': _BYTES * total**2,
    }


def measure_ensembling(
    ranks: Sequence[int],
    images: int = 128,
    features: int = 768,
    classes: int = 1000,
    rounds: int = 5,
) -> list[dict]:
    """Time what one rank computes in BAKE's ensembling, once all is gathered.

    One thread, in processor time, on random features and logits; the first time of each size is
    not counted.

    Args:
        ranks: Numbers of ranks.
        images: Images of a rank.
        features: Length of an embedding.
        classes: Number of classes.
        rounds: Times of each, at least 1.

    Returns:
        list[dict]: For each number of ranks: ``ranks``, what :func:`ensembling_cost` tells, and
        ``ms``, median and quartiles.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    rows = []
    for count in ranks:
        shape = count * images
        embeddings = torch.randn(shape, features, generator=rng)
        logits = torch.randn(shape, classes, generator=rng)
        times = []
        for _ in range(rounds + 1):
            start = time.process_time()
            ensemble_knowledge(embeddings, logits, 4.0, 0.5, rows=slice(0, images))
            times.append(1000 * (time.process_time() - start))
        cost = ensembling_cost(count, images, features, classes)
        rows.append({'ranks': count, **cost, 'ms': summarize(times[1:])})
    torch.set_num_threads(threads)
    return rows


def measure_inverse(
    count: int = 1024,
    features: int = 768,
    classes: int = 1000,
    shares: Sequence[int] = (1, 2, 4, 8),
    rounds: int = 15,
) -> list[dict]:
    """Time BAKE's ensembling by turns with an explicit inverse and the product with it.

    One thread, in processor time, on random features and logits; the first round is not counted.

    Args:
        count: Images of the batch.
        features: Length of an embedding.
        classes: Number of classes.
        shares: Numbers of ranks that share the batch; each computes its own rows only, the
            inverse all.
        rounds: Times of each, at least 1.

    Returns:
        list[dict]: For each of ``shares``: ``ranks``, ``ms``, ``inverse_ms`` and ``ratio``, each
        median and quartiles over the rounds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.randn(count, features, generator=rng)
    logits = torch.randn(count, classes, generator=rng)
    rows = []
    for ranks in shares:
        own = slice(0, count // ranks)
        times = []
        for _ in range(rounds + 1):
            start = time.process_time()
            ensemble_knowledge(embeddings, logits, 4.0, 0.5, rows=own)
            middle = time.process_time()
            _by_inverse(embeddings, logits, 4.0, 0.5)
            times.append((middle - start, time.process_time() - middle))
        ours, inverse = zip(*times[1:], strict=True)
        rows.append(
            {
                'ranks': ranks,
                'ms': summarize([1000 * t for t in ours]),
                'inverse_ms': summarize([1000 * t for t in inverse]),
                'ratio': summarize([a / b for a, b in times[1:]]),
            }
        )
    torch.set_num_threads(threads)
    return rows


@torch.no_grad()
def _by_inverse(features: Tensor, logits: Tensor, temperature: float, omega: float) -> Tensor:
    """Return BAKE's targets as its paper writes them."""
    matrix = torch.eye(len(features)) - omega * affinity(features)
    return (1 - omega) * torch.linalg.inv(matrix) @ (logits / temperature).softmax(dim=1)


def inverse_table(rows: Sequence[dict]) -> str:
    """Write the rows of :func:`measure_inverse` as a Markdown table.

    Args:
        rows: What it returned.

    Returns:
        str: The table.
    """
    lines = [
        '| ranks that share the batch | ms (quartiles) | explicit inverse, ms | ratio |',
        '|---|---|---|---|',
    ]
    for row in rows:
        cells = [
            f'{row[key]["median"]:.{digits}f} ({row[key]["quartiles"][0]:.{digits}f} to '
            f'{row[key]["quartiles"][1]:.{digits}f})'
            for key, digits in (('ms', 1), ('inverse_ms', 1), ('ratio', 2))
        ]
        lines.append(f'| {row["ranks"]} | {" | ".join(cells)} |')
    return '\n'.join(lines)


class Labels:
    """A data set that knows its labels and nothing else: N random ones of K classes."""

    def __init__(self, size: int, num_classes: int) -> None:
        self.labels = np.random.default_rng(0).integers(num_classes, size=size, dtype=np.int32)
        self.labels[:num_classes] = np.arange(num_classes)[:size]
        self.metainfo = {'classes': tuple(map(str, range(num_classes)))}

    def __len__(self) -> int:
        return len(self.labels)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the class of an item, as the samplers ask for it."""
        return [self.labels.item(idx)]


def measure_sampler(
    sizes: Sequence[int], num_classes: int = 1000, num_instances: int = 2
) -> Iterator[dict]:
    """Time the class-instance sampler, and look at its memory, each size in a process of its own.

    Args:
        sizes: Numbers of labels, each at least ``num_classes``.
        num_classes: Number of classes.
        num_instances: Images in a group.

    Yields:
        dict: ``labels``; ``build_s``, reading the labels and making the index; ``epoch_s``, all
        indices of an epoch of one rank (``epoch_length='anchors'``), as ``indices`` tells;
        ``peak_bytes`` of memory without the labels' own.
    """
    context = multiprocessing.get_context('fork')
    for size in sizes:
        with context.Pool(1) as pool:
            yield pool.apply(_measure_sampler, (size, num_classes, num_instances))


def _measure_sampler(size: int, num_classes: int, num_instances: int) -> dict:
    dataset = Labels(size, num_classes)
    before = _peak_bytes()
    moments = [time.process_time()]
    sampler = ClassInstanceSampler(dataset, num_instances, seed=0)
    moments.append(time.process_time())
    deque(sampler, maxlen=0)
    moments.append(time.process_time())
    return {
        'labels': size,
        'indices': len(sampler),
        'build_s': moments[1] - moments[0],
        'epoch_s': moments[2] - moments[1],
        'peak_bytes': _peak_bytes() - before,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ensembling_table(rows: Sequence[dict], step_ms: float | None = None) -> str:
    """Write the rows of :func:`measure_ensembling` as a Markdown table.

    Args:
        rows: What it returned.
        step_ms: Time of a rank's plain step, on the same core.

    Returns:
        str: The table.
    """
    lines = [
        '| ranks | images | operations | matrix, MiB | received, MiB | ms (quartiles) '
        f'|{" share of the step |" * (step_ms is not None)}',
        f'|---|---|---|---|---|---|{"---|" * (step_ms is not None)}',
    ]
    for row in rows:
        low, high = row['ms']['quartiles']
        images = round((row['matrix_bytes'] / _BYTES) ** 0.5)
        line = (
            f'| {row["ranks"]:,} | {images:,} | {row["operations"] / 1e9:,.2f} G '
            f'| {row["matrix_bytes"] / 2**20:,.1f} | {row["received_bytes"] / 2**20:,.1f} '
            f'| {row["ms"]["median"]:,.1f} ({low:,.1f} to {high:,.1f}) |'
        )
        if step_ms is not None:
            line += f' {100 * row["ms"]["median"] / step_ms:.2f} % |'
        lines.append(line)
    return '\n'.join(lines)


SAMPLER_HEAD = (
    '| labels | build, s | indices of an epoch | epoch, s | us per index | peak memory, MiB |\n'
    '|---|---|---|---|---|---|'
)


def sampler_line(row: dict) -> str:
    """Write a row of :func:`measure_sampler` as a line below ``SAMPLER_HEAD``.

    Args:
        row: What it yielded.

    Returns:
        str: A line of a Markdown table.
    """
    return (
        f'| {row["labels"]:,} | {row["build_s"]:,.2f} | {row["indices"]:,} '
        f'| {row["epoch_s"]:,.2f} | {1e6 * row["epoch_s"] / row["indices"]:.3f} '
        f'| {row["peak_bytes"] / 2**20:,.0f} |'
    )
