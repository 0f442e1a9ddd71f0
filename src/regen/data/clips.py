"""Items -> clips: what batches draw frames from.

By default every item is decoded once, its short side brought down to `MAX_SHORT_SIDE`, and kept as
one uint8 `[T, H, W, 3]` `.npy` in the cache folder, so that training reads random frames without
decoding. Where the disk cannot hold that, frames are decoded when they are drawn; they are the same
to the bit. What cannot be read is skipped, counted, named.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from regen.data.finding import find_items
from regen.data.items import Item, line_about
from regen.data.processes import map_in_order, process_pool
from regen.files import draft, write_text
from regen.video import VideoError, count_frames, open_video, read_frames_at, read_picture

MAX_SHORT_SIDE = 256  # pixels of a video; a photo keeps twice as many
MAX_FRAMES = 600  # the first of a video
MIN_SIDE = 64


class BadClipError(ValueError):
    """A clip that cannot be read; the message names it and gives the reason, on one line."""


@dataclass(frozen=True, slots=True)
class Clip:
    """`num_frames` pictures of `height` x `width`; `source` groups pieces of one recording."""

    item: Item
    num_frames: int
    height: int
    width: int
    array_path: Path | None  # in the cache; None: frames are decoded when they are read

    @property
    def source(self) -> str:
        return self.item.source

    @property
    def is_photo(self) -> bool:
        return self.item.is_photo

    def read(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Frames `indices`, uint8 `[H, W, 3]` each. Raises BadClipError."""
        indices = list(indices)
        if self.array_path is not None:
            frames = self._decoded(self.array_path)
            return [frames[index] for index in indices]
        try:
            pictures = self._decode(indices)
        except (OSError, ValueError) as error:
            raise BadClipError(line_about(self.item, error)) from error
        return [pictures[index] for index in indices]

    def frames(self) -> np.ndarray:
        """All of them, uint8 `[T, H, W, 3]`; from the cache memory-mapped. Raises BadClipError."""
        if self.array_path is not None:
            return self._decoded(self.array_path)
        return np.stack(self.read(range(self.num_frames)))

    def _decoded(self, array_path: Path) -> np.ndarray:
        try:
            return np.load(array_path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise BadClipError(
                f"{self.item}: its decoded frames can no longer be read ({error}); "
                "the same command decodes them again"
            ) from error

    def _decode(self, indices: list[int]) -> dict[int, np.ndarray]:
        opened = self.item.open()
        try:
            if self.is_photo:
                pictures = {index: read_picture(opened) for index in set(indices)}
            else:
                pictures = read_frames_at(opened, indices, self.item.num_frames)
        finally:
            if not isinstance(opened, Path):
                opened.close()
        size = (self.width, self.height)
        for index, pixels in pictures.items():
            pictures[index] = _resized(pixels, size)
            if pictures[index].shape != (self.height, self.width, 3):
                raise VideoError("the size changes within the file")
        return pictures


@dataclass(frozen=True)
class ClipSet:
    """What could be read, and a line for each item that could not: its name and the reason."""

    clips: list[Clip]
    skipped: list[str]


def _sizes(item: Item, width: int, height: int) -> tuple[int, int]:
    """(width, height) of the pictures of an item that is displayed at `width` x `height`."""
    short_side = 2 * MAX_SHORT_SIDE if item.is_photo else MAX_SHORT_SIDE
    scale = min(1.0, short_side / min(width, height))
    return round(width * scale), round(height * scale)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


# --- decoded once ---


def _decode_item(item: Item, array_path: Path) -> str | None:
    """Decode one item into the cache; the reason where it cannot be read, else None."""
    frames: list[np.ndarray] = []
    try:
        with item.as_file() as path:
            try:
                with open_video(path) as reader:
                    size = _sizes(item, reader.info.width, reader.info.height)
                    for frame in reader:
                        frames.append(_resized(frame.pixels, size))
                        if len(frames) == (1 if item.is_photo else MAX_FRAMES):
                            break
            except VideoError as error:
                return line_about(item, error, path)
    except OSError as error:
        return line_about(item, error)
    with draft(array_path) as temporary, temporary.open("wb") as file:
        np.save(file, np.stack(frames))
    return None


def _array_shape(array_path: Path) -> tuple[int, int, int] | None:
    """(frames, height, width); None where the cache does not hold the array in full (a disk that
    was full leaves a shorter file)."""
    try:
        array = np.load(array_path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if array.ndim != 4 or array.dtype != np.uint8 or array.shape[3] != 3:
        return None
    num_frames, height, width, _ = array.shape
    return num_frames, height, width


def _array_path(item: Item, cache: Path) -> Path:
    short_side = 2 * MAX_SHORT_SIDE if item.is_photo else MAX_SHORT_SIDE
    key = f"{item.key} {short_side} {MAX_FRAMES}"
    return cache / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:24]}.npy"


def _decode_once(items: list[Item], cache: Path) -> ClipSet:
    paths = [_array_path(item, cache) for item in items]
    shapes = [_array_shape(path) for path in paths]
    missing = [index for index, shape in enumerate(shapes) if shape is None]
    skipped: list[str] = []
    if missing:
        with process_pool() as pool:
            jobs = [(items[index], paths[index]) for index in missing]
            reasons = map_in_order(pool, _decode_item, jobs)
            skipped = [one for one in tqdm(reasons, "decoding", len(missing)) if one]
        for index in missing:
            shapes[index] = _array_shape(paths[index])
    clips = []
    for item, path, shape in zip(items, paths, shapes, strict=True):
        if shape is not None:
            clips.append(Clip(item, *shape, path))
    return ClipSet(clips, skipped)


