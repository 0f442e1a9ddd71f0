"""Content that moves: what a model with `moving_content` adds to Figure 2.

z_m also holds the motion of its chunk. The decoder starts frame 0 from the linear picture of z_c,
and every other frame from frame 0 as it has moved there, beside the next chunk's first frame moved
back. Frames are float `[B, 3, n, H, W]` in [-1, 1], H and W multiples of 8.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from regen.chunking import PATCH, stretch
from regen.flow import precondition
from regen.model.motion import (
    MOTION_CHANNELS,
    NEXT_CELL,
    displacement,
    field_to_next,
    from_latents,
    interpolate,
    to_latents,
    warp,
)
from regen.model.motion_estimation import estimate_motion, motion_to_next

if TYPE_CHECKING:
    from regen.model.autoencoder import AutoencoderREGEN

PRIOR_STD = 0.1  # of pixels about the linear picture, or the warped first frame
TYPICAL_LOG_SPREAD = -3.0  # of what one step leaves open: a standard deviation of 0.05
LOG_SPREAD_RANGE = 3.0  # about the typical
LEARNED_RANGE = 3.0  # of the learned channels of z_m
# What a frame is decoded from, each with a learned vector: z_c; the first frame; that and the next
# chunk's first frame.
NUM_SOURCES = 3


def encode_moving(
    model: "AutoencoderREGEN", chunk: torch.Tensor, motion: torch.Tensor | None = None
) -> torch.Tensor:
    """`AutoencoderREGEN.encode_chunk`: the encoder also sees the motion-compensation residual."""
    assert model.linear is not None
    dtype, length = chunk.dtype, model.config.temporal_compression_ratio + 1
    first, num_later = chunk[:, :, 0], chunk.shape[2] - 1
    content = model.linear.encode(first).to(dtype)
    if num_later == 0:
        return model.encoder(chunk) + content[:, :, None]
    # Choice: motion is estimated on the frames as they are, not on the first one as it is
    # decoded. The encoder then needs no decoder; it costs 0.04 dB at 8x and gains 0.17 at 32x.
    motion = estimate_motion(chunk) if motion is None else motion
    moving = to_latents(motion, content.shape[-2:])
    times = torch.arange(1, num_later + 1, device=chunk.device).expand(len(chunk), -1)
    warped = warp(first, _field(moving, times, num_later, first)).to(dtype)
    residual = torch.cat([torch.zeros_like(chunk[:, :, :1]), chunk[:, :, 1:] - warped], dim=2)
    residual = stretch(residual, length)[:, :, 1:]
    learned = model.encoder(stretch(chunk, length), residual)
    learned_motion = LEARNED_RANGE * torch.tanh(learned[:, MOTION_CHANNELS:, 1] / LEARNED_RANGE)
    motion_latents = torch.cat([moving.to(dtype), learned_motion], dim=1)
    return torch.stack([learned[:, :, 0] + content, motion_latents], dim=2)


@dataclass(frozen=True)
class Draft:
    """One pass of the network: the mean of what frames can be, and how far they may be from it.

    `mean` `[B, 3, F, 8 h, 8 w]`, of the same shape `prior` and `reference`, which it was drawn
    from; `log_spread` `[B, F, h, w]`, of the standard deviation in each patch; `conditioning`
    `[B, F, h, w, D]`.
    """

    mean: torch.Tensor
    log_spread: torch.Tensor
    prior: torch.Tensor
    reference: torch.Tensor
    conditioning: torch.Tensor

    def spread(self) -> torch.Tensor:
        """Standard deviation of each pixel: `[B, 1, F, 8 h, 8 w]`."""
        by_patch = self.log_spread.exp()
        return by_patch.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)[:, None]


def draft_first(model: "AutoencoderREGEN", content: torch.Tensor) -> Draft:
    """Frame 0 from raw content latents `[B, 8, h, w]`: F = 1."""
    assert model.linear is not None
    times = torch.zeros(len(content), 1, device=content.device)
    picture = model.linear.decode(content)[:, :, None]
    conditioning = model.conditioning(model.fill_motion(content[:, :, None]), times)
    return _draft(model, picture, picture, conditioning + model.sources[0])


def draft_later(
    model: "AutoencoderREGEN",
    latents: torch.Tensor,
    frame_times: torch.Tensor,
    warped: torch.Tensor,
    reference: torch.Tensor,
    has_next: bool,
    ratio: int | None = None,
) -> Draft:
    """Other frames, at `frame_times` `[B, F]`, from `move_content`'s two."""
    conditioning = model.conditioning(latents, model.stretched(frame_times, ratio))
    return _draft(model, warped, reference, conditioning + model.sources[2 if has_next else 1])


