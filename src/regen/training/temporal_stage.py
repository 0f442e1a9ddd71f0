"""The second stage of a model with a temporal codec: what the warp leaves of a chunk.

The warp of each chunk is made once and kept on disk as coefficients; the codec then sees each many
times, as no motion has to be looked for. Starts as principal components and least squares.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from regen.data.batches import TrainingBatches, to_float
from regen.models.shortcut import MotionShortcut
from regen.models.temporal import VALUES, TemporalCodec
from regen.training.least_squares import (
    least_squares,
    neighbourhoods,
    rows,
    set_conv,
    set_synthesis,
)
from regen.training.stage import make_optimizer, run_stage

BATCH_SIZE = 8
NUM_INIT_BATCHES = 30
CHUNK_STREAM = 2**31 + 1  # in place of a rank: the draws of this stage are its own
ORDER_STREAM = 2**31 + 2
WEIGHT_FLOOR = 0.01  # of a sample's squared error by coefficient, in its weight
ERROR_FLOOR = 1e-6  # of a sample's squared error by pixel, in its logarithm: 60 dB
# Choice: the temporal stage adds noise of deviation 0.02 to all codes. They may then be rounded, or
# come from a generator.
CODE_NOISE = 0.02


@dataclass(frozen=True)
class Examples:
    """Chunks as the codec sees them: known coefficients of the chunk and of its warp, conditions,
    picture, all `[B, ..., h, w]`, and the mean square of what is not known, `[B]`."""

    chunk: torch.Tensor
    base: torch.Tensor
    conditions: torch.Tensor
    picture: torch.Tensor
    unknown: torch.Tensor

    def to(self, device: torch.device) -> "Examples":
        return Examples(*(one.to(device).float() for one in vars(self).values()))


class ExampleBatches(Dataset[Examples]):
    """`batches[step]`: random examples of those in `folder`, a file for each."""

    def __init__(self, folder: Path, num_examples: int, num_steps: int, seed: int) -> None:
        self.folder, self.num_examples = folder, num_examples
        self.num_steps, self.seed = num_steps, seed

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Examples:
        rng = np.random.default_rng([self.seed, ORDER_STREAM, step])
        return self.read(rng.integers(self.num_examples, size=BATCH_SIZE).tolist())

    def path(self, index: int) -> Path:
        return self.folder / f"example_{index:06d}.safetensors"

    def read(self, indices: Iterable[int]) -> Examples:
        names = Examples.__dataclass_fields__
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for index in indices:
            with safe_open(self.path(index), framework="pt") as file:
                for name in names:
                    parts[name].append(file.get_tensor(name))
        return Examples(**{name: torch.cat(values) for name, values in parts.items()})


@torch.no_grad()
def choose_coefficients(temporal: TemporalCodec, chunks: Iterable[torch.Tensor]) -> None:
    """Let `temporal` know those that vary most, over the squares of a chunk's mean."""
    power: torch.Tensor | float = 0.0
    for chunk in chunks:
        every = temporal.all_coefficients(to_float(chunk)[:, :, 1:]).square().mean((2, 3))
        changing = every[:, VALUES:].sum(1, keepdim=True)
        power = power + (every / (changing + 2)).mean(0)
    assert isinstance(power, torch.Tensor)
    chosen = power.argsort(descending=True)[: len(temporal.index)]
    temporal.index.copy_(chosen.sort().values)


@torch.no_grad()
def make_example(shortcut: MotionShortcut, chunk: torch.Tensor) -> Examples:
    """`chunk` uint8 `[1, 3, k + 1, S, S]` as the temporal codec of `shortcut` sees it."""
    temporal = shortcut.temporal
    assert temporal is not None
    video = to_float(chunk)
    content = shortcut.picture.encode(video[:, :, 0])
    picture, motion, seen = shortcut.warped(video, content)
    every = temporal.all_coefficients(video[:, :, 1:])
    known = every[:, temporal.index]
    unknown = every.square().sum((1, 2, 3)) - known.square().sum((1, 2, 3))
    return Examples(
        known.half(),
        temporal.coefficients(seen).half(),
        torch.cat([content, motion], dim=1).half(),
        temporal.picture_coefficients(picture).half(),
        unknown / every[0].numel(),
    )


