"""Batches of numpy arrays from a source, in an order that depends only on seed and step.

The pipeline shuffles and batches record numbers; pictures are read and decoded after a host has taken its own rows of
the global batch. So threads, worker processes and the number of hosts do not change which record, or which random draw,
is in which row of a step.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from imagen_jax import checks, signals
from imagen_jax.checks import require
from imagen_jax.data import transforms, workers
from imagen_jax.data.reader import BatchReader, read_records
from imagen_jax.data.sources import Source


class Loader:
    """Iterator over batches that can be resumed exactly, also with other numbers of threads, workers or hosts."""

    def __init__(self, order, dataset, num_threads: int, num_workers: int):
        self._order = order  # grain.MapDataset of the record numbers of each batch
        self._dataset = dataset  # grain.MapDataset of the batches, with random access
        self._num_threads, self._num_workers = num_threads, num_workers
        self._next_index = 0
        self._iterator = None  # created on first use, so that set_state after construction costs nothing
        self._stop = None

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._start()
        batch = next(self._iterator)
        self._next_index += 1
        if self._num_workers:  # copy from shared memory, which Grain cannot free when the interpreter exits
            batch = {key: np.array(value) for key, value in batch.items()}
        return batch

    def get_state(self) -> dict[str, int]:
        """Return the position as JSON data: the number of batches returned so far."""
        return {"next_index": self._next_index}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue with the batch after those that had been returned when `state` was taken."""
        index = state.get("next_index", -1)
        is_right = set(state) == {"next_index"} and 0 <= index <= len(self._dataset)
        rule = f'be {{"next_index": n}} with n at most the number of batches, {len(self._dataset)}'
        require(is_right, "state", rule, state)
        self.close()
        self._next_index = int(index)

    def records(self, index: int) -> list[int]:
        """Return the record numbers of the global batch number `index`, counted from 0."""
        return [int(number) for number in self._order[index]]

    def close(self) -> None:
        """Stop threads and worker processes; the next batch starts them again."""
        if self._stop is not None:
            self._stop()
        self._iterator = self._stop = None

    def _start(self) -> None:
        import grain

        # Grain's own state depends on the number of workers; a slice of a random-access data set does not, and keeps
        # the random numbers of each step.
        dataset = self._dataset[self._next_index :].to_iter_dataset(
            grain.ReadOptions(self._num_threads, prefetch_buffer_size=2 * self._num_threads)
        )
        if self._num_workers:
            from absl import flags

            flags.FLAGS.mark_as_parsed()  # Grain's workers read them
            options = grain.MultiprocessingOptions(num_workers=self._num_workers)
            dataset = dataset.mp_prefetch(options, _init_worker)
        with signals.starting_processes() if self._num_workers else contextlib.nullcontext():
            self._iterator = iter(dataset)
        # Also runs at interpreter exit, while Grain can still stop its workers.
        self._stop = weakref.finalize(self, self._iterator.close)


def make_loader(
    source: Source,
    embeddings: Callable[[Sequence[int]], list[np.ndarray]],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    num_epochs: int | None = None,
    num_threads: int = 2,
    num_workers: int = 0,
    **reading: Any,
) -> Loader:
    """Return a stream of training batches, endless or of num_epochs.

    Every epoch has each record once, in a new order. A batch may hold the end of one epoch and the start of the next;
    at the end of num_epochs, records that do not fill a batch are dropped.

    Args:
      source, embeddings, **reading: see `reader.BatchReader`, which makes the dicts that the `Loader` returns.
      batch_size: of the *global* batch, all hosts together.
      seed: of the order, the crops and the flips, 0 <= seed < 2**32.
      shuffle: False keeps the order of the source.
      num_epochs: None never ends.
      num_threads: batches made at the same time in each process; 0 makes them when asked.
      num_workers: extra processes; worth it when pictures are large and cores many.

    Raises:
      ValueError: before anything is read; and while batches are read, if far too many records in a row cannot be used.
    """
    checks.whole("batch_size", batch_size, 1)
    checks.whole("num_threads", num_threads)
    checks.whole("num_workers", num_workers)
    checks.seed(seed)
    fills = num_epochs is None or (num_epochs >= 1 and num_epochs * len(source) >= batch_size)
    rule = f"fill one batch of {batch_size} from {len(source)} records"
    require(fills, "num_epochs", rule, num_epochs, "raise it, or leave it None for an endless stream")
    reader = BatchReader(source, embeddings, **reading)
    import grain

    dataset = grain.MapDataset.range(len(source)).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    order = dataset.repeat(num_epochs).batch(batch_size, drop_remainder=True)
    return Loader(order, order.random_map(reader), num_threads, num_workers)


def examples(source: Source, indices: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
    """Yield records in order (all, or those at `indices`): "image" uint8 [H, W, 3], "caption", "claims" (JSON or None).

    Raises:
      ValueError: a record cannot be read, or its picture cannot be decoded.
    """
    for index in range(len(source)) if indices is None else indices:
        (record,) = read_records(source, [index])
        image = transforms.decode(record["image"], f"Record {index} of {source.name}")
        claims = json.loads(record["claims"]) if "claims" in record else None
        yield {"image": image, "caption": record["caption"], "claims": claims}


def _init_worker(*_) -> None:
    """End Grain's workers with their parent, which they would outlive if it is killed."""
    workers.end_after(multiprocessing.parent_process().join)
