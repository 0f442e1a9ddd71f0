"""The objective of a model with moving content: frame 0 from z_c, later frames from frame 0.

Images train the first; chunks train both, the later frames from the first ones as they are decoded
in one step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from regen.chunking import PATCH, to_float
from regen.flow import add_noise, posterior_gain
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.chunk_decoder import OPEN_TIMESTEP
from regen.model.moving_content import PRIOR_STD, move_content, predict_first, predict_later
from regen.model.objective import Inputs, ObjectiveConfig
from regen.perceptual.lpips import LPIPS

# Choice: a third of the chunks goes without the next one's first frame. The last chunk of a video
# has none.
NO_NEXT_PROBABILITY = 0.35
LATER_WEIGHT = 2 / 3  # of a chunk's loss; the rest is of its first frame
ERROR_FLOOR = 1e-5  # of a squared error: 53 dB
OPEN_FLOOR = 1e-4
MIN_TIMESTEP = 0.004
PERCEPTUAL_SIDE = 96  # pixels, of the squares that LPIPS sees


class MovingObjective(nn.Module):
    """Losses `[B]`: the logarithm of the squared error at t = 1; below, the error over its scale.

    Choice: one-step samples weigh the logarithm of each frame's error. PSNR is a mean of
    logarithms, so a decibel of any clip counts as much as of any other.
    Choice: timesteps below 1 are 0.3 u^1.5, and their errors are divided by what a Gaussian prior
    leaves open there. Stronger noise hides what the latents leave open.
    """

    def __init__(self, model: AutoencoderREGEN, config: ObjectiveConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.terms: dict[str, torch.Tensor] = {}
        self.term_names: tuple[str, ...] = ("first", "later")
        self.latest = 1.0
        # In a tuple: no part of this module, and of no checkpoint.
        self._perceptual: tuple[LPIPS, ...] = ()
        if config.perceptual_weight:
            self._perceptual = (LPIPS("vgg"),)
            self.term_names += ("perceptual",)

    def prepare(self, batch: Mapping[str, Any], generator: torch.Generator) -> Inputs:
        """The batch as floats with noise and timesteps; `to_first` where the next chunk is used."""
        chunk, target = to_float(batch["chunk"]), to_float(batch["target"])
        noise = torch.randn(target.shape, generator=generator)
        open_times = 1.5 * OPEN_TIMESTEP * torch.rand(len(target), generator=generator).pow(1.5)
        noise_only = torch.rand(len(target), generator=generator) < self.config.noise_only_share
        timestep = torch.where(noise_only, torch.ones(len(target)), open_times + MIN_TIMESTEP)
        channels = self.model.config["latent_channels"]
        shape = (len(chunk), channels, 2, chunk.shape[-2] // PATCH, chunk.shape[-1] // PATCH)
        inputs = {
            "chunk": chunk,
            "target": target,
            "frame_times": batch["frame_times"],
            "noise": noise,
            "timestep": timestep,
            "latent_noise": self.config.latent_noise * torch.randn(shape, generator=generator),
        }
        has_next = float(torch.rand((), generator=generator)) >= NO_NEXT_PROBABILITY
        if "following" in batch:
            inputs["following"] = to_float(batch["following"])
            inputs["motion"] = batch["motion"]
            if has_next:
                inputs["to_first"] = batch["to_first"]
        return inputs

    def forward(
        self,
        chunk: torch.Tensor,
        target: torch.Tensor,
        frame_times: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor,
        latent_noise: torch.Tensor,
        motion: torch.Tensor | None = None,
        following: torch.Tensor | None = None,
        to_first: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`chunk` `[B, 3, 1 or more, S, S]`, `target` `[B, 3, F, S, S]`, `following`
        `[B, 3, S, S]` in [-1, 1]; `latent_noise` `[B, 8, 2, h, w]`; `motion`, `to_first` as
        `estimate_motion` and `motion_to_next` give them."""
        model = self.model
        num_frames = chunk.shape[2]
        latents = model.encode_chunk(chunk, motion)
        latents = latents + latent_noise[:, :, : latents.shape[2]].to(latents.dtype)
        unused = 0 * (model.image_motion_latents.sum() + model.sources.sum())
        if num_frames == 1:
            noisy = add_noise(target, noise, timestep)
            prediction = predict_first(model, noisy, timestep, latents[:, :, 0])
            losses = self._losses(prediction, target, timestep)
            self.terms = {"first": losses.detach().mean()}
            losses = losses + self._perceive(prediction, target)
            # Every parameter has a part in every batch: processes that sum their gradients expect
            # the same tensors of each other.
            return losses + unused + 0 * sum(p.sum() for p in self._of_chunks())
        assert following is not None
        contents, firsts = latents[:, :, 0], chunk[:, :, 0]
        if to_first is not None:
            contents = torch.cat([contents, model.encode_chunk(following[:, :, None])[:, :, 0]])
            firsts = torch.cat([firsts, following])
        at_noise = torch.ones(len(contents), device=chunk.device)
        pictures = predict_first(model, torch.zeros_like(firsts)[:, :, None], at_noise, contents)
        first_losses = self._losses(pictures, firsts[:, :, None], at_noise)
        pictures = pictures[:, :, 0].clamp(-1, 1)
        first, after = pictures[: len(chunk)], None
        if to_first is not None:
            after = pictures[len(chunk) :].detach()
            first_losses = first_losses.view(2, -1).mean(dim=0)
        ratio, noisy = num_frames - 1, add_noise(target, noise, timestep)
        sources = move_content(model, first, after, latents, frame_times, to_first, ratio)
        prediction = predict_later(
            model, noisy, timestep, latents, frame_times, *sources, after is not None, ratio
        )
        later_losses = self._losses(prediction, target, timestep)
        self.terms = {"first": first_losses.detach().mean(), "later": later_losses.detach().mean()}
        losses = (1 - LATER_WEIGHT) * first_losses + LATER_WEIGHT * later_losses
        return losses + self._perceive(prediction, target) + unused

    def _of_chunks(self) -> list[nn.Parameter]:
        stem = self.model.encoder.conv_in_later
        return [] if stem is None else list(stem.parameters())

    def _losses(
        self, prediction: torch.Tensor, target: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        errors = (prediction - target).square().mean(dim=(1, 3, 4))  # [B, F]
        gain = posterior_gain(timestep, PRIOR_STD)
        left_open = PRIOR_STD**2 * (1 - gain * (1 - timestep.float()))
        scaled = errors / (left_open[:, None] + OPEN_FLOOR)
        is_one_step = (timestep == 1)[:, None]
        return torch.where(is_one_step, (errors + ERROR_FLOOR).log(), scaled).mean(dim=1)

    def _perceive(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor | float:
        """Weighted LPIPS of a square of each frame: `[B]`."""
        if not self._perceptual:
            return 0.0
        (network,) = self._perceptual
        side, count = PERCEPTUAL_SIDE, prediction.shape[2]
        top, left = ((size - side) // 2 for size in prediction.shape[-2:])
        pairs = (
            one[..., top : top + side, left : left + side].transpose(1, 2).flatten(0, 1)
            for one in (prediction, target)
        )
        distance = network.to(prediction.device)(*pairs).view(-1, count).mean(dim=1)
        self.terms["perceptual"] = distance.detach().mean()
        return self.config.perceptual_weight * distance

    def reconstruct(
        self, video: torch.Tensor, generator: torch.Generator, ratio: int | None = None
    ) -> torch.Tensor:
        """Encode and decode `[B, 3, T, H, W]` in one step; here, as it is what launchers wrap."""
        return self.model(video, generator=generator, ratio=ratio).sample
