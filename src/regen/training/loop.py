"""The training loop: batch, losses, step; now and then a validation, a sheet, a checkpoint.

Every random draw follows from (seed, rank, step), so a run that was stopped and started again by
the same command is, on a CPU, the undisturbed run, bit for bit.
"""

import copy
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from regen.data.bad_clips import BadClips
from regen.data.locations import only_writer
from regen.data.processes import forking
from regen.files import write_text
from regen.model.objective import Objective
from regen.training.checkpoint import (
    averaged_weights,
    gather_averages,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from regen.training.config import RunConfig, changed_rate, check_run_config, write_run_config
from regen.training.distributed import (
    StopSignals,
    anywhere,
    everywhere,
    failures_in_one_line,
    ignore_signals,
    left_in_time,
    make_accelerator,
    mean,
    whole,
)
from regen.training.monitor import Monitor
from regen.training.optimizer import learning_rate_factor

LOG_EVERY = 50  # iterations
MAX_GRADIENT_NORM = 1.0


# -- a run -----------------------------------------------------------------------------------------


class Batches(Protocol):
    """Batch `step` of `rank`, a function of the two."""

    rank: int

    def __getitem__(self, step: int) -> Any: ...


@dataclass
class Learner:
    """One that learns: `objective` is a module whose `forward` is the losses, see `Objective`;
    `wrapped` is that as the launcher's processes call it."""

    name: str
    objective: torch.nn.Module
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def parameters(self) -> list[torch.nn.Parameter]:
        return [one for group in self.optimizer.param_groups for one in group["params"]]


@dataclass
class Run:
    """`step` iterations done in `elapsed_s` seconds.

    `learners` begin with the one whose objective has `model`, and learn in this order.
    `validate(run, sheet)` gives values of the model as it is now, by the names of their curves ({}:
    nothing to measure), on every process, as a sharded model needs them all; the main one writes a
    picture, where `sheet` names one. `export(run, state, folder)` writes the model with the weights
    `state`, on the main process.
    """

    config: RunConfig
    accelerator: Accelerator
    model: ModelMixin
    learners: list[Learner]
    ema: EMAModel
    batches: Batches
    monitor: Monitor
    validate: Callable[["Run", Path | None], dict[str, float]]
    export: Callable[["Run", dict[str, torch.Tensor], Path], None]
    bad_clips: BadClips | None = None
    held_out: Sequence[Any] = ()  # clips that validate
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

    def resume(self, checkpoint: Path | None) -> "Run":
        """This run at the step of `checkpoint`; as it is where there is none."""
        if checkpoint is not None:
            self.step, self.elapsed_s = load_checkpoint(
                checkpoint, self.model, self.ema, self.learners[0].optimizer, self.others
            )
            self.accelerator.print(f"resuming at step {self.step} of {self.config.steps}")
        return self


def find_checkpoint(config: RunConfig, accelerator: Accelerator) -> Path | None:
    """The newest whole checkpoint of a run; damaged ones are renamed, and named."""
    with accelerator.main_process_first():
        checkpoint, damaged = latest_checkpoint(config.output / "checkpoints")
    for path in damaged:
        accelerator.print(f"a checkpoint is damaged and was put aside: {path}")
    return checkpoint


def step_seed(seed: int, rank: int, step: int) -> int:
    """Seed of the noise of one step; 63 bits."""
    return ((seed * 1000 + rank) * 10**9 + step) % 2**63


# -- its batches -----------------------------------------------------------------------------------


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


class TimedLoader:
    """Iterable over `batches[item]` for each of `items`, prepared by `num_workers` processes."""

    def __init__(self, batches: Dataset[Any], items: range, num_workers: int) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            sampler=items,
            num_workers=num_workers,
            worker_init_fn=ignore_signals,
        )
        self._waited_s = self._used_s = 0.0

    def __iter__(self) -> Generator[Any, None, None]:
        """Raises ValueError, in one line, where a batch cannot be made; close it on any other end.

        The processes ignore the signal by which an exit ends its children: it would wait for them.
        """
        with forking():
            batches = iter(self._loader)
        try:
            while True:
                asked = time.monotonic()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except ValueError as error:  # of another process: with its traceback
                    last = str(error).strip().splitlines()[-1]
                    raise ValueError(last.removeprefix("ValueError: ")) from error
                given = time.monotonic()
                yield batch
                self._waited_s += given - asked
                self._used_s += time.monotonic() - given
        finally:
            if hasattr(batches, "_shutdown_workers"):
                batches._shutdown_workers()

    def wait_fraction(self) -> float:
        """Fraction of the time since the last call that was spent waiting for batches."""
        total_s = self._waited_s + self._used_s
        fraction = self._waited_s / total_s if total_s else 0.0
        self._waited_s = self._used_s = 0.0
        return fraction


