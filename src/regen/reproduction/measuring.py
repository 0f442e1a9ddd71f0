"""A model on the clips of a folder: its numbers, kept beside the model, and its pictures.

Clips are prepared and measured as by `regen evaluate`: metrics on 8-bit RGB, mean over frames, then
over clips; rFVD of the whole set.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from regen.data.finding import find_items
from regen.evaluation.frechet import frechet_distance
from regen.evaluation.measure import features_of, measure
from regen.evaluation.networks import Networks, load_networks, sha256_of
from regen.evaluation.protocols import DAVIS_FRAMES, METRICS, absent_line, media_in
from regen.evaluation.report import DIGITS
from regen.evaluation.sheets import write_picture
from regen.files import write_json
from regen.loading import Autoencoder, find_device
from regen.reproduction.config import ReproduceConfig
from regen.reproduction.models import Trained
from regen.reproduction.paper import spread
from regen.streaming import encode_frames
from regen.video import VIDEO_SUFFIXES, read_prepared, video_to_frames

NUM_PICTURED = 4  # clips
EQUAL_TIME = 1.25  # largest ratio of two trainings' wall minutes that no note is made of
RFVD_FRAMES = 16  # of a piece of a clip

Measured = dict[str, float]
Record = dict[str, Any]  # numbers of a clip; "features" of its pieces


# -- clips ----------------------------------------------------------------------------------------


def find_clips(config: ReproduceConfig) -> list[Path]:
    """Videos and folders of pictures; of DAVIS as it is published, its sequences at full size.

    Raises ValueError where there is none.
    """
    assert config.eval_data is not None
    davis = config.eval_data / DAVIS_FRAMES
    found = media_in(davis if davis.is_dir() else config.eval_data)
    paths = [path for path in found if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES]
    if not paths:
        raise ValueError(f"{config.eval_data} holds no videos to measure on")
    return paths[: config.max_clips or None]


def check_clips(config: ReproduceConfig, least_frames: int) -> None:
    """ValueError, before anything trains, for clips that cannot be measured on.

    There are none; one is in --data too, under any name; or the first `least_frames` are not there.
    """
    clips = find_clips(config)
    sizes: dict[int, list[Path]] = {}
    for clip in clips:
        if clip.is_file():
            sizes.setdefault(clip.stat().st_size, []).append(clip)
    for item in find_items(config.data, config.cache or config.output / "cache"):
        for clip in sizes.get(item.size, []):
            with item.as_file() as path:
                is_same = sha256_of(path) == sha256_of(clip)
            if is_same:
                raise ValueError(
                    f"{clip} of --eval-data is {item} of --data: models are measured on clips that "
                    "they have not seen"
                )
    for clip in clips if least_frames > 1 else []:
        num_frames = len(read_prepared(clip, config.eval_size, least_frames))
        if num_frames < least_frames:
            raise ValueError(f"{clip} has {num_frames} frames, this takes {least_frames}")


def over_clips(
    config: ReproduceConfig,
    folder: Path,
    name: str,
    measure: Callable[[np.ndarray], Record],
    size: int | None = None,
    num_frames: int | None = None,
) -> list[Record]:
    """What `measure` says of the frames of each clip; kept in `folder`, clip by clip."""
    size, num_frames = size or config.eval_size, num_frames or config.eval_frames
    records: dict[str, Record] = {}
    path = folder / f"{name}-{size}-{num_frames}.json"
    mark = _mark(folder)
    if path.exists():
        kept = json.loads(path.read_text())
        records = kept["clips"] if kept["mark"] == mark else {}
    clips = {f"{clip}:{clip.stat().st_size}": clip for clip in find_clips(config)}
    for key, clip in tqdm(clips.items(), f"{folder.parent.name} {name} {size}", leave=False):
        if key not in records:
            records[key] = measure(read_prepared(clip, size, num_frames))
            write_json(path, {"mark": mark, "clips": records})
    return [records[key] for key in clips]


def means(records: Sequence[Record]) -> Measured:
    """Over clips; one without such a number (NaN: nothing moves, so no seam) is left out."""
    names = [name for name in records[0] if name != "features"]
    return {name: float(np.nanmean([record[name] for record in records])) for name in names}


def _mark(folder: Path) -> str:
    """Of a model's weights and of the metrics' networks: other ones' numbers are not its own."""
    digest = hashlib.sha256(json.dumps(networks().about, sort_keys=True).encode())
    weights = folder / "diffusion_pytorch_model.safetensors"
    digest.update(weights.read_bytes() if weights.exists() else b"")
    return digest.hexdigest()[:16]


# -- numbers --------------------------------------------------------------------------------------


@cache
def networks() -> Networks:
    return load_networks(None, None, "", find_device("auto"))


def measured_names() -> list[str]:
    """PSNR and SSIM, and LPIPS and rFVD where their weights are installed."""
    found = networks()
    return ["psnr", "ssim", *found.lpips, *(["rfvd"] if found.i3d else [])]


def metric_columns(suffix: str = "") -> list[str]:
    return [METRICS[name][0].partition(",")[0] + suffix for name in measured_names()]


