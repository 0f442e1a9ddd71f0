"""Which clips go into one batch: all of them, cropped to squares, or those of about one shape.

A clip's share of the samples is the same either way: a bucket is drawn by the sum of its clips'
shares, then a clip within it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from regen.data.clips import Clip, fair_shares

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
    """Clips, drawn by shares that need not sum to 1."""

    def __init__(self, clips: Sequence[Clip], shares: np.ndarray) -> None:
        self.clips = clips
        self._cumulated = shares.cumsum() / shares.sum()

    def draw(self, rng: np.random.Generator) -> Clip:
        index = self._cumulated.searchsorted(rng.random(), side="right")
        return self.clips[min(int(index), len(self.clips) - 1)]


class Mixture:
    """Photos for `photo_share` of the draws, else videos; where one kind is missing, the other."""

    def __init__(self, videos: Sequence[Clip], photos: Sequence[Clip], photo_share: float) -> None:
        self.videos = Pool(videos, fair_shares(videos)) if videos else None
        self.photos = Pool(photos, fair_shares(photos)) if photos else None
        self.photo_share = photo_share

    def draw(self, rng: np.random.Generator) -> Clip:
        if self.videos is None or (self.photos is not None and rng.random() < self.photo_share):
            assert self.photos is not None
            return self.photos.draw(rng)
        return self.videos.draw(rng)

    def shares(self) -> tuple[list[Clip], np.ndarray]:
        """All clips and how often each is drawn."""
        clips: list[Clip] = []
        shares = []
        for pool, share in ((self.videos, 1 - self.photo_share), (self.photos, self.photo_share)):
            if pool is not None:
                clips += pool.clips
                shares.append(share * fair_shares(pool.clips))
        joined = np.concatenate(shares)
        return clips, joined / joined.sum() if joined.any() else joined + 1


class ShapeBuckets:
    """One `Pool` for each of `shapes`: of the clips whose aspect ratio it is nearest to."""

    def __init__(self, mixture: Mixture, shapes: Sequence[Shape], min_frames: int = 1) -> None:
        """Videos of fewer than `min_frames` are left out, unless there are no others."""
        clips, shares = mixture.shares()
        is_long = np.array([clip.is_photo or clip.num_frames >= min_frames for clip in clips])
        if (shares * is_long).any():
            shares = shares * is_long
        nearest = np.array([nearest_shape(clip.height, clip.width, shapes) for clip in clips])
        self.shapes: list[Shape] = []
        self.pools: list[Pool] = []
        sums = []
        for index, shape in enumerate(shapes):
            members = np.flatnonzero((nearest == index) & (shares > 0))
            if len(members):
                self.shapes.append(shape)
                self.pools.append(Pool([clips[i] for i in members], shares[members]))
                sums.append(shares[members].sum())
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
