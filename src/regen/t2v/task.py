"""Training of the text-to-video transformer (Sec. 4.2): what the loop asks of it.

Flow matching on cached latents, images first, then images and videos mixed.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from regen.evaluation.sheets import write_samples
from regen.files import write_json
from regen.flow import training_target
from regen.loading import load_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.objective import Inputs
from regen.t2v.batches import (
    LatentBatchConfig,
    LatentBatches,
    LatentClips,
    pad_texts,
)
from regen.t2v.config import GeneratorConfig
from regen.t2v.pipeline import RegenTextToVideoPipeline, load_pipeline, make_scheduler
from regen.t2v.presets import GENERATOR_PRESETS
from regen.t2v.text_encoder import DEFAULT_NAME, TextEncoder
from regen.t2v.transformer import RegenTransformer3DModel
from regen.training.checkpoint import make_averages
from regen.training.config import shared_options
from regen.training.distributed import parallelize
from regen.training.embedder import copy_fitting
from regen.training.loop import Learner, Run, find_checkpoint, run_training
from regen.training.monitor import Monitor
from regen.training.optimizer import make_optimizer

TASKS = ("image", "video")
NUM_PROMPTS = 4  # on a sheet, where none are given
MADE_BY = ("encoder_id", "temporal_compression_ratio", "text_encoder_id")
VALIDATION_TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)


class GeneratorObjective(nn.Module):
    """Flow matching: the error of eps - x, over the latent frames that are not given."""

    term_names: tuple[str, ...] = ()
    latest = 1.0

    def __init__(self, model: RegenTransformer3DModel, config: GeneratorConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.terms: dict[str, torch.Tensor] = {}

    def prepare(self, batch: Mapping[str, Any], generator: torch.Generator) -> Inputs:
        """A `LatentBatch` with noise and timesteps."""
        names = ("latents", "num_conditioning", "prompt_embeds", "prompt_mask")
        inputs = {name: batch[name] for name in names}
        noise = self.model.share_noise(torch.randn(batch["latents"].shape, generator=generator))
        config = self.config
        timestep = draw_generator_timesteps(
            len(noise), config.logit_mean, config.logit_std, config.timestep_shift, generator
        )
        return inputs | {"noise": noise, "timestep": timestep}

    def forward(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor,
        num_conditioning: torch.Tensor,
        prompt_embeds: torch.Tensor,
        prompt_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Losses of the samples, `[B]`, from the embedder's `latents` `[B, 8, n, h, w]`.

        `noise` like `latents`; `timestep` `[B]` in [0, 1]; `num_conditioning` `[B]`: first latent
        frames that stay as they are, at timestep 0.
        """
        latents = self.model.normalize_latents(latents)
        is_conditioning = (
            torch.arange(latents.shape[2], device=latents.device) < num_conditioning[:, None]
        )
        times = torch.where(is_conditioning, 0, timestep[:, None])  # [B, n]
        t = times[:, None, :, None, None]
        noisy = (1 - t) * latents + t * noise
        output = self.model(noisy, prompt_embeds, times, prompt_mask, return_dict=False)[0]
        error = output.float() - training_target(latents, noise, "v_prediction")
        losses = error.square().mean(dim=(1, 3, 4))  # [B, n]
        weights = (~is_conditioning).float()
        return (losses * weights).sum(1) / weights.sum(1)

    def sample(self, generate: Callable[[], torch.Tensor]) -> torch.Tensor:
        """`generate()`, which calls the model; here, as it is what launchers wrap."""
        return generate()


def draw_generator_timesteps(
    batch_size: int, mean: float, std: float, shift: float, generator: torch.Generator
) -> torch.Tensor:
    """Logit-normal timesteps `[B]` in (0, 1), shifted to s t / (1 + (s - 1) t) (SD3, Sec. 3.1)."""
    # Choice: timesteps of the text-to-video model are logit-normal, as SD3's. The paper names
    # MMDiT, and no more.
    uniform = torch.sigmoid(mean + std * torch.randn(batch_size, generator=generator))
    return shift * uniform / (1 + (shift - 1) * uniform)


