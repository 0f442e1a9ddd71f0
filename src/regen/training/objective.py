"""Eq. 4 and its variants as a module, so that every launcher wraps one `forward`."""

from dataclasses import dataclass

import torch
from torch import nn

from regen.flow import add_noise, training_target
from regen.models.autoencoder import AutoencoderREGEN


@dataclass(frozen=True)
class ObjectiveConfig:
    """`noise_only_share`: samples at t = 1 exactly, which is what one-step decoding asks; the others are uniform in t."""

    noise_only_share: float = 0.5
    detail_weighting: bool = True


def detail_weights(target: torch.Tensor, floor: float = 0.02) -> torch.Tensor:
    """Weight of each sample `[B]`, mean 1: the inverse of its detail (variance within 8 x 8 patches).

    Choice: PSNR is a mean of logarithms, so a decibel of a smooth clip counts as much as one of a busy clip; plain MSE
    hears the busy clip alone.
    """
    coarse = nn.functional.avg_pool3d(target, (1, 8, 8))
    fine = target.square().mean(dim=(1, 2, 3, 4)) - coarse.square().mean(dim=(1, 2, 3, 4))
    weights = 1 / (fine + floor)
    return weights / weights.mean()


class REGENObjective(nn.Module):
    """Loss of one batch: encode the chunk, noise the targets, predict, compare (Sec. 3.2)."""

    def __init__(self, model: AutoencoderREGEN, config: ObjectiveConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(
        self,
        chunk: torch.Tensor,
        target: torch.Tensor,
        frame_times: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor,
    ) -> torch.Tensor:
        """`chunk`, `target`: float videos in [-1, 1]; `timestep` `[B]`. Returns the loss of each sample `[B]`."""
        prediction_type = self.model.config.prediction_type
        latents = self.model.fill_motion(self.model.encode_chunk(chunk))
        noisy = add_noise(target, noise, timestep)
        output = self.model.predict(noisy, timestep, latents, frame_times)
        error = output.float() - training_target(target, noise, prediction_type)
        losses = error.square().mean(dim=(1, 2, 3, 4))
        return losses * detail_weights(target) if self.config.detail_weighting else losses


def draw_timesteps(batch_size: int, noise_only_share: float, generator: torch.Generator) -> torch.Tensor:
    """Diffusion times `[B]`: 1 for a share of the samples, uniform in (0, 1) for the rest."""
    uniform = torch.rand(batch_size, generator=generator).clamp_min(1e-3)
    noise_only = torch.rand(batch_size, generator=generator) < noise_only_share
    return torch.where(noise_only, torch.ones(batch_size), uniform)
