"""The discriminator of MAGVIT-v2's training: StyleGAN's, with 3D convolutions and blur pooling.

In: video `[B, 3, T, H, W]` in [-1, 1] of any size. Out: a logit for each position, `[B, n]`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

SLOPE = 0.2  # of the leaky ReLU
BLUR = (1.0, 2.0, 1.0)


def blur_pool(hidden_states: torch.Tensor) -> torch.Tensor:
    """Binomial filter, then every second frame (from the first on), row and column (Zhang, 2019).

    An image stays one frame.
    """
    channels = hidden_states.shape[1]
    kernel = torch.tensor(BLUR, device=hidden_states.device, dtype=hidden_states.dtype)
    kernel = kernel / kernel.sum()
    for axis in range(3):  # T, H, W
        shape, stride, padding = [1, 1, 1], [1, 1, 1], [0, 0, 0, 0, 0, 0]
        shape[axis], stride[axis] = len(BLUR), 2
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = 1  # F.pad begins with the last axis
        weight = kernel.view(1, 1, *shape).expand(channels, 1, *shape)
        padded = F.pad(hidden_states, padding, mode="replicate")
        hidden_states = F.conv3d(padded, weight, stride=stride, groups=channels)
    return hidden_states


class DiscriminatorBlock(nn.Module):
    """Two convolutions and blur pooling beside a blurred shortcut (StyleGAN2's residual block)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = F.leaky_relu(self.conv1(hidden_states), SLOPE)
        residual = F.leaky_relu(self.conv2(blur_pool(residual)), SLOPE)
        return (self.shortcut(blur_pool(hidden_states)) + residual) * 0.5**0.5


class VideoDiscriminator(nn.Module):
    """`width` x `multipliers`: channels after the stem and each halving; `patch_size`: pixels that
    the stem folds, 1 in MAGVIT-v2.

    Choice: the discriminator ends with a logit for each position instead of one linear layer over
    all. Batches then may have any size.
    """

    def __init__(self, width: int, multipliers: Sequence[int], patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv_in = nn.Conv3d(3 * patch_size**2, width, 3, padding=1)
        widths = [width, *(width * multiplier for multiplier in multipliers)]
        self.blocks = nn.ModuleList(map(DiscriminatorBlock, widths[:-1], widths[1:]))
        self.conv_mid = nn.Conv3d(widths[-1], widths[-1], 3, padding=1)
        self.conv_out = nn.Conv3d(widths[-1], 1, 1)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        hidden_states = rearrange(
            video, "b c t (h p) (w q) -> b (c p q) t h w", p=self.patch_size, q=self.patch_size
        )
        hidden_states = F.leaky_relu(self.conv_in(hidden_states), SLOPE)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        hidden_states = F.leaky_relu(self.conv_mid(hidden_states), SLOPE)
        return self.conv_out(hidden_states).flatten(1)
