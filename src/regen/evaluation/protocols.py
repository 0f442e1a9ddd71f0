"""What is measured on: clips, which part of a benchmark they are, and the record of both.

Every number is worth what its protocol says: the clips by their SHA-256, length, size, filter,
crop, rounding, and the networks that metrics look through.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from regen.data.colors import hue_rotation
from regen.data.finding import files_below, find_items
from regen.data.items import Item
from regen.evaluation.config import EvaluateConfig
from regen.evaluation.networks import ABSENT, sha256_of
from regen.video import PICTURE_SUFFIXES, RAW_SUFFIX, VIDEO_SUFFIXES, read_prepared

DAVIS_FRAMES = Path("JPEGImages") / "Full-Resolution"
DAVIS_LISTS = {"train": 60, "val": 30, "test-dev": 30, "test-challenge": 30}  # 2017 and 2019
MCL_JCV_NAME = re.compile(r"videoSRC(\d\d)", re.IGNORECASE)
MCL_JCV_COUNT = 30


@dataclass(frozen=True)
class EvalClip:
    """One clip: `name` within its set `set_name`.

    `stem` names its file among reconstructions and exports, but for the ending: the clip's name,
    and before it the set's where there are several.
    """

    set_name: str
    name: str
    location: Item | Path
    stem: str

    @property
    def id(self) -> str:
        return f"{self.set_name}/{self.name}"

    @contextmanager
    def as_path(self) -> Iterator[Path]:
        if isinstance(self.location, Path):
            yield self.location
            return
        with self.location.as_file() as path:
            yield path

    def read(self, config: EvaluateConfig) -> np.ndarray:
        """The prepared clip, uint8 `[T, H, W, 3]`. Raises ValueError where it cannot be read."""
        with self.as_path() as path:
            frames = read_prepared(path, config.prepared_size, config.prepared_frames)
        return rotate_hue(frames, config.hue_rotation) if config.hue_rotation else frames


def rotate_hue(frames: np.ndarray, degrees: float) -> np.ndarray:
    """uint8 `[T, H, W, 3]` turned about the grey axis of RGB, clipped and rounded.

    Linear: luminance is not kept, and greys are. 120 degrees bring red to green.
    """
    rotated = frames.astype(np.float32) @ hue_rotation(degrees).T.numpy()
    return rotated.round().clip(0, 255).astype(np.uint8)


def stem_of(name: str) -> str:
    """The relative path of a clip's file, without its ending: no scheme, root or `..` of `name`."""
    parts = PurePosixPath(name.partition("://")[2] or name).parts
    name = "/".join(part for part in parts if part not in ("/", ".."))
    suffix = PurePosixPath(name).suffix.lower()
    is_file = suffix in VIDEO_SUFFIXES | PICTURE_SUFFIXES | {RAW_SUFFIX}
    return name[: -len(suffix)] if is_file else name


def find_clips(config: EvaluateConfig) -> tuple[list[EvalClip], dict[str, Any]]:
    """The clips in a fixed order, and what is to say about each set (`part`: which part it is).

    Raises ValueError for what is missing or empty, and for two clips of one name.
    """
    if config.reference:
        sets = {config.reference.resolve().name: _clips_of(str(config.reference), config)}
        notes: dict[str, Any] = {name: {} for name in sets}
    elif config.benchmark:
        found, part = _benchmark(config.benchmark, Path(config.data[0]))
        sets, notes = {config.benchmark: found}, {config.benchmark: {"part": part}}
    else:
        sets, notes = {}, {}
        for one in config.data:
            name = PurePosixPath(one.rstrip("/")).stem if "*" not in one else one
            name = name if name.strip(".") else Path(one).resolve().name
            if name in sets:
                raise ValueError(f"two of --data are called {name}: rename a folder or a manifest")
            sets[name], notes[name] = _clips_of(one, config), {}
    clips = [
        EvalClip(
            set_name, name, location, stem_of(name if len(sets) == 1 else f"{set_name}/{name}")
        )
        for set_name, found in sets.items()
        for name, location in found
    ]
    seen: dict[str, EvalClip] = {}
    for clip in clips:
        other = seen.setdefault(clip.stem, clip)
        if other is not clip:
            raise ValueError(f"{clip.id} and {other.id} have one name but for the ending: rename")
    for name, found in sets.items():
        notes[name]["num_clips"] = len(found)
    return clips, notes


def _clips_of(data: str, config: EvaluateConfig) -> list[tuple[str, Item | Path]]:
    folder = Path(data)
    if not folder.is_dir() or list(folder.glob("*.tar")):
        return [(item.name, item) for item in find_items([data], config.output / "cache")]
    found = [(path.relative_to(folder).as_posix(), path) for path in media_in(folder)]
    if not found:
        raise ValueError(f"{folder} holds no clips: no videos, no folders of pictures")
    return list(found)


def media_in(folder: Path) -> list[Path]:
    """Videos below a folder, and its sub-folders of pictures; pictures in `folder` itself alone."""
    found: set[Path] = set()
    for path in files_below(folder):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if suffix in VIDEO_SUFFIXES | {RAW_SUFFIX} or (
            suffix in PICTURE_SUFFIXES and path.parent == folder
        ):
            found.add(path)
        elif suffix in PICTURE_SUFFIXES and not path.parent.name.startswith("."):
            found.add(path.parent)
    return sorted(found)


