"""Decodes the chunks of a video in turn, at any times of each: what `decode` and files share.

Of a model with moving content, frame 0 of a chunk comes first; the others are decoded from it and
from the next chunk's frame 0, which is then kept for that chunk's turn.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from regen.chunking import PATCH
from regen.flow import euler_sample, predicted_sample, start_timestep
from regen.model.moving_content import move_content, predict_first, predict_later

if TYPE_CHECKING:
    from regen.model.autoencoder import AutoencoderREGEN

# Choice: the generative steps of a model with moving content begin at t = 0.2, from the one-step
# picture. What its latents leave open has a standard deviation of about 0.08; stronger noise hides
# it.
OPEN_TIMESTEP = 0.2


class ChunkDecoder:
    """`num_inference_steps` 1 is a single forward pass. All noise follows from `generator`."""

    def __init__(
        self,
        model: "AutoencoderREGEN",
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        ratio: int | None = None,
    ) -> None:
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is at least 1, got {num_inference_steps}")
        self.model, self.num_inference_steps, self.ratio = model, num_inference_steps, ratio
        device = "cpu" if generator is None else generator.device
        self.seed = int(torch.randint(2**62, (), generator=generator, device=device))
        self.firsts: dict[int, torch.Tensor] = {}  # frames 0 by chunk, `[B, 3, H, W]`

    def decode(
        self,
        index: int,
        latents: torch.Tensor,
        following: torch.Tensor | None,
        frame_times: torch.Tensor,
    ) -> torch.Tensor:
        """Chunk `index` at `frame_times` `[F]` of its own: `[B, 3, F, 8 h, 8 w]` in [-1, 1].

        `latents` `[B, 8, 1 or 2, h, w]` of the chunk and `following` `[B, 8, 1 or more, h, w]` of
        the next one, normalised; None, or of no frames, where there is none. Chunks are asked for
        in turn.
        """
        rows, columns = latents.shape[-2:]
        raw = self._raw(latents)
        times = frame_times.to(raw.device, torch.float32).expand(len(raw), -1)
        if self.model.linear is None:
            video = self._decode_plain(index, self.model.fill_motion(raw), times)
        else:
            video = self._decode_moving(index, raw, following, times)
        return video[..., : PATCH * rows, : PATCH * columns].clamp(-1, 1)

    def _raw(self, latents: torch.Tensor) -> torch.Tensor:
        """Not normalised, with h and w rounded up to the attention window."""
        window = self.model.config.attention_window or 1
        padding = (0, -latents.shape[-1] % window, 0, -latents.shape[-2] % window, 0, 0)
        raw = self.model.denormalize_latents(latents).to(self.model.dtype)
        return F.pad(raw, padding, mode="replicate")

    def _decode_moving(
        self,
        index: int,
        latents: torch.Tensor,
        following: torch.Tensor | None,
        times: torch.Tensor,
    ) -> torch.Tensor:
        model, ratio = self.model, self.ratio
        first = self._first(index, latents)
        is_first = times[0] == 0
        video = first[:, :, None].repeat(1, 1, times.shape[1], 1, 1)
        # Choice: an image does not move. At other times than 0 it is what it is.
        if latents.shape[2] == 1 or bool(is_first.all()):
            return video
        after = None
        if following is not None and following.shape[2]:
            after = self._first(index + 1, self._raw(following[:, :, :1]))
        self.firsts = {key: one for key, one in self.firsts.items() if key >= index}
        later, has_next = times[:, ~is_first], after is not None
        sources = move_content(model, first, after, latents, later, ratio=ratio)

        def denoise(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return predict_later(model, noisy, timestep, latents, later, *sources, has_next, ratio)

        # Choice: the noise of all frames of a chunk is that of its first one. What is invented then
        # holds still in time.
        noise = self._noise(index, first[:, :, None]).expand(-1, -1, later.shape[1], -1, -1)
        video[:, :, ~is_first] = euler_sample(
            denoise, noise, self.num_inference_steps, open_timestep=OPEN_TIMESTEP
        )
        return video

    def _first(self, index: int, latents: torch.Tensor) -> torch.Tensor:
        if index not in self.firsts:
            content = latents[:, :, 0]
            shape = (len(content), 3, 1, *(PATCH * side for side in content.shape[-2:]))
            sample = euler_sample(
                lambda noisy, timestep: predict_first(self.model, noisy, timestep, content),
                self._noise(index, content.new_empty(shape)),
                self.num_inference_steps,
                open_timestep=OPEN_TIMESTEP,
            )
            self.firsts[index] = sample[:, :, 0].clamp(-1, 1)
        return self.firsts[index]

    def _decode_plain(self, index: int, latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        model, kind = self.model, self.model.config.prediction_type

        def denoise(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            output = model.predict(noisy.to(model.dtype), timestep, latents, times, self.ratio)
            return predicted_sample(output, noisy, timestep, kind)

        shape = (len(latents), 3, times.shape[1], *(PATCH * side for side in latents.shape[-2:]))
        noise = self._noise(index, latents.new_empty(shape))
        return euler_sample(denoise, noise, self.num_inference_steps, start_timestep(kind))

    def _noise(self, index: int, like: torch.Tensor) -> torch.Tensor:
        """Of chunk `index`, the same whenever it is asked for; float32."""
        generator = torch.Generator().manual_seed((self.seed + index) % 2**63)
        return torch.randn(like.shape, generator=generator).to(like.device)