@dataclass
class GeneratorTask:
    """Validation and export. `held_out`: indices of the clips that validate; `prompts` of the
    sheets, embedded."""

    config: GeneratorConfig
    objective: GeneratorObjective
    clips: LatentClips
    held_out: list[int]
    vae: AutoencoderREGEN
    text_encoder: str | None
    prompts: list[str]
    prompt_embeds: torch.Tensor
    prompt_mask: torch.Tensor
    null_embeds: torch.Tensor

    @torch.no_grad()
    def validate(self, run: Run, sheet: Path | None) -> dict[str, float]:
        """Mean loss of held-out clips at fixed timesteps and noise; a sheet of the prompts."""
        with run.accelerator.autocast():
            values = self._losses(run.accelerator.device) if self.held_out else {}
            if sheet is not None and self.prompts:
                videos = self.objective.sample(partial(self._generate, run))
                if run.accelerator.is_main_process:
                    write_samples(sheet, videos)
        return values

    def _losses(self, device: torch.device) -> dict[str, float]:
        sums: dict[str, list[float]] = {}
        generator = torch.Generator().manual_seed(0)
        for index in self.held_out:
            clip = self.clips[index]
            num_chunks = min(self.clips.num_chunks[index], self.config.num_chunks)
            embeds, mask = pad_texts([clip["prompt_embeds"]] * len(VALIDATION_TIMESTEPS))
            kinds = {"image": clip["latents"][:, :1]}
            if num_chunks:
                kinds["video"] = clip["latents"][:, : 2 * num_chunks]
            for name, one in kinds.items():
                every = one.expand(len(VALIDATION_TIMESTEPS), *one.shape)
                noise = torch.randn(every.shape, generator=generator)
                noise = self.objective.model.share_noise(noise)
                inputs = {
                    "latents": every,
                    "noise": noise,
                    "timestep": torch.tensor(VALIDATION_TIMESTEPS),
                    "num_conditioning": torch.zeros(len(VALIDATION_TIMESTEPS), dtype=torch.long),
                    "prompt_embeds": embeds,
                    "prompt_mask": mask,
                }
                losses = self.objective(**{key: value.to(device) for key, value in inputs.items()})
                sums.setdefault(name, []).append(float(losses.mean()))
        named = {f"validation/loss_{name}": float(np.mean(found)) for name, found in sums.items()}
        every_loss = [loss for found in sums.values() for loss in found]
        return {"validation/loss": float(np.mean(every_loss))} | named

    def _generate(self, run: Run) -> torch.Tensor:
        """Videos of the prompts, `[B, F, 3, H, W]` in [0, 1]; the noise is always the same."""
        pipeline = RegenTextToVideoPipeline(
            vae=self.vae.to(run.accelerator.device),
            text_encoder=None,
            tokenizer=None,
            transformer=self.objective.model,
            scheduler=make_scheduler(self.config.timestep_shift),
        )
        pipeline.set_progress_bar_config(disable=True)
        negative, negative_mask = pad_texts([self.null_embeds] * len(self.prompts))
        output = pipeline(
            prompt_embeds=self.prompt_embeds,
            prompt_attention_mask=self.prompt_mask,
            negative_prompt_embeds=negative,
            negative_prompt_attention_mask=negative_mask,
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            return_dict=False,
        )
        frames: torch.Tensor = output[0]
        return frames

    def export(self, run: Run, state: dict[str, torch.Tensor], folder: Path) -> None:
        """The whole pipeline as a diffusers folder, in bfloat16."""
        transformer = RegenTransformer3DModel.from_config(run.model.config)
        transformer.load_state_dict(state)
        encoder = TextEncoder.from_pretrained(self.text_encoder)
        pipeline = RegenTextToVideoPipeline(
            vae=self.vae.cpu(),
            text_encoder=encoder.model,
            tokenizer=encoder.tokenizer,
            transformer=transformer.bfloat16(),
            scheduler=make_scheduler(self.config.timestep_shift),
        )
        save_pipeline(pipeline, folder)


