"""Decodes the chunks of a video in turn, at any times of each: what `decode` and files share.

Of a model with moving content, frame 0 of a chunk comes first; the others are decoded from it and
from the next chunk's frame 0, which is then kept for that chunk's turn.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from regen.chunking import PATCH
from regen.flow import euler_sample, predicted_sample, start_timestep
from regen.model.moving_content import (
    Draft,
    draft_first,
    draft_later,
    move_content,
    predict_detail,
)

if TYPE_CHECKING:
    from regen.model.autoencoder import AutoencoderREGEN

# Choice: after the one-step picture the other steps draw what it leaves open, from here on, where
# noise is three times as strong. Before, nothing is known of it and its mean is 0.
DETAIL_START = 0.76
VISIBLE_STD = 0.02  # of pixels in [-1, 1]: 2.5 grey levels


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
        ratio: int | None = None,
    ) -> torch.Tensor:
        """Chunk `index` at `frame_times` `[F]` of its own: `[B, 3, F, 8 h, 8 w]` in [-1, 1].

        `latents` `[B, 8, 1 or 2, h, w]` of the chunk and `following` `[B, 8, 1 or more, h, w]` of
        the next one, normalised; None, or of no frames, where there is none. Chunks are asked for
        in turn. `ratio`: in time, of this chunk; None: that of all.
        """
        self.firsts = {key: one for key, one in self.firsts.items() if key >= index}
        ratio = ratio or self.ratio
        rows, columns = latents.shape[-2:]
        raw = self._raw(latents)
        times = frame_times.to(raw.device, torch.float32).expand(len(raw), -1)
        if self.model.linear is None:
            video = self._decode_plain(index, self.model.fill_motion(raw), times, ratio)
        else:
            video = self._decode_moving(index, raw, following, times, ratio)
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
        ratio: int | None,
    ) -> torch.Tensor:
        model = self.model
        first = self._first(index, latents)
        is_first = times[0] == 0
        video = first[:, :, None].repeat(1, 1, times.shape[1], 1, 1)
        # Choice: an image does not move. At other times than 0 it is what it is.
        if latents.shape[2] == 1 or bool(is_first.all()):
            return video
        after = None
        if following is not None and following.shape[2]:
            after = self._first(index + 1, self._raw(following[:, :, :1]))
        later, has_next = times[:, ~is_first], after is not None
        warped, reference = move_content(model, first, after, latents, later, ratio=ratio)
        draft = draft_later(model, latents, later, warped, reference, has_next, ratio)
        video[:, :, ~is_first] = self._sample(draft, is_first=False)
        return video

    def _first(self, index: int, latents: torch.Tensor) -> torch.Tensor:
        if index not in self.firsts:
            draft = draft_first(self.model, latents[:, :, 0])
            self.firsts[index] = self._sample(draft, is_first=True)[:, :, 0].clamp(-1, 1)
        return self.firsts[index]

    def _sample(self, draft: Draft, is_first: bool) -> torch.Tensor:
        if self.num_inference_steps == 1:
            return draft.mean
        spread, noise = draft.spread(), torch.zeros_like(draft.mean)
        if is_first:
            # Choice: only first frames have noise, the same in each. Their detail moves with the
            # content, and stays where it stands still; noise of their own makes others flicker.
            # Choice: where little is open, noise is weaker than the model knows it. Detail of a
            # grey level or two is seen as flicker, if at all (docs/log.md).
            strength = DETAIL_START * spread / (spread + VISIBLE_STD)
            noise = strength * self.noise(0, draft.mean)
        denoise = partial(predict_detail, self.model, draft)
        detail = euler_sample(denoise, noise, self.num_inference_steps - 1, DETAIL_START)
        return draft.mean + spread * detail

    def _decode_plain(
        self, index: int, latents: torch.Tensor, times: torch.Tensor, ratio: int | None
    ) -> torch.Tensor:
        model, kind = self.model, self.model.config.prediction_type

        def denoise(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            output = model.predict(noisy.to(model.dtype), timestep, latents, times, ratio)
            return predicted_sample(output, noisy, timestep, kind)

        shape = (len(latents), 3, times.shape[1], *(PATCH * side for side in latents.shape[-2:]))
        noise = self.noise(index, latents.new_empty(shape))
        return euler_sample(denoise, noise, self.num_inference_steps, start_timestep(kind))

    def noise(self, index: int, like: torch.Tensor) -> torch.Tensor:
        """Of chunk `index`, the same whenever it is asked for; float32."""
        generator = torch.Generator().manual_seed((self.seed + index) % 2**63)
        return torch.randn(like.shape, generator=generator).to(like.device)
