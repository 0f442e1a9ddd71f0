"""`regen train`: the embedder's model, clips, batches, objective, validation and export."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from einops import rearrange
from tqdm import tqdm

from regen.baselines.discriminator import VideoDiscriminator
from regen.baselines.magvit import AutoencoderMAGVITv2
from regen.baselines.objective import DiscriminatorObjective, MAGVITObjective
from regen.baselines.pyramid import pyramid_distance
from regen.chunking import to_float
from regen.data.bad_clips import BadClips
from regen.data.batches import BatchConfig, TrainingBatches
from regen.data.clips import Clip, exclude_sources, hold_out, prepare_clips
from regen.loading import Autoencoder, load_model, new_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.moving_objective import MovingObjective
from regen.model.objective import Objective, ObjectiveConfig, REGENObjective
from regen.model.patches import LinearCodec, to_patches
from regen.model.presets import MAGVIT_PRESETS
from regen.perceptual.lpips import LPIPS
from regen.training.checkpoint import make_averages
from regen.training.chunk_store import RATIO_WEIGHTS, ChunkBatches, ChunkStore
from regen.training.config import TrainConfig, check_run_config, shared_options
from regen.training.distributed import broadcast_module, local, parallelize
from regen.training.loop import Learner, Run, find_checkpoint, run_training
from regen.training.monitor import Monitor
from regen.training.optimizer import make_discriminator_optimizer, make_optimizer
from regen.training.validation import validate

TASKS = (
    *("image", "reconstruction", "interpolation", "extrapolation"),
    *(f"chunks_{ratio}" for ratio in RATIO_WEIGHTS),
)
ENCODER = ("encoder.", "linear.analysis.")  # names of the parameters that make latents
SHORT_RATIO = 8  # at which a model of more is validated too
NUM_LINEAR_BATCHES = 250  # of images, that the linear codec is solved from
MIN_VARIANCE = 1e-6  # of a component, where the data has fewer directions than channels
NUM_STATISTICS_BATCHES = 50
DISCRIMINATOR_MULTIPLIERS = (2, 4, 4, 4)


def train(config: TrainConfig) -> None:
    """Run `config` from where its output folder stands to its last step, then write OUTPUT/model.

    See `run_training`. Raises ValueError for options and data that cannot work.
    """
    config.check()
    run_training(config, partial(start_run, config))


def chain(runs: Mapping[str, TrainConfig]) -> list[TrainConfig]:
    """A run for each stage, by its name: below `output`, from the weights of the one before.

    The last one's output folder is `output` itself. All share decoded clips and chunks.
    """
    chained: list[TrainConfig] = []
    for index, (name, run) in enumerate(runs.items()):
        is_last = index == len(runs) - 1
        chained.append(
            replace(
                run,
                output=run.output if is_last else run.output / name,
                init=str(chained[-1].output / "model") if chained else run.init,
                cache=run.cache or run.output / "cache",
                chunk_cache=run.chunk_cache or run.output / "chunks",
            )
        )
    return chained


def train_stages(runs: Iterable[TrainConfig]) -> None:
    """Train one after the other; what is done already stays. Raises ValueError as `train` does."""
    runs = list(runs)
    for run in runs:
        run.check()
    for run in runs:
        check_run_config(run.output / "config.json", run)
        if not (run.output / "model" / "config.json").exists():
            train(run)


def start_run(config: TrainConfig, accelerator: Accelerator) -> Run:
    """A new run, or one restored from the newest whole checkpoint below `config.output`."""
    torch.manual_seed(config.seed)
    changes = {} if config.preset in MAGVIT_PRESETS else {"prediction_type": config.prediction_type}
    model = new_model(config.preset, **changes)
    checkpoint = find_checkpoint(config, accelerator)
    new = list(model.state_dict())
    if checkpoint is None and config.init is not None:
        new = take_weights(model, config)
        modules = sorted({name.rpartition(".")[0] or name for name in new})
        some = ", ".join(modules[:20] + ["..."] * (len(modules) > 20)) or "nothing"
        accelerator.print(f"start from {config.init}; randomly initialised: {some}")
    # After what --init can have wrong: decoding the clips takes long.
    with accelerator.main_process_first():
        training_clips, validation_clips, bad_clips = load_clips(config, accelerator)
    batches = build_batches(config, model, training_clips, accelerator)
    if checkpoint is None and "linear.analysis.weight" in new:
        start_linear(cast(AutoencoderREGEN, model), batches, accelerator)
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
    terms = [name for one in learners for name in cast(Objective, one.objective).term_names]
    return Run(
        config,
        accelerator,
        model,
        learners,
        ema,
        batches,
        Monitor(accelerator, TASKS, terms),
        validate_embedder,
        # A frozen encoder keeps the statistics of its latents, which others rely on.
        partial(export, batches if config.train_only == "all" else None),
        bad_clips,
        validation_clips[: config.validation_clips or None],
    ).resume(checkpoint)


# -- clips and batches -----------------------------------------------------------------------------


def load_clips(
    config: TrainConfig, accelerator: Accelerator
) -> tuple[list[Clip], list[Clip], BadClips]:
    """(training, validation) clips, and those that cannot be read: counted, printed, in a file.

    Raises ValueError where they are more than `config.max_bad_fraction`.
    """
    cache = config.cache if config.cache and config.decode_once else config.output / "cache"
    clip_set = prepare_clips(config.data, cache, config.decode_once)
    num_skipped = len(clip_set.skipped)
    num_files = len(clip_set.clips) + num_skipped
    bad_clips = BadClips(config.output / "bad_clips.txt", num_files, config.max_bad_fraction)
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
    """Whether the run started with other clips; at its start `path` keeps their digest."""
    rows = [[clip.item.name, clip.source, clip.num_frames] for clip in clips]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    if not path.exists() and is_main:
        path.write_text(f"{digest}\n")
    return path.exists() and path.read_text().strip() != digest


def build_batches(
    config: TrainConfig, model: Autoencoder, clips: list[Clip], accelerator: Accelerator
) -> TrainingBatches | ChunkBatches:
    """The batches of rank 0; of a model with moving content, from a store of chunks."""
    options = shared_options(BatchConfig, config)
    if not model.supports_frame_times:
        options["other_tasks"] = 0.0
    length = model.geometry.chunk_length
    batch_config = BatchConfig(num_steps=config.steps, chunk_length=length, **options)
    batches = TrainingBatches(clips, batch_config)
    if not model.config.get("moving_content"):
        return batches
    stores = {}
    if config.image_fraction < 1:
        longest = model.temporal_compression_ratio
        weights = {ratio: one for ratio, one in RATIO_WEIGHTS.items() if ratio <= longest}
        folder = config.chunk_cache or config.output / "chunks"
        for ratio, weight in weights.items():
            count = math.ceil(config.chunks * weight / sum(weights.values()))
            store = ChunkStore(folder / f"ratio_{ratio}", ratio, count, config.crop)
            with accelerator.main_process_first():  # the others find it filled
                store.fill(batches.draw_chunk, config.seed, partial(tqdm, desc=f"{ratio}x motion"))
            stores[ratio] = store
    return ChunkBatches(batches, stores, config.image_fraction, config.num_targets)


# -- weights to start from -------------------------------------------------------------------------


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
    new = copy_fitting(source, model)
    changed = [name for name in new if name.startswith(ENCODER)]
    same_ratio = source.temporal_compression_ratio == model.temporal_compression_ratio
    if config.train_only == "decoder" and (changed or not same_ratio):
        raise ValueError(
            f"--train-only decoder keeps the encoder of {config.init}, which is not that of preset "
            f"{config.preset} ({', '.join(changed[:3]) or 'another ratio'}): give its own --preset"
        )
    return new


def copy_fitting(source: torch.nn.Module, model: torch.nn.Module) -> list[str]:
    """Copy what has the same name and shape; the names in `model` that nothing was copied to."""
    state = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if name in state and tensor.shape == state[name].shape
    }
    model.load_state_dict(state | fitting)
    return sorted(set(state) - set(fitting))


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


@torch.no_grad()
def solve_linear(codec: LinearCodec, batches: Iterable[torch.Tensor]) -> float:
    """Set `codec` to the whitened principal components of `batches` (uint8 `[B, 3, H, W]` each).

    Returns the PSNR, in dB, of the mean squared error that they leave.
    """
    moments: torch.Tensor | float = 0.0
    for batch in batches:
        rows = rearrange(to_patches(to_float(batch)[:, :, None]), "b d h w -> (b h w) d")
        rows = torch.nn.functional.pad(rows, (0, 1), value=1.0)
        moments = moments + (rows.T @ rows).double()
    assert isinstance(moments, torch.Tensor)
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    variance, directions = torch.linalg.eigh(moments[:-1, :-1] - torch.outer(mean, mean))
    count = codec.analysis.out_channels
    directions = directions[:, -count:].flip(1)  # [192, count], the largest first
    std = variance[-count:].flip(0).clamp_min(MIN_VARIANCE).sqrt()
    weight = (directions / std).T
    for conv, value, bias in (
        (codec.analysis, weight, -weight @ mean),
        (codec.synthesis, directions * std, mean),
    ):
        assert conv.bias is not None
        conv.weight.copy_(value.view_as(conv.weight))
        conv.bias.copy_(bias)
    error = float(variance[:-count].clamp_min(0).mean()) * (1 - count / len(variance))
    return -10 * math.log10(error / 4)


# -- objective, validation, export -----------------------------------------------------------------


def build_objectives(
    config: TrainConfig, model: Autoencoder, accelerator: Accelerator
) -> tuple[REGENObjective | MovingObjective | MAGVITObjective, DiscriminatorObjective | None]:
    """What `model` learns from, and who learns beside it."""
    if isinstance(model, AutoencoderMAGVITv2):
        return _baseline_objectives(config, model, accelerator)
    settings = ObjectiveConfig(**shared_options(ObjectiveConfig, config))
    kind = REGENObjective if model.linear is None else MovingObjective
    return kind(model, settings), None


def _baseline_objectives(
    config: TrainConfig, model: AutoencoderMAGVITv2, accelerator: Accelerator
) -> tuple[MAGVITObjective, DiscriminatorObjective]:
    if config.perceptual_weights is None:
        distance = pyramid_distance
        name = "a Laplacian pyramid, in place of VGG-16 (no --perceptual-weights)"
    else:
        distance = LPIPS("vgg", config.perceptual_weights).to(accelerator.device)
        name = f"VGG-16 of {config.perceptual_weights}"
    # Choice: the discriminator is as wide as the decoder's last stage; that of a small preset has a
    # quarter of it and folds 4 x 4 pixels. The paper does not describe it.
    width = model.config["decoder_block_out_channels"][-1]
    patch_size = max(1, model.config["decoder_patch_size"] // 2)
    if patch_size > 1:
        discriminator = VideoDiscriminator(width // 4, (2, 4), patch_size)
    else:
        discriminator = VideoDiscriminator(width, DISCRIMINATOR_MULTIPLIERS, patch_size)
    count = sum(parameter.numel() for parameter in discriminator.parameters())
    summary = f"perceptual loss: {name}; discriminator of {count:,} parameters"
    accelerator.print(summary)
    if accelerator.is_main_process:
        (config.output / "losses.txt").write_text(f"{summary}\n")
    objective = MAGVITObjective(model, discriminator, distance, config.detail_weighting)
    return objective, DiscriminatorObjective(discriminator, objective)


def validate_embedder(run: Run, sheet: Path | None) -> dict[str, float]:
    """PSNR in dB, SSIM and LPIPS of one-step reconstructions of the clips held out.

    Of one chunk; of a model with moving content at 8x (two chunks) and at its own ratio, or, of a
    run on images alone, of one frame.
    """
    if not run.held_out:
        return {}
    model, config = cast(Autoencoder, run.model), cast(TrainConfig, run.config)
    reconstruct = cast(REGENObjective, run.learners[0].objective).reconstruct
    sheet = sheet if run.accelerator.is_main_process else None
    bad: list[str] = []
    measure = partial(validate, clips=run.held_out, device=run.accelerator.device, bad=bad)
    is_moving = bool(model.config.get("moving_content"))
    of_images = is_moving and config.image_fraction == 1
    num_frames = 1 if of_images else model.geometry.chunk_length
    values = measure(reconstruct, num_frames=num_frames, sheet=sheet)
    if is_moving and not of_images and model.temporal_compression_ratio > SHORT_RATIO:
        at_ratio = partial(reconstruct, ratio=SHORT_RATIO)
        short = measure(at_ratio, num_frames=2 * (SHORT_RATIO + 1))
        values |= {f"{name}_{SHORT_RATIO}x": value for name, value in short.items()}
    if run.bad_clips is not None:
        run.bad_clips.add(bad)
    return values


@torch.no_grad()
def measure_latents(model: AutoencoderREGEN, batches: TrainingBatches | ChunkBatches) -> None:
    """Set the latent statistics of `model` from the first training batches.

    Mean and standard deviation per channel, content and motion apart; content also of images.
    """
    model.eval()
    content, motion = [], []
    for step in range(NUM_STATISTICS_BATCHES):
        batch = batches[step]
        chunk, known = batch["chunk"], batch.get("motion")
        assert isinstance(chunk, torch.Tensor)
        video = to_float(chunk).to(model.device)
        known = known.to(model.device) if isinstance(known, torch.Tensor) else None
        latents = model.encode_chunk(video, known).float()
        content.append(latents[:, :, 0].transpose(0, 1).flatten(1))  # [8, B h w]
        if latents.shape[2] == 2:
            motion.append(latents[:, :, 1].transpose(0, 1).flatten(1))
    model.train()
    for kind, values in enumerate((content, motion)):
        if values:
            every = torch.cat(values, dim=1)
            model.latents_mean[:, kind] = every.mean(1)
            model.latents_std[:, kind] = every.std(1).clamp_min(1e-4)  # a channel that is constant


def export(
    batches: TrainingBatches | ChunkBatches | None,
    run: Run,
    state: dict[str, torch.Tensor],
    folder: Path,
) -> None:
    """Write `state` (averaged weights) with its latent statistics as a diffusers model folder.

    All of it is rounded to bfloat16; the statistics are those of the rounded weights on `batches`
    (None: those in `state`; MAGVIT-v2 has none). The run's model stays as it is.
    """
    model = cast(Autoencoder, run.model)
    exported = type(model).from_config(model.config)
    exported.load_state_dict(state)
    exported.to(local(next(model.parameters())).device)
    for parameter in exported.parameters():
        parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    if batches is not None and isinstance(exported, AutoencoderREGEN):
        measure_latents(exported, batches)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        exported.bfloat16().save_pretrained(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for file in temporary.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
