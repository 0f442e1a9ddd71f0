"""What a run is made of: clips, model, batches, objective, optimiser, averages; new or restored."""

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import TypeGuard, cast

import torch
from accelerate import Accelerator
from tqdm import tqdm

from regen.baselines.discriminator import VideoDiscriminator
from regen.baselines.magvit import AutoencoderMAGVITv2
from regen.baselines.objective import DiscriminatorObjective, MAGVITObjective
from regen.baselines.pyramid import pyramid_distance
from regen.data.bad_clips import BadClips
from regen.data.batches import BatchConfig, TrainingBatches
from regen.data.clips import Clip, exclude_sources, hold_out, prepare_clips
from regen.loading import Autoencoder, load_model, new_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.moving_objective import MovingObjective
from regen.model.objective import Objective, ObjectiveConfig, REGENObjective
from regen.model.presets import MAGVIT_PRESETS, PRESETS
from regen.perceptual.lpips import LPIPS
from regen.training.averages import make_averages
from regen.training.checkpoint import latest_checkpoint, load_checkpoint
from regen.training.chunk_store import RATIO_WEIGHTS, ChunkBatches, ChunkStore
from regen.training.config import TrainConfig
from regen.training.embedder import TASKS, EmbedderTask
from regen.training.linear_start import solve_linear
from regen.training.loop import run_training
from regen.training.monitor import Monitor
from regen.training.optimizer import make_discriminator_optimizer, make_optimizer
from regen.training.parallel import broadcast_module, parallelize
from regen.training.run import Learner, Run

ENCODER = ("encoder.", "linear.analysis.")  # names of the parameters that make latents
NUM_LINEAR_BATCHES = 250  # of images, that the linear codec is solved from
DISCRIMINATOR_MULTIPLIERS = (2, 4, 4, 4)


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
    # What is held out stays so, whatever is excluded.
    kept = {clip.source for clip in exclude_sources(clip_set.clips, config.exclude_sources)}
    training, validation = (
        [clip for clip in clips if clip.source in kept]
        for clips in hold_out(clip_set.clips, config.validation_sources)
    )
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


def build_model(config: TrainConfig, accelerator: Accelerator) -> Autoencoder:
    """The preset with the run's prediction type, its weights drawn from the run's seed."""
    if config.preset in MAGVIT_PRESETS:
        torch.manual_seed(config.seed)
        return new_model(config.preset)
    preset = PRESETS[config.preset]() | {"prediction_type": config.prediction_type}
    torch.manual_seed(config.seed)
    return AutoencoderREGEN(**preset)


def take_weights(model: Autoencoder, config: TrainConfig) -> list[str]:
    """Copy the weights of `config.init` that fit `model`; the names of those that do not.

    Raises ValueError where there is no such model, or it cannot be used so.
    """
    assert config.init is not None
    source = load_model(config.init)
    if type(source) is not type(model):
        raise ValueError(
            f"{config.init} is an {type(source).__name__}, preset {config.preset} is not: give one "
            "of the same class"
        )
    own_ratio = source.config["temporal_compression_ratio"]
    if source.temporal_compression_ratio != own_ratio:
        raise ValueError(
            f"{config.init} works at {source.temporal_compression_ratio}x in time and was trained "
            f"at {own_ratio}x: what trains is at the ratio of --preset; give --init without @"
        )
    predicts, wanted = source.config.get("prediction_type"), model.config.get("prediction_type")
    if predicts != wanted:
        raise ValueError(f"{config.init} predicts {predicts}: give --prediction-type {predicts}")
    state = model.state_dict()
    given = source.state_dict()
    fitting = {
        name: tensor
        for name, tensor in given.items()
        if name in state and tensor.shape == state[name].shape
    }
    model.load_state_dict(state | fitting)
    new = sorted(set(state) - set(fitting))
    changed = [name for name in new if name.startswith(ENCODER)]
    same_ratio = source.temporal_compression_ratio == model.temporal_compression_ratio
    if config.train_only == "decoder" and (changed or not same_ratio):
        raise ValueError(
            f"--train-only decoder keeps the encoder of {config.init}, which is not that of preset "
            f"{config.preset} ({', '.join(changed[:3]) or 'another ratio'}): give its own --preset"
        )
    return new


def build_batches(
    config: TrainConfig, model: Autoencoder, clips: list[Clip], accelerator: Accelerator
) -> TrainingBatches | ChunkBatches:
    """The batches of rank 0; of a model with moving content, from a store of chunks."""
    batch_config = BatchConfig(
        seed=config.seed,
        num_steps=config.steps,
        chunk_length=model.geometry.chunk_length,
        shapes=config.shapes,
        crop=config.crop,
        image_size=config.image_size,
        video_size=config.video_size,
        image_share=config.image_share,
        video_batch_size=config.video_batch_size,
        image_batch_size=config.image_batch_size,
        num_targets=config.num_targets,
        # MAGVIT-v2 reconstructs, and nothing else.
        other_tasks=config.other_tasks if isinstance(model, AutoencoderREGEN) else 0.0,
        color_augmentation=config.color_augmentation,
    )
    batches = TrainingBatches(clips, batch_config)
    if not has_moving_content(model):
        return batches
    stores = {}
    if config.image_share < 1:
        longest = model.temporal_compression_ratio
        weights = {ratio: one for ratio, one in RATIO_WEIGHTS.items() if ratio <= longest}
        total = sum(weights.values())
        for ratio, weight in weights.items():
            count = math.ceil(config.chunks * weight / total)
            folder = config.chunk_cache or config.output / "chunks"
            store = ChunkStore(folder / f"ratio_{ratio}", ratio, count, config.crop)
            with accelerator.main_process_first():  # the others find it filled
                store.fill(batches.draw_chunk, config.seed, partial(tqdm, desc=f"{ratio}x motion"))
            stores[ratio] = store
    return ChunkBatches(batches, stores, config.image_share, config.num_targets)


