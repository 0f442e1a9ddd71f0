"""The training loop: batch, loss, step; now and then a validation, a sheet, a checkpoint.

Every random draw follows from (seed, rank, step), so a run that was stopped and started again by
the same command is, on a CPU, the undisturbed run, bit for bit.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers.training_utils import EMAModel
from tqdm import tqdm

from regen.data.bad_clips import BadClips
from regen.data.batches import Batch, BatchConfig, PictureBatches, TrainingBatches, to_float
from regen.data.clips import Clip, exclude_sources, hold_out, prepare_clips
from regen.flow import EPSILON_MAX_TIMESTEP
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.presets import PRESETS
from regen.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from regen.training.config import TrainConfig, check_run_config, write_run_config
from regen.training.export import export
from regen.training.loading import TimedLoader
from regen.training.objective import ObjectiveConfig, REGENObjective, draw_timesteps
from regen.training.optimizer import learning_rate_factor, make_optimizer
from regen.training.picture_stage import train_picture
from regen.training.shortcut_init import init_shortcuts
from regen.training.stopping import StopSignals
from regen.training.validation import append_record, drop_records_after, validate

LOG_EVERY = 50  # iterations
INIT_BATCHES = 40  # that the shortcuts are solved from
PICTURE_BATCH_SIZE = 10
MAX_GRADIENT_NORM = 1.0


@dataclass
class Run:
    """What a run is made of, and where it stands: `step` iterations done in `elapsed_s` seconds."""

    config: TrainConfig
    accelerator: Accelerator
    model: AutoencoderREGEN
    objective: torch.nn.Module
    optimizer: Any  # AcceleratedOptimizer around AdamW
    ema: EMAModel
    batches: TrainingBatches
    validation_clips: list[Clip]
    bad_clips: BadClips
    step: int = 0
    elapsed_s: float = 0.0


def train(config: TrainConfig) -> None:
    """Run `config` from where its output folder stands to its last step, then write OUTPUT/model.

    Ctrl-C and SIGTERM end it after the step under way, with a checkpoint; a run that is done only
    writes its model again. Raises ValueError for options and data that cannot work, and where the
    loss is not finite.
    """
    config.check()
    check_run_config(config.output / "config.json", config)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(
            project_dir=str(config.output), logging_dir=str(config.output / "logs")
        ),
    )
    with accelerator.main_process_first():
        training_clips, validation_clips, bad_clips = load_clips(config, accelerator)
    run = start_run(config, accelerator, training_clips, validation_clips, bad_clips)
    if accelerator.is_main_process:
        write_run_config(config.output / "config.json", config)
        drop_records_after(config.output / "validation.jsonl", run.step)
    # What TensorBoard was told beyond the step that the run goes on from is forgotten.
    tracker_options = {"tensorboard": {"purge_step": run.step + 1}}
    accelerator.init_trackers("regen", init_kwargs=tracker_options)
    try:
        run_steps(run)
        if accelerator.is_main_process:
            export(run.model, run.ema, run.batches, config.output / "model")
            accelerator.print(f"all {config.steps} steps done: {config.output / 'model'}")
    finally:
        accelerator.end_training()


def load_clips(
    config: TrainConfig, accelerator: Accelerator
) -> tuple[list[Clip], list[Clip], BadClips]:
    """(training, validation) clips, and those that cannot be read: counted, printed, in a file.

    Raises ValueError where they are more than `config.max_bad_share`.
    """
    cache = config.cache if config.cache and config.decode_once else config.output / "cache"
    clip_set = prepare_clips(config.data, cache, config.decode_once)
    num_skipped = len(clip_set.skipped)
    num_files = len(clip_set.clips) + num_skipped
    bad_clips = BadClips(config.output / "bad_clips.txt", num_files, config.max_bad_share)
    if num_skipped:
        accelerator.print(f"skipped {num_skipped} of {num_files} files, see {bad_clips.path}:")
        accelerator.print("\n".join(clip_set.skipped[:10] + ["..."] * (num_skipped > 10)))
    if accelerator.is_main_process:
        bad_clips.start(clip_set.skipped)
    clips = exclude_sources(clip_set.clips, config.exclude_sources)
    training, validation = hold_out(clips, config.validation_sources)
    if is_other_data(config.output / "data.txt", training, accelerator.is_main_process):
        accelerator.print("the clips are not those that the run started with: batches will differ")
    num_videos = sum(not clip.is_photo for clip in training)
    accelerator.print(
        f"{num_videos} clips and {len(training) - num_videos} photos to train on, "
        f"{len(validation)} clips to validate on"
    )
    return training, validation, bad_clips


def is_other_data(path: Path, clips: list[Clip], is_main: bool) -> bool:
    """Whether the run started with other clips; at its start `path` keeps what tells them."""
    rows = [[clip.item.name, clip.source, clip.num_frames] for clip in clips]
    told = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    if not path.exists() and is_main:
        path.write_text(f"{told}\n")
    return path.exists() and path.read_text().strip() != told


def build_model(config: TrainConfig, accelerator: Accelerator) -> AutoencoderREGEN:
    """The preset with the run's prediction type, its weights drawn from the run's seed."""
    preset = PRESETS[config.preset]() | {"prediction_type": config.prediction_type}
    if config.prediction_type == "epsilon" and preset.get("motion_shortcut"):
        # Choice: noise prediction has no shortcuts. They draw a video, not noise.
        accelerator.print("epsilon predicts noise: training without the preset's shortcuts")
        preset["motion_shortcut"] = False
    torch.manual_seed(config.seed)
    return AutoencoderREGEN(**preset)


def build_batches(
    config: TrainConfig, model: AutoencoderREGEN, clips: list[Clip], rank: int
) -> TrainingBatches:
    batch_config = BatchConfig(
        seed=config.seed,
        num_steps=config.steps,
        temporal_compression_ratio=model.temporal_compression_ratio,
        shapes=config.shapes,
        crop=config.crop,
        image_size=config.image_size,
        video_size=config.video_size,
        image_share=config.image_share,
        video_batch_size=config.video_batch_size,
        image_batch_size=config.image_batch_size,
        num_targets=config.num_targets,
        other_tasks=config.other_tasks,
    )
    return TrainingBatches(clips, batch_config, rank)


def start_shortcuts(
    model: AutoencoderREGEN, batches: TrainingBatches, config: TrainConfig, accelerator: Accelerator
) -> None:
    """Train the picture codec, then solve the other shortcuts from the first video batches."""
    assert model.shortcut is not None
    pictures = PictureBatches(batches, config.picture_steps, PICTURE_BATCH_SIZE)
    train_picture(
        model.shortcut.picture,
        model.config["latent_channels"],
        pictures,
        accelerator,
        config.output / "picture",
        config.checkpoint_every,
        config.num_workers,
    )
    whole: list[torch.Tensor] = []
    for step in range(100 * INIT_BATCHES):  # one batch in five is images
        chunk = batches[step]["chunk"]
        assert isinstance(chunk, torch.Tensor)
        if chunk.shape[2] == model.geometry.chunk_length:
            whole.append(chunk)
        if step + 1 >= INIT_BATCHES and whole:
            break
    decibels = init_shortcuts(model.cpu(), whole, tqdm)
    accelerator.print(f"shortcuts start at {decibels:.2f} dB on training crops")


def start_run(
    config: TrainConfig,
    accelerator: Accelerator,
    training_clips: list[Clip],
    validation_clips: list[Clip],
    bad_clips: BadClips,
) -> Run:
    """A new run, or one restored from the newest whole checkpoint below `config.output`."""
    model = build_model(config, accelerator)
    batches = build_batches(config, model, training_clips, accelerator.process_index)
    with accelerator.main_process_first():  # renames what is damaged
        checkpoint, damaged = latest_checkpoint(config.output / "checkpoints")
    for path in damaged:
        accelerator.print(f"a checkpoint is damaged and was put aside: {path}")
    if checkpoint is None and model.shortcut is not None:
        start_shortcuts(model, batches, config, accelerator)
    settings = ObjectiveConfig(config.noise_only_share, config.detail_weighting)
    objective: torch.nn.Module = REGENObjective(model, settings)
    optimizer = make_optimizer(model, config)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    if config.compile:
        objective = torch.compile(objective, dynamic=False)  # type: ignore[assignment]
    # Choice: averaged weights are what is validated and exported. They are smoother than the last.
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    run = Run(
        config, accelerator, model, objective, optimizer, ema, batches, validation_clips, bad_clips
    )
    if checkpoint is not None:
        run.step, run.elapsed_s = load_checkpoint(checkpoint, model, ema, optimizer)
        accelerator.print(f"going on at step {run.step} of {config.steps}")
    return run


def run_steps(run: Run) -> None:
    """All that is left of the run, with its validations and checkpoints."""
    config, accelerator = run.config, run.accelerator
    loader = TimedLoader(run.batches, range(run.step, config.steps), config.num_workers)
    started = time.monotonic() - run.elapsed_s
    losses: list[float] = []
    is_main = accelerator.is_main_process
    bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=not is_main)
    with bar, StopSignals() as stop:
        for batch in loader:
            run.bad_clips.add(list(batch["bad_clips"]))
            losses.append(train_step(run, batch))
            run.ema.step(run.model.parameters())
            run.step += 1
            run.elapsed_s = time.monotonic() - started
            bar.update()
            is_last = run.step == config.steps
            if run.step % LOG_EVERY == 0:
                loss = float(np.mean(losses))
                values = {"train/loss": loss, "train/data_wait_share": loader.wait_share()}
                accelerator.log(values, step=run.step)
                bar.set_postfix_str(f"loss {loss:.4f}")
                losses.clear()
            if is_main and (is_last or run.step % config.validate_every == 0):
                run_validation(run, bar)
            is_due = is_last or run.step % config.checkpoint_every == 0
            if is_main and (is_due or stop.received):
                folder = config.output / "checkpoints"
                save_checkpoint(folder, run.step, run.model, run.ema, run.optimizer, run.elapsed_s)
            stop.raise_received()


def run_validation(run: Run, bar: tqdm) -> None:
    """Measure the averaged weights; to TensorBoard, validation.jsonl, a sheet and the terminal."""
    if not run.validation_clips:
        return
    output = run.config.output
    sheet = output / "sheets" / f"step_{run.step:08d}.png"
    run.ema.store(run.model.parameters())
    run.ema.copy_to(run.model.parameters())
    values = validate(run.model, run.validation_clips, run.accelerator.device, sheet)
    run.ema.restore(run.model.parameters())
    run.accelerator.log(values, step=run.step)
    record = {"step": run.step, "elapsed_s": run.elapsed_s, **values}
    append_record(output / "validation.jsonl", record)
    text = ", ".join(f"{name.split('/')[1]} {value:.2f}" for name, value in values.items())
    bar.write(f"step {run.step}: {text}")


def step_seed(seed: int, rank: int, step: int) -> int:
    """Seed of the noise of one step; 63 bits."""
    return ((seed * 1000 + rank) * 10**9 + step) % 2**63


def train_step(run: Run, batch: Batch) -> float:
    """One iteration; returns the loss.

    Raises ValueError where loss or gradients are not finite, before they reach the weights.
    """
    config, accelerator, device = run.config, run.accelerator, run.accelerator.device
    chunk, target, frame_times = batch["chunk"], batch["target"], batch["frame_times"]
    assert isinstance(chunk, torch.Tensor) and isinstance(target, torch.Tensor)
    assert isinstance(frame_times, torch.Tensor)
    chunk, target = to_float(chunk).to(device), to_float(target).to(device)
    seed = step_seed(config.seed, accelerator.process_index, run.step)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(target.shape, generator=generator).to(device)
    # Choice: noise prediction does not train at t = 1. It cannot be sampled from there.
    latest = EPSILON_MAX_TIMESTEP if config.prediction_type == "epsilon" else 1.0
    timestep = draw_timesteps(len(target), config.noise_only_share, generator, latest).to(device)
    factor = learning_rate_factor(run.step, config)
    for group in run.optimizer.param_groups:
        group["lr"] = config.learning_rate * group["scale"] * factor
    with accelerator.autocast():
        loss = run.objective(chunk, target, frame_times.to(device), noise, timestep).mean()
    accelerator.backward(loss)
    value = float(loss.detach())
    norm = accelerator.clip_grad_norm_(run.objective.parameters(), MAX_GRADIENT_NORM)
    if not np.isfinite(value) or not np.isfinite(float(norm)):
        raise ValueError(
            f"the loss is {value}, the gradients' norm {float(norm)} at step {run.step}: "
            "lower --learning-rate; the last checkpoint is intact"
        )
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return value
