"""The picture codec: one frame -> codes -> the frame again, convolutions on 8 x 8 pixel patches.

A linear codec with a residual network beside each half (`x + f(x)`, f starting at zero), so that it
starts as principal components and least squares (`regen.training.picture_stage`) and learns on.

Choice: the shortcuts code the first frame with a network of its own, trained first, on pictures
alone. A picture is seen in a ninth of the work that a chunk takes, and every later frame is a warp
of it.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

PATCH = 8  # pixels; the spatial compression ratio of every REGEN model
NETWORK_SCALE = 0.1  # of the decoding network's output: about what linear coding leaves


def to_patches(video: torch.Tensor) -> torch.Tensor:
    """`[B, 3, T, H, W]` -> `[B, T * 192, H/8, W/8]`, channels ordered (t, c, y, x)."""
    return rearrange(video, "b c t (h p) (w q) -> b (t c p q) h w", p=PATCH, q=PATCH)


def repeat_edges(picture: torch.Tensor) -> torch.Tensor:
    """One more row and column on each side of `[B, C, h, w]`, repeated.

    (F.pad's backward breaks under torch.compile.)
    """
    picture = torch.cat([picture[:, :, :1], picture, picture[:, :, -1:]], dim=2)
    return torch.cat([picture[..., :1], picture, picture[..., -1:]], dim=3)


def in_float32(tensor: torch.Tensor) -> torch.autocast:
    """A context in which the operations on `tensor`'s device keep their precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def convolve(conv: nn.Conv2d, planes: torch.Tensor) -> torch.Tensor:
    """`conv` in float32 (or autocast's type), whatever the model's dtype."""
    bias = None if conv.bias is None else conv.bias.float()
    return F.conv2d(planes, conv.weight.float(), bias, padding=conv.padding)


class PictureBlock(nn.Module):
    """x + conv - GELU - conv of x, normalised at each place; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(width))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        power = hidden_states.float().square().mean(dim=1, keepdim=True) + 1e-6
        scale = power.rsqrt() * self.norm.float().view(1, -1, 1, 1)
        normed = hidden_states * scale.to(hidden_states.dtype)
        middle = F.gelu(convolve(self.conv1, normed), approximate="tanh")
        return hidden_states + convolve(self.conv2, middle)


class PictureNetwork(nn.Module):
    """`[B, in, h, w]` -> `[B, out, h, w]`; starts as zero."""

    def __init__(
        self, in_channels: int, out_channels: int, width: int, num_blocks: int, kernel_in: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, width, kernel_in, padding=kernel_in // 2)
        self.blocks = nn.ModuleList(PictureBlock(width) for _ in range(num_blocks))
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        hidden_states = planes.contiguous(memory_format=torch.channels_last)
        hidden_states = convolve(self.conv_in, hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return convolve(self.conv_out, F.gelu(hidden_states, approximate="tanh"))


class PictureCodec(nn.Module):
    """`[B, 3, H, W]` in [-1, 1] -> codes `[B, num_codes, H/8, W/8]`, about unit variance, and back.

    H and W are multiples of 8. Codes from some number on may be 0: a picture of fewer codes.

    Under autocast the networks are in its type, which on a CPU is a third of their time; the linear
    codec stays in float32.
    """

    def __init__(
        self, num_codes: int, width: int, num_encoder_blocks: int, num_decoder_blocks: int
    ) -> None:
        super().__init__()
        values = 3 * PATCH**2
        self.analysis = nn.Conv2d(values, num_codes, 1)
        self.synthesis = nn.Conv2d(num_codes, values, 3)
        self.encoder = PictureNetwork(values, num_codes, width, num_encoder_blocks, kernel_in=1)
        self.decoder = PictureNetwork(num_codes, values, width, num_decoder_blocks, kernel_in=3)

    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        patches = to_patches(picture[:, :, None])
        with in_float32(patches):
            codes = convolve(self.analysis, patches)
        with in_float32(patches):
            return codes + self.encoder(patches).float()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        with in_float32(codes):
            patches = convolve(self.synthesis, repeat_edges(codes))
        with in_float32(codes):
            patches = patches + NETWORK_SCALE * self.decoder(codes).float()
        return rearrange(patches, "b (c p q) h w -> b c (h p) (w q)", p=PATCH, q=PATCH)
