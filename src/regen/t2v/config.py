"""The options of `regen train-generator` and `regen generate`: frozen dataclasses, also their
`--help`."""

import math
from dataclasses import dataclass
from pathlib import Path

from regen.t2v.presets import GENERATOR_PRESETS
from regen.training.config import RunConfig


@dataclass(frozen=True)
class GeneratorConfig(RunConfig):
    """Train a text-to-video model on cached latents. The same command again resumes."""

    data: tuple[str, ...]
    """Folders of latents and captions that regen cache wrote."""
    embedder: str | None = None
    """The model that decodes the samples and goes into OUTPUT/model; default: the one that made the
    latents. Another one has the same encoder."""
    text_encoder: str | None = None
    """Where the one that made the captions' embeddings is now, if the cache does not know."""
    init: str | None = None
    """Start from this text-to-video model, a folder OUTPUT/model or a hub id, made from latents and
    texts of the same encoders. What does not fit the preset is named and randomly initialised."""
    preset: str = "t2v_tiny"
    """Model configuration: t2v_nano, t2v_tiny, t2v_1b, t2v_5b (regen.t2v.presets)."""
    patch_size: int = 2
    """latent positions on a side of a token: 1 is finer and costs four times as much, or more."""
    image_steps: int = 0
    """First iterations, on images alone (content latents); then images and videos are mixed."""
    image_fraction: float = 0.2
    """Fraction of the iterations after them that are images."""
    image_batch_size: int = 64
    """Images per iteration and process."""
    video_batch_size: int = 32
    """Videos per iteration and process."""
    num_chunks: int = 4
    """The longest sample, in chunks of k + 1 frames; longer videos give random parts."""
    caption_dropout: float = 0.1
    """Fraction of samples without their caption, for guidance."""
    conditioning_fraction: float = 0.2
    """Fraction of videos of which the first latent frame, or the first chunk, is given: for image
    to video, and to continue from a video."""
    logit_mean: float = 0.0
    """Timesteps are logit-normal; above 0 more of them are noisy."""
    logit_std: float = 1.0
    """Standard deviation of the timesteps' logits."""
    timestep_shift: float = 1.0
    """Above 1 training and sampling see more noise, as large pictures want: 3 in SD3."""
    learning_rate: float = 5e-4
    """Peak of AdamW's learning rate."""
    validation_sources: int = 32
    """Sources held out of training; the loss is measured on one clip of each."""
    prompts: tuple[str, ...] = ()
    """Of the sample sheets; default: captions of clips held out."""
    num_inference_steps: int = 20
    """Steps of the samples on the sheets."""
    guidance_scale: float = 5.0
    """Guidance of the samples on the sheets."""

    def check(self) -> None:
        """ValueError for an option out of range."""
        super().check()
        if self.preset not in GENERATOR_PRESETS:
            names = ", ".join(GENERATOR_PRESETS)
            raise ValueError(f"--preset is one of {names}, got {self.preset!r}")
        counts = ("image_batch_size", "video_batch_size", "num_chunks", "patch_size")
        self._check_range(1, math.inf, *counts, "num_inference_steps")
        self._check_range(0, math.inf, "image_steps", "validation_sources", "guidance_scale")
        self._check_range(0, 1, "image_fraction", "caption_dropout", "conditioning_fraction")
        for name in ("logit_std", "timestep_shift"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"--{name.replace('_', '-')} is a positive number, got {getattr(self, name)}"
                )
        if not -10 <= self.logit_mean <= 10:
            raise ValueError(f"--logit-mean is from -10 to 10, got {self.logit_mean}")


@dataclass(frozen=True)
class Request:
    """What to generate."""

    prompt: str
    """What the video shows."""
    num_frames: int | None = None
    """How many frames; default: as many as the model was trained on."""
    height: int | None = None
    """In pixels; default: that of the training."""
    width: int | None = None
    """In pixels; default: that of the training."""
    negative_prompt: str = ""
    """What the video is to be unlike."""
    image: Path | None = None
    """A picture: the first frame, from which the video continues."""
    video: Path | None = None
    """A video to continue from: its last chunk is given, what follows is written."""
    num_inference_steps: int = 30
    """Denoising steps."""
    guidance_scale: float = 5.0
    """How much more than without it the prompt counts; 1: no guidance, half the time."""
    seed: int = 0
    """The same seed gives the same video."""
    frame_rate: float | None = None
    """Frames a second; default: those of --video, else 24."""
