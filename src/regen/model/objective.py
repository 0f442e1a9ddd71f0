"""Eq. 4 and its variants as a module, so that every launcher wraps one `forward`.

`Objective` is all that the loop knows of what it trains; `REGENObjective` is the paper's method,
`regen.baselines.objective` has its baseline's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from regen.chunking import PATCH, to_float
from regen.flow import add_noise, start_timestep, training_target
from regen.model.autoencoder import AutoencoderREGEN


@dataclass(frozen=True)
class ObjectiveConfig:
    """`noise_only_fraction`: samples at the timestep that one-step decoding starts from; the others
    are uniform below it. `detail_weighting`: see `detail_weights`. `latent_noise`: most of the
    noise on the latents, in their standard deviations."""

    noise_only_fraction: float = 0.5
    detail_weighting: bool = True
    latent_noise: float = 0.0
    perceptual_weight: float = 0.0


Inputs = dict[str, torch.Tensor]


class Objective(Protocol):
    """A module that one learner is trained by: two methods, `prepare` and `forward`, its losses."""

    terms: dict[str, torch.Tensor]  # parts of the last losses, for the curves
    latest: float  # the timestep where one-step decoding starts

    @property
    def term_names(self) -> Sequence[str]: ...

    def prepare(self, batch: Mapping[str, Any], generator: torch.Generator) -> Inputs | None:
        """What `forward` takes, on the CPU, with all that is drawn; None: it does not learn now.

        `batch`: uint8 `chunk` `[B, 3, 1 or more, H, W]`, `target` `[B, 3, F, H, W]`, their
        `frame_times` `[B, F]`, `progress` of the run from 0 to 1; of chunks from a store also the
        next chunk's first frame `following` and the motion.
        """

    def __call__(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Losses of the samples, `[B]`."""


def detail_weights(target: torch.Tensor, floor: float = 0.02) -> torch.Tensor:
    """Weight of each sample of `target` `[B, 3, F, H, W]` in [-1, 1]: `[B]`, mean 1.

    Choice: a sample weighs the inverse of its detail (variance within 8 x 8 patches). PSNR is a
    mean of logarithms, so a decibel of a smooth clip counts as much as one of a busy clip; plain
    MSE hears the busy clip alone.
    """
    coarse = nn.functional.avg_pool3d(target, (1, 8, 8))
    fine = target.square().mean(dim=(1, 2, 3, 4)) - coarse.square().mean(dim=(1, 2, 3, 4))
    weights = 1 / (fine + floor)
    return weights / weights.mean()


class REGENObjective(nn.Module):
    """Loss of one batch: encode the chunk, noise the targets, predict, compare (Sec. 3.2)."""

    term_names: tuple[str, ...] = ()

    def __init__(self, model: AutoencoderREGEN, config: ObjectiveConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.terms: dict[str, torch.Tensor] = {}
        # Choice: noise prediction does not train at t = 1. It cannot be sampled from there.
        self.latest = start_timestep(model.config["prediction_type"])

    def prepare(self, batch: Mapping[str, Any], generator: torch.Generator) -> Inputs:
        """The batch as floats with noise, timesteps and noise on the latents."""
        chunk, target = to_float(batch["chunk"]), to_float(batch["target"])
        noise = torch.randn(target.shape, generator=generator)
        fraction = self.config.noise_only_fraction
        inputs = {
            "chunk": chunk,
            "target": target,
            "frame_times": batch["frame_times"],
            "noise": noise,
            "timestep": draw_timesteps(len(target), fraction, generator, self.latest),
        }
        if self.config.latent_noise:
            drawn = draw_latent_noise(chunk, self.model.config["latent_channels"], generator)
            inputs["latent_noise"] = self.config.latent_noise * drawn
        return inputs

    def forward(
        self,
        chunk: torch.Tensor,
        target: torch.Tensor,
        frame_times: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor,
        latent_noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Losses of the samples, `[B]`.

        `chunk` `[B, 3, 1 or k + 1, S, S]` and `target` `[B, 3, F, S, S]` in [-1, 1], `frame_times`
        `[B, F]` in frames of the chunk, `noise` like `target`, `timestep` `[B]` in [0, 1].
        `latent_noise` `[B, 8, 2, h, w]` is added to the latents, in their standard deviations.
        """
        prediction_type = self.model.config.prediction_type
        latents = self.model.fill_motion(self.model.encode_chunk(chunk))  # [B, 8, 2, h, w]
        if latent_noise is not None:
            # Choice: noise on the latents is measured by the standard deviation of each channel in
            # the batch. A new model has no statistics yet; a constant, as z_m of an image, gets
            # none.
            std = latents.detach().float().std(dim=(0, 3, 4), keepdim=True)
            latents = latents + (std * latent_noise).to(latents.dtype)
        noisy = add_noise(target, noise, timestep)
        output = self.model.predict(noisy, timestep, latents, frame_times)
        error = output.float() - training_target(target, noise, prediction_type)
        losses = error.square().mean(dim=(1, 2, 3, 4))
        # Every parameter has a part in every batch, also this one of images: processes that sum
        # their gradients expect the same tensors of each other.
        losses = losses + 0 * self.model.image_motion_latents.sum()
        if not self.config.detail_weighting:
            return losses
        return losses * detail_weights(target)

    def reconstruct(
        self, video: torch.Tensor, generator: torch.Generator, ratio: int | None = None
    ) -> torch.Tensor:
        """Encode and decode `[B, 3, T, H, W]` in one step; here, as it is what launchers wrap."""
        return self.model(video, generator=generator, ratio=ratio).sample


def draw_timesteps(
    batch_size: int,
    noise_only_fraction: float,
    generator: torch.Generator,
    max_timestep: float = 1.0,
) -> torch.Tensor:
    """Diffusion times `[B]`: `max_timestep` for a fraction of the samples, the rest uniform below.

    Choice: half of the samples are at the timestep from which one-step decoding starts. Uniform
    times are never there.
    """
    uniform = torch.rand(batch_size, generator=generator).clamp_min(1e-3)
    noise_only = torch.rand(batch_size, generator=generator) < noise_only_fraction
    return max_timestep * torch.where(noise_only, torch.ones(batch_size), uniform)


def draw_latent_noise(
    chunk: torch.Tensor, latent_channels: int, generator: torch.Generator
) -> torch.Tensor:
    """Noise for the latents of `chunk` `[B, 3, T, H, W]`: `[B, latent_channels, 2, h, w]`.

    Choice: its standard deviation is uniform from 0 to 1 for each sample. Clean latents must decode
    as well.
    """
    batch_size, height, width = len(chunk), chunk.shape[-2] // PATCH, chunk.shape[-1] // PATCH
    strength = torch.rand(batch_size, 1, 1, 1, 1, generator=generator)
    shape = (batch_size, latent_channels, 2, height, width)
    return strength * torch.randn(shape, generator=generator)
