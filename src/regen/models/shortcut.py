"""Shortcuts around encoder and decoder: motion-compensated coding, where the model starts.

The first frame goes through a picture codec (`regen.models.picture`), each later frame is that
picture warped by four motion numbers a place (`regen.models.motion`), and codes say what is left:
a linear one (`LinearDecoder`; `regen.training.shortcut_init` solves for it), or those of a
`regen.models.temporal.TemporalCodec`, which is trained.

Choice: the tiny presets have shortcuts around encoder and decoder. The paper has none; the idea is
DC-AE's residual autoencoding. What classical coding can do, the model does from the first step, and
the networks learn the rest.
"""

import math

import torch
from einops import rearrange
from torch import nn

from regen.chunking import stretch
from regen.models.motion import (
    MOTION_CHANNELS,
    displacement,
    estimate_motion,
    pack_terms,
    unpack_terms,
    warp,
)
from regen.models.picture import (
    PATCH,
    PictureCodec,
    convolve,
    in_float32,
    repeat_edges,
    to_patches,
)
from regen.models.temporal import TemporalCodec

RESIDUAL_CHANNELS = 1
MOTION_UNIT = 2.0  # pixels
MAX_MOTION = 5.0  # of the latent: 148 pixels; what lies beyond comes from no encoder


def cosine_basis(frame_times: torch.Tensor, num_cosines: int, ratio: int) -> torch.Tensor:
    """cos(pi j f / k) for `frame_times` f `[B, F]` in frames: `[B, F, num_cosines]`."""
    order = torch.arange(num_cosines, device=frame_times.device, dtype=torch.float32)
    return torch.cos(math.pi * order * frame_times.float()[..., None] / ratio)


