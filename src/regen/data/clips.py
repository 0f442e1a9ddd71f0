"""Folders of clips and photos -> decoded frames on disk, memory-mapped.

Every file is decoded once, its short side brought down to `max_short_side`, and kept as one uint8
`[T, H, W, 3]` `.npy` in the cache folder, so that training reads random frames without decoding.
What cannot be read is skipped, counted, named.
"""

import csv
import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from regen.video import PICTURE_SUFFIXES, VIDEO_SUFFIXES, VideoError, open_video


@dataclass(frozen=True)
class Clip:
    """One decoded file; `source` groups pieces of one recording (default: the file's name)."""

    path: Path
    source: str
    array_path: Path
    is_photo: bool

    def frames(self) -> np.ndarray:
        """uint8 `[T, H, W, 3]`, memory-mapped. Raises ValueError where they are gone."""
        try:
            return np.load(self.array_path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"the decoded frames of {self.path} can no longer be read ({error}): "
                "the same command decodes them anew"
            ) from None


@dataclass(frozen=True)
class ClipSet:
    """What could be read, and a line for each file that could not: its path and the reason."""

    clips: list[Clip]
    skipped: list[str]


def find_media(folders: list[Path]) -> dict[Path, str]:
    """All clips and photos below `folders`, sorted, each file once: path -> name within its folder.

    Raises ValueError for a missing or empty folder.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: --data takes folders of clips and photos")
        inside = [
            path
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES
            and not path.name.startswith(".")
        ]
        if not inside:
            endings = ", ".join(sorted(VIDEO_SUFFIXES | PICTURE_SUFFIXES))
            raise ValueError(f"{folder} holds no clips or photos ({endings})")
        for path in inside:
            found.setdefault(path.resolve(), (path, path.relative_to(folder).as_posix()))
    return dict(found.values())


def read_sources(folders: list[Path]) -> dict[str, str]:
    """Absolute path -> source, from `manifest.csv` (columns file, source) in or beside a folder."""
    sources: dict[str, str] = {}
    for folder in folders:
        for manifest in (folder / "manifest.csv", folder.parent / "manifest.csv"):
            if manifest.is_file():
                with manifest.open(newline="") as file:
                    for row in csv.DictReader(file):
                        if row.get("file") and row.get("source"):
                            sources[str(manifest.parent.resolve() / row["file"])] = row["source"]
                break
    return sources


def _decode(path: Path, array_path: Path, max_short_side: int, max_frames: int) -> str | None:
    """Decode one file into the cache; the reason where it cannot be read, else None."""
    frames = []
    try:
        with open_video(path) as reader:
            width, height = reader.info.width, reader.info.height
            scale = min(1.0, max_short_side / min(width, height))
            size = (round(width * scale), round(height * scale))
            for frame in reader:
                picture = Image.fromarray(frame.pixels)
                if picture.size != size:
                    picture = picture.resize(size, Image.Resampling.LANCZOS)
                frames.append(np.asarray(picture))
                if len(frames) == max_frames:
                    break
    except VideoError as error:
        return " ".join(str(error).split())
    # Beside, under a name of this process, then renamed: others see no file or a whole one.
    temporary = array_path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, np.stack(frames))
        temporary.replace(array_path)
    finally:
        temporary.unlink(missing_ok=True)
    return None


def _is_whole(array_path: Path) -> bool:
    """Whether the cache holds this array in full (a disk that was full leaves a shorter file)."""
    try:
        array = np.load(array_path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return array.ndim == 4 and array.dtype == np.uint8 and array.shape[3] == 3


def _decode_all(jobs: list[tuple[Clip, int]], max_frames: int) -> list[str]:
    """Decode (clip, short side) pairs side by side; the reasons of those that cannot be read."""
    try:
        with ProcessPoolExecutor() as pool:
            reasons = pool.map(
                _decode,
                [clip.path for clip, _ in jobs],
                [clip.array_path for clip, _ in jobs],
                [short_side for _, short_side in jobs],
                [max_frames] * len(jobs),
            )
            return [reason for reason in tqdm(reasons, "decoding", len(jobs)) if reason]
    except BrokenProcessPool:
        raise ValueError(
            "a process that decodes clips died (out of memory, or killed): run the same command "
            "again, what is decoded is kept"
        ) from None


def prepare_clips(
    folders: list[Path],
    cache: Path,
    max_short_side: int = 256,
    max_frames: int = 600,
    min_side: int = 64,
) -> ClipSet:
    """Decode everything below `folders` into `cache` (what is whole there is kept); see the module.

    Of a clip longer than `max_frames` the first frames are taken. Photos keep twice
    `max_short_side`. Several processes may do this at once. Raises ValueError for a missing or
    empty folder.
    """
    cache.mkdir(parents=True, exist_ok=True)
    sources = read_sources(folders)
    jobs = []
    for path, name in find_media(folders).items():
        is_photo = path.suffix.lower() in PICTURE_SUFFIXES
        short_side = 2 * max_short_side if is_photo else max_short_side
        stat = path.stat()
        key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {short_side} {max_frames}"
        array_path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
        source = sources.get(str(path.resolve()), name)
        jobs.append((Clip(path, source, array_path, is_photo), short_side))
    missing = [(clip, side) for clip, side in jobs if not _is_whole(clip.array_path)]
    skipped = _decode_all(missing, max_frames) if missing else []
    clips = []
    for clip, _ in jobs:
        if _is_whole(clip.array_path):
            height, width = clip.frames().shape[1:3]
            if min(height, width) < min_side:
                skipped.append(f"{clip.path}: {width}x{height} is smaller than {min_side} pixels")
            else:
                clips.append(clip)
    return ClipSet(clips, skipped)


def hold_out(clips: list[Clip], num_sources: int) -> tuple[list[Clip], list[Clip]]:
    """(training, validation): whole sources are held out, in an order fixed by their names.

    One clip of each validates. Sources of more than 3 clips stay in training, so that validation is
    many scenes and training loses little; at least one source of videos stays too.
    """
    by_source: dict[str, list[Clip]] = {}
    for clip in clips:
        if not clip.is_photo:
            by_source.setdefault(clip.source, []).append(clip)
    small = [source for source, pieces in by_source.items() if len(pieces) <= 3]
    order = sorted(small, key=lambda source: hashlib.sha256(source.encode()).hexdigest())
    held = set(order[: max(0, min(num_sources, len(by_source) - 1))])
    training = [clip for clip in clips if clip.source not in held]
    return training, [by_source[source][0] for source in sorted(held)]


def fair_shares(clips: list[Clip]) -> np.ndarray:
    """Sampling probabilities of clips, with sum 1.

    Choice: a source of n clips weighs sqrt(n). Look-alikes would crowd out the others.
    """
    counts: dict[str, int] = {}
    for clip in clips:
        counts[clip.source] = counts.get(clip.source, 0) + 1
    weights = np.array([counts[clip.source] ** -0.5 for clip in clips])
    return weights / weights.sum()
