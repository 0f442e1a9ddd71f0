"""Training batches as a function of (seed, rank, step): crops, scales, strides, lengths and tasks.

A batch is images (T = 1) or videos, never both; the three tasks are those of Sec. 3.2. All
randomness comes from the step's own generator, so the same step is the same batch after any
interruption.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from regen.data.clips import Clip, fair_shares

TASKS = ("reconstruction", "interpolation", "extrapolation")
PICTURE_STREAM = 2**31  # in place of a rank: the draws of the picture stage are its own
DRIFT = 2.5  # pixels per frame, standard deviation of a photo's moving crop


@dataclass(frozen=True)
class BatchConfig:
    """`num_targets`: frames decoded per video. `other_tasks`: share of interpolation and
    extrapolation together at the last step (B.2.2).

    Choice: the share of the other tasks grows linearly from 0. The paper says only that it grows.
    Choice: few random frames of a video are targets, not all. An iteration then sees more videos.
    Choice: some videos are photos under a moving crop, and some chunks short. Photos are sharp and
    many; the last chunk of a video is short.
    """

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
Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # chunk, target, frame_times


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return frames.float().div_(127.5).sub_(1)


class TrainingBatches(Dataset[Batch]):
    """`batches[step]` is a batch: `chunk` uint8 `[B, 3, 1 or k + 1, S, S]`, `target` uint8
    `[B, 3, F, S, S]`, `frame_times` float `[B, F]` in frames of the chunk, `task`.

    Any step is a batch, also beyond `num_steps`. Images come from clips and photos, videos from
    clips and (moving crops of) photos; where one kind is missing, all come from the other. Raises
    ValueError where nothing is left.
    """

    def __init__(self, clips: list[Clip], config: BatchConfig, rank: int = 0) -> None:
        self.config, self.rank = config, rank
        self.videos = [clip for clip in clips if not clip.is_photo]
        self.photos = [clip for clip in clips if clip.is_photo]
        if not self.videos and not self.photos:
            raise ValueError("no clip or photo is left to train on: give --data more of them")
        self.video_shares = fair_shares(self.videos)
        self.photo_shares = fair_shares(self.photos)

    def __len__(self) -> int:
        return self.config.num_steps

    def __getitem__(self, step: int) -> Batch:
        config = self.config
        rng = np.random.default_rng([config.seed, self.rank, step])
        if rng.random() < config.image_share:
            samples = [self._image(rng) for _ in range(config.image_batch_size)]
            task = "image"
        else:
            others = config.other_tasks * min(step / config.num_steps, 1)
            task = str(rng.choice(TASKS, p=[1 - others, others / 2, others / 2]))
            samples = [self._video(rng, task) for _ in range(config.video_batch_size)]
        chunk, target, times = zip(*samples, strict=True)
        return {
            "chunk": torch.stack(chunk),
            "target": torch.stack(target),
            "frame_times": torch.stack(times),
            "task": task,
        }

    def pictures(self, rng: np.random.Generator, count: int) -> torch.Tensor:
        """uint8 `[count, 3, S, S]`: photos and frames of clips."""
        return torch.cat([self._image(rng)[0] for _ in range(count)], dim=1).transpose(0, 1)

    def _is_photo(self, rng: np.random.Generator, share: float) -> bool:
        return not self.videos or (bool(self.photos) and rng.random() < share)

    def _pick(self, rng: np.random.Generator, photo: bool) -> np.ndarray:
        """The frames of a clip or photo, drawn by its share."""
        clips = self.photos if photo else self.videos
        shares = self.photo_shares if photo else self.video_shares
        return clips[rng.choice(len(clips), p=shares)].frames()

    def _image(self, rng: np.random.Generator) -> Sample:
        photo = self._is_photo(rng, 0.6)
        frames = self._pick(rng, photo)
        index = rng.integers(len(frames), size=1)
        picture = self._crop(frames, index, np.zeros(1), rng, 4.0 if photo else None)
        return picture, picture, torch.zeros(1)

    def _video(self, rng: np.random.Generator, task: str) -> Sample:
        """The chunk is every stride-th frame of a stretch of the clip, forwards or backwards.

        The targets are frames of the same stretch, at their times. A clip too short for the task is
        reconstructed; one shorter than the chunk gives a short chunk, a single frame a still.
        """
        config = self.config
        length = config.temporal_compression_ratio + 1
        is_short = rng.random() < config.short_share
        num_chunk = int(rng.integers(2, length)) if is_short else length
        photo = self._is_photo(rng, config.photo_share)
        frames = self._pick(rng, photo)
        available = 10**6 if photo else len(frames)
        num_chunk = min(num_chunk, max(2, available))
        # Extrapolation asks for frames before and after the chunk: `reach` of them in all.
        # Choice: extrapolation reaches half a chunk at most. The paper gives no number of frames.
        reach = int(rng.integers(1, length // 2 + 1)) if task == "extrapolation" else 0
        before = int(rng.integers(0, reach + 1)) if reach else 0
        reach = max(0, min(reach, available - num_chunk))
        before = min(before, reach)
        longest = (available - 1) // (num_chunk - 1 + reach)
        slowest = 2 if task == "interpolation" else 1
        stride = int(rng.integers(slowest, config.max_stride + slowest))
        stride = min(stride, max(longest, 1))
        span = stride * (num_chunk - 1 + reach) + 1
        if photo:
            stretch = np.zeros(span, np.int64)
        else:
            start = int(rng.integers(0, max(1, available - span + 1)))
            stretch = np.minimum(np.arange(start, start + span), available - 1)
        if rng.random() < 0.5:
            stretch = stretch[::-1]
        origin = before * stride  # of the chunk, in the stretch
        chunk = origin + stride * np.minimum(np.arange(length), num_chunk - 1)
        targets = self._targets(rng, task, chunk, stride, span)
        needed, where = np.unique(np.concatenate([chunk, targets]), return_inverse=True)
        moving = needed if photo else np.zeros(len(needed))
        cropped = self._crop(frames, stretch[needed], moving, rng, 3.0 if photo else None)
        times = torch.from_numpy((targets - origin) / stride).float()
        return cropped[:, where[:length]], cropped[:, where[length:]], times

    def _targets(
        self, rng: np.random.Generator, task: str, chunk: np.ndarray, stride: int, span: int
    ) -> np.ndarray:
        """`num_targets` places to ask for, sorted, in a stretch of `span` places.

        Interpolation: between the places of `chunk`. Extrapolation: before and after them, in its
        steps. Otherwise, and where there are too few, places of `chunk`.
        """
        num_targets = self.config.num_targets
        inside = np.arange(chunk[0], chunk[-1] + 1)
        on_chunk = inside[::stride]
        if task == "interpolation" and stride > 1:
            candidates = np.setdiff1d(inside, on_chunk)
        elif task == "extrapolation":
            candidates = np.setdiff1d(np.arange(0, span, stride), inside)
        else:
            candidates = on_chunk
        if len(candidates) < num_targets:
            candidates = np.concatenate([candidates, rng.choice(on_chunk, num_targets)])
        return np.sort(rng.choice(candidates, num_targets, replace=False))

    def _crop(
        self,
        frames: np.ndarray,
        index: np.ndarray,
        moments: np.ndarray,
        rng: np.random.Generator,
        max_scale: float | None,
    ) -> torch.Tensor:
        """Frames `index` in a square of random size and place: uint8 `[3, len(index), S, S]`.

        The region drifts with `moments` (in frames; not all 0 only for a photo).
        """
        size = self.config.crop
        _, height, width, _ = frames.shape
        largest = min(height, width) / size
        scale = 1.0
        if rng.random() < 0.5:
            limit = max_scale or self.config.max_scale
            scale = float(rng.uniform(1, max(1.0, min(largest, limit))))
        region = min(max(int(size * min(scale, largest)), 1), height, width)
        top, left = rng.integers(0, height - region + 1), rng.integers(0, width - region + 1)
        flip = rng.random() < 0.5
        speed = rng.normal(0, DRIFT * scale, 2) if moments.any() else np.zeros(2)
        pictures = []
        for frame, moment in zip(index, moments, strict=True):
            y = int(np.clip(top + speed[0] * moment, 0, height - region))
            x = int(np.clip(left + speed[1] * moment, 0, width - region))
            pictures.append(frames[frame, y : y + region, x : x + region])
        video = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [T, 3, R, R]
        if region != size:
            resized = F.interpolate(video.float(), (size, size), mode="bilinear", antialias=True)
            video = resized.round_().clamp_(0, 255).to(torch.uint8)
        if flip:
            video = video.flip(-1)
        return video.permute(1, 0, 2, 3)


class PictureBatches(Dataset[torch.Tensor]):
    """`batches[step]`: pictures, uint8 `[batch_size, 3, S, S]`; the same in every process."""

    def __init__(self, batches: TrainingBatches, num_steps: int, batch_size: int) -> None:
        self.batches, self.num_steps, self.batch_size = batches, num_steps, batch_size
        self.seed = batches.config.seed

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([self.seed, PICTURE_STREAM, step])
        return self.batches.pictures(rng, self.batch_size)