def save_pipeline(pipeline: RegenTextToVideoPipeline, folder: Path) -> None:
    """Write `pipeline` as `folder`, whole or not at all; one that is there is replaced."""
    temporary, old = (folder.with_name(f".{folder.name}.{name}") for name in ("tmp", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def build_transformer(
    config: GeneratorConfig, vae: AutoencoderREGEN, text_dim: int, shape: tuple[int, int, int]
) -> RegenTransformer3DModel:
    """The preset for these latents and texts, its weights drawn from the run's seed.

    `shape` (n, h, w): of the samples; a pipeline makes such videos if nobody says otherwise.
    """
    torch.manual_seed(config.seed)
    return RegenTransformer3DModel(
        **GENERATOR_PRESETS[config.preset](),
        patch_size=config.patch_size,
        in_channels=vae.config["latent_channels"],
        joint_attention_dim=text_dim,
        sample_frames=vae.geometry.max_num_frames(shape[0]),
        sample_height=shape[1],
        sample_width=shape[2],
    )


def load_models(
    config: GeneratorConfig, info: dict[str, Any]
) -> tuple[AutoencoderREGEN, TextEncoder, str | None]:
    """The embedder, the text encoder and its name; `info` says which ones made the cache.

    Raises ValueError where those that are asked for did not.
    """
    embedder = config.embedder or info["model"]
    vae = load_model(embedder).requires_grad_(False)
    if not isinstance(vae, AutoencoderREGEN):
        raise ValueError(f"--embedder is an AutoencoderREGEN, {embedder} is {type(vae).__name__}")
    if vae.encoder_id() != info["encoder_id"]:
        raise ValueError(
            f"encoder {info['encoder_id']} ({info['model']}) made the latents, that of {embedder} "
            f"is {vae.encoder_id()}: give the one that made them as --embedder"
        )
    vae.set_chunk_ratio(info["temporal_compression_ratio"])
    cached = None if info["text_encoder"] == DEFAULT_NAME else info["text_encoder"]
    name = config.text_encoder or cached
    encoder = TextEncoder.from_pretrained(name)
    if encoder.encoder_id() != info["text_encoder_id"]:
        raise ValueError(
            f"{info['text_encoder']} embedded the captions, not {encoder.name}: "
            "give the one that did as --text-encoder"
        )
    return vae, encoder, name


def take_transformer(model: RegenTransformer3DModel, init: str, info: dict[str, Any]) -> list[str]:
    """Copy what fits `model` of the pipeline `init`: weights, and the statistics of its latents.

    Returns the modules of what does not fit. Raises ValueError where there is no such pipeline, or
    other encoders made its latents or texts than those of the caches that `info` is of.
    """
    source = load_pipeline(init)
    text = TextEncoder(source.text_encoder, source.tokenizer, init, info["text_max_length"])
    for what, found, wanted in (
        ("latents", source.vae.encoder_id(), info["encoder_id"]),
        ("texts", text.encoder_id(), info["text_encoder_id"]),
    ):
        if found != wanted:
            raise ValueError(
                f"{init} was trained on {what} of encoder {found}, --data has those of {wanted}: "
                "give a cache made with the models of --init, or train without it"
            )
    # Choice: a text-to-video model that starts from another keeps its statistics of the latents.
    # New ones would change what the weights say. Of motion, one of images alone has none to keep.
    mean, std = source.transformer.latents_mean, source.transformer.latents_std
    for kind in (0, 1):
        if not mean[:, kind].any() and std[:, kind].eq(1).all():
            mean[:, kind], std[:, kind] = model.latents_mean[:, kind], model.latents_std[:, kind]
    new = copy_fitting(source.transformer, model)
    return sorted({name.rpartition(".")[0] or name for name in new})


def agree_on_latents(path: Path, info: dict[str, Any], accelerator: Accelerator) -> None:
    """Keep in `path` what made the latents of a run. ValueError where it resumes with others."""
    ours = {name: info[name] for name in MADE_BY}
    with accelerator.main_process_first():
        theirs = json.loads(path.read_text()) if path.is_file() else ours
        for name, value in ours.items():
            if theirs[name] != value:
                raise ValueError(
                    f"{path.parent} was started with latents of {name} {theirs[name]}, --data has "
                    f"those of {value}: give the same, or another --output"
                )
        if accelerator.is_main_process and not path.is_file():
            write_json(path, ours)


def start_generator(config: GeneratorConfig, accelerator: Accelerator) -> Run:
    """A new run, or one restored from the newest whole checkpoint below `config.output`."""
    clips = LatentClips(config.data)
    vae, encoder, text_encoder = load_models(config, clips.info)
    training, held_out = clips.hold_out(config.validation_sources, config.seed)
    null_embeds = encoder.encode([""])[0][0]
    batch_config = LatentBatchConfig(**shared_options(LatentBatchConfig, config))
    batches = LatentBatches(clips, training, null_embeds, batch_config)
    accelerator.print(f"{len(training)} clips to train on, {len(held_out)} to validate on")
    num_videos = sum(clips.shapes[index][0] > 1 for index in training)
    num_short = num_videos - sum(clips.num_chunks[index] > 0 for index in training)
    if num_short:
        accelerator.print(
            f"{num_short} of {num_videos} videos are shorter than a chunk of "
            f"{vae.geometry.chunk_length} frames: they train as images"
        )
    prompts = list(config.prompts) or [clips.captions[index] for index in held_out[:NUM_PROMPTS]]
    embeds, mask = encoder.encode(prompts) if prompts else (null_embeds[None][:0], None)
    shapes = batches.videos or batches.images
    usual = max(shapes, key=lambda shape: len(shapes[shape]))
    model = build_transformer(config, vae, encoder.dim, (usual[0], usual[1], usual[2]))
    moments = clips.moments()
    model.set_latent_statistics(moments.mean.float(), moments.std.float())
    checkpoint = find_checkpoint(config, accelerator)
    if checkpoint is None and config.init is not None:
        new = take_transformer(model, config.init, clips.info)
        some = ", ".join(new[:20] + ["..."] * (len(new) > 20)) or "nothing"
        accelerator.print(f"start from {config.init}; randomly initialised: {some}")
    agree_on_latents(config.output / "latents.json", clips.info, accelerator)
    objective = GeneratorObjective(model, config)
    task = GeneratorTask(
        config,
        objective,
        clips,
        held_out,
        vae,
        text_encoder,
        prompts,
        embeds,
        torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask,
        null_embeds,
    )
    wrapped = parallelize(objective, model, ("sample",), config, accelerator)
    return Run(
        config,
        accelerator,
        model,
        [Learner("model", objective, wrapped, make_optimizer(model, config))],
        make_averages(model, config.ema_decay),
        batches,
        Monitor(accelerator, TASKS),
        task.validate,
        task.export,
    ).resume(checkpoint)


def train_generator(config: GeneratorConfig) -> None:
    """Run `config` from where its output folder stands to its last step, then write OUTPUT/model.

    OUTPUT/model is a `RegenTextToVideoPipeline`. See `run_training`.
    """
    config.check()
    run_training(config, partial(start_generator, config))
