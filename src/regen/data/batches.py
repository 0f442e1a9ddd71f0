"""Training batches as a function of (seed, rank, step): crops, scales, strides, lengths and tasks.

A batch is images (T = 1) or videos, never both, all of one shape; the three tasks are those of
Sec. 3.2. All randomness comes from the step's own generator, so the same step is the same batch
after any interruption: the position of the stream is the step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from regen.data.buckets import Bucket, Mixture, ShapeBuckets, image_shapes, video_shapes
from regen.data.clips import BadClipError, Clip
from regen.data.colors import augment_colors

TASKS = ("reconstruction", "interpolation", "extrapolation")
PHOTOS_OF_IMAGES = 0.6  # the others are frames of clips
MAX_ATTEMPTS = 100  # to draw a sample, where clips turn out bad
DRIFT = 2.5  # pixels per frame, standard deviation of a photo's moving crop


@dataclass(frozen=True)
class BatchConfig:
    """`num_targets`: frames decoded per video. `other_tasks`: fraction of interpolation and
    extrapolation together at the last step (B.2.2).

    `shapes`: "square" crops `crop` pixels on a side at random positions and scales; "aspect" takes
    whole pictures, images of about `image_size` squared pixels in their own aspect ratio, videos of
    `video_size` (height, width) or on its side, and chunks of one length in a batch.

    Choice: the fraction of the other tasks grows linearly from 0. The paper says only that it
    grows.
    Choice: few random frames of a video are targets, not all. An iteration then sees more videos.
    Choice: some videos are photos under a moving crop, and some chunks short. Photos are sharp and
    many; the last chunk of a video is short.
    """

    seed: int
    num_steps: int
    chunk_length: int
    shapes: Literal["square", "aspect"] = "square"
    crop: int = 96
    image_size: int = 256
    video_size: tuple[int, int] = (192, 320)
    video_batch_size: int = 8
    image_batch_size: int = 32
    image_fraction: float = 0.2
    photo_fraction: float = 0.15  # of the videos: photos under a moving crop
    short_fraction: float = 0.15  # of the videos: chunks of 2 to k frames
    num_targets: int = 3
    other_tasks: float = 0.3
    max_stride: int = 3
    max_scale: float = 2.0
    color_augmentation: bool = True


Batch = dict[str, torch.Tensor | str | list[str]]
Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # chunk, target, frame_times


class TrainingBatches(Dataset[Batch]):
    """`batches[step]` is a batch: `chunk` uint8 `[B, 3, 1 or k + 1, H, W]`, `target` uint8
    `[B, 3, F, H, W]`, `frame_times` float `[B, F]` in frames of the chunk, `task`, and `bad_clips`:
    a line for each clip that could not be read.

    Any step is a batch, also beyond `num_steps`. Images come from clips and photos, videos from
    clips and (moving crops of) photos; where one kind is missing, all come from the other. In place
    of a sample whose clip cannot be read the next of the step's draws is taken. Raises ValueError
    where nothing is left, and where nothing that is drawn can be read.
    """

    def __init__(self, clips: list[Clip], config: BatchConfig, rank: int = 0) -> None:
        self.config, self.rank = config, rank
        self.length = config.chunk_length
        videos = [clip for clip in clips if not clip.is_photo]
        photos = [clip for clip in clips if clip.is_photo]
        if not videos and not photos:
            raise ValueError("no clip or photo is left to train on: give --data more of them")
        self.images = Mixture(videos, photos, PHOTOS_OF_IMAGES)
        self.videos = Mixture(videos, photos, config.photo_fraction)
        if config.shapes == "aspect":
            shapes = video_shapes(config.video_size)
            self.image_buckets = ShapeBuckets(self.images, image_shapes(config.image_size))
            self.short_buckets = ShapeBuckets(self.videos, shapes)
            self.long_buckets = ShapeBuckets(self.videos, shapes, self.length)
        self._bad: dict[Clip, BadClipError] = {}  # of this process: none is tried twice

    def __len__(self) -> int:
        return self.config.num_steps

    def __getitem__(self, step: int) -> Batch:
        config = self.config
        rng = np.random.default_rng([config.seed, self.rank, step])
        if rng.random() < config.image_fraction:
            return self._images(rng)
        bad: list[str] = []
        others = config.other_tasks * min(step / config.num_steps, 1)
        task = str(rng.choice(TASKS, p=[1 - others, others / 2, others / 2]))
        bucket = self.video_bucket(rng)
        samples = [
            self._sample(lambda: self._video(rng, task, bucket), bad)
            for _ in range(config.video_batch_size)
        ]
        return _stack(samples, task, bad)

    def images_of(self, step: int) -> Batch:
        """The batch of images of a step, whatever `image_fraction` is."""
        rng = np.random.default_rng([self.config.seed, self.rank, step])
        return self._images(rng)

    def _images(self, rng: np.random.Generator) -> Batch:
        bucket = self.image_bucket(rng)
        bad: list[str] = []
        samples = [
            self._sample(lambda: self._image(rng, bucket), bad)
            for _ in range(self.config.image_batch_size)
        ]
        return _stack(samples, "image", bad)

    def draw_chunk(self, rng: np.random.Generator, ratio: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A chunk of `ratio` + 1 frames and four more: uint8 `[3, ratio + 5, S, S]`, their times.

        The times `[4]`, in frames of the chunk: ratio + 1, one before or after, two between its
        frames. Where the clip has none of the latter, they are frames of the chunk. Squares of
        `crop` pixels. Clips that cannot be read, or have fewer frames, are passed over.
        """
        bucket = Bucket((self.config.crop, self.config.crop), self.videos)
        for _ in range(MAX_ATTEMPTS):
            clip = bucket.source.draw(rng)
            available = 10**6 if clip.is_photo else clip.num_frames
            longest = (available - 1) // (ratio + 1)
            if longest < 1:
                continue
            stride = min(int(rng.integers(1, self.config.max_stride + 1)), longest)
            span = stride * (ratio + 1) + 1
            start = int(rng.integers(0, available - span + 1))
            inside = rng.integers(1, stride * ratio, size=2)
            if stride > 1:  # between the frames of the chunk
                inside = np.where(inside % stride == 0, inside + 1, inside)
            around = np.array([*range(-4, 0), *range(ratio + 2, ratio + 6)]) * stride
            around = around[(start + around >= 0) & (start + around < available)]
            outside = rng.choice(around) if len(around) else stride * ratio
            extras = np.array([stride * (ratio + 1), outside, *inside])
            where = start + np.concatenate([stride * np.arange(ratio + 1), extras])
            if not clip.is_photo and rng.random() < 0.5:
                where = available - 1 - where
            moving = where - start if clip.is_photo else np.zeros(len(where))
            try:
                pictures = self._read(clip, np.zeros_like(where) if clip.is_photo else where)
            except BadClipError:
                continue
            frames = self._crop(pictures, moving, rng, bucket, 3.0 if clip.is_photo else None)
            return frames, torch.from_numpy(extras / stride).float()
        raise ValueError(
            f"{MAX_ATTEMPTS} clips in a row cannot be read or have fewer than {ratio + 2} frames"
        )

    def image_bucket(self, rng: np.random.Generator) -> Bucket:
        """What the images of a batch have in common."""
        if self.config.shapes == "square":
            return Bucket((self.config.crop, self.config.crop), self.images)
        shape, pool = self.image_buckets.draw(rng)
        return Bucket(shape, pool, is_whole=True)

    def video_bucket(self, rng: np.random.Generator) -> Bucket:
        """What the videos of a batch have in common."""
        if self.config.shapes == "square":
            return Bucket((self.config.crop, self.config.crop), self.videos)
        num_chunk = self._num_chunk(rng)
        is_long = num_chunk == self.length
        shape, pool = (self.long_buckets if is_long else self.short_buckets).draw(rng)
        return Bucket(shape, pool, is_whole=True, num_chunk=num_chunk)

    def _num_chunk(self, rng: np.random.Generator) -> int:
        """Frames of a chunk: k + 1, or in short ones 2 to k."""
        is_short = rng.random() < self.config.short_fraction
        return int(rng.integers(2, self.length)) if is_short else self.length

    def _sample(self, draw: Callable[[], Sample], bad: list[str]) -> Sample:
        """The first of the samples that `draw` gives whose clip can be read."""
        for _ in range(MAX_ATTEMPTS):
            try:
                return draw()
            except BadClipError as error:
                bad.append(str(error))
        raise ValueError(f"{MAX_ATTEMPTS} clips in a row cannot be read; the last: {bad[-1]}")

    def _read(self, clip: Clip, indices: np.ndarray) -> list[np.ndarray]:
        if clip in self._bad:
            raise self._bad[clip]
        try:
            return clip.read(indices.tolist())
        except BadClipError as error:
            self._bad[clip] = error
            raise

    def _image(self, rng: np.random.Generator, bucket: Bucket) -> Sample:
        clip = bucket.source.draw(rng)
        index = rng.integers(clip.num_frames, size=1)
        pictures = self._read(clip, index)
        picture = self._crop(pictures, np.zeros(1), rng, bucket, 4.0 if clip.is_photo else None)
        if self.config.color_augmentation:
            picture = augment_colors(picture, rng)
        return picture, picture, torch.zeros(1)

    def _video(self, rng: np.random.Generator, task: str, bucket: Bucket) -> Sample:
        """The chunk is every stride-th frame of a stretch of the clip, forwards or backwards.

        The targets are frames of the same stretch, at their times. A clip too short for the task is
        reconstructed; one shorter than the chunk gives a short chunk, a single frame a still.
        """
        config, length = self.config, self.length
        num_chunk = bucket.num_chunk or self._num_chunk(rng)
        clip = bucket.source.draw(rng)
        photo = clip.is_photo
        available = 10**6 if photo else clip.num_frames
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
        pictures = self._read(clip, stretch[needed])
        cropped = self._crop(pictures, moving, rng, bucket, 3.0 if photo else None)
        if config.color_augmentation:
            cropped = augment_colors(cropped, rng)
        times = torch.from_numpy((targets - origin) / stride).float()
        return cropped[:, where[:length]], cropped[:, where[length:]], times

    def _targets(
        self, rng: np.random.Generator, task: str, chunk: np.ndarray, stride: int, span: int
    ) -> np.ndarray:
        """`num_targets` locations to ask for, sorted, in a stretch of `span` locations.

        Interpolation: between the frames of `chunk`. Extrapolation: before and after them, in its
        steps. Otherwise, and where there are too few, frames of `chunk`.
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
        pictures: list[np.ndarray],
        times: np.ndarray,
        rng: np.random.Generator,
        bucket: Bucket,
        max_scale: float | None,
    ) -> torch.Tensor:
        """A part of random size and location, in the bucket's shape: uint8 `[3, T, H, W]`.

        Where the bucket is of whole pictures, the part is as large as fits. It drifts with
        `times` (in frames; not all 0 only for a photo, which then needs room).
        """
        height, width = bucket.shape
        full_height, full_width, _ = pictures[0].shape
        largest = min(full_height / height, full_width / width)
        scale = 1.0
        if bucket.is_whole and not times.any():
            scale = largest
        elif rng.random() < 0.5:
            limit = max_scale or self.config.max_scale
            scale = float(rng.uniform(1, max(1.0, min(largest, limit))))
        rows = min(max(int(height * min(scale, largest)), 1), full_height)
        columns = min(max(int(width * min(scale, largest)), 1), full_width)
        top = rng.integers(0, full_height - rows + 1)
        left = rng.integers(0, full_width - columns + 1)
        flip = rng.random() < 0.5
        speed = rng.normal(0, DRIFT * scale, 2) if times.any() else np.zeros(2)
        parts = []
        for picture, time in zip(pictures, times, strict=True):
            y = int(np.clip(top + speed[0] * time, 0, full_height - rows))
            x = int(np.clip(left + speed[1] * time, 0, full_width - columns))
            parts.append(picture[y : y + rows, x : x + columns])
        video = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2)  # [T, 3, rows, columns]
        if (rows, columns) != bucket.shape:
            resized = F.interpolate(video.float(), bucket.shape, mode="bilinear", antialias=True)
            video = resized.round_().clamp_(0, 255).to(torch.uint8)
        if flip:
            video = video.flip(-1)
        return video.permute(1, 0, 2, 3)


def _stack(samples: list[Sample], task: str, bad: list[str]) -> Batch:
    chunk, target, times = zip(*samples, strict=True)
    return {
        "chunk": torch.stack(chunk),
        "target": torch.stack(target),
        "frame_times": torch.stack(times),
        "task": task,
        "bad_clips": bad,
    }