# -- the loop --------------------------------------------------------------------------------------


def run_training(config: RunConfig, start: Callable[[Accelerator], Run]) -> None:
    """Run `config` from where its output folder stands to its last step, then write OUTPUT/model.

    `start` makes the run on each of its processes. Ctrl-C and SIGTERM end it after the step under
    way, with a checkpoint; a run that is done only writes its model again. Raises ValueError for
    options and data that cannot work, where the loss is not finite, and for what fails on the way
    (a full disk, a process that died).
    """
    accelerator = make_accelerator(config)
    check_run_config(config.output / "config.json", config, accelerator.num_processes)
    is_writer = accelerator.is_main_process
    with (
        left_in_time(accelerator.num_processes),
        only_writer(config.output) if is_writer else nullcontext(),
        failures_in_one_line(),
    ):
        _run_training(config, accelerator, start)


def _run_training(
    config: RunConfig, accelerator: Accelerator, start: Callable[[Accelerator], Run]
) -> None:
    if message := changed_rate(config.output / "config.json", config):
        accelerator.print(message)
    run = start(accelerator)
    if accelerator.is_main_process:
        write_run_config(config.output / "config.json", config, accelerator.num_processes)
        for name in ("validation.jsonl", "metrics.jsonl"):
            drop_records_after(config.output / name, run.step)
    # What TensorBoard has beyond the step that the run resumes from is forgotten.
    tracker_options = {"tensorboard": {"purge_step": run.step + 1}}
    accelerator.init_trackers("regen", init_kwargs=tracker_options)
    try:
        run_steps(run)
        state = gather_averages(run.model, run.ema, keep=accelerator.is_main_process)
        if accelerator.is_main_process:
            run.export(run, state, config.output / "model")
            accelerator.print(f"all {config.steps} steps done: {config.output / 'model'}")
        accelerator.wait_for_everyone()
    finally:
        accelerator.end_training()


def run_steps(run: Run) -> None:
    """All that is left of the run, with its validations and checkpoints."""
    config, accelerator = run.config, run.accelerator
    num_batches = config.gradient_accumulation_steps
    items = range(run.step * num_batches, config.steps * num_batches)
    loader = TimedLoader(OwnBatches(run), items, config.num_workers)
    started = time.monotonic() - run.elapsed_s
    losses: list[float] = []
    is_main = accelerator.is_main_process
    bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=not is_main)
    with bar, StopSignals() as stop, closing(iter(loader)) as stream:
        while run.step < config.steps:
            batches = [next(stream) for _ in range(num_batches)]
            if run.bad_clips is not None:
                run.bad_clips.add([line for batch in batches for line in batch["bad_clips"]])
            losses.append(train_step(run, batches))
            run.ema.step(run.model.parameters())
            run.step += 1
            run.elapsed_s = time.monotonic() - started
            bar.update()
            if is_main:
                record = {"step": run.step, "loss": losses[-1]}
                append_record(config.output / "metrics.jsonl", record)
            is_last = run.step == config.steps
            if run.step % LOG_EVERY == 0:
                loss = float(np.mean(losses))
                values = {"train/loss": loss, "train/data_wait_fraction": loader.wait_fraction()}
                accelerator.log(values | run.monitor.report(), step=run.step)
                bar.set_postfix_str(f"loss {loss:.4f}")
                losses.clear()
            stepped = time.monotonic()
            if is_last or run.step % config.validate_every == 0:
                run_validation(run, bar)
            is_stopping = anywhere(stop.received is not None, accelerator)
            if is_last or is_stopping or run.step % config.checkpoint_every == 0:
                write_checkpoint(run)
            run.monitor.pause(time.monotonic() - stepped)
            if is_stopping:
                stop.raise_received()
                raise SystemExit("regen: another process of the run received a signal to stop")


def write_checkpoint(run: Run) -> None:
    config, accelerator = run.config, run.accelerator
    save_checkpoint(
        config.output / "checkpoints",
        run.step,
        run.model,
        run.ema,
        run.learners[0].optimizer,
        run.elapsed_s,
        config.keep_last,
        config.keep_every,
        rank=accelerator.process_index,
        all_agree=partial(everywhere, accelerator=accelerator),
        others=run.others,
    )


