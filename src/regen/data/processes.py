"""Worker processes that end with the process that started them, however it ends."""

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def forking() -> Iterator[None]:
    """Processes forked within never collect what this one has left.

    A video decoder has threads, which a fork does not copy: freed in a forked process, as garbage,
    it takes the process with it.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def process_pool(num_processes: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """An executor whose processes end at once when the block is left by an exception (Ctrl-C), and
    within moments of a kill of this process.

    Raises ValueError where one of them died.
    """
    before = set(multiprocessing.active_children())
    try:
        with ProcessPoolExecutor(num_processes, initializer=_end_with_parent) as pool:
            try:
                yield pool
            except BaseException:
                for process in set(multiprocessing.active_children()) - before:
                    process.terminate()
                raise
    except BrokenProcessPool:
        raise ValueError(
            "a process that decodes clips died (out of memory, or killed): run the same command "
            "again, what is done is kept"
        ) from None


def map_in_order(
    pool: ProcessPoolExecutor, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
) -> Iterator[T]:
    """`function(*one)` for each of `arguments`, in order.

    `pool.map` will not do: it cancels what waits when it is left, and an executor whose processes
    then end trips over that.
    """
    with forking():
        futures = deque(pool.submit(function, *one) for one in arguments)
    while futures:
        yield futures.popleft().result()


def _end_with_parent() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the parent, which ends its workers
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