def has_moving_content(model: Autoencoder) -> TypeGuard[AutoencoderREGEN]:
    return isinstance(model, AutoencoderREGEN) and model.linear is not None


def start_linear(
    model: AutoencoderREGEN, batches: TrainingBatches | ChunkBatches, accelerator: Accelerator
) -> None:
    """Solve the linear codec of `model` from the first images; every process takes the result."""
    assert model.linear is not None
    images = batches.images if isinstance(batches, ChunkBatches) else batches
    if accelerator.is_main_process:
        drawn = (images.images_of(step)["chunk"] for step in range(NUM_LINEAR_BATCHES))
        frames = (chunk[:, :, 0] for chunk in drawn if isinstance(chunk, torch.Tensor))
        decibels = solve_linear(model.linear, frames)
        accelerator.print(f"the linear codec has {decibels:.2f} dB on training crops")
    broadcast_module(model.linear, accelerator)


def build_objectives(
    config: TrainConfig, model: Autoencoder, accelerator: Accelerator
) -> tuple[REGENObjective | MovingObjective | MAGVITObjective, DiscriminatorObjective | None]:
    """What `model` learns from, and who learns beside it."""
    if isinstance(model, AutoencoderREGEN):
        settings = ObjectiveConfig(
            config.noise_only_share,
            config.detail_weighting,
            config.latent_noise,
            config.perceptual_weight,
        )
        one = MovingObjective if has_moving_content(model) else REGENObjective
        return one(model, settings), None
    assert isinstance(model, AutoencoderMAGVITv2)
    if config.perceptual_weights is None:
        distance = pyramid_distance
        told = "a Laplacian pyramid, in place of VGG-16 (no --perceptual-weights)"
    else:
        distance = LPIPS("vgg", config.perceptual_weights).to(accelerator.device)
        told = f"VGG-16 of {config.perceptual_weights}"
    # Choice: the discriminator is as wide as the decoder's last stage; that of a small preset has a
    # quarter of it and folds 4 x 4 pixels. The paper does not describe it.
    width = model.config["decoder_block_out_channels"][-1]
    patch_size = max(1, model.config["decoder_patch_size"] // 2)
    if patch_size > 1:
        discriminator = VideoDiscriminator(width // 4, (2, 4), patch_size)
    else:
        discriminator = VideoDiscriminator(width, DISCRIMINATOR_MULTIPLIERS, patch_size)
    count = sum(parameter.numel() for parameter in discriminator.parameters())
    told = f"perceptual loss: {told}; discriminator of {count:,} parameters"
    accelerator.print(told)
    if accelerator.is_main_process:
        (config.output / "losses.txt").write_text(f"{told}\n")
    objective = MAGVITObjective(model, discriminator, distance, config.detail_weighting)
    return objective, DiscriminatorObjective(discriminator, objective)


def start_run(config: TrainConfig, accelerator: Accelerator) -> Run:
    """A new run, or one restored from the newest whole checkpoint below `config.output`."""
    model = build_model(config, accelerator)
    with accelerator.main_process_first():  # renames what is damaged
        checkpoint, damaged = latest_checkpoint(config.output / "checkpoints")
    for path in damaged:
        accelerator.print(f"a checkpoint is damaged and was put aside: {path}")
    new = list(model.state_dict())
    if checkpoint is None and config.init is not None:
        new = take_weights(model, config)
        modules = sorted({name.rpartition(".")[0] or name for name in new})
        some = ", ".join(modules[:20] + ["..."] * (len(modules) > 20)) or "nothing"
        accelerator.print(f"start from {config.init}; what starts anew: {some}")
    # After what --init can have wrong: decoding the clips takes long.
    with accelerator.main_process_first():
        training_clips, validation_clips, bad_clips = load_clips(config, accelerator)
    batches = build_batches(config, model, training_clips, accelerator)
    if checkpoint is None and has_moving_content(model) and "linear.analysis.weight" in new:
        start_linear(model, batches, accelerator)
    if config.train_only == "decoder":
        for name, parameter in model.named_parameters():
            if name.startswith(ENCODER):
                parameter.requires_grad_(False)
    objective, opponent = build_objectives(config, model, accelerator)
    wrapped = parallelize(objective, model, ("reconstruct",), config, accelerator)
    learners = [Learner("model", objective, wrapped, make_optimizer(model, config))]
    ema = make_averages(model, config.ema_decay)
    if opponent is not None:
        wrapped = accelerator.prepare_model(opponent)
        optimizer = make_discriminator_optimizer(opponent, config)
        learners.append(Learner("discriminator", opponent, wrapped, optimizer))
    terms = [name for learner in learners for name in cast(Objective, learner.objective).term_names]
    run = Run(
        config,
        accelerator,
        EmbedderTask(
            config, objective, batches, validation_clips[: config.validation_clips or None]
        ),
        model,
        learners,
        ema,
        batches,
        bad_clips,
        Monitor(accelerator, TASKS, terms),
    )
    if checkpoint is not None:
        run.step, run.elapsed_s = load_checkpoint(
            checkpoint, model, ema, learners[0].optimizer, run.others
        )
        accelerator.print(f"going on at step {run.step} of {config.steps}")
    return run


def train(config: TrainConfig) -> None:
    """Run `config` from where its output folder stands to its last step, then write OUTPUT/model.

    See `run_training`. Raises ValueError for options and data that cannot work.
    """
    config.check()
    run_training(config, partial(start_run, config))