# --- decoded when drawn ---


def _count_item(item: Item) -> tuple[int, int, int] | str:
    """(number of frames, width, height) of an item, or the reason why it cannot be read."""
    try:
        opened = item.open()
        if not item.is_photo:
            return count_frames(opened)
        height, width, _ = read_picture(opened).shape
        return 1, width, height
    except (OSError, ValueError) as error:
        return line_about(item, error)


def _count_all(items: list[Item], cache: Path) -> list[tuple[int, int, int] | str]:
    """`_count_item` of each; what the cache knows of unchanged files is not looked at again."""
    known_path = cache / "counts.json"
    try:
        known = json.loads(known_path.read_text())
    except (OSError, ValueError):
        known = {}
    facts: list[tuple[int, int, int] | str | None] = []
    for item in items:
        row = (item.num_frames, item.width, item.height) if item.num_frames else None
        row = row or (known.get(item.key) and tuple(known[item.key]))
        facts.append(row)
    missing = [index for index, row in enumerate(facts) if row is None]
    if missing:
        with process_pool() as pool:
            found = map_in_order(pool, _count_item, [(items[index],) for index in missing])
            for index, row in zip(missing, tqdm(found, "counting", len(missing)), strict=True):
                facts[index] = row
        known |= {items[i].key: facts[i] for i in missing if not isinstance(facts[i], str)}
        write_text(known_path, json.dumps(known))
    return [row for row in facts if row is not None]


def _decode_when_drawn(items: list[Item], cache: Path) -> ClipSet:
    clips: list[Clip] = []
    skipped: list[str] = []
    for item, facts in zip(items, _count_all(items, cache), strict=True):
        if isinstance(facts, str):
            skipped.append(facts)
            continue
        num_frames, width, height = facts
        counted = replace(item, num_frames=num_frames, width=width, height=height)
        width, height = _sizes(item, width, height)
        clips.append(Clip(counted, min(num_frames, MAX_FRAMES), height, width, None))
    return ClipSet(clips, skipped)


def prepare_clips(data: Sequence[str | Path], cache: Path, decode_once: bool = True) -> ClipSet:
    """Clips of everything that `data` names (`find_items`).

    `decode_once`: decode it all into `cache` (what is whole there is kept); else frames are decoded
    when they are drawn, and `cache` holds small tables only. Of a video longer than `MAX_FRAMES`
    the first frames are taken. Several processes may do this at once. Raises ValueError for what
    is no data.
    """
    items = find_items(data, cache)
    cache.mkdir(parents=True, exist_ok=True)
    found = (_decode_once if decode_once else _decode_when_drawn)(items, cache)
    clips, skipped = [], list(found.skipped)
    for clip in found.clips:
        if min(clip.height, clip.width) < MIN_SIDE:
            size = f"{clip.width}x{clip.height}"
            skipped.append(f"{clip.item}: {size} is smaller than {MIN_SIDE} pixels")
        else:
            clips.append(clip)
    return ClipSet(clips, skipped)


# --- who trains, who validates, how often each is drawn ---


def exclude_sources(clips: list[Clip], sources: Iterable[str]) -> list[Clip]:
    """The clips and photos of other sources. Raises ValueError for a source that there is not."""
    excluded = set(sources)
    missing = excluded - {clip.source for clip in clips}
    if missing:
        raise ValueError(
            f"--exclude-sources: no clip is of {', '.join(sorted(missing))}; the sources are those "
            "of the manifest, else the names of the files"
        )
    return [clip for clip in clips if clip.source not in excluded]


def hold_out(clips: list[Clip], num_sources: int) -> tuple[list[Clip], list[Clip]]:
    """(training, validation): whole sources are held out, in an order fixed by their names.

    One clip of each validates. Sources of more than 3 clips stay in training, so that validation is
    many scenes and training loses little; at least one source of videos stays too. A photo may show
    what a clip of its source shows, so photos of a held-out source do not train either: sources
    without photos are held out first, and photos are lost only where those are too few.
    """
    by_source: dict[str, list[Clip]] = {}
    for clip in clips:
        if not clip.is_photo:
            by_source.setdefault(clip.source, []).append(clip)
    with_photos = {clip.source for clip in clips if clip.is_photo}
    small = [source for source, pieces in by_source.items() if len(pieces) <= 3]

    def rank(source: str) -> tuple[bool, str]:
        return source in with_photos, hashlib.sha256(source.encode()).hexdigest()

    held = set(sorted(small, key=rank)[: max(0, min(num_sources, len(by_source) - 1))])
    training = [clip for clip in clips if clip.source not in held]
    return training, [by_source[source][0] for source in sorted(held)]


def fair_probabilities(clips: Sequence[Clip]) -> np.ndarray:
    """Sampling probabilities of clips, with sum 1.

    Choice: a source of n clips weighs sqrt(n). Look-alikes would crowd out the others.
    """
    counts: dict[str, int] = {}
    for clip in clips:
        counts[clip.source] = counts.get(clip.source, 0) + 1
    weights = np.array([counts[clip.source] ** -0.5 for clip in clips])
    return weights / weights.sum()
