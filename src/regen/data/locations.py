"""Bytes of a local file or of a URL that fsspec knows, whole or a range; who writes to a folder.

File systems are opened again in each process: those of fsspec must not cross a fork.
"""

import fcntl
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from regen.files import Draft

ATTEMPTS = 3  # to read from a URL
PAUSE_S = 1.0  # after the first failure; twice as long after each further one


def is_url(location: str) -> bool:
    return "://" in location


def check_outside(option: str, folder: Path, data: str | Path) -> None:
    """ValueError where `folder`, given as `option`, is inside the local folder `data`.

    What is written there would be found as data the next time.
    """
    if Path(data).is_dir() and folder.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(
            f"{option} {folder} is inside {data}, all of which is read: what is written would be "
            "read too; give a folder outside"
        )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it while it is written to; ValueError where another process does.

    Its `.lock` stays beside what is written, and holds nothing once the process has ended, however
    it did. A lock of POSIX: other than flock's, which filelock has, it is not of forked processes
    too, which may outlive this one for seconds.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"another process writes to {folder}: wait until it has ended, or give another "
                "folder"
            ) from None
        except OSError as error:
            message = f"{folder} cannot be locked ({error}): write to it from one process only"
            print(message, file=sys.stderr)
        try:
            yield
        finally:
            if folder.is_dir() and list(folder.iterdir()) == [path]:  # nothing was written
                path.unlink()
                if is_new:
                    folder.rmdir()


def _file_system(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path within it); ValueError where it cannot be used."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}") from error


class Bytes(io.RawIOBase):
    """`size` bytes of a file from `start`, as a file of their own; `str` of it is `name`."""

    def __init__(self, file: BinaryIO, start: int, size: int, name: str) -> None:
        self._file, self._start, self._size, self._name = file, start, size, name
        self._at = 0

    def __str__(self) -> str:
        return self._name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        part = self._file.read(min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_bytes(location: str, start: int, size: int, name: str) -> BinaryIO:
    """`size` bytes from `start`; those of a URL are fetched at once, in one request.

    Raises OSError where they cannot be had (a URL: after `ATTEMPTS`).
    """
    if is_url(location):
        fetched = fetch(location, start, start + size)
        if len(fetched) != size:
            raise OSError(f"{name}: {len(fetched)} of {size} bytes are there")
        return cast(BinaryIO, Bytes(io.BytesIO(fetched), 0, size, name))
    return cast(BinaryIO, Bytes(Path(location).open("rb"), start, size, name))


def fetch(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes start to end of a URL, all of them by default; `ATTEMPTS` times, if it is there."""
    for attempt in range(ATTEMPTS):
        try:
            file_system, path = _file_system(url)
            return file_system.cat_file(path, start=start, end=end)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or attempt == ATTEMPTS - 1:
                raise
        time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def open_stream(location: str) -> BinaryIO:
    """A file to read through from the start."""
    if not is_url(location):
        return Path(location).open("rb")
    file_system, path = _file_system(location)
    return file_system.open(path, "rb")


@contextmanager
def scratch_copy(source: BinaryIO, suffix: str) -> Iterator[Path]:
    """A file with the bytes of `source`, that is there within the block."""
    copy = Draft(Path(tempfile.gettempdir()) / f"regen-scratch{suffix}")
    try:
        with copy.path.open("wb") as file:
            shutil.copyfileobj(source, file)
        yield copy.path
    finally:
        copy.discard()


@contextmanager
def local_file(location: str) -> Iterator[Path]:
    """A local path for a path; for a URL, or "-" (standard input), that of a copy of its bytes.

    ValueErrors within the block name `location`. Raises ValueError where it cannot be had.
    """
    if location != "-" and not is_url(location):
        yield Path(location)
        return
    try:
        source = sys.stdin.buffer if location == "-" else open_stream(location)
    except Exception as error:  # of fsspec's many libraries
        raise ValueError(f"{location}: cannot be read ({error})") from error
    suffix = PurePosixPath(urlsplit(location).path).suffix
    with source, scratch_copy(source, suffix) as path:
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), location)) from error


def read_all(location: str) -> bytes:
    """All bytes of a file; OSError where it is not there."""
    return fetch(location) if is_url(location) else Path(location).read_bytes()


def exists(location: str) -> bool:
    if is_url(location):
        file_system, path = _file_system(location)
        return file_system.exists(path)
    return Path(location).exists()


def stat(location: str) -> tuple[int, str]:
    """(size in bytes, what changes when the content does). OSError where there is no such file."""
    if not is_url(location):
        status = Path(location).stat()
        return status.st_size, str(status.st_mtime_ns)
    file_system, path = _file_system(location)
    info = file_system.info(path)
    marks = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
    mark = next((str(info[mark]) for mark in marks if info.get(mark)), "")
    return int(info["size"]), mark


def listed(folder: str, ending: str) -> list[str]:
    """Files in a folder or URL whose names end so, sorted."""
    if is_url(folder):
        return matching(f"{folder}/*{ending}")
    return sorted(str(one) for one in Path(folder).glob(f"*{ending}"))


def matching(pattern: str) -> list[str]:
    """Files of a pattern: {000..010} and {a,b} as in a shell, in their order, then * in the last
    part, sorted."""
    from braceexpand import braceexpand

    found: list[str] = []
    for one in braceexpand(pattern, escape=False):
        if "*" not in one:
            found.append(one)
        elif is_url(one):
            file_system, path = _file_system(one)
            found += sorted(
                file_system.unstrip_protocol(location) for location in file_system.glob(path)
            )
        else:
            found += sorted(str(location) for location in Path(one).parent.glob(Path(one).name))
    return found
