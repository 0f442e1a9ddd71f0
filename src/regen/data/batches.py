"""Training batches as a function of (seed, rank, step): crops, scales, strides, lengths and the three tasks (Sec. 3.2).

A batch is images (T = 1) or videos, never both. All randomness comes from the step's own generator, so the same step is the
same batch after any interruption.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from regen.data.clips import Clip, fair_shares

TASKS = ("reconstruction", "interpolation", "extrapolation")


@dataclass(frozen=True)
class BatchConfig:
    """`num_targets`: frames decoded per video, drawn from the chunk. `other_tasks`: share of interpolation and
    extrapolation together at the last step, reached linearly from 0 (B.2.2)."""

    seed: int
    num_steps: int
    temporal_compression_ratio: int
    crop: int = 96
    video_batch_size: int = 8
    image_batch_size: int = 32
    image_share: float = 0.2
    photo_share: float = 0.15  # of the videos: photos under a moving crop
    short_share: float = 0.15  # of the videos: chunks of 2 to k frames
    num_targets: int = 3
    other_tasks: float = 0.3
    max_stride: int = 3
    max_scale: float = 2.0


Batch = dict[str, torch.Tensor | str]


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return frames.float().div_(127.5).sub_(1)


class TrainingBatches(Dataset[Batch]):
    """`batches[step]` is a batch: `chunk` uint8 `[B, 3, 1 or k + 1, S, S]`, `target` uint8 `[B, 3, F, S, S]`,
    `frame_times` float `[B, F]` in frames of the chunk, `task`."""

    def __init__(self, clips: list[Clip], config: BatchConfig, rank: int = 0) -> None:
        self.config, self.rank = config, rank
        self.videos = [clip for clip in clips if not clip.is_photo]
        self.photos = [clip for clip in clips if clip.is_photo]
        if not self.videos and not self.photos:
            raise ValueError("no clip or photo is left to train on")
        self.video_shares = fair_shares(self.videos)
        self.photo_shares = fair_shares(self.photos)

    def __len__(self) -> int:
        return self.config.num_steps

    def __getitem__(self, step: int) -> Batch:
        config = self.config
        rng = np.random.default_rng([config.seed, self.rank, step])
        if not self.videos or rng.random() < config.image_share:
            samples = [self._image(rng) for _ in range(config.image_batch_size)]
            task = "image"
        else:
            others = config.other_tasks * step / config.num_steps
            task = str(rng.choice(TASKS, p=[1 - others, others / 2, others / 2]))
            samples = [self._video(rng, task) for _ in range(config.video_batch_size)]
        chunk, target, times = zip(*samples, strict=True)
        return {
            "chunk": torch.stack(chunk),
            "target": torch.stack(target),
            "frame_times": torch.stack(times),
            "task": task,
        }

    def _pick(self, rng: np.random.Generator, photo: bool) -> np.ndarray:
        clips, shares = (self.photos, self.photo_shares) if photo else (self.videos, self.video_shares)
        return clips[rng.choice(len(clips), p=shares)].frames()

    def _image(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        photo = not self.videos or (bool(self.photos) and rng.random() < 0.6)
        frames = self._pick(rng, photo)
        index = rng.integers(len(frames))
        picture = self._crop(frames[index : index + 1], rng, moving=False, max_scale=4.0 if photo else None)
        return picture, picture, torch.zeros(1)

    def _video(self, rng: np.random.Generator, task: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The chunk is frames start + stride * i of the clip; the targets are any frames of the clip, at their times."""
        config = self.config
        length = config.temporal_compression_ratio + 1
        num_chunk = int(rng.integers(2, length)) if rng.random() < config.short_share else length
        photo = bool(self.photos) and rng.random() < config.photo_share
        frames = self._pick(rng, photo)
        # before, after: frames that extrapolation may ask for beyond the chunk
        reach = int(rng.integers(1, length // 2 + 1)) if task == "extrapolation" else 0
        before = int(rng.integers(0, reach + 1)) if reach else 0
        longest = (10**6 if photo else len(frames) - 1) // max(1, num_chunk - 1 + reach)
        fewest = 2 if task == "interpolation" else 1
        stride = int(min(rng.integers(fewest, config.max_stride + fewest), max(longest, 1)))
        span = stride * (num_chunk - 1 + reach) + 1
        if photo:
            window = frames[[0] * span]
        else:
            start = int(rng.integers(0, max(1, len(frames) - span + 1)))
            index = np.minimum(np.arange(start, start + span), len(frames) - 1)
            window = frames[index[0] : index[-1] + 1][index - index[0]]
        if rng.random() < 0.5:
            window = window[::-1]
        origin = before * stride
        chunk_index = origin + stride * np.minimum(np.arange(length), num_chunk - 1)
        inside = np.arange(origin, origin + stride * (num_chunk - 1) + 1)
        on_chunk = (inside - origin) % stride == 0
        if task == "interpolation" and stride > 1:
            candidates = inside[~on_chunk]
        elif task == "extrapolation":
            candidates = np.setdiff1d(np.arange(0, span, stride), inside)
        else:
            candidates = inside[on_chunk]
        if len(candidates) < config.num_targets:  # fill up with frames of the chunk
            candidates = np.concatenate([candidates, rng.choice(inside[on_chunk], config.num_targets)])
        targets = np.sort(rng.choice(candidates, config.num_targets, replace=False))
        needed, where = np.unique(np.concatenate([chunk_index, targets]), return_inverse=True)
        cropped = self._crop(window, rng, moving=photo, max_scale=3.0 if photo else None, index=needed)
        times = torch.from_numpy((targets - origin) / stride).float()
        return cropped[:, where[:length]], cropped[:, where[length:]], times

    def _crop(
        self,
        frames: np.ndarray,
        rng: np.random.Generator,
        moving: bool,
        max_scale: float | None,
        index: np.ndarray | None = None,
    ) -> torch.Tensor:
        """A square region of random size and place (`moving`: drifting), as `crop` x `crop`: uint8 `[3, T, S, S]`."""
        size = self.config.crop
        _, height, width, _ = frames.shape
        largest = min(height, width) / size
        scale = 1.0
        if rng.random() < 0.5:
            scale = float(rng.uniform(1, max(1.0, min(largest, max_scale or self.config.max_scale))))
        region = min(max(int(size * min(scale, largest)), 1), height, width)
        top, left = rng.integers(0, height - region + 1), rng.integers(0, width - region + 1)
        flip = rng.random() < 0.5
        speed = rng.normal(0, 2.5 * scale, 2) if moving else np.zeros(2)  # pixels of the photo per frame
        index = np.arange(len(frames)) if index is None else index
        pictures = []
        for position in index:
            y = int(np.clip(top + speed[0] * position, 0, height - region))
            x = int(np.clip(left + speed[1] * position, 0, width - region))
            pictures.append(frames[position, y : y + region, x : x + region])
        video = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [T, 3, R, R]
        if region != size:
            resized = F.interpolate(video.float(), (size, size), mode="bilinear", antialias=True)
            video = resized.round_().clamp_(0, 255).to(torch.uint8)
        if flip:
            video = video.flip(-1)
        return video.permute(1, 0, 2, 3)
