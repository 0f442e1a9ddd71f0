"""How many frames make a chunk, where the content says it and not a fixed ratio."""

import torch

from regen.model.autoencoder import AutoencoderREGEN
from regen.model.motion import displacement, warp
from regen.model.motion_estimation import estimate_motion

MAX_QUALITY = 100
# Of the mean squared error of the moved first frame, what the decoder leaves. So predicted, what
# the frames of a chunk lose is 0.08 dB too little, give or take 0.29: 72 chunks of 2 to 33 frames
# of the training clips.
LEFT_OF_RESIDUAL = 0.5


class ChunkLengths:
    """Chooses the length of one chunk after another of a video.

    A chunk costs two latent frames, and each of its frames what it loses against the first, in dB.
    The length is taken at which both together, per frame, are least. What a frame loses is said by
    the error of the first frame, moved as the encoder moves it, beside the error of the first frame
    as decoded; later frames are not decoded.
    `quality` from 0, the smallest file, to 100; ValueError for another, and for a model without
    moving content.
    """

    def __init__(self, model: AutoencoderREGEN, quality: float) -> None:
        if not 0 <= quality <= MAX_QUALITY:
            raise ValueError(f"quality is from 0 to {MAX_QUALITY}, got {quality:g}")
        if model.linear is None:
            raise ValueError("quality is of models with moving_content: encode at a fixed ratio")
        self.model = model
        # Choice: a chunk must gain 200 dB of one frame at quality 0, and half as much with each 10
        # more. So equal steps of quality are about equal factors of the number of latents.
        self.cost = 200 * 2 ** (-quality / 10)
        longest = model.config.temporal_compression_ratio + 1
        self.lengths = [*(2**n + 1 for n in range(longest) if 2**n + 1 < longest), longest]
        self._last = len(self.lengths) // 2  # the search begins at the length chosen before

    @torch.no_grad()
    def choose(self, video: torch.Tensor) -> tuple[int, torch.Tensor | None]:
        """Frames of the next chunk of `video` `[1, 3, T, H, W]`, and their motion if T > 1.

        Of as many as there are: T is at least the longest chunk, or the rest of a scene.
        """
        num_frames = video.shape[2]
        if num_frames == 1:
            return 1, None
        lengths = [length for length in self.lengths if length < num_frames] + [num_frames]
        first_error = self._first_error(video[:, :, :1])
        tried: dict[int, tuple[float, torch.Tensor]] = {}

        def cost(index: int) -> float:
            if index not in tried:
                tried[index] = self._cost(video[:, :, : lengths[index]], first_error)
            return tried[index][0]

        best = start = min(self._last, len(lengths) - 1)
        while best + 1 < len(lengths) and cost(best + 1) < cost(best):
            best += 1
        while best == start and best and cost(best - 1) <= cost(best):
            best = start = best - 1
        cost(best)
        self._last = best
        return lengths[best], tried[best][1]

    def _first_error(self, first: torch.Tensor) -> float:
        latents = self.model.encode(first).latents
        decoded = self.model.decode(latents, height=first.shape[3], width=first.shape[4]).sample
        return (decoded - first).square().mean().item()

    def _cost(self, chunk: torch.Tensor, first_error: float) -> tuple[float, torch.Tensor]:
        """Of a chunk per frame, in dB, and its motion."""
        num_later = chunk.shape[2] - 1
        motion = estimate_motion(chunk)
        times = torch.arange(1, num_later + 1, device=chunk.device).expand(1, -1)
        field = displacement(motion, times, num_later)[..., : chunk.shape[3], : chunk.shape[4]]
        residual = warp(chunk[:, :, 0], field) - chunk[:, :, 1:]
        error = residual.square().mean(dim=(0, 1, 3, 4))  # of each later frame
        losses = 10 * torch.log10(1 + LEFT_OF_RESIDUAL * error / max(first_error, 1e-6))
        return (self.cost + losses.sum().item()) / chunk.shape[2], motion
