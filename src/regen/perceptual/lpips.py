"""LPIPS, the distance between two pictures that people's judgements weigh (Zhang et al., 2018).

Version 0.1 with AlexNet or VGG-16: differences of unit-length features, weighted by channel. A
metric, and a loss: it is differentiable, and its weights are frozen.
"""

from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from regen.perceptual.weights import read_file, read_published

LPIPSNetwork = Literal["alex", "vgg"]


class _Convolution(NamedTuple):
    number: int  # in torchvision's `features`
    padding: int = 1
    stride: int = 1
    pool: int = 0  # kernel of the max-pooling before it, stride 2
    is_level: bool = False  # its output is compared


_LAYERS: dict[str, tuple[_Convolution, ...]] = {
    "alex": (
        _Convolution(0, 2, 4, is_level=True),
        _Convolution(3, 2, pool=3, is_level=True),
        _Convolution(6, pool=3, is_level=True),
        *(_Convolution(index, is_level=True) for index in (8, 10)),
    ),
    "vgg": tuple(
        _Convolution(
            index, pool=2 * (index in (5, 10, 17, 24)), is_level=index in (2, 7, 14, 21, 28)
        )
        for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    ),
}
MIN_SIDE = {"alex": 32, "vgg": 16}  # pixels; below, the last layers have nothing to look at
_MEAN, _STANDARD_DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # in [-1, 1]


class LPIPS(nn.Module):
    """Distances `[B]` between pictures `[B, 3, H, W]` in [-1, 1]; 0 for equal ones.

    The convolutions follow autocast; features are compared in float32. The weights are those of
    `regen.perceptual.weights`, or of `file`: safetensors or .pth with `features.N.weight` and
    `.bias`, as torchvision and timm name them, and LPIPS's `linN.model.1.weight`; where the file
    has none of the latter, they are torchmetrics'.

    Raises WeightsAbsent without `file` and without the package, ValueError for another file.
    """

    def __init__(self, network: LPIPSNetwork, file: Path | None = None) -> None:
        super().__init__()
        self.network = network
        tensors = _published(network) if file is None else _of_file(network, file)
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor.float(), persistent=False)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        std = torch.tensor(_STANDARD_DEVIATION).view(1, 3, 1, 1)
        self.register_buffer("standard_deviation", std, persistent=False)

    def forward(self, frames: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        smallest = MIN_SIDE[self.network]
        if min(frames.shape[-2:]) < smallest:
            raise ValueError(
                f"LPIPS ({self.network}) takes sides of at least {smallest} pixels, got "
                f"{frames.shape[-1]} x {frames.shape[-2]}"
            )
        total = torch.zeros(len(frames), device=frames.device)
        pairs = zip(self._features(frames), self._features(reference), strict=True)
        for level, (one, other) in enumerate(pairs):
            difference = (one - other).square() * self.get_buffer(f"lin{level}")
            total = total + difference.sum(dim=1).mean(dim=(1, 2))
        return total

    def _features(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Of each level, of unit length over its channels."""
        levels = []
        mean, std = self.get_buffer("mean"), self.get_buffer("standard_deviation")
        hidden_states = (frames.float() - mean) / std
        hidden_states = hidden_states.contiguous(memory_format=torch.channels_last)  # faster
        for index, padding, stride, pool, is_level in _LAYERS[self.network]:
            if pool:
                hidden_states = F.max_pool2d(hidden_states, pool, 2)
            weight, bias = (self.get_buffer(f"conv{index}_{kind}") for kind in ("weight", "bias"))
            hidden_states = F.relu(F.conv2d(hidden_states, weight, bias, stride, padding))
            if is_level:
                levels.append(F.normalize(hidden_states.float(), dim=1, eps=1e-10))
        return levels


def _published(network: LPIPSNetwork) -> dict[str, torch.Tensor]:
    tensors = read_published(network)
    backbone = {"alex": "AlexNet_0", "vgg": "VGG16_0"}[network]
    found = {}
    for number, layer in enumerate(_LAYERS[network]):
        name = f"{backbone}/Conv_{number}"
        found[f"conv{layer.number}.weight"] = tensors[f"{name}/kernel"].permute(3, 2, 0, 1)
        found[f"conv{layer.number}.bias"] = tensors[f"{name}/bias"]
    for level in range(5):
        found[f"lin{level}"] = tensors[f"NetLinLayer_{level}/Conv_0/kernel"].permute(3, 2, 0, 1)
    return found


def _of_file(network: LPIPSNetwork, file: Path) -> dict[str, torch.Tensor]:
    tensors = read_file(file)
    heads = tensors
    if "lin0.model.1.weight" not in tensors:
        folder = files("torchmetrics") / "functional" / "image" / "lpips_models"
        heads = read_file(Path(str(folder / f"{network}.pth")))
    found = {}
    try:
        for layer in _LAYERS[network]:
            for kind in ("weight", "bias"):
                found[f"conv{layer.number}.{kind}"] = tensors[f"features.{layer.number}.{kind}"]
        for level in range(5):
            found[f"lin{level}"] = heads[f"lin{level}.model.1.weight"]
    except KeyError as error:
        raise ValueError(
            f"{file} has no {error.args[0]}, which LPIPS ({network}) needs: give a file with "
            "features.N.weight and features.N.bias, as torchvision and timm name them"
        ) from None
    return found
