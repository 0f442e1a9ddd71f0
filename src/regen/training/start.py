"""What a run is made of: clips, model, batches, objective, optimiser, averages; new or restored."""

import copy
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.utils.data import Dataset
from tqdm import tqdm

from regen.data.batches import Batch, BatchConfig, PictureBatches, TrainingBatches
from regen.data.clips import Clip, hold_out, prepare_clips
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.presets import PRESETS
from regen.training.averages import make_averages
from regen.training.checkpoint import latest_checkpoint, load_checkpoint
from regen.training.config import TrainConfig
from regen.training.objective import ObjectiveConfig, REGENObjective
from regen.training.optimizer import make_optimizer
from regen.training.parallel import broadcast_module, parallelize
from regen.training.picture_stage import train_picture
from regen.training.shortcut_init import init_shortcuts

INIT_BATCHES = 40  # that the shortcuts are solved from
PICTURE_BATCH_SIZE = 10


@dataclass
class Run:
    """What a run is made of, and where it stands: `step` iterations done in `elapsed_s` seconds.

    `wrapped` is `objective` as the launcher's processes call it, `model` is the one within.
    """

    config: TrainConfig
    accelerator: Accelerator
    model: AutoencoderREGEN
    objective: REGENObjective
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    batches: TrainingBatches
    validation_clips: list[Clip]
    step: int = 0
    elapsed_s: float = 0.0

    def rank_of(self, index: int) -> int:
        """The rank whose batch is this process' batch `index` of an iteration.

        So N processes of one batch draw what one process of N batches draws.
        """
        return index * self.accelerator.num_processes + self.accelerator.process_index


class OwnBatches(Dataset[Batch]):
    """The batches of this process: item `step * n + index` is batch `index` of n of `step`."""

    def __init__(self, run: Run) -> None:
        self.of_index = []
        for index in range(run.config.gradient_accumulation_steps):
            batches = copy.copy(run.batches)
            batches.rank = run.rank_of(index)
            self.of_index.append(batches)

    def __getitem__(self, item: int) -> Batch:
        step, index = divmod(item, len(self.of_index))
        return self.of_index[index][step]


def load_clips(config: TrainConfig, accelerator: Accelerator) -> tuple[list[Clip], list[Clip]]:
    """(training, validation) clips; what cannot be read is counted, printed, and in skipped.txt.

    Raises ValueError where that is more than `config.max_bad_share`.
    """
    clip_set = prepare_clips(list(config.data), config.cache or config.output / "cache")
    num_skipped = len(clip_set.skipped)
    num_files = len(clip_set.clips) + num_skipped
    listing = config.output / "skipped.txt"
    if accelerator.is_main_process:
        config.output.mkdir(parents=True, exist_ok=True)
        listing.unlink(missing_ok=True)
        if num_skipped:
            listing.write_text("\n".join(clip_set.skipped) + "\n")
    if num_skipped:
        accelerator.print(f"skipped {num_skipped} of {num_files} files, listed in {listing}:")
        accelerator.print("\n".join(clip_set.skipped[:10] + ["..."] * (num_skipped > 10)))
    if num_skipped > config.max_bad_share * num_files:
        raise ValueError(
            f"{num_skipped} of {num_files} files cannot be read, above --max-bad-share "
            f"{config.max_bad_share:g}; the first: {clip_set.skipped[0]}"
        )
    training, validation = hold_out(clip_set.clips, config.validation_sources)
    accelerator.print(f"{len(training)} files to train on, {len(validation)} clips to validate on")
    return training, validation


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
    config: TrainConfig, model: AutoencoderREGEN, clips: list[Clip]
) -> TrainingBatches:
    """The batches of rank 0."""
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
    return TrainingBatches(clips, batch_config)


def start_shortcuts(
    model: AutoencoderREGEN, batches: TrainingBatches, config: TrainConfig, accelerator: Accelerator
) -> None:
    """Train the picture codec, then solve the other shortcuts from the first video batches.

    Every process does, and takes the main process' result.
    """
    assert model.shortcut is not None and model.linear_decoder is not None
    train_picture(
        model.shortcut.picture,
        model.config["latent_channels"],
        PictureBatches(batches, config.picture_steps, PICTURE_BATCH_SIZE),
        accelerator,
        config.output / "picture",
        config.checkpoint_every,
        config.num_workers,
    )
    videos: list[torch.Tensor] = []
    for step in range(100 * INIT_BATCHES):  # one batch in five is images
        chunk = batches[step]["chunk"]
        assert isinstance(chunk, torch.Tensor)
        if chunk.shape[2] == model.geometry.chunk_length:
            videos.append(chunk)
        if step + 1 >= INIT_BATCHES and videos:
            break
    decibels = init_shortcuts(model.cpu(), videos, tqdm)
    accelerator.print(f"shortcuts start at {decibels:.2f} dB on training crops")
    for part in (model.shortcut, model.linear_decoder):
        broadcast_module(part, accelerator)


def start_run(
    config: TrainConfig,
    accelerator: Accelerator,
    training_clips: list[Clip],
    validation_clips: list[Clip],
) -> Run:
    """A new run, or one restored from the newest whole checkpoint below `config.output`."""
    model = build_model(config, accelerator)
    batches = build_batches(config, model, training_clips)
    with accelerator.main_process_first():  # renames what is damaged
        checkpoint, damaged = latest_checkpoint(config.output / "checkpoints")
    for path in damaged:
        accelerator.print(f"a checkpoint is damaged and was put aside: {path}")
    if checkpoint is None and model.shortcut is not None:
        start_shortcuts(model, batches, config, accelerator)
    settings = ObjectiveConfig(config.noise_only_share, config.detail_weighting)
    objective = REGENObjective(model, settings)
    wrapped = parallelize(objective, config, accelerator)
    optimizer, ema = make_optimizer(model, config), make_averages(model, config)
    run = Run(
        config, accelerator, model, objective, wrapped, optimizer, ema, batches, validation_clips
    )
    if checkpoint is not None:
        run.step, run.elapsed_s = load_checkpoint(checkpoint, model, ema, optimizer)
        accelerator.print(f"going on at step {run.step} of {config.steps}")
    return run
