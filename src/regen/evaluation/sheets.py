"""Pictures of reconstructions (source, reconstruction, error) and of samples; a row a video."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regen.files import draft
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
    write_picture(path, np.concatenate(rows))


def time_slices(
    videos: Sequence[np.ndarray], chunk_length: int | None, scale: int = 6
) -> np.ndarray:
    """The middle column of every frame, side by side in time; the videos one below the other.

    uint8 `[T, H, W, 3]` each -> `[n H + 16 (n - 1), scale T, 3]` of n videos; white marks between
    them stand at the seams.
    """
    num_frames, _, width, _ = videos[0].shape
    ruler = np.zeros((16, scale * num_frames, 3), np.uint8)
    for seam in range(chunk_length or num_frames, num_frames, chunk_length or num_frames):
        ruler[:, max(0, scale * seam - 1) : scale * seam + 1] = 255
    parts = []
    for video in videos:
        column = video[:, :, width // 2].transpose(1, 0, 2)
        parts += [np.repeat(column, scale, axis=1), ruler]
    return np.concatenate(parts[:-1])


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """uint8 `[H, W, 3]` as the ending of `path` says; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft(path) as beside:
        Image.fromarray(pixels).save(beside, quality=90)


def write_samples(path: Path, videos: torch.Tensor, num_shown: int = 5) -> None:
    """One PNG: a row per video of `[B, T, 3, H, W]` in [0, 1], frames from its start to its end."""
    picked = np.unique(np.linspace(0, videos.shape[1] - 1, num_shown).round().astype(int))
    frames = (255 * videos[:, picked].float().cpu()).round().clamp(0, 255).byte().numpy()
    rows = [np.concatenate(list(row.transpose(0, 2, 3, 1)), axis=1) for row in frames]
    write_picture(path, np.concatenate(rows))
