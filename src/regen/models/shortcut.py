"""Linear shortcuts around encoder and decoder: the start is the best linear codec.

Choice: linear shortcuts run beside encoder and decoder. The paper has none; the idea is DC-AE's
residual autoencoding. What a linear map can do, it does from the first step, and the networks learn
the rest.

Each latent sees, and each patch is drawn from, a 3 x 3 neighbourhood. The decoder's basis in time
is cosines, so that frame_times stay real-valued. `regen.training.linear_init` solves for the start.
"""

import math

import torch
from einops import rearrange
from torch import nn

PATCH = 8  # pixels; the spatial compression ratio of every REGEN model


def to_patches(video: torch.Tensor) -> torch.Tensor:
    """`[B, 3, T, H, W]` -> `[B, T * 192, H/8, W/8]`, channels ordered (t, c, y, x)."""
    return rearrange(video, "b c t (h p) (w q) -> b (t c p q) h w", p=PATCH, q=PATCH)


def cosine_basis(frame_times: torch.Tensor, num_cosines: int, ratio: int) -> torch.Tensor:
    """cos(pi j f / k) for `frame_times` f `[B, F]` in frames: `[B, F, num_cosines]`."""
    order = torch.arange(num_cosines, device=frame_times.device, dtype=torch.float32)
    return torch.cos(math.pi * order * frame_times.float()[..., None] / ratio)


def repeat_edges(picture: torch.Tensor) -> torch.Tensor:
    """One more row and column on each side of `[B, C, h, w]`, repeated.

    F.pad would do, but its backward breaks under torch.compile.
    """
    picture = torch.cat([picture[:, :, :1], picture, picture[:, :, -1:]], dim=2)
    return torch.cat([picture[..., :1], picture, picture[..., -1:]], dim=3)


class LinearEncoder(nn.Module):
    """Chunk -> raw latents `[B, 8, 1 or 2, h, w]`, linear in the pixels, causal.

    Choice: the linear encoder stays fixed once solved; the network learns what should differ. Its
    thousands of inputs move together (they are the same picture), so a step of Adam, which is as
    large for each weight, would throw the latents about.
    """

    def __init__(self, latent_channels: int, chunk_length: int) -> None:
        super().__init__()
        patch_values = 3 * PATCH**2
        self.content = nn.Conv2d(patch_values, latent_channels, 3)
        self.motion = nn.Conv2d(patch_values * chunk_length, latent_channels, 3)

    def forward(self, chunk: torch.Tensor) -> torch.Tensor:
        content = self.content(repeat_edges(to_patches(chunk[:, :, :1])))
        if chunk.shape[2] == 1:
            return content[:, :, None]
        return torch.stack([content, self.motion(repeat_edges(to_patches(chunk)))], dim=2)


class LinearDecoder(nn.Module):
    """Raw latents `[B, 8, 2, h, w]`, `frame_times` `[B, F]` -> video `[B, 3, F, H, W]`, linear."""

    def __init__(self, latent_channels: int, ratio: int, num_cosines: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.num_cosines = num_cosines
        self.synthesis = nn.Conv2d(2 * latent_channels, 3 * PATCH**2 * num_cosines, 3)

    def forward(self, latents: torch.Tensor, frame_times: torch.Tensor) -> torch.Tensor:
        coefficients = self.synthesis(repeat_edges(rearrange(latents, "b c n h w -> b (n c) h w")))
        coefficients = rearrange(coefficients, "b (j d) h w -> b j d h w", j=self.num_cosines)
        basis = cosine_basis(frame_times, self.num_cosines, self.ratio).to(coefficients.dtype)
        patches = torch.einsum("bfj,bjdhw->bfdhw", basis, coefficients)
        return rearrange(patches, "b f (c p q) h w -> b c f (h p) (w q)", p=PATCH, q=PATCH)
