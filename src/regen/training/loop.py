"""The training loop: batch, loss, step; now and then a validation, a sheet, a checkpoint.

Every random draw follows from (seed, rank, step), so a run that was stopped and started again by
the same command is, on a CPU, the undisturbed run, bit for bit.
"""

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from regen.data.places import only_writer
from regen.training.averages import averaged_weights, gather_averages
from regen.training.checkpoint import latest_checkpoint, save_checkpoint
from regen.training.config import RunConfig, changed_rate, check_run_config, write_run_config
from regen.training.optimizer import learning_rate_factor
from regen.training.parallel import anywhere, everywhere, make_accelerator, mean, whole
from regen.training.records import append_record, drop_records_after
from regen.training.run import Learner, OwnBatches, Run
from regen.training.stopping import StopSignals, failures_in_one_line, left_in_time
from regen.training.timed_loader import TimedLoader

LOG_EVERY = 50  # iterations
MAX_GRADIENT_NORM = 1.0


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
    if said := changed_rate(config.output / "config.json", config):
        accelerator.print(said)
    run = start(accelerator)
    if accelerator.is_main_process:
        write_run_config(config.output / "config.json", config, accelerator.num_processes)
        for name in ("validation.jsonl", "metrics.jsonl"):
            drop_records_after(config.output / name, run.step)
    # What TensorBoard was told beyond the step that the run goes on from is forgotten.
    tracker_options = {"tensorboard": {"purge_step": run.step + 1}}
    accelerator.init_trackers("regen", init_kwargs=tracker_options)
    try:
        run_steps(run)
        state = gather_averages(run.model, run.ema, keep=accelerator.is_main_process)
        if accelerator.is_main_process:
            run.task.export(run, state, config.output / "model")
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
                values = {"train/loss": loss, "train/data_wait_share": loader.wait_share()}
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
                raise SystemExit("regen: another process of the run was told to stop")


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
        raw = run.task.validate(run, None)
        with averaged_weights(run.model, run.ema):
            values = run.task.validate(run, sheet)
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
        run.step, config.steps, config.warmup_steps, config.cooldown_share
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
            loss = run.task.batch_loss(run, learner, batch, run.rank_of(index))
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
