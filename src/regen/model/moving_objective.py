"""The objective of a model with moving content: frame 0 from z_c, later frames from frame 0.

Images train the first; chunks train both, the later frames from the first ones as they are decoded
in one step.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from regen.chunking import PATCH, to_float
from regen.flow import add_noise
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.moving_content import (
    Draft,
    draft_first,
    draft_later,
    move_content,
    predict_detail,
)
from regen.model.objective import Inputs, ObjectiveConfig
from regen.perceptual.lpips import LPIPS

# Choice: a third of the chunks goes without the next one's first frame. The last chunk of a video
# has none.
NO_NEXT_PROBABILITY = 0.35
LATER_WEIGHT = 2 / 3  # of a chunk's loss; the rest is of its first frame
ERROR_FLOOR = 1e-5  # of a squared error: 53 dB
OPEN_FLOOR = 0.05  # of the part of the detail that is open at a timestep
# Choice: noise on the detail is 0.3 u^1.5 strong for u uniform, of pixels in [-1, 1]: mostly weak.
# Open is 0.08 or less, and stronger noise hides it.
LEAST_NOISE, MOST_NOISE = 0.004, 0.3
OPEN_STD = 0.08
SPREAD_WEIGHT = 0.1
DETAIL_WEIGHT = 1.0
# Choice: LPIPS weighs six times as much below t = 1. One step is for PSNR, more are for the eye.
PERCEPTION_OF_STEPS = 6.0
PERCEPTUAL_SIDE = 64  # pixels, of the squares that LPIPS sees: those of the judgements it learned


class MovingObjective(nn.Module):
    """Losses `[B]`: of the one-step picture, of its spread, and of the steps below t = 1.

    Choice: one-step pictures weigh the logarithm of each frame's error. PSNR is a mean of
    logarithms, so a decibel of any clip counts as much as of any other.
    Choice: the error of the detail is divided by what a Gaussian leaves open at its timestep. So
    all timesteps weigh alike.

    Choice: where the detail is learned, half of the chunks know more of their first frames than one
    step gives: a random part of what it leaves open. Several steps know more, too.
    """

    def __init__(self, model: AutoencoderREGEN, config: ObjectiveConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.terms: dict[str, torch.Tensor] = {}
        self.latest = 1.0
        self.term_names: tuple[str, ...] = ("first", "later")
        if config.noise_only_fraction < 1:
            self.term_names += ("detail",)
        # In a tuple: no part of this module, and of no checkpoint.
        self._perceptual: tuple[LPIPS, ...] = ()
        if config.perceptual_weight:
            self._perceptual = (LPIPS("vgg"),)
            self.term_names += ("perceptual",)

    def prepare(self, batch: Mapping[str, Any], generator: torch.Generator) -> Inputs:
        """The batch as floats with noise and timesteps; `to_first` where the next chunk is used."""
        chunk, target = to_float(batch["chunk"]), to_float(batch["target"])
        noise = torch.randn(target.shape, generator=generator)
        uniform = torch.rand(len(target), generator=generator)
        strength = LEAST_NOISE + (MOST_NOISE - LEAST_NOISE) * uniform**1.5
        timestep = strength / (strength + OPEN_STD * (1 - strength))
        one_step = float(torch.rand((), generator=generator)) < self.config.noise_only_fraction
        channels = self.model.config["latent_channels"]
        shape = (len(chunk), channels, 2, chunk.shape[-2] // PATCH, chunk.shape[-1] // PATCH)
        inputs = {
            "chunk": chunk,
            "target": target,
            "frame_times": batch["frame_times"],
            "noise": noise,
            "latent_noise": self.config.latent_noise * torch.randn(shape, generator=generator),
        }
        known = (2 * torch.rand(len(target), generator=generator) - 1).clamp_min(0)
        if not one_step:
            inputs |= {"timestep": timestep, "known": known}
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
        latent_noise: torch.Tensor,
        timestep: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        motion: torch.Tensor | None = None,
        following: torch.Tensor | None = None,
        to_first: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`chunk` `[B, 3, 1 or more, S, S]`, `target` `[B, 3, F, S, S]`, `following`
        `[B, 3, S, S]` in [-1, 1]; `latent_noise` `[B, 8, 2, h, w]`; `timestep` None: of one step
        alone; `known` `[B]`, of what one step leaves open in first frames; `motion`, `to_first` as
        `estimate_motion` and `motion_to_next` give them.
        """
        model = self.model
        num_frames = chunk.shape[2]
        latents = model.encode_chunk(chunk, motion)
        latents = latents + latent_noise[:, :, : latents.shape[2]].to(latents.dtype)
        unused = 0 * (model.image_motion_latents.sum() + model.sources.sum())
        if num_frames == 1:
            draft = draft_first(model, latents[:, :, 0])
            losses = self._losses(draft, target)
            self.terms = {"first": losses.detach().mean()}
            losses = losses + self._perceive(draft.mean, target)
            losses = losses + self._of_detail(draft, target, noise, timestep)
            # Every parameter has a part in every batch: processes that sum their gradients expect
            # the same tensors of each other.
            return losses + unused + 0 * sum(p.sum() for p in self._of_chunks())
        assert following is not None
        contents, firsts = latents[:, :, 0], chunk[:, :, 0]
        if to_first is not None:
            contents = torch.cat([contents, model.encode_chunk(following[:, :, None])[:, :, 0]])
            firsts = torch.cat([firsts, following])
        draft = draft_first(model, contents)
        first_losses = self._losses(draft, firsts[:, :, None])
        pictures = draft.mean[:, :, 0].clamp(-1, 1)
        if known is not None:
            part = known.repeat(len(firsts) // len(known)).view(-1, 1, 1, 1)
            pictures = pictures + part * (firsts - pictures).detach()
        first, after = pictures[: len(chunk)], None
        if to_first is not None:
            after = pictures[len(chunk) :].detach()
            first_losses = first_losses.view(2, -1).mean(dim=0)
        ratio = num_frames - 1
        sources = move_content(model, first, after, latents, frame_times, to_first, ratio)
        draft = draft_later(model, latents, frame_times, *sources, after is not None, ratio)
        later_losses = self._losses(draft, target)
        self.terms = {"first": first_losses.detach().mean(), "later": later_losses.detach().mean()}
        losses = (1 - LATER_WEIGHT) * first_losses + LATER_WEIGHT * later_losses
        losses = losses + self._perceive(draft.mean, target)
        return losses + self._of_detail(draft, target, noise, timestep) + unused

    def _of_chunks(self) -> list[nn.Parameter]:
        stem = self.model.encoder.conv_in_later
        return [] if stem is None else list(stem.parameters())

    def _losses(self, draft: Draft, target: torch.Tensor) -> torch.Tensor:
        """Of the mean and of the spread: `[B]`."""
        errors = (draft.mean - target).square()
        by_patch = F.avg_pool3d(errors.detach().mean(dim=1), (1, PATCH, PATCH))
        surprise = 2 * draft.log_spread + (by_patch + ERROR_FLOOR) * (-2 * draft.log_spread).exp()
        losses = (errors.mean(dim=(1, 3, 4)) + ERROR_FLOOR).log().mean(dim=1)
        return losses + SPREAD_WEIGHT * surprise.mean(dim=(1, 2, 3))

    def _of_detail(
        self, draft: Draft, target: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | None
    ) -> torch.Tensor | float:
        """Of a step below t = 1, `[B]`; None: of one step alone there is none."""
        if timestep is None:
            return 0.0
        fixed = replace(draft, mean=draft.mean.detach(), log_spread=draft.log_spread.detach())
        spread = fixed.spread()
        detail = (target - fixed.mean) / spread
        predicted = predict_detail(self.model, fixed, add_noise(detail, noise, timestep), timestep)
        t = timestep.float()
        left_open = t**2 / ((1 - t) ** 2 + t**2)
        errors = (predicted - detail).square().mean(dim=(1, 2, 3, 4)) / (left_open + OPEN_FLOOR)
        self.terms["detail"] = errors.detach().mean()
        picture = fixed.mean + spread * predicted
        return DETAIL_WEIGHT * errors + PERCEPTION_OF_STEPS * self._perceive(picture, target)

    def _perceive(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor | float:
        """Weighted LPIPS of a square of one frame of each sample, for its cost: `[B]`."""
        if not self._perceptual:
            return 0.0
        (network,) = self._perceptual
        top, left = ((size - PERCEPTUAL_SIDE) // 2 for size in prediction.shape[-2:])
        square = (0, ..., slice(top, top + PERCEPTUAL_SIDE), slice(left, left + PERCEPTUAL_SIDE))
        pair = (one.transpose(1, 2).transpose(0, 1)[square] for one in (prediction, target))
        distance = network.to(prediction.device)(*pair)
        self.terms["perceptual"] = distance.detach().mean()
        return self.config.perceptual_weight * distance

    def reconstruct(
        self, video: torch.Tensor, generator: torch.Generator, ratio: int | None = None
    ) -> torch.Tensor:
        """Encode and decode `[B, 3, T, H, W]` in one step; here, as it is what launchers wrap."""
        return self.model(video, generator=generator, ratio=ratio).sample