def _draft(
    model: "AutoencoderREGEN",
    prior: torch.Tensor,
    reference: torch.Tensor,
    conditioning: torch.Tensor,
) -> Draft:
    conditioning = conditioning.to(model.dtype)
    at_noise = torch.ones(len(prior), device=prior.device)
    inputs = torch.cat([torch.zeros_like(prior), prior, reference], dim=1)
    output, spread = model.dit(inputs.to(model.dtype), at_noise, conditioning)
    assert spread is not None
    bounded = LOG_SPREAD_RANGE * torch.tanh(spread.float() / LOG_SPREAD_RANGE)
    mean = prior + PRIOR_STD * output.float()
    return Draft(mean, TYPICAL_LOG_SPREAD + bounded, prior, reference, conditioning)


def predict_detail(
    model: "AutoencoderREGEN", draft: Draft, noisy_detail: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """The network below t = 1: x_t -> x, `[B, 3, F, 8 h, 8 w]`.

    Here x is what the latents leave open: the video less the draft, over its spread.
    """
    # Choice: noise and the posterior gain are scaled by what is open at each patch, which the
    # network says itself. Noise of one strength hides what is open in one patch and is lost in
    # another.
    # Choice: below t = 1 too the network draws the picture about its prior; the detail is that less
    # the draft. It begins where one step ends (what it draws is the draft: detail 0). Asked for the
    # detail itself, or for a change of the posterior mean, it began with noise, and had not caught
    # up after 400 iterations (docs/log.md).
    gain, _ = precondition(timestep, 1.0)
    inputs = torch.cat([gain * noisy_detail.float(), draft.prior, draft.reference], dim=1)
    output, _ = model.dit(inputs.to(model.dtype), timestep, draft.conditioning)
    picture = draft.prior + PRIOR_STD * output.float()
    return (picture - draft.mean) / draft.spread()


def move_content(
    model: "AutoencoderREGEN",
    first: torch.Tensor,
    following: torch.Tensor | None,
    latents: torch.Tensor,
    frame_times: torch.Tensor,
    to_first: torch.Tensor | None = None,
    ratio: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame 0 `[B, 3, H, W]` as it has moved at `frame_times` `[B, F]`, and a second reference.

    Both `[B, 3, F, H, W]`, float32. The second is the next chunk's first frame `following` moved
    back, or, where there is none, frame 0 as it is. `to_first`: `motion_to_next`, where it is known
    already. `ratio`: frames of the chunk after its first.
    """
    span, moving = model.config.temporal_compression_ratio, latents[:, :MOTION_CHANNELS, 1]
    field = _field(moving, model.stretched(frame_times, ratio), span, first)
    warped = warp(first, field)
    if following is None:
        return warped, first.float()[:, :, None].expand_as(warped)
    # Choice: a frame is also drawn from the next chunk's first frame, which is decoded anyway.
    # What a chunk uncovers is seen there, and the last frame of a chunk knows the first of the
    # next one: no seam. The decoder finds the motion between the two; it costs no latents.
    if to_first is None:
        next_time = span + span / (ratio or model.temporal_compression_ratio)
        to_first = motion_to_next(first, following, from_latents(moving), span, next_time)
    height, width = first.shape[-2:]
    to_first = interpolate(to_first.float(), NEXT_CELL)[..., :height, :width]
    return warped, warp(following, field_to_next(field, to_first))


def _field(
    moving: torch.Tensor, times: torch.Tensor, span: int, frame: torch.Tensor
) -> torch.Tensor:
    """Displacement `[B, 2, F, H, W]` in pixels of the motion channels at `times`, as `frame`."""
    height, width = frame.shape[-2:]
    return displacement(from_latents(moving), times, span)[..., :height, :width]
