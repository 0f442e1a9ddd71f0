"""Batches for the loop, made by other processes in time, and the time that the loop waits for them.

The stream's position is the number of steps done, which the checkpoint holds: a run that goes on
asks for the batches from there, and repeats and skips nothing.
"""

import time
from collections.abc import Generator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from regen.data.processes import forking
from regen.training.stopping import ignore_signals


class TimedLoader:
    """Iterable over `batches[item]` for each of `items`, prepared by `num_workers` processes."""

    def __init__(self, batches: Dataset[Any], items: range, num_workers: int) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            sampler=items,
            num_workers=num_workers,
            worker_init_fn=ignore_signals,
        )
        self._waited_s = self._used_s = 0.0

    def __iter__(self) -> Generator[Any, None, None]:
        """Raises ValueError, in one line, where a batch cannot be made; close it on any other end.

        The processes ignore the signal by which an exit ends its children: it would wait for them.
        """
        with forking():
            batches = iter(self._loader)
        try:
            while True:
                asked = time.monotonic()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except ValueError as error:  # of another process: with its traceback
                    last = str(error).strip().splitlines()[-1]
                    raise ValueError(last.removeprefix("ValueError: ")) from error
                given = time.monotonic()
                yield batch
                self._waited_s += given - asked
                self._used_s += time.monotonic() - given
        finally:
            if hasattr(batches, "_shutdown_workers"):
                batches._shutdown_workers()

    def wait_share(self) -> float:
        """Share of the time since the last call that was spent waiting for batches."""
        total_s = self._waited_s + self._used_s
        share = self._waited_s / total_s if total_s else 0.0
        self._waited_s = self._used_s = 0.0
        return share
