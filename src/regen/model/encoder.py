"""Spatiotemporal encoder (Sec. 3.1, B.3): one chunk of k + 1 frames -> two raw latent frames.

In: video `[B, 3, T, H, W]` in [-1, 1], T = 1 or k + 1, H and W multiples of 8. Out:
`[B, 8, n, H/8, W/8]`, n = 1 or 2, not normalised. Everything is causal in time: latent frame 0
(content) sees frame 0 alone, bit for bit.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from regen.chunking import PATCH


def check_strides(
    strides: Sequence[Sequence[int]], patch_size: int, ratio: int, time_patch: int | None = None
) -> None:
    """ValueError unless stages of (time, space) `strides` and patches change `ratio` x and 8 x."""
    temporal = math.prod(stride[0] for stride in strides) * (time_patch or 1)
    spatial = math.prod(stride[1] for stride in strides) * patch_size
    if (temporal, spatial) != (ratio, PATCH):
        raise ValueError(
            f"strides and patch sizes change {temporal}x in time and {spatial}x in space, "
            f"expected {ratio}x and {PATCH}x"
        )


class CausalConv3d(nn.Conv3d):
    """3D convolution over the present and the past only; the first frame is repeated in front.

    Maps n + 1 frames to n / stride + 1.
    Choice: replicate padding in time, zeros in space. A first frame then has the past of a still
    picture.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        spatial_padding = (0, kernel_size[1] // 2, kernel_size[2] // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=spatial_padding)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        num_past = self.kernel_size[0] - 1
        if num_past:
            first = hidden_states[:, :, :1].expand(-1, -1, num_past, -1, -1)
            hidden_states = torch.cat([first, hidden_states], dim=2)
        return super().forward(hidden_states)


class ChannelRMSNorm(nn.Module):
    """RMS norm over the channels of each position and frame of `[B, C, T, H, W]`.

    Choice: RMS norm at each position in place of MAGVIT-v2's GroupNorm. A GroupNorm pools over the
    picture (and over time, which breaks causality), so what it does depends on the size of the
    picture.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        channels_last = hidden_states.permute(0, 2, 3, 4, 1)
        normed = F.rms_norm(
            channels_last, self.weight.shape, self.weight.to(channels_last.dtype), 1e-6
        )
        return normed.permute(0, 4, 1, 2, 3)


class ResidualBlock(nn.Module):
    """norm - SiLU - conv - norm - SiLU - conv, plus a shortcut (MAGVIT-v2's, other norms)."""

    def __init__(self, in_channels: int, out_channels: int, time_kernel: int = 3) -> None:
        super().__init__()
        kernel = (time_kernel, 3, 3)
        self.norm1 = ChannelRMSNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, kernel)
        self.norm2 = ChannelRMSNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, kernel)
        self.shortcut = (
            CausalConv3d(in_channels, out_channels, (1, 1, 1))
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden_states)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return self.shortcut(hidden_states) + residual


class REGENEncoder(nn.Module):
    """Causal 3D convolutional encoder (Eq. 1).

    `block_out_channels`: width of each stage. `strides`: the (time, space) halving after each
    stage, (1, 1) for none; the products are the compression ratios (time: times `time_patch_size`,
    space: times `patch_size`). `patch_size`: pixels folded into channels before the first
    convolution; 1 in the paper.
    `time_patch_size`: frames after the first that are folded into channels, each beside what the
    warp of the first frame leaves of it (`residual`); None in the paper.
    `time_kernel`: of the residual blocks; 1 leaves the time to the strided convolutions.

    Choice: the fifth halving in time of k = 32 follows the last stage. Five stages have four
    transitions.
    Choice: the encoder of a small preset folds 8 x 8 pixels. Convolutions at full size are most of
    the cost of an encoder that a CPU can train.
    """

    def __init__(
        self,
        latent_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        strides: Sequence[Sequence[int]],
        patch_size: int,
        time_patch_size: int | None = None,
        time_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.time_patch_size = time_patch_size
        self.gradient_checkpointing = False
        width = block_out_channels[0]
        self.conv_in = CausalConv3d(
            3 * patch_size**2, width, (1, 1, 1) if patch_size > 1 else (3, 3, 3)
        )
        self.conv_in_later: CausalConv3d | None = None
        if time_patch_size is not None:
            later_channels = 2 * time_patch_size * 3 * patch_size**2
            self.conv_in_later = CausalConv3d(later_channels, width, (1, 1, 1))
        self.blocks = nn.ModuleList()
        for out_channels, (temporal, spatial) in zip(block_out_channels, strides, strict=True):
            for _ in range(layers_per_block):
                self.blocks.append(ResidualBlock(width, out_channels, time_kernel))
                width = out_channels
            if (temporal, spatial) != (1, 1):
                kernel = (
                    3 if temporal > 1 else 1,
                    3 if spatial > 1 else 1,
                    3 if spatial > 1 else 1,
                )
                self.blocks.append(CausalConv3d(width, width, kernel, (temporal, spatial, spatial)))
        self.norm_out = ChannelRMSNorm(width)
        self.conv_out = CausalConv3d(
            width, latent_channels, (1, 1, 1) if patch_size > 1 else (3, 3, 3)
        )

    def forward(self, video: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """`video` `[B, 3, T, H, W]`; `residual` `[B, 3, T - 1, H, W]` where time is folded."""
        hidden_states = self._stem(video, residual)  # [B, D, T', H/p, W/p]
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden_states = checkpoint(block, hidden_states, use_reentrant=False)
            else:
                hidden_states = block(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))  # [B, 8, 1 or 2, H/8, W/8]

    def _stem(self, video: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if self.conv_in_later is None:
            return self.conv_in(self._fold(video, 1))
        first = self.conv_in(self._fold(video[:, :, :1], 1))
        if residual is None:
            return first
        assert self.time_patch_size is not None
        later = torch.cat([video[:, :, 1:], residual.to(video.dtype)], dim=1)
        later = self.conv_in_later(self._fold(later, self.time_patch_size))
        return torch.cat([first, later], dim=2)

    def _fold(self, video: torch.Tensor, time_patch_size: int) -> torch.Tensor:
        return rearrange(
            video,
            "b c (t r) (h p) (w q) -> b (c r p q) t h w",
            r=time_patch_size, p=self.patch_size, q=self.patch_size,
        ).contiguous(memory_format=torch.channels_last_3d)  # fmt: skip