class MotionShortcut(nn.Module):
    """The fixed half: chunk -> raw latents, and raw latents -> the warped first frame, corrected.

    z_c: the first `latent_channels` codes of frame 0. z_m: 4 of motion (with a `temporal` codec, of
    eight terms in time for each 2 x 2 places); then, without a `temporal`
    codec, more codes of frame 0 (its detail) and RESIDUAL_CHANNELS of what the warp leaves; with
    one, its codes.

    Choice: z_m also carries detail of frame 0. Four motion numbers and one of what they leave are
    worth more than eight of the latter, and the rest is best spent on the picture that is warped.

    Choice: the shortcuts' encoder stays fixed once solved. The motion is estimated against its
    picture; and its hundreds of inputs move together, so that a step of Adam, which is as large for
    each weight, would throw the latents about.

    Choice: a motion latent is asinh of pixels / 2. Motions are mostly small and sometimes huge; so
    they have about unit deviation, and rounding costs small ones little.
    """

    def __init__(
        self,
        latent_channels: int,
        ratio: int,
        width: int,
        num_blocks: tuple[int, int],
        temporal: TemporalCodec | None = None,
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.num_details = latent_channels - MOTION_CHANNELS - RESIDUAL_CHANNELS
        if self.num_details < 1:
            least = MOTION_CHANNELS + RESIDUAL_CHANNELS + 1
            raise ValueError(
                f"motion_shortcut takes at least {least} latent_channels, got {latent_channels}"
            )
        self.temporal = temporal
        self.grid = 1 if temporal is None else 2  # places on a side of the motion's grid
        self.residual: nn.Conv2d | None = None
        if temporal is None:
            self.residual = nn.Conv2d(ratio * 3 * PATCH**2, RESIDUAL_CHANNELS, 1)
        else:
            self.num_details = 0
        self.picture = PictureCodec(latent_channels + self.num_details, width, *num_blocks)
        self.requires_grad_(False)

    def encode(self, chunk: torch.Tensor) -> torch.Tensor:
        """`[B, 3, n, H, W]` in [-1, 1], n from 1 to k + 1 -> raw latents `[B, 8, 1 or 2, h, w]`."""
        dtype, chunk = chunk.dtype, chunk.float()
        codes = self.picture.encode(chunk[:, :, 0])
        num_content = codes.shape[1] - self.num_details
        content, details = codes[:, :num_content], codes[:, num_content:]
        if chunk.shape[2] == 1:
            return content[:, :, None].to(dtype)
        picture, motion, seen = self.warped(chunk, codes)
        later = stretch(chunk, self.ratio + 1)[:, :, 1:]
        if self.temporal is None:
            assert self.residual is not None
            with in_float32(chunk):
                left = convolve(self.residual, to_patches(later - seen))
        else:
            with in_float32(chunk):
                given = (
                    self.temporal.coefficients(later),
                    self.temporal.coefficients(seen),
                    self.temporal.picture_coefficients(picture),
                )
            conditions = torch.cat([content, motion], dim=1)
            left = self.temporal.refine(self.temporal.encode(*given), conditions, *given)
        moving = torch.cat([motion, details, left], dim=1)
        return torch.stack([content, moving], dim=2).to(dtype)

    def warped(
        self, chunk: torch.Tensor, codes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of `chunk` `[B, 3, n, H, W]`: frame 0 as its `codes` draw it, its motion latent
        `[B, 4, h, w]`, and frames 1 to k as both draw them."""
        picture = self.picture.decode(codes)
        with in_float32(chunk):
            pixels = PATCH * estimate_motion(picture, chunk, self.grid)
            motion = torch.asinh(pixels / MOTION_UNIT).clamp(-MAX_MOTION, MAX_MOTION)
            if self.grid > 1:
                size = picture.shape[-2] // PATCH, picture.shape[-1] // PATCH
                motion = pack_terms(motion, size)
            return picture, motion, self._warp(picture, motion, self._later_times(chunk))

    def codes(self, latents: torch.Tensor) -> torch.Tensor:
        """All codes, that is all but the motion: `[B, 8, 2, h, w]` -> `[B, 12, h, w]`."""
        return torch.cat([latents[:, :, 0], latents[:, MOTION_CHANNELS:, 1]], dim=1)

    def forward(
        self, latents: torch.Tensor, frame_times: torch.Tensor, is_image: bool = False
    ) -> torch.Tensor:
        """Raw `latents` `[B, 8, 2, h, w]` -> frame 0 as seen at `frame_times` `[B, F]`.

        `[B, 3, F, H, W]`, float32; with what a temporal codec adds to it, which is nothing to an
        image.
        """
        latents = latents.float()
        content, motion = latents[:, :, 0], latents[:, :MOTION_CHANNELS, 1]
        left = latents[:, MOTION_CHANNELS + self.num_details :, 1]
        details = latents[:, MOTION_CHANNELS : MOTION_CHANNELS + self.num_details, 1]
        picture = self.picture.decode(torch.cat([content, details], dim=1))
        with in_float32(latents):
            seen = self._warp(picture, motion, frame_times)
            if self.temporal is None or is_image:
                return seen
            given = (
                self.temporal.coefficients(self._warp(picture, motion, self._later_times(latents))),
                self.temporal.picture_coefficients(picture),
            )
        added = self.temporal.decode(left, torch.cat([content, motion], dim=1), *given)
        with in_float32(latents):
            return seen + self.temporal.draw(added, frame_times)

    def _later_times(self, batch: torch.Tensor) -> torch.Tensor:
        """Times of frames 1 to k, `[B, k]`."""
        return torch.arange(1, self.ratio + 1, device=batch.device).expand(len(batch), -1)

    def _warp(
        self, picture: torch.Tensor, motion: torch.Tensor, frame_times: torch.Tensor
    ) -> torch.Tensor:
        if self.grid > 1:
            motion = unpack_terms(motion)
        places = torch.sinh(motion.clamp(-MAX_MOTION, MAX_MOTION)) * (MOTION_UNIT / PATCH)
        field = displacement(places, frame_times, self.ratio, grid=self.grid)
        return warp(picture, field[..., : picture.shape[-2], : picture.shape[-1]])


class LinearDecoder(nn.Module):
    """Codes `[B, n, h, w]` -> what the warp leaves, `[B, 3, F, H, W]` at `frame_times` `[B, F]`.

    Linear in the codes of each 3 x 3 neighbourhood; cosines in time keep frame_times real-valued.
    """

    def __init__(self, num_codes: int, ratio: int, num_cosines: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.num_cosines = num_cosines
        self.synthesis = nn.Conv2d(num_codes, 3 * PATCH**2 * num_cosines, 3)

    def forward(self, codes: torch.Tensor, frame_times: torch.Tensor) -> torch.Tensor:
        coefficients = self.synthesis(repeat_edges(codes))
        coefficients = rearrange(coefficients, "b (j d) h w -> b j d h w", j=self.num_cosines)
        basis = cosine_basis(frame_times, self.num_cosines, self.ratio).to(coefficients.dtype)
        patches = torch.einsum("bfj,bjdhw->bfdhw", basis, coefficients)
        return rearrange(patches, "b f (c p q) h w -> b c f (h p) (w q)", p=PATCH, q=PATCH)
