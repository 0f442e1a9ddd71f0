"""A run of the loop: what it is made of, where it stands, and the task that it trains for."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import EMAModel
from torch.utils.data import Dataset

from regen.data.bad_clips import BadClips
from regen.training.config import RunConfig
from regen.training.monitor import Monitor


class Batches(Protocol):
    """Batch `step` of `rank`, a function of the two."""

    rank: int

    def __getitem__(self, step: int) -> Any: ...


class Task(Protocol):
    """What the loop asks of that which is trained."""

    def batch_loss(self, run: "Run", batch: Any, rank: int) -> torch.Tensor:
        """Mean loss of a batch; its randomness is that of `rank` and the run's step."""

    def validate(self, run: "Run", sheet: Path | None) -> dict[str, float]:
        """Values of the model as it is now, by the names of their curves; {}: nothing to measure.

        On every process, as a sharded model needs them all; the main one writes a picture, where
        it is asked.
        """

    def export(self, run: "Run", state: dict[str, torch.Tensor], folder: Path) -> None:
        """Write the model with the weights `state`, on the main process."""


@dataclass
class Run:
    """`step` iterations done in `elapsed_s` seconds.

    `objective` is a module whose `forward` is the loss, so that every launcher wraps one `forward`;
    `wrapped` is that as the launcher's processes call it, `model` is the one within.
    """

    config: RunConfig
    accelerator: Accelerator
    task: Task
    model: ModelMixin
    objective: torch.nn.Module
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    batches: Batches
    bad_clips: BadClips | None
    monitor: Monitor
    step: int = 0
    elapsed_s: float = 0.0

    def rank_of(self, index: int) -> int:
        """The rank whose batch is this process' batch `index` of an iteration.

        So N processes of one batch draw what one process of N batches draws.
        """
        return index * self.accelerator.num_processes + self.accelerator.process_index


class OwnBatches(Dataset[Any]):
    """The batches of this process: item `step * n + index` is batch `index` of n of `step`."""

    def __init__(self, run: Run) -> None:
        self.of_index = []
        for index in range(run.config.gradient_accumulation_steps):
            batches = copy.copy(run.batches)
            batches.rank = run.rank_of(index)
            self.of_index.append(batches)

    def __getitem__(self, item: int) -> Any:
        step, index = divmod(item, len(self.of_index))
        return self.of_index[index][step]


def step_seed(seed: int, rank: int, step: int) -> int:
    """Seed of the noise of one step; 63 bits."""
    return ((seed * 1000 + rank) * 10**9 + step) % 2**63
