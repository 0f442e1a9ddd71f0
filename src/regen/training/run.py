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


@dataclass
class Learner:
    """One that learns: `objective` is a module whose `forward` is the loss, so that every launcher
    wraps one `forward`; `wrapped` is that as the launcher's processes call it."""

    name: str
    objective: torch.nn.Module
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def parameters(self) -> list[torch.nn.Parameter]:
        return [one for group in self.optimizer.param_groups for one in group["params"]]


class Task(Protocol):
    """What the loop asks of that which is trained."""

    def batch_loss(
        self, run: "Run", learner: Learner, batch: Any, rank: int
    ) -> torch.Tensor | None:
        """Mean loss of a batch; its randomness is that of `rank` and the run's step.

        None: this one does not learn at this step.
        """

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

    `learners` begin with the one whose objective has `model`, and learn in this order.
    """

    config: RunConfig
    accelerator: Accelerator
    task: Task
    model: ModelMixin
    learners: list[Learner]
    ema: EMAModel
    batches: Batches
    bad_clips: BadClips | None
    monitor: Monitor
    step: int = 0
    elapsed_s: float = 0.0

    @property
    def others(self) -> dict[str, tuple[torch.nn.Module, torch.optim.Optimizer]]:
        """Who learns beside the model, for the checkpoint."""
        return {one.name: (one.objective, one.optimizer) for one in self.learners[1:]}

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
