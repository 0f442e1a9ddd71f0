"""What ends a run early: signals, between two steps; and failures, in one clear line."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from safetensors import SafetensorError
from torch.distributed import DistError

LEAVE_S = 60
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within this context a first signal only sets `received`; a second one acts as it always does.

    Signals reach the main thread alone: elsewhere, and for those that are ignored (nohup in a
    script), nothing changes. Under a launcher a second one does nothing either: it is the first,
    passed on (and the launcher itself does not wait long).
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_launched = "LOCAL_RANK" in os.environ
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            once_more = "" if self.is_launched else "; once more to stop without a checkpoint"
            os.write(2, f"\nstopping after this step{once_more}\n".encode())
        self.received = number
        if not self.is_launched:
            self.__exit__()

    def raise_received(self) -> None:
        """KeyboardInterrupt after Ctrl-C, SystemExit (status 143) after SIGTERM, else nothing."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)


def ignore_signals(_: int) -> None:
    """For processes that prepare batches: signals to the whole group reach them too.

    They end with the run, or within seconds of its death (PyTorch's watchdog).
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def left_in_time(num_processes: int) -> Iterator[None]:
    """After a failure end this process within LEAVE_S.

    One of several would wait for the dead ones for hours, even as it exits.
    """
    try:
        yield
    except BaseException:
        if num_processes > 1:
            signal.alarm(LEAVE_S)
        raise


@contextmanager
def failures_in_one_line() -> Iterator[None]:
    """ValueError, one line, for what can go wrong around the computation.

    A full disk, a process that prepares batches and dies or cannot read a clip, too little memory.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        text = str(error)
        if " in DataLoader worker process " in text:  # with its traceback; the last line says it
            _, _, text = text.strip().splitlines()[-1].partition(": ")
        elif "DataLoader worker" in text:
            text = "a process that prepares batches died (killed, perhaps for its memory)"
        elif isinstance(error, RuntimeError) and "out of memory" in text:
            text = "out of memory: try --gradient-checkpointing, or smaller batches and crops"
        elif isinstance(error, DistError) or "by peer" in text:  # NCCL's, gloo's
            text = "another process of the run died; what it printed may say why"
        elif not isinstance(error, (OSError, SafetensorError)):
            raise
        raise ValueError(
            f"{text}; the same command goes on from the last checkpoint, which is intact"
        ) from error