def _benchmark(name: str, root: Path) -> tuple[list[tuple[str, Item | Path]], str]:
    """Clips of a benchmark's folder as it is published, and which part of it they are."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; {name} is a folder as it is published")
    return _davis(root) if name == "davis2019" else _mcl_jcv(root)


def _davis(root: Path) -> tuple[list[tuple[str, Item | Path]], str]:
    """JPEGImages/Full-Resolution/SEQUENCE/00000.jpg, ImageSets/2017 and 2019/*.txt.

    Choice: DAVIS 2019 is every sequence that is there, of the four lists. The paper does not say
    which of them it measures on.
    """
    frames = root / DAVIS_FRAMES
    if not frames.is_dir():
        raise ValueError(
            f"{root} has no {DAVIS_FRAMES}: give the folder DAVIS of the full-resolution archives "
            "(DAVIS-2017-Unsupervised-trainval-Full-Resolution.zip, ...-2019-...-test-dev-...)"
        )
    found = {path.name: path for path in sorted(frames.iterdir()) if path.is_dir()}
    if not found:
        raise ValueError(f"{frames} is empty: expected a folder of pictures for each sequence")
    lists: dict[str, set[str]] = {}
    for path in sorted((root / "ImageSets").glob("20*/*.txt")):
        lists.setdefault(path.stem, set()).update(path.read_text().split())
    parts = [
        f"{label} {len(set(found) & names)} of {len(names)}"
        for label, names in lists.items()
        if label in DAVIS_LISTS
    ]
    listed = ", ".join(parts) or "no ImageSets to say which"
    part = f"{len(found)} of {sum(DAVIS_LISTS.values())} sequences ({listed})"
    return list(found.items()), part


def _mcl_jcv(root: Path) -> tuple[list[tuple[str, Item | Path]], str]:
    """videoSRC01_1920x1080_30.yuv to videoSRC30_...; or .mp4 and others, or folders of pictures."""
    found: dict[int, tuple[str, Item | Path]] = {}
    for path in media_in(root):
        number = MCL_JCV_NAME.search(path.name)
        if not number:
            continue
        before = found.setdefault(int(number[1]), (path.relative_to(root).as_posix(), path))
        if before[1] != path:
            raise ValueError(f"{root}: {before[0]} and {path.name} are one clip; leave one of them")
    if not found:
        raise ValueError(f"{root} holds no videoSRC01... to videoSRC30... (.yuv, .mp4, folders)")
    missing = [f"{number:02d}" for number in range(1, MCL_JCV_COUNT + 1) if number not in found]
    part = f"{len(found)} of {MCL_JCV_COUNT} clips"
    if missing:
        part += f" (missing: {', '.join(missing)})"
    return [found[number] for number in sorted(found)], part


def protocol_record(
    config: EvaluateConfig,
    clips: list[EvalClip],
    notes: dict[str, Any],
    networks: dict[str, dict[str, Any] | None],
    show_progress: bool,
) -> dict[str, Any]:
    """What every number of a folder has in common, for JSON."""
    entries = []
    for clip in tqdm(clips, "hashing clips", leave=False, disable=None if show_progress else True):
        with clip.as_path() as path:
            if not path.exists():
                raise ValueError(f"{path}: no such file; it is in the list of clips")
            entries.append({"id": clip.id, "set": clip.set_name, "sha256": sha256_of(path)})
    size, num_frames = config.prepared_size, config.prepared_frames
    return {
        "sets": notes,
        "size": size or "as the files are",
        "crop": "centre square" if size else "none",
        "filter": "FFmpeg bicubic from the file's pixel format" if size else "none",
        "num_frames": num_frames or "all",
        "hue_rotation": f"{config.hue_rotation:g} degrees about the grey axis, clipped",
        "values": "8-bit RGB, rounded after decoding; metrics on [0, 1]",
        "means": "over the frames of a clip, then over clips, then over seeds",
        "metrics": METRICS,
        **networks,
        "rfvd_clips": f"all {config.fvd_frames}-frame pieces of a clip, from its first frame on",
        "clips": entries,
    }


NETWORK_METRICS = ("lpips_alex", "lpips_vgg", "rfvd")  # absent without their weights


def absent_line(protocol: dict[str, Any]) -> tuple[str, str] | None:
    """Which of them are absent, and the command that brings their weights."""
    absent = [METRICS[name][0] for name in NETWORK_METRICS if protocol[name] is None]
    if not absent:
        return None
    return ", ".join(absent), ABSENT


# What the report and the record say of each number: title, explanation.
METRICS = {
    "psnr": ["PSNR, dB", "mean of the frames' PSNR; equal frames count as 100"],
    "psnr_pooled": ["PSNR pooled, dB", "of the mean squared error of the whole clip"],
    "ssim": ["SSIM", "FFmpeg's: 8 x 8 windows every 4 pixels, mean over R, G, B"],
    "ssim_gaussian": ["SSIM Gaussian", "11 x 11 Gaussian window, sigma 1.5, mean over R, G, B"],
    "lpips_alex": ["LPIPS AlexNet", "version 0.1, on each frame at its own size"],
    "lpips_vgg": ["LPIPS VGG", "version 0.1, with VGG-16, on each frame at its own size"],
    "rfvd": ["rFVD", "Frechet distance of I3D features of whole sets, covariance by 1 / N"],
    "flicker": ["flicker", "change of the error from frame to frame, levels of 255"],
    "colour_error": ["colour error", "error of a frame's mean colour, levels of 255"],
    "seam_ratio": ["seam ratio", "step across chunks over step within; 1 is no seam"],
    "seam_ratio_source": ["source's", "the seam ratio of the source at the same positions"],
}
