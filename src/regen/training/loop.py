"""The training loop: batch, loss, step; now and then a validation, a sheet, a checkpoint. Exact resume by the same command.

Every random draw follows from (seed, rank, step), so a resumed run on a CPU is the undisturbed run, bit for bit.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from regen.data.batches import BatchConfig, TrainingBatches, to_float
from regen.data.clips import Clip, hold_out, prepare_clips
from regen.evaluation.metrics import psnr
from regen.evaluation.sheets import write_sheet
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.presets import PRESETS
from regen.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from regen.training.config import TrainConfig
from regen.training.linear_init import init_linear_shortcuts
from regen.training.objective import ObjectiveConfig, REGENObjective, draw_timesteps

# Options that may change between the start of a run and its resumption.
FREE_OPTIONS = {"output", "cache", "num_workers", "validate_every", "checkpoint_every", "data"}


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Warm-up, plateau, linear fall to 0: the factor of the peak at `step`."""
    cooldown = max(1, int(config.steps * config.cooldown_share))
    return min((step + 1) / max(1, config.warmup_steps), (config.steps - step) / cooldown, 1.0)


def make_optimizer(model: AutoencoderREGEN, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in three groups: matrices (decayed), vectors, and the linear shortcuts at a tenth of the rate."""
    matrices, vectors, shortcuts = [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith(("linear_encoder", "linear_decoder")):
            shortcuts.append(parameter)
        else:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        {"params": shortcuts, "weight_decay": 0.0, "scale": 0.1},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def check_run_config(path: Path, config: TrainConfig) -> None:
    """Write the run's options, or compare with those it was started with (ValueError where they differ)."""
    options = json.loads(json.dumps(asdict(config), default=str))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(options, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    for name, value in options.items():
        if name not in FREE_OPTIONS and before.get(name) != value:
            raise ValueError(
                f"{path.parent} was started with {name} = {before.get(name)}, now it is {value}: "
                "give the same options to go on, or another --output to start anew"
            )


def validation_chunks(clips: list[Clip], chunk_length: int, size: int = 256) -> Iterator[torch.Tensor]:
    """The middle chunk of each clip, centre-cropped to at most `size`: float `[1, 3, k + 1, S, S]`."""
    for clip in clips:
        frames = clip.frames()
        start = max(0, (len(frames) - chunk_length) // 2)
        chunk = frames[start : start + chunk_length]
        side = min(size, chunk.shape[1] // 32 * 32, chunk.shape[2] // 32 * 32)
        top, left = (chunk.shape[1] - side) // 2, (chunk.shape[2] - side) // 2
        crop = torch.from_numpy(chunk[:, top : top + side, left : left + side].copy())
        yield to_float(crop).permute(3, 0, 1, 2)[None]


@torch.no_grad()
def validate(
    model: AutoencoderREGEN, clips: list[Clip], device: torch.device, sheet: Path
) -> dict[str, float]:
    """PSNR in dB of one-step reconstructions, mean over frames, then clips; and of the first and last frame."""
    model.eval()
    values, shown = [], []
    for chunk in validation_chunks(clips, model.geometry.chunk_length):
        chunk = chunk.to(device)
        generator = torch.Generator().manual_seed(0)
        reconstruction = model(chunk, generator=generator).sample
        values.append(psnr(reconstruction, chunk)[0].cpu())
        if len(shown) < 4 and chunk.shape[-1] == 256 and chunk.shape[2] == model.geometry.chunk_length:
            shown.append((chunk.cpu(), reconstruction.cpu()))
    if shown:
        write_sheet(sheet, *(torch.cat(parts) for parts in zip(*shown, strict=True)))
    model.train()
    return {
        "validation/psnr": float(np.mean([value.mean() for value in values])),
        "validation/psnr_first_frame": float(np.mean([value[0] for value in values])),
        "validation/psnr_last_frame": float(np.mean([value[-1] for value in values])),
    }


@torch.no_grad()
def measure_latents(model: AutoencoderREGEN, batches: TrainingBatches, num_batches: int = 50) -> None:
    """Set the latent statistics of `model`: mean and deviation per channel, content and motion apart."""
    model.eval()
    content, motion = [], []
    for step in range(num_batches):
        chunk = to_float(batches[step]["chunk"]).to(model.device)  # type: ignore[arg-type]
        latents = model.encode_chunk(chunk).float()
        content.append(latents[:, :, 0].transpose(0, 1).flatten(1))
        if latents.shape[2] == 2:
            motion.append(latents[:, :, 1].transpose(0, 1).flatten(1))
    model.train()
    for kind, values in enumerate((content, motion)):
        if values:
            every = torch.cat(values, dim=1)
            model.latents_mean[:, kind], model.latents_std[:, kind] = every.mean(1), every.std(1)


def export(model: AutoencoderREGEN, ema: EMAModel, batches: TrainingBatches, folder: Path) -> None:
    """Write the averaged weights, rounded to bfloat16, with their latent statistics, as a diffusers model folder."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    measure_latents(model, batches)
    dtype = model.dtype
    temporary = folder.with_name(f".{folder.name}.tmp")
    model.to(torch.bfloat16).save_pretrained(temporary)
    model.to(dtype)
    ema.restore(model.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():
        file.replace(folder / file.name)
    temporary.rmdir()


def train(config: TrainConfig) -> None:
    """Run `config` from where its output folder stands to its last step, then export the model to OUTPUT/model."""
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(config.output), logging_dir=str(config.output / "logs")),
    )
    check_run_config(config.output / "config.json", config)
    clip_set = prepare_clips(list(config.data), config.cache or config.output / "cache")
    num_files = len(clip_set.clips) + len(clip_set.skipped)
    if clip_set.skipped:
        (config.output / "skipped.txt").write_text("\n".join(clip_set.skipped) + "\n")
        accelerator.print(f"skipped {len(clip_set.skipped)} of {num_files} files, listed in {config.output}/skipped.txt")
        if len(clip_set.skipped) > config.max_bad_share * num_files:
            raise ValueError(
                f"{len(clip_set.skipped)} of {num_files} files cannot be read, above --max-bad-share "
                f"{config.max_bad_share:g}; the first: {clip_set.skipped[0]}"
            )
    training_clips, validation_clips = hold_out(clip_set.clips, config.validation_sources)
    accelerator.print(f"{len(training_clips)} files to train on, {len(validation_clips)} clips to validate on")

    torch.manual_seed(config.seed)
    model = AutoencoderREGEN(**PRESETS[config.preset]() | {"prediction_type": config.prediction_type})
    batch_config = BatchConfig(
        seed=config.seed,
        num_steps=config.steps,
        temporal_compression_ratio=model.temporal_compression_ratio,
        crop=config.crop,
        video_batch_size=config.video_batch_size,
        image_batch_size=config.image_batch_size,
        num_targets=config.num_targets,
        other_tasks=config.other_tasks,
    )
    batches = TrainingBatches(training_clips, batch_config, rank=accelerator.process_index)
    checkpoint = latest_checkpoint(config.output / "checkpoints")
    if checkpoint is None and model.linear_encoder is not None:
        chunks = [to_float(batches[step]["chunk"]) for step in range(40)]  # type: ignore[arg-type]
        whole = [chunk for chunk in chunks if chunk.shape[2] == model.geometry.chunk_length]
        error = init_linear_shortcuts(model, whole)
        accelerator.print(f"linear shortcuts start at {-10 * np.log10(error / 4):.2f} dB on training crops")

    objective: torch.nn.Module = REGENObjective(
        model, ObjectiveConfig(config.noise_only_share, config.detail_weighting)
    )
    optimizer = make_optimizer(model, config)
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    if config.compile:
        objective = torch.compile(objective, dynamic=False)
    ema.to(accelerator.device)
    step = 0
    if checkpoint is not None:
        step = load_checkpoint(checkpoint, model, ema, optimizer)
        accelerator.print(f"going on at step {step} of {config.steps}")
    accelerator.init_trackers("regen")

    loader = DataLoader(
        batches, batch_size=None, sampler=range(step, config.steps), num_workers=config.num_workers
    )
    progress = tqdm(total=config.steps, initial=step, unit="step", disable=not accelerator.is_main_process)
    running: list[float] = []
    for batch in loader:
        loss = train_step(objective, optimizer, batch, step, config, accelerator)
        ema.step(model.parameters())
        step += 1
        progress.update()
        running.append(loss)
        if step % 50 == 0:
            log(accelerator, {"train/loss": float(np.mean(running))}, step, progress)
            running.clear()
        if step % config.validate_every == 0 or step == config.steps:
            if accelerator.is_main_process and validation_clips:
                ema.store(model.parameters())
                ema.copy_to(model.parameters())
                sheet = config.output / "sheets" / f"step_{step:08d}.png"
                values = validate(model, validation_clips, accelerator.device, sheet)
                ema.restore(model.parameters())
                log(accelerator, values, step, progress)
                with (config.output / "validation.jsonl").open("a") as file:
                    file.write(json.dumps({"step": step, "elapsed_s": progress.format_dict["elapsed"], **values}) + "\n")
        if (step % config.checkpoint_every == 0 or step == config.steps) and accelerator.is_main_process:
            save_checkpoint(config.output / "checkpoints", step, model, ema, optimizer)
    progress.close()
    if accelerator.is_main_process:
        export(model, ema, batches, config.output / "model")
        accelerator.print(f"the model is in {config.output / 'model'}")
    accelerator.end_training()


def train_step(
    objective: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Any],
    step: int,
    config: TrainConfig,
    accelerator: Accelerator,
) -> float:
    """One iteration; returns the loss. ValueError where it is not finite (the last checkpoint is intact)."""
    chunk = to_float(batch["chunk"]).to(accelerator.device)
    target = to_float(batch["target"]).to(accelerator.device)
    generator = torch.Generator().manual_seed((config.seed * 1000 + accelerator.process_index) * 10**9 + step)
    noise = torch.randn(target.shape, generator=generator).to(accelerator.device)
    timestep = draw_timesteps(len(target), config.noise_only_share, generator).to(accelerator.device)
    factor = learning_rate_factor(step, config)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * group["scale"] * factor
    with accelerator.autocast():
        loss = objective(chunk, target, batch["frame_times"].to(accelerator.device), noise, timestep).mean()
    accelerator.backward(loss)
    value = float(loss.detach())
    if not np.isfinite(value):
        raise ValueError(f"the loss is {value} at step {step}: lower --learning-rate; the last checkpoint is intact")
    accelerator.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def log(accelerator: Accelerator, values: dict[str, float], step: int, progress: Any) -> None:
    accelerator.log(values, step=step)
    if any(name.startswith("validation") for name in values):
        text = ", ".join(f"{name.split('/')[1]} {value:.2f}" for name, value in values.items())
        progress.write(f"step {step}: {text}")
    else:
        progress.set_postfix_str(", ".join(f"{name.split('/')[1]} {value:.4f}" for name, value in values.items()))
