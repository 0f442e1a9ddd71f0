"""Pixels as patches of 8 x 8, and the linear codec on them: where a model of moving content starts.

Shapes here are of one frame, or of frames folded into channels; all is float32.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from regen.chunking import PATCH

PATCH_VALUES = 3 * PATCH**2


def to_patches(video: torch.Tensor) -> torch.Tensor:
    """`[B, 3, T, H, W]` -> `[B, T * 192, H/8, W/8]`, channels ordered (t, c, y, x)."""
    return rearrange(video, "b c t (h p) (w q) -> b (t c p q) h w", p=PATCH, q=PATCH)


def in_float32(tensor: torch.Tensor) -> torch.autocast:
    """A context in which the operations on `tensor`'s device keep their precision."""
    return torch.autocast(tensor.device.type, enabled=False)


class Float32Conv2d(nn.Conv2d):
    """A convolution in float32, whatever the model's dtype."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        assert self.bias is not None
        return F.conv2d(planes.float(), self.weight.float(), self.bias.float())


class LinearCodec(nn.Module):
    """A frame -> `num_channels` whitened principal components of each patch -> the frame again.

    This is the residual path around encoder and decoder (DC-AE, 2024): what linear coding can do,
    the model does from its first step. `regen.training.embedder` finds the components.

    Choice: each patch is decoded from its own components. Least squares from the neighbourhood has
    half a decibel more, and then the transformer learns nothing: no linear feature of its inputs
    tells anything of what is left, and it stays where it starts.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.analysis = Float32Conv2d(PATCH_VALUES, num_channels, 1)
        self.synthesis = Float32Conv2d(num_channels, PATCH_VALUES, 1)

    def encode(self, frame: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` in [-1, 1] -> `[B, num_channels, H/8, W/8]`, about unit variance."""
        with in_float32(frame):
            return self.analysis(to_patches(frame[:, :, None]))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """`[B, num_channels, h, w]` -> `[B, 3, 8 h, 8 w]`."""
        with in_float32(latents):
            patches = self.synthesis(latents)
        return rearrange(patches, "b (c p q) h w -> b c (h p) (w q)", p=PATCH, q=PATCH)
