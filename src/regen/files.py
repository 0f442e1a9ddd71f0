"""Files and folders that appear whole or not at all, however the process that writes them ends.

They are written beside their place, under a hidden name, and renamed. While its process lives, what
is not finished is locked; what a killed one has left is not, and goes when the same place is
written again.
"""

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Draft:
    """`path` stands for `target` until `finish`, which puts it there, or `discard`.

    Raises OSError where it cannot be made; PermissionError for a target that is read-only.
    """

    _lock = -1

    def __init__(self, target: Path, is_folder: bool = False) -> None:
        if target.is_file() and not os.access(target, os.W_OK):
            raise PermissionError(13, "the file is read-only")
        if target.is_dir() and not is_folder:
            raise IsADirectoryError(21, "is a folder")
        remove_leftovers(target)
        self.target = target
        while not self._begin(is_folder):
            pass

    def _begin(self, is_folder: bool) -> bool:
        """Whether `path` is there and locked, and not taken for a leftover before it was."""
        name = f".{self.target.stem}.{uuid.uuid4().hex[:8]}.part{self.target.suffix}"
        self.path = self.target.with_name(name)
        self.path.mkdir() if is_folder else self.path.touch()
        try:
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(self._lock), self.path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_there = False
        except OSError:  # a file system without locks, where nothing is taken for a leftover
            is_there = True
        if not is_there:
            self._unlock()
        return is_there

    def finish(self) -> None:
        """Put it in place of `target`, also of an empty folder."""
        if self.target.is_dir():
            self.target.rmdir()
        self.path.replace(self.target)
        self._unlock()

    def discard(self) -> None:
        """Leave nothing; after `finish`, do nothing."""
        _remove(self.path)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


@contextmanager
def draft(target: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of `target` where the block ends without an error."""
    unfinished = Draft(target)
    try:
        yield unfinished.path
        unfinished.finish()
    finally:
        unfinished.discard()


def write_text(target: Path, text: str) -> None:
    """As UTF-8; characters that stand for bytes of a name that is not UTF-8 are escaped."""
    with draft(target) as path:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def remove_leftovers(target: Path) -> None:
    """What processes that no longer live have left of `target`."""
    pattern = f".{glob.escape(target.stem)}.????????.part{glob.escape(target.suffix)}"
    for leftover in target.parent.glob(pattern):
        with suppress(OSError):
            lock = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(leftover)
            finally:
                os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