def run_validation(run: Run, bar: tqdm) -> None:
    """Measure the averaged weights, and the raw ones to compare.

    To the tracker, validation.jsonl, a sheet and the terminal. Every process measures all, as a
    sharded model needs them all in step. In the precision of the weights; sharded, in that of the
    training.
    """
    accelerator, output = run.accelerator, run.config.output
    is_main = accelerator.is_main_process
    precision = accelerator.autocast() if run.config.shard else nullcontext()
    sheet = output / "sheets" / f"step_{run.step:08d}.png"
    objective = run.learners[0].objective
    objective.train(False)
    with precision:
        raw = run.validate(run, None)
        with averaged_weights(run.model, run.ema):
            values = run.validate(run, sheet)
    objective.train()
    if not values:
        return
    first = next(iter(values))
    values[f"{first}_raw"] = raw[first]
    accelerator.log(values, step=run.step)
    if is_main:
        record = {"step": run.step, "elapsed_s": run.elapsed_s, **values}
        append_record(output / "validation.jsonl", record)
        shown = [name for name in values if name.startswith("validation/")]
        text = ", ".join(f"{name.split('/')[1]} {values[name]:.4g}" for name in shown)
        bar.write(f"step {run.step}: {text}")


def train_step(run: Run, batches: list[Any]) -> float:
    """One iteration: everyone who learns, one after the other, on the same batches.

    Returns the first one's mean loss over all processes. Raises ValueError where loss or gradients
    are not finite, before they reach the weights.
    """
    losses = [learner_step(run, learner, batches) for learner in run.learners]
    return losses[0]


def learner_step(run: Run, learner: Learner, batches: list[Any]) -> float:
    config, accelerator = run.config, run.accelerator
    factor = learning_rate_factor(
        run.step, config.steps, config.warmup_steps, config.cooldown_fraction
    )
    for group in learner.optimizer.param_groups:
        group["lr"] = config.learning_rate * group["scale"] * factor
    total = torch.zeros((), device=accelerator.device)
    for index, batch in enumerate(batches):
        is_last = index == len(batches) - 1  # until then each process keeps its own sum
        is_counted = not (config.compile or config.compile_blocks)  # what is compiled is not seen
        kind = learner.name, shapes_of(batch)
        counted = run.monitor.step(kind) if is_counted else nullcontext()
        with nullcontext() if is_last else accelerator.no_sync(learner.wrapped), counted:
            loss = batch_loss(run, learner, batch, run.rank_of(index))
            if loss is None:
                return 0.0
            loss = loss / len(batches)
            # On a CPU the backward pass of a warp by NaN ends the process (torch's grid_sample).
            if loss.device.type == "cpu" and not torch.isfinite(loss):
                raise _not_finite(run, float(loss.detach()), float("nan"))
            accelerator.backward(loss)
        total += loss.detach()
    value = mean(total, accelerator)
    norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), MAX_GRADIENT_NORM)
    size = float(whole(norm))
    if not np.isfinite(value) or not np.isfinite(size):
        raise _not_finite(run, value, size)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return value


def batch_loss(run: Run, learner: Learner, batch: Any, rank: int) -> torch.Tensor | None:
    """Mean loss of a batch; its draws are those of `rank` and the run's step.

    None: this one does not learn at this step.
    """
    objective, config = cast(Objective, learner.objective), run.config
    generator = torch.Generator().manual_seed(step_seed(config.seed, rank, run.step))
    inputs = objective.prepare(batch | {"progress": run.step / config.steps}, generator)
    if inputs is None:
        return None
    inputs = {name: one.to(run.accelerator.device) for name, one in inputs.items()}
    with run.accelerator.autocast():
        losses: torch.Tensor = learner.wrapped(**inputs)
    if learner is run.learners[0]:
        run.monitor.add(batch["task"], losses, inputs.get("timestep"), objective.latest)
    run.monitor.add_terms(objective.terms)
    return losses.mean()


def _not_finite(run: Run, loss: float, norm: float) -> ValueError:
    path, _ = latest_checkpoint(run.config.output / "checkpoints")
    rest = "no checkpoint has been written yet" if path is None else f"{path} is intact"
    return ValueError(
        f"the loss is {loss}, the gradients' norm {norm} at step {run.step}: give the same command "
        f"with a lower --learning-rate; {rest}"
    )


def shapes_of(batch: dict[str, Any]) -> frozenset[tuple[str, torch.Size]]:
    """What the FLOPs of a step depend on."""
    return frozenset(
        (name, value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)
    )


# -- records ---------------------------------------------------------------------------------------


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add one line to a JSON-lines file."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def drop_records_after(path: Path, step: int) -> None:
    """Keep the lines of a JSON-lines file up to `step`: a resumed run writes the others again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # a line that a kill cut short
            continue
    write_text(path, "".join(kept))
