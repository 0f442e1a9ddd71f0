"""Which clips go into one batch: all of them, cropped to squares, or those of about one shape.

A clip's fraction of the samples is the same either way: a bucket is drawn by the sum of its clips'
probabilities, then a clip within it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from regen.data.clips import Clip, fair_probabilities

SIDE_STEP = 32  # pixels; what all presets can divide
Shape = tuple[int, int]  # height, width


class Source(Protocol):
    """Where samples of a batch come from."""

    def draw(self, rng: np.random.Generator) -> Clip: ...


@dataclass(frozen=True)
class Bucket:
    """Samples of `shape`. `is_whole`: as much of the picture as the shape allows, else a random
    part of it. `num_chunk`: frames of every chunk, None: drawn for each."""

    shape: Shape
    source: Source
    is_whole: bool = False
    num_chunk: int | None = None


class Pool:
    """Clips, drawn by probabilities that need not sum to 1."""

    def __init__(self, clips: Sequence[Clip], probabilities: np.ndarray) -> None:
        self.clips = clips
        self._cumulated = probabilities.cumsum() / probabilities.sum()

    def draw(self, rng: np.random.Generator) -> Clip:
        index = self._cumulated.searchsorted(rng.random(), side="right")
        return self.clips[min(int(index), len(self.clips) - 1)]


class Mixture:
    """Photos for `photo_fraction` of the draws, else videos; one kind alone where one lacks."""

    def __init__(
        self, videos: Sequence[Clip], photos: Sequence[Clip], photo_fraction: float
    ) -> None:
        self.videos = Pool(videos, fair_probabilities(videos)) if videos else None
        self.photos = Pool(photos, fair_probabilities(photos)) if photos else None
        self.photo_fraction = photo_fraction

    def draw(self, rng: np.random.Generator) -> Clip:
        if self.videos is None or (self.photos is not None and rng.random() < self.photo_fraction):
            assert self.photos is not None
            return self.photos.draw(rng)
        return self.videos.draw(rng)

    def probabilities(self) -> tuple[list[Clip], np.ndarray]:
        """All clips and how often each is drawn."""
        clips: list[Clip] = []
        probabilities = []
        for pool, probability in (
            (self.videos, 1 - self.photo_fraction),
            (self.photos, self.photo_fraction),
        ):
            if pool is not None:
                clips += pool.clips
                probabilities.append(probability * fair_probabilities(pool.clips))
        joined = np.concatenate(probabilities)
        return clips, joined / joined.sum() if joined.any() else joined + 1


class ShapeBuckets:
    """One `Pool` for each of `shapes`: of the clips whose aspect ratio it is nearest to."""

    def __init__(self, mixture: Mixture, shapes: Sequence[Shape], min_frames: int = 1) -> None:
        """Videos of fewer than `min_frames` are left out, unless there are no others."""
        clips, probabilities = mixture.probabilities()
        is_long = np.array([clip.is_photo or clip.num_frames >= min_frames for clip in clips])
        if (probabilities * is_long).any():
            probabilities = probabilities * is_long
        nearest = np.array([nearest_shape(clip.height, clip.width, shapes) for clip in clips])
        self.shapes: list[Shape] = []
        self.pools: list[Pool] = []
        sums = []
        for index, shape in enumerate(shapes):
            members = np.flatnonzero((nearest == index) & (probabilities > 0))
            if len(members):
                self.shapes.append(shape)
                self.pools.append(Pool([clips[i] for i in members], probabilities[members]))
                sums.append(probabilities[members].sum())
        self._cumulated = np.cumsum(sums) / np.sum(sums)

    def draw(self, rng: np.random.Generator) -> tuple[Shape, Pool]:
        index = int(self._cumulated.searchsorted(rng.random(), side="right"))
        index = min(index, len(self.pools) - 1)
        return self.shapes[index], self.pools[index]


def image_shapes(size: int) -> list[Shape]:
    """Shapes of about `size` x `size` pixels in all, from 1 : 4 to 4 : 1, in steps of 32.

    Choice: an image in its own aspect ratio keeps the number of pixels, not a side. The paper says
    256 without saying of what; all iterations then cost the same.
    """
    wide = []
    for height in range(SIDE_STEP, size + 1, SIDE_STEP):
        width = SIDE_STEP * round(size * size / height / SIDE_STEP)
        if width <= 4 * height:
            wide.append((height, width))
    return [*wide, *((width, height) for height, width in reversed(wide) if width != height)]


def video_shapes(shape: Shape) -> list[Shape]:
    """The shape, and it on its side."""
    return list(dict.fromkeys([shape, (shape[1], shape[0])]))


def nearest_shape(height: int, width: int, shapes: Sequence[Shape]) -> int:
    """Index of the shape whose aspect ratio is nearest; of equals the first."""
    ratio = math.log(height / width)
    return min(range(len(shapes)), key=lambda i: abs(math.log(shapes[i][0] / shapes[i][1]) - ratio))
