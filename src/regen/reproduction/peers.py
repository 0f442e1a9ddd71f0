"""Video decoders of diffusers, at their published configurations with random weights.

For what they cost and how much they compress, which weights do not change.
"""

from dataclasses import dataclass
from typing import Any

import torch

from regen.reproduction.cost import count_flops


@dataclass(frozen=True)
class Peer:
    """A class of diffusers, whose defaults are the published configuration, and its latents.

    4 n + 1 frames become n + 1 latent frames at `temporal` 4.
    """

    class_name: str
    temporal: int
    spatial: int
    channels: int

    @property
    def factor(self) -> float:
        """LTX-Video's compression factor: pixel values a latent value, of a long video (App. C)."""
        return 3 * self.temporal * self.spatial**2 / self.channels

    def build(self) -> Any:
        import diffusers

        return getattr(diffusers, self.class_name)()

    def decode(self, model: Any, size: int, num_frames: int) -> torch.Tensor:
        """`num_frames` (1 more than a multiple of `temporal`) from latents of zeros."""
        places, times = size // self.spatial, (num_frames - 1) // self.temporal + 1
        weights = next(model.parameters())
        latents = torch.zeros(
            1, self.channels, times, places, places, device=weights.device, dtype=weights.dtype
        )
        decoded = model.decode(latents)
        return decoded if isinstance(decoded, torch.Tensor) else decoded.sample

    def flops_per_frame(self, size: int, num_frames: int = 25) -> float:
        made: list[int] = []

        def call(model: Any) -> None:
            made.append(self.decode(model, size, num_frames).shape[2])

        return count_flops(self.build, call) / made[0]


PEERS: dict[str, Peer] = {
    "Wan 2.1": Peer("AutoencoderKLWan", 4, 8, 16),
    "CogVideoX": Peer("AutoencoderKLCogVideoX", 4, 8, 16),
    "HunyuanVideo": Peer("AutoencoderKLHunyuanVideo", 4, 8, 16),
    "Cosmos": Peer("AutoencoderKLCosmos", 8, 8, 16),
    "LTX-Video": Peer("AutoencoderKLLTXVideo", 8, 32, 128),
    "EasyAnimate (MAGVIT)": Peer("AutoencoderKLMagvit", 4, 8, 16),
    "VidTok": Peer("AutoencoderVidTok", 4, 8, 4),
    "Mochi": Peer("AutoencoderKLMochi", 6, 8, 12),
}
