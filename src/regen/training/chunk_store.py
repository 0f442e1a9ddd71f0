"""Chunks of videos with their motion, estimated once and kept on disk: what later frames train on.

A folder for each ratio, of arrays that grow by one chunk at a time; the same command resumes where
it stopped. Colours and flips are drawn again each time that a chunk is read.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from regen.chunking import to_float
from regen.data.batches import Batch, TrainingBatches
from regen.data.colors import augment_colors
from regen.files import write_json
from regen.model.motion import GRID, NEXT_CELL, NUM_TERMS
from regen.model.motion_estimation import estimate_motion, motion_to_next

CHUNK_STREAM = 2**31 + 1  # in place of a rank: the draws of the store are its own
# Choice: a model of 1 to 32x trains on chunks of these ratios, weighted so in batches and on disk.
# It is used at all of them, mostly at 8x and 32x.
RATIO_WEIGHTS = {32: 0.35, 16: 0.1, 8: 0.4, 4: 0.1, 2: 0.05}
BATCH_SIZES = {32: 4, 16: 5, 8: 6, 4: 6, 2: 6}

SAVE_EVERY = 50  # chunks that an interruption may cost
NUM_EXTRAS = 4  # frames beside the chunk: the next, one before or after it, two between its frames
EXTRA_WEIGHT = 0.25  # how often extras are asked for, against frames of the chunk


class ChunkStore:
    """`count` chunks of `ratio` + 1 frames below `folder`, squares of `side` pixels.

    Of each: frames uint8 `[r + 1 + 4, 3, S, S]`, where those after the chunk are at `times` `[4]`
    (the first of them r + 1, the next chunk's first frame), `motion` as `estimate_motion` gives it
    and `to_first` as `motion_to_next`.
    """

    def __init__(self, folder: Path, ratio: int, count: int, side: int) -> None:
        self.folder, self.ratio, self.count, self.side = folder, ratio, count, side
        cells, next_cells = -(-side // GRID), -(-side // GRID) * (GRID // NEXT_CELL)
        num_frames = ratio + 1 + NUM_EXTRAS
        self.shapes = {
            "frames": ((num_frames, 3, side, side), np.uint8),
            "times": ((NUM_EXTRAS,), np.float32),
            "motion": ((2 * NUM_TERMS, cells, cells), np.float16),
            "to_first": ((2, next_cells, next_cells), np.float16),
        }

    @property
    def done(self) -> int:
        """Chunks that are whole on disk, at most `count`."""
        return min(self._state()["chunks"], self.count)

    def _state(self) -> dict[str, int]:
        path = self.folder / "done.json"
        state: dict[str, int] = {"chunks": 0}
        return state | json.loads(path.read_text()) if path.exists() else state

    def array(self, name: str, mode: Literal["r", "r+"] = "r") -> Any:
        shape, dtype = self.shapes[name]
        size = (self.count, *shape)
        return np.memmap(self.folder / f"{name}.bin", np.dtype(dtype), mode, shape=size)

    def fill(
        self,
        draw: Callable[[np.random.Generator, int], tuple[torch.Tensor, torch.Tensor]],
        seed: int,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> None:
        """Estimate the motion of the chunks that are missing.

        `draw(rng, ratio)` gives frames uint8 `[3, r + 1 + 4, S, S]` and times `[4]`. Raises
        ValueError where the folder holds chunks of another ratio, size or seed.
        """
        made_of = {"ratio": self.ratio, "side": self.side, "seed": seed}
        state = self._state()
        others = [
            f"{name} {state[name]}, now {value}"
            for name, value in made_of.items()
            if state.get(name, value) != value
        ]
        if others:
            raise ValueError(
                f"{self.folder} holds other chunks ({', '.join(others)}): give another folder as "
                "--chunk-cache"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, (shape, dtype) in self.shapes.items():
            size = self.count * int(np.prod(shape)) * np.dtype(dtype).itemsize
            with (self.folder / f"{name}.bin").open("ab") as file:
                file.truncate(max(size, file.tell()))  # a larger store keeps what it has
        arrays = {name: self.array(name, "r+") for name in self.shapes}
        for index in progress(range(self.done, self.count)):
            rng = np.random.default_rng([seed, CHUNK_STREAM + self.ratio, index])
            frames, times = draw(rng, self.ratio)
            video = to_float(frames)[None]
            length = self.ratio + 1
            motion = estimate_motion(video[:, :, :length])
            to_first = motion_to_next(
                video[:, :, 0], video[:, :, length], motion, self.ratio, length
            )
            arrays["frames"][index] = frames.transpose(0, 1).numpy()
            arrays["times"][index] = times.numpy()
            arrays["motion"][index] = motion[0].half().numpy()
            arrays["to_first"][index] = to_first[0].half().numpy()
            if (index + 1) % SAVE_EVERY == 0 or index + 1 == self.count:
                for array in arrays.values():
                    array.flush()
                write_json(self.folder / "done.json", {"chunks": index + 1, **made_of})

    def read(self, rng: np.random.Generator, num_targets: int) -> dict[str, torch.Tensor]:
        """A chunk drawn from the store, mirrored and coloured at random, and frames to ask for."""
        index = int(rng.integers(self.done))
        stored = {name: torch.from_numpy(np.array(self.array(name)[index])) for name in self.shapes}
        frames = augment_colors(stored["frames"].transpose(0, 1), rng)  # [3, r + 5, S, S]
        motion = stored["motion"].float()
        to_first = stored["to_first"].float()
        for axis, component in ((-1, 0), (-2, 1)):
            if rng.random() < 0.5:
                frames, motion, to_first = (one.flip(axis) for one in (frames, motion, to_first))
                motion[component::2] *= -1
                to_first[component] *= -1
        length = self.ratio + 1
        times = torch.cat([torch.arange(1, length), stored["times"][1:]])
        chance = np.full(len(times), 1.0)
        chance[length - 1 :] = EXTRA_WEIGHT * (length - 1) / (NUM_EXTRAS - 1)
        wanted = rng.choice(len(times), num_targets, replace=False, p=chance / chance.sum())
        positions = np.concatenate(
            [np.arange(1, length), np.arange(length + 1, length + NUM_EXTRAS)]
        )
        return {
            "chunk": frames[:, :length],
            "target": frames[:, positions[wanted]],
            "frame_times": times[wanted],
            "following": frames[:, length],
            "motion": motion,
            "to_first": to_first,
        }


class ChunkBatches(Dataset[Batch]):
    """Batches of images from `images`, and of chunks of one ratio each from `stores`."""

    def __init__(
        self,
        images: TrainingBatches,
        stores: dict[int, ChunkStore],
        image_fraction: float,
        num_targets: int,
    ) -> None:
        self.images, self.stores = images, stores
        self.image_fraction, self.num_targets = image_fraction, num_targets
        self.rank = images.rank

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, step: int) -> Batch:
        self.images.rank = self.rank
        rng = np.random.default_rng([self.images.config.seed, self.rank, step, CHUNK_STREAM])
        if not self.stores or rng.random() < self.image_fraction:
            return self.images.images_of(step)
        ratios = sorted(self.stores)
        weights = np.array([RATIO_WEIGHTS[ratio] for ratio in ratios])
        ratio = int(rng.choice(ratios, p=weights / weights.sum()))
        samples = [
            self.stores[ratio].read(rng, self.num_targets) for _ in range(BATCH_SIZES[ratio])
        ]
        batch: Batch = {
            name: torch.stack([sample[name] for sample in samples]) for name in samples[0]
        }
        return batch | {"task": f"chunks_{ratio}", "bad_clips": []}