def make_examples(
    shortcut: MotionShortcut,
    batches: TrainingBatches,
    examples: ExampleBatches,
    accelerator: Accelerator,
    progress: Callable[[range], Iterable[int]],
) -> None:
    """Write those that are missing; the processes share them out."""
    examples.folder.mkdir(parents=True, exist_ok=True)
    count = accelerator.num_processes
    for index in progress(range(accelerator.process_index, examples.num_examples, count)):
        path = examples.path(index)
        if path.exists():
            continue
        rng = np.random.default_rng([examples.seed, CHUNK_STREAM, index])
        example = make_example(shortcut, batches.video(rng))
        temporary = path.with_suffix(".tmp")
        try:
            save_file({name: one.contiguous() for name, one in vars(example).items()}, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


@torch.no_grad()
def init_temporal(temporal: TemporalCodec, batches: Iterable[Examples]) -> None:
    """Set the scales and the linear half of `temporal` from examples."""
    given = [batch.to(temporal.index.device) for batch in batches]

    def weights(batch: Examples) -> torch.Tensor:
        """Of the samples, `[B, 1, 1, 1]`: the inverse of the warp's error."""
        errors = (batch.chunk - batch.base).square().mean((1, 2, 3), keepdim=True)
        return (errors + WEIGHT_FLOOR).reciprocal()

    def total(values: Iterator[torch.Tensor]) -> torch.Tensor:
        return torch.stack([one.mean((0, 2, 3)) for one in values]).mean(0)

    of_both = total(weights(one) * one.chunk * one.base for one in given)
    of_base = total(weights(one) * one.base.square() for one in given)
    temporal.base_gain.copy_((of_both / (of_base + 1e-6)).clamp(0, 1) - 1)
    temporal.base_scale.copy_(total(one.chunk.square() for one in given).sqrt() + 1e-3)
    temporal.picture_scale.copy_(total(one.picture.square() for one in given).sqrt() + 1e-3)

    def left(batch: Examples) -> torch.Tensor:
        return batch.chunk - (1 + temporal.base_gain.view(1, -1, 1, 1)) * batch.base

    mean_weight = torch.stack([weights(one).mean() for one in given]).mean()
    scale = total(weights(one) / mean_weight * left(one).square() for one in given).sqrt()
    temporal.left_scale.copy_(scale + 1e-3)
    moments = torch.zeros(len(scale), len(scale), dtype=torch.float64)
    for one in given:
        weighted = rows(weights(one).sqrt() * left(one))
        moments += (weighted.T @ weighted).double() / len(weighted)
    num_codes = temporal.analysis.out_channels
    directions = torch.linalg.eigh(moments)[1][:, -num_codes:].flip(1).float()
    codes = torch.cat([rows(left(one)) @ directions for one in given])
    set_conv(temporal.analysis, (directions / codes.std(0)).T, torch.zeros(num_codes))

    def equations() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for one in given:
            inputs = [temporal.analysis(left(one)), one.conditions]
            features = neighbourhoods(torch.cat(inputs, dim=1))
            root = (weights(one) / mean_weight).sqrt().expand_as(one.chunk[:, :1])
            yield rows(root) * features, rows(root * left(one))

    set_synthesis(temporal.synthesis, least_squares(equations()))


def temporal_loss(
    temporal: TemporalCodec, examples: Examples, generator: torch.Generator
) -> torch.Tensor:
    """Mean over samples of the logarithm of the squared error: PSNR, turned over.

    Choice: the temporal stage descends on the logarithm of each sample's error. A decibel of any
    clip then counts as much as of any other.
    """
    base, picture = examples.base, examples.picture
    codes = temporal.encode(examples.chunk, base, picture)
    noise = [
        CODE_NOISE * torch.randn(one.shape, generator=generator).to(one)
        for one in (codes, examples.conditions)
    ]
    conditions = examples.conditions + noise[1]
    added = temporal.decode(codes + noise[0], conditions, base, picture)
    places = examples.chunk[0, 0].numel()
    errors = (base + added - examples.chunk).square().sum((1, 2, 3))
    errors = errors / (places * temporal.ratio * VALUES) + examples.unknown
    return (errors / 4 + ERROR_FLOOR).log().mean()  # 4: the square of the pixels' range


def train_temporal(
    shortcut: MotionShortcut,
    batches: TrainingBatches,
    num_examples: int,
    num_steps: int,
    accelerator: Accelerator,
    folder: Path,
    checkpoint_every: int,
    num_workers: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Train the temporal codec of `shortcut`, whose picture codec stays.

    Goes on from what `folder` holds: examples, then checkpoints.
    """
    temporal = shortcut.temporal
    assert temporal is not None
    seed = batches.config.seed
    examples = ExampleBatches(folder / "examples", num_examples, num_steps, seed)
    drawn = (
        batches.video(np.random.default_rng([seed, CHUNK_STREAM, index]))
        for index in range(min(num_examples, BATCH_SIZE * NUM_INIT_BATCHES))
    )
    choose_coefficients(temporal, drawn)
    make_examples(shortcut, batches, examples, accelerator, progress)
    num_first = math.ceil(min(num_examples, BATCH_SIZE * NUM_INIT_BATCHES) / BATCH_SIZE)
    init_temporal(temporal, (examples[step] for step in range(num_first)))
    temporal.to(accelerator.device).requires_grad_(True)
    temporal.analysis.requires_grad_(False)

    def loss(batch: Examples, generator: torch.Generator) -> torch.Tensor:
        return temporal_loss(temporal, batch.to(accelerator.device), generator)

    optimizer = make_optimizer((temporal.encoder, temporal.decoder), temporal.synthesis)
    run_stage(
        "chunks", temporal, optimizer, loss, examples, accelerator, folder, checkpoint_every,
        num_workers,
    )  # fmt: skip
