"""I3D, trained on Kinetics-400 (Carreira and Zisserman, 2017): the network of FVD.

Inception-v1 with its filters inflated into time. The feature that FVD of the literature uses
(Unterthiner et al., 2018; StyleGAN-V; cd-fvd's I3D) are the 400 logits before the softmax.
"""

import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from regen.perceptual.weights import read_file, read_published

MIN_FRAMES = 9
SIDE = 224  # pixels, each way
NUM_FEATURES = 400

# Channels of each Inception module: 1x1 | 1x1, 3x3 | 1x1, 3x3 | pooling, 1x1.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_POOLED_BEFORE = {"Mixed_3b": (1, 3, 3), "Mixed_4b": (3, 3, 3), "Mixed_5b": (2, 2, 2)}
# Of a module's convolutions, DeepMind's names.
_BRANCHES = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


def _pad_same(
    video: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> torch.Tensor:
    """TensorFlow's "SAME": sizes are divided by strides and rounded up; an odd zero is last."""
    padding: list[int] = []
    for size, length, step in zip(video.shape[2:], kernel, stride, strict=True):
        total = max((math.ceil(size / step) - 1) * step + length - size, 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad begins with the last axis
    return F.pad(video, padding)


def _max_pool(
    video: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> torch.Tensor:
    return F.max_pool3d(_pad_same(video, kernel, stride), kernel, stride)  # of values >= 0


class _Unit(nn.Conv3d):
    """A convolution, padded "SAME", with its normalisation folded into it, and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, size, stride)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(_pad_same(video, self.kernel_size, self.stride)))


class _Inception(nn.Module):
    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(in_channels, widths[0], 1)
        self.b1a, self.b1b = _Unit(in_channels, widths[1], 1), _Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit(in_channels, widths[3], 1), _Unit(widths[3], widths[4], 3)
        self.b3b = _Unit(in_channels, widths[5], 1)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        pooled = _max_pool(video, (3, 3, 3), (1, 1, 1))
        return torch.cat(
            (
                self.b0(video),
                self.b1b(self.b1a(video)),
                self.b2b(self.b2a(video)),
                self.b3b(pooled),
            ),
            dim=1,
        )


class I3D(nn.Module):
    """Logits `[B, 400]` of videos `[B, 3, T, 224, 224]` in [-1, 1], T at least 9; frozen.

    The weights are DeepMind's (`regen.perceptual.weights`), or those of `file`, a state dictionary
    with cd-fvd's names (i3d_pretrained_400.pt). Raises WeightsAbsent without `file` and without the
    package, ValueError for another file.
    """

    def __init__(self, file: Path | None = None) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        outputs = [192] + [sum((w[0], w[2], w[4], w[5])) for w in _MIXED.values()]
        for (name, widths), (channels, _) in zip(_MIXED.items(), pairwise(outputs), strict=True):
            self.add_module(name, _Inception(channels, widths))
        self.logits = nn.Conv3d(outputs[-1], NUM_FEATURES, 1)
        try:
            self.load_state_dict(_published() if file is None else _of_file(file))
        except RuntimeError as error:  # a line for each tensor
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(
                f"{file} holds another network than I3D of 400 classes: {reason}"
            ) from None
        self.eval().requires_grad_(False)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        if video.shape[2] < MIN_FRAMES or video.shape[3:] != (SIDE, SIDE):
            raise ValueError(
                f"I3D takes [B, 3, T, {SIDE}, {SIDE}] with T at least {MIN_FRAMES}, got "
                f"{list(video.shape)}"
            )
        hidden_states = self.Conv3d_1a_7x7(video)
        hidden_states = _max_pool(hidden_states, (1, 3, 3), (1, 2, 2))
        hidden_states = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(hidden_states))
        for name in _MIXED:
            if kernel := _POOLED_BEFORE.get(name):
                hidden_states = _max_pool(hidden_states, kernel, (min(kernel[0], 2), 2, 2))
            hidden_states = self.get_submodule(name)(hidden_states)
        hidden_states = F.avg_pool3d(hidden_states, (2, 7, 7), 1)
        return self.logits(hidden_states).mean(dim=(2, 3, 4))


def _names() -> dict[str, str]:
    """Our name of each normalised convolution -> DeepMind's."""
    stem = {name: name for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")}
    mixed = {
        f"{name}.{ours}": f"{name}/{theirs}"
        for name in _MIXED
        for ours, theirs in _BRANCHES.items()
    }
    return stem | mixed


def _folded(
    weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolution, then (x - mean) / sqrt(variance) + bias, as one convolution."""
    scale = variance.flatten().double().rsqrt()
    weight = weight.double() * scale.view(-1, 1, 1, 1, 1)
    return weight.float(), (bias.flatten().double() - mean.flatten().double() * scale).float()


def _published() -> dict[str, torch.Tensor]:
    tensors, state = read_published("i3d"), {}
    for ours, theirs in _names().items():
        kernel = tensors[f"params/{theirs}/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
        bias = tensors[f"params/{theirs}/BatchNorm_0/bias"]
        mean, variance = (
            tensors[f"batch_stats/{theirs}/BatchNorm_0/{kind}"] for kind in ("mean", "var")
        )
        state[f"{ours}.weight"], state[f"{ours}.bias"] = _folded(
            kernel, bias, mean, variance + 1e-3
        )
    logits = "params/Logits/Conv3d_0c_1x1/Conv_0"
    state["logits.weight"] = tensors[f"{logits}/kernel"].permute(4, 3, 0, 1, 2)
    return state | {"logits.bias": tensors[f"{logits}/bias"]}


def _of_file(file: Path) -> dict[str, torch.Tensor]:
    tensors, state = read_file(file), {}
    try:
        for name in _names():
            gain, bias, mean, variance = (
                tensors[f"{name}.bn.{kind}"]
                for kind in ("weight", "bias", "running_mean", "running_var")
            )
            weight = tensors[f"{name}.conv3d.weight"]
            weight, offset = _folded(weight, torch.zeros_like(bias), mean, variance + 1e-5)
            state[f"{name}.weight"] = weight * gain.view(-1, 1, 1, 1, 1)
            state[f"{name}.bias"] = offset * gain + bias
        for kind in ("weight", "bias"):
            state[f"logits.{kind}"] = tensors[f"logits.conv3d.{kind}"]
    except KeyError as error:
        raise ValueError(f"{file} has no {error.args[0]}, which cd-fvd's I3D has") from None
    return state
