"""A stage before the training loop: one small codec of the shortcuts, trained with Muon.

Every draw follows from (seed, step); every process does the same work, so that all end with the
same weights.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from regen.training.averages import make_averages
from regen.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from regen.training.loading import TimedLoader
from regen.training.muon import Muon
from regen.training.optimizer import learning_rate_factor
from regen.training.parallel import anywhere, everywhere
from regen.training.stopping import StopSignals

LEARNING_RATE = 1.2e-3
WARMUP_STEPS = 100
COOLDOWN_SHARE = 0.8
EMA_DECAY = 0.998
MAX_GRADIENT_NORM = 1.0


class StageBatches(Protocol):
    """`batches[step]` for each step, drawn from `seed`; a map-style data set for a loader."""

    seed: int

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Any: ...


def make_optimizer(networks: Iterable[nn.Module], synthesis: nn.Module) -> Muon:
    """Muon on the networks' matrices, AdamW on their vectors, both at a tenth on linear decoding.

    Choice: the shortcuts' codecs are trained with Muon. At equal time it gained half as much again
    as AdamW (docs/log.md).
    """
    parameters = [parameter for network in networks for parameter in network.parameters()]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": matrices, "muon": True, "scale": 1.0},
        {"params": vectors, "muon": False, "scale": 1.0},
        {"params": list(synthesis.parameters()), "muon": False, "scale": 0.1},
    ]
    return Muon(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)


def run_stage(
    name: str,
    codec: nn.Module,
    optimizer: Muon,
    loss: Callable[[Any, torch.Generator], torch.Tensor],
    batches: StageBatches,
    accelerator: Accelerator,
    folder: Path,
    checkpoint_every: int,
    num_workers: int,
) -> None:
    """Bring `codec` through all of `batches`; goes on from the newest checkpoint in `folder`.

    `loss` of a batch takes its draws from the generator. Ends with the averaged weights, frozen.
    Raises ValueError where the loss or the gradients are not finite.
    """
    num_steps = len(batches)
    ema = make_averages(codec, EMA_DECAY)
    with accelerator.main_process_first():
        checkpoint, _ = latest_checkpoint(folder)
    step = load_checkpoint(checkpoint, codec, ema, optimizer)[0] if checkpoint else 0
    loader = TimedLoader(batches, range(step, num_steps), num_workers)  # type: ignore[arg-type]
    is_main = accelerator.is_main_process
    with StopSignals() as stop, closing(iter(loader)) as stream:
        bar = tqdm(stream, name, num_steps, initial=step, unit="step", disable=not is_main)
        for batch in bar:
            generator = torch.Generator().manual_seed((batches.seed * 10**9 + step) % 2**63)
            with accelerator.autocast():
                value = loss(batch, generator)
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(codec.parameters(), MAX_GRADIENT_NORM)
            told = float(value.detach())
            if not math.isfinite(told + float(norm)):
                raise ValueError(
                    f"the loss of the stage of {name} is {told}, the gradients' norm {float(norm)} "
                    f"at step {step}: look for damaged files in --data; the last checkpoint in "
                    f"{folder} is intact"
                )
            for group in optimizer.param_groups:
                factor = learning_rate_factor(step, num_steps, WARMUP_STEPS, COOLDOWN_SHARE)
                group["lr"] = LEARNING_RATE * group["scale"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(codec.parameters())
            step += 1
            if step % 50 == 0:
                bar.set_postfix_str(f"loss {told:.3f}")
            is_stopping = anywhere(stop.received is not None, accelerator)
            if step % checkpoint_every == 0 or step == num_steps or is_stopping:
                save_checkpoint(
                    folder,
                    step,
                    codec,
                    ema,
                    optimizer,
                    rank=accelerator.process_index,
                    all_agree=partial(everywhere, accelerator=accelerator),
                )
            if is_stopping:
                stop.raise_received()
                raise SystemExit("regen: another process of the run was told to stop")
    ema.copy_to(codec.parameters())
    codec.requires_grad_(False)
