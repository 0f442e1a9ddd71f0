"""Pictures of reconstructions: rows of source, reconstruction and error, side by side in time."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regen.video import video_to_frames


def comparison(source: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Source, reconstruction and 4 x the absolute error, left to right.

    uint8 `[..., H, W, 3]` each -> `[..., H, 3 W, 3]`.
    """
    error = 4 * np.abs(source.astype(np.int16) - reconstruction)
    return np.concatenate([source, reconstruction, error.clip(0, 255).astype(np.uint8)], axis=-2)


def write_sheet(path: Path, source: torch.Tensor, reconstruction: torch.Tensor) -> None:
    """One PNG: a row per video of `[B, 3, T, H, W]`, its first, middle and last frame compared."""
    rows = []
    for one, other in zip(source, reconstruction, strict=True):
        frames = comparison(video_to_frames(one), video_to_frames(other))
        picked = frames[[0, len(frames) // 2, len(frames) - 1]]
        rows.append(np.concatenate(list(picked), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)
