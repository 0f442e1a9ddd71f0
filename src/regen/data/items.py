"""A video or photo to train on: a file, or a range of bytes in a shard.

Who has an item need not ask where it came from, so that the same items in the same order give the
same batches.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from regen.data import locations
from regen.video import PICTURE_SUFFIXES, VIDEO_SUFFIXES

MEDIA_SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES


@dataclass(frozen=True, slots=True)
class Item:
    """A video or photo. `source` groups pieces of one recording, `name` is the default of it."""

    location: str  # file, or shard; a path or a URL
    name: str  # within its folder, manifest or shard; ends in the file's suffix
    source: str
    caption: str
    size: int  # bytes; -1: the file is not there
    start: int = -1  # of a member of a shard, in bytes; -1: the whole file
    mark: str = ""  # changes when the content does
    num_frames: int = 0  # of the file, with width and height as displayed; 0: not known yet
    width: int = 0
    height: int = 0

    @property
    def is_photo(self) -> bool:
        return PurePosixPath(self.name).suffix.lower() in PICTURE_SUFFIXES

    def __str__(self) -> str:
        """As it is named in messages, on one line."""
        return (
            printable(self.location)
            if self.start < 0
            else f"{printable(self.location)}/{self.name}"
        )

    @property
    def key(self) -> str:
        """Tells the content from any other and from what it was before a change."""
        if self.start < 0 and not locations.is_url(self.location):
            return f"{Path(self.location).resolve()} {self.size} {self.mark}"
        return f"{self.location} {self.start} {self.size} {self.mark}"

    def open(self) -> Path | BinaryIO:
        """The path of a local file, else the bytes; OSError where they cannot be had."""
        if self.start < 0 and not locations.is_url(self.location):
            return Path(self.location)
        return locations.open_bytes(self.location, max(0, self.start), self.size, str(self))

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """The local file, or a copy of the bytes that is there within the block."""
        opened = self.open()
        if isinstance(opened, Path):
            yield opened
            return
        with opened, locations.scratch_copy(opened, PurePosixPath(self.name).suffix) as path:
            yield path


def line_about(item: Item, error: object, path: Path | None = None) -> str:
    """One line that names an item and says what is wrong; `path` is what the error calls it."""
    reason = printable(" ".join(str(error).split()))
    if path is not None:
        reason = reason.replace(printable(str(path)), str(item))
    return reason if reason.startswith(str(item)) else f"{item}: {reason}"


def printable(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 as \\xe9."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def file_item(location: str, name: str, source: str, caption: str) -> Item:
    """A whole file; one that is not there is found out when it is read."""
    try:
        size, mark = locations.stat(location)
    except OSError:
        size, mark = -1, ""
    name = printable(name)
    return Item(location, name, source or name, caption, size, mark=mark)
