"""Ctrl-C and SIGTERM end a run between two steps, so that a last checkpoint can be written."""

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within this context a first signal only sets `received`; a second one acts as it always does.

    Signals reach the main thread alone: elsewhere, and for those that are ignored (nohup in a
    script), nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
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
        self.received = number
        self.__exit__()
        os.write(2, b"\nstopping after this step; once more to stop without a checkpoint\n")

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
