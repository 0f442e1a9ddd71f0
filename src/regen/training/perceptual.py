"""The perceptual distance of the baseline's training, and what stands in where its weights are not.

Both take frames `[N, 3, H, W]` in [-1, 1] and give a distance for each, `[N]`.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# VGG-16 up to relu5_3: (index of the convolution in torchvision's `features`, ends a stage).
CONVOLUTIONS = (
    (0, False), (2, True), (5, False), (7, True), (10, False), (12, False), (14, True),
    (17, False), (19, False), (21, True), (24, False), (26, False), (28, True),
)  # fmt: skip
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, pixels in [0, 1]
NUM_LEVELS = 4


class VGGDistance(nn.Module):
    """LPIPS's distance between VGG-16 features (Zhang et al., 2018).

    `path`: safetensors with `features.N.weight` and `.bias` of the 13 convolutions, as torchvision
    and timm name them; with LPIPS's `linN.model.1.weight` its weights of the channels, without them
    all alike. Raises ValueError for another file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        shapes: dict[str, torch.Tensor] = {}
        try:
            with safe_open(path, framework="pt") as file:
                for index, _ in CONVOLUTIONS:
                    for kind in ("weight", "bias"):
                        name = f"features.{index}.{kind}"
                        shapes[name] = file.get_tensor(name).float()
                for stage in range(5):
                    name = f"lin{stage}.model.1.weight"
                    if name in file.keys():  # noqa: SIM118
                        shapes[name] = file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path} holds no VGG-16 ({error}): --perceptual-weights is a safetensors file "
                "with features.N.weight and features.N.bias, as torchvision and timm name them"
            ) from None
        self.names = list(shapes)
        for name, tensor in shapes.items():
            self.register_buffer(name.replace(".", "_"), tensor, persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def _features(self, frames: torch.Tensor) -> list[torch.Tensor]:
        hidden_states = (frames / 2 + 0.5 - self.get_buffer("mean")) / self.get_buffer("std")
        stages = []
        for index, ends in CONVOLUTIONS:
            weight, bias = (
                self.get_buffer(f"features_{index}_{kind}").to(hidden_states.dtype)
                for kind in ("weight", "bias")
            )
            hidden_states = F.relu(F.conv2d(hidden_states, weight, bias, padding=1))
            if ends:
                stages.append(hidden_states)
                hidden_states = F.max_pool2d(hidden_states, 2)
        return stages

    def forward(self, frames: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(frames), device=frames.device)
        pairs = zip(self._features(frames), self._features(reference), strict=True)
        for stage, (one, other) in enumerate(pairs):
            difference = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).float().square()
            name = f"lin{stage}.model.1.weight"
            if name in self.names:
                difference = difference * self.get_buffer(name.replace(".", "_"))
            total = total + difference.sum(dim=1).mean(dim=(1, 2))
        return total


def pyramid_distance(frames: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """L1 between Laplacian pyramids (Bojanowski et al., 2018): of bands, each about as important.

    Choice: without VGG weights the perceptual term is a Laplacian pyramid. No weights can be
    downloaded in training; it too asks for detail at each scale, though not for what people see.
    """
    difference = frames.float() - reference.float()
    total = torch.zeros(len(frames), device=frames.device)
    for level in range(NUM_LEVELS):
        if level == NUM_LEVELS - 1 or min(difference.shape[-2:]) < 4:
            return total + difference.abs().mean(dim=(1, 2, 3))
        coarse = F.avg_pool2d(difference, 2, ceil_mode=True)
        wide = F.interpolate(coarse, difference.shape[-2:], mode="bilinear", align_corners=False)
        total = total + (difference - wide).abs().mean(dim=(1, 2, 3))
        difference = coarse
    return total