def metric_cells(results: Sequence[Measured]) -> list[str]:
    """Mean over the seeds' `results`, and the range, for each of `measured_names`."""
    return [spread([one[name] for one in results], DIGITS[name]) for name in measured_names()]


def notes(config: ReproduceConfig, models: Sequence[Trained]) -> list[str]:
    """What to know before comparing `models`."""
    number = f"the first {config.max_clips}" if config.max_clips else "all"
    lines = [
        f"Ours: {number} clips of {config.eval_data}, the first {config.eval_frames} frames at "
        f"{config.eval_size} x {config.eval_size}, one step; seeds {list(config.seeds)}. The "
        "paper's are of other clips, models of other size and other data (arXiv:2503.08665).",
        "The nominal ratio is not the real one: compare frames per latent frame.",
        *([": ".join(absent) + "."] if (absent := absent_line(networks().about)) else []),
    ]
    if config.minutes:
        lines.append(
            f"Equal training time: {config.minutes:g} minutes for each model by the clock that the "
            "probe read (its plan.json)."
        )
    curves = [
        f"{one.preset}, seed {one.seed}: {', '.join(f'{psnr:.2f}' for psnr in one.curve)}"
        for one in models
    ]
    if curves:
        lines.append(
            "PSNR of clips held out of training, after each quarter of it (is the curve flat? in "
            "the last one the learning rate falls), or at its end alone where validation would "
            f"have taken more than a quarter of the time: {'; '.join(curves)}."
        )
    minutes = [one.wall_minutes for one in models]
    if minutes and config.minutes and max(minutes) > EQUAL_TIME * min(minutes):
        lines.append(
            f"The wall clock says {min(minutes):.1f} to {max(minutes):.1f} minutes: other work "
            "shared the machine."
        )
    return lines


def compare(frames: np.ndarray, reconstruction: np.ndarray) -> Record:
    """Means over frames, uint8 `[T, H, W, 3]` each, of `measured_names` but rFVD."""
    values = measure(frames, reconstruction, None, networks().lpips)
    return {name: values[name] for name in measured_names() if name != "rfvd"}


def _features(frames: np.ndarray) -> Record:
    i3d = networks().i3d
    return {} if i3d is None else {"features": features_of(i3d, frames, RFVD_FRAMES)}


def reconstruction(
    config: ReproduceConfig, one: Trained, steps: int = 1, size: int | None = None
) -> Measured:
    """`measured_names` of a trained model's reconstructions of the clips."""
    model = one.load()

    def measured(frames: np.ndarray) -> Record:
        rebuilt = reconstruct(model, frames, steps)
        return compare(frames, rebuilt) | _features(rebuilt)

    records = over_clips(config, one.folder, f"steps{steps}", measured, size)
    values = means(records)
    if networks().i3d is not None:
        sources = over_clips(config, config.output / "source", "features", _features, size)
        ours, theirs = (
            np.array([row for record in those for row in record["features"]])
            for those in (records, sources)
        )
        values["rfvd"] = frechet_distance(ours, theirs) if len(ours) > 1 else float("nan")
    return values


def reconstruct(model: Autoencoder, frames: np.ndarray, steps: int = 1) -> np.ndarray:
    """uint8 `[T, H, W, 3]` -> the same, chunk by chunk."""
    rebuilt, length = [], model.geometry.chunk_length
    for start in range(0, len(frames), length):
        chunk = frames[start : start + length]
        rebuilt.append(decode_frames(model, encode_frames(model, chunk), chunk, steps))
    return np.concatenate(rebuilt)


@torch.inference_mode()
def decode_frames(
    model: Autoencoder,
    latents: torch.Tensor,
    source: np.ndarray,
    steps: int = 1,
    frame_times: Sequence[float] | None = None,
) -> np.ndarray:
    """`latents` in the size of `source` `[T, H, W, 3]`, at its frames or at `frame_times`."""
    num_frames, (height, width) = len(source), source.shape[1:3]
    sample = model.decode(
        latents,
        num_frames=num_frames if frame_times is None else None,
        frame_times=frame_times,
        height=height,
        width=width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
    ).sample
    return video_to_frames(sample[0])


# -- pictures -------------------------------------------------------------------------------------


def draw(
    config: ReproduceConfig,
    name: str,
    rows_of: Callable[[np.ndarray], Sequence[Sequence[np.ndarray]]],
    num_frames: int,
    sizes: Sequence[int] = (),
) -> None:
    """OUTPUT/NAME.png: of each of the first clips, the rows of pictures that `rows_of` makes of it.

    Of several `sizes`, one below the other, all brought to the largest without smoothing.
    """
    rows = []
    sizes = sizes or (config.eval_size,)
    for clip in find_clips(config)[:NUM_PICTURED]:
        for size in sizes:
            scale = np.ones((max(sizes) // size, max(sizes) // size, 1), np.uint8)
            for row in rows_of(read_prepared(clip, size, num_frames)):
                rows.append(np.concatenate([np.kron(one, scale) for one in row], axis=1))
    write_picture(config.output / f"{name}.png", np.concatenate(rows))
