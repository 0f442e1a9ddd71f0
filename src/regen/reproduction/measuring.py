"""PSNR and SSIM of a model on the clips of a folder, kept beside the model.

Clips are prepared as for `regen evaluate` (`regen.video.read_prepared`); metrics on 8-bit RGB, mean
over frames, then over clips.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from regen.codec import decode_frames, encode_frames
from regen.data.finding import find_items
from regen.evaluation.metrics import psnr, ssim
from regen.evaluation.networks import sha256_of
from regen.evaluation.protocols import DAVIS_FRAMES, media_in
from regen.evaluation.sheets import write_picture
from regen.models.loading import Autoencoder
from regen.reproduction.config import ReproduceConfig
from regen.video import VIDEO_SUFFIXES, frames_to_video, read_prepared

NUM_PICTURED = 4  # clips

Measured = dict[str, float]
Measure = Callable[[np.ndarray], Measured]  # of the frames of one clip


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


def compare(frames: np.ndarray, reconstruction: np.ndarray) -> Measured:
    """Means over frames, uint8 `[T, H, W, 3]` each."""
    source, other = frames_to_video(frames)[None], frames_to_video(reconstruction)[None]
    return {"psnr": psnr(other, source).mean().item(), "ssim": ssim(other, source).mean().item()}


def reconstruct(model: Autoencoder, frames: np.ndarray, steps: int = 1) -> np.ndarray:
    """uint8 `[T, H, W, 3]` -> the same, chunk by chunk."""
    generator, rebuilt = torch.Generator().manual_seed(0), []
    length = model.geometry.chunk_length
    for start in range(0, len(frames), length):
        chunk = frames[start : start + length]
        latents = encode_frames(model, chunk)
        num_frames, height, width = chunk.shape[:3]
        rebuilt.append(decode_frames(model, latents, num_frames, height, width, steps, generator))
    return np.concatenate(rebuilt)


def write_comparison(
    path: Path, config: ReproduceConfig, models: Sequence[Autoencoder], sizes: Sequence[int]
) -> None:
    """One PNG: the source and what each of `models` makes of it, a column each.

    A row for each of the first clips and each size, all brought to the largest without smoothing;
    the middle frame of the first chunk.
    """
    rows = []
    for clip in find_clips(config)[:NUM_PICTURED]:
        for size in sizes:
            frames = read_prepared(clip, size, models[0].geometry.chunk_length)
            middle = len(frames) // 2
            shown = [frames[middle], *(reconstruct(model, frames)[middle] for model in models)]
            enlarged = [
                np.kron(one, np.ones((max(sizes) // size, max(sizes) // size, 1))) for one in shown
            ]
            rows.append(np.concatenate(enlarged, axis=1))
    write_picture(path, np.concatenate(rows).astype(np.uint8))


def over_clips(
    config: ReproduceConfig,
    folder: Path,
    name: str,
    measure: Measure,
    size: int | None = None,
    num_frames: int | None = None,
) -> Measured:
    """Means over clips of what `measure` says of each; kept in `folder`, clip by clip.

    Where a clip has no such value (NaN: nothing moves, so no seam ratio) it is left out.
    """
    size, num_frames = size or config.eval_size, num_frames or config.eval_frames
    records: dict[str, Measured] = {}
    path = folder / f"{name}-{size}-{num_frames}.json"
    marks = _mark(folder)
    if path.exists():
        kept = json.loads(path.read_text())
        records = kept["clips"] if kept["model"] == marks else {}
    for clip in tqdm(find_clips(config), f"{folder.parent.name} {name} {size}", leave=False):
        key = f"{clip}:{clip.stat().st_size}"
        if key not in records:
            records[key] = measure(read_prepared(clip, size, num_frames))
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"model": marks, "clips": records}, indent=1) + "\n")
            temporary.replace(path)
    wanted = {f"{clip}:{clip.stat().st_size}" for clip in find_clips(config)}
    rows = [record for key, record in records.items() if key in wanted]
    return {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]}


def _mark(folder: Path) -> str:
    """What tells a model's weights, so that numbers of other ones are not taken for its own."""
    weights = folder / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if weights.exists() else ""
