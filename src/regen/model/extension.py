"""Latent extension (Sec. 5, B.4): neighbouring chunks decoded so that they meet.

Each chunk but the first is also decoded one frame back, at time -1, which is the last frame of the
chunk before. At every sampling step that frame's state is replaced by what it was there.
"""

from collections.abc import Callable
from functools import partial

import torch

from regen.flow import EPSILON_MAX_TIMESTEP, euler_sample, predicted_sample
from regen.model.autoencoder import AutoencoderREGEN, check_latents
from regen.model.chunk_decoder import ChunkDecoder
from regen.model.patches import PATCH


@torch.no_grad()
def decode_extended(
    model: AutoencoderREGEN,
    latents: torch.Tensor,
    num_inference_steps: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Whole chunks `[B, 8, 2 n, h, w]` -> `[B, 3, n (k + 1), 8 h, 8 w]`, float32, in [-1, 1].

    h and w are multiples of the model's attention window. With one step the frames have only their
    noise in common, as nothing but noise is there to be replaced. Raises ValueError for latents of
    other sizes, and for a model with moving content, whose chunks meet by themselves.
    """
    check_latents(latents, model.config.latent_channels)
    if model.linear is not None:
        raise ValueError("latent extension is of models without moving_content: use decode")
    window = model.config.attention_window or 1
    rows, columns = latents.shape[3:]
    if latents.shape[2] % 2 or rows % window or columns % window:
        raise ValueError(
            f"latent extension is of whole chunks (n even) and of h and w that {window} divides, "
            f"got {list(latents.shape)}"
        )
    raw_latents = model.denormalize_latents(latents).to(model.dtype)
    chunks: list[torch.Tensor] = []
    states: list[torch.Tensor] = []  # of the last frame of the chunk before, by step
    noise = ChunkDecoder(model, num_inference_steps, generator).noise
    for index, chunk_latents in enumerate(raw_latents.split(2, dim=2)):
        sample, states = _decode_chunk(
            model, chunk_latents, states, num_inference_steps, partial(noise, index)
        )
        chunks.append(sample.clamp(-1, 1))
    return torch.cat(chunks, dim=2)


def _decode_chunk(
    model: AutoencoderREGEN,
    latents: torch.Tensor,
    before: list[torch.Tensor],
    num_inference_steps: int,
    noise_like: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A chunk, and the states of its last frame at each step; `before` is empty for the first."""
    kind, num_before = model.config.prediction_type, 1 if before else 0
    times = torch.arange(-num_before, model.geometry.chunk_length, device=latents.device)
    frame_times = times.float().expand(len(latents), -1)
    rows, columns = latents.shape[3:]
    shape = (len(latents), 3, len(times), PATCH * rows, PATCH * columns)
    noise = noise_like(latents.new_empty(shape))
    states: list[torch.Tensor] = []

    def denoise(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if before:  # in place: the sampler goes on from the state as it is now
            noisy[:, :, 0] = before[len(states)]
        states.append(noisy[:, :, -1].clone())
        output = model.predict(noisy.to(model.dtype), timestep, latents, frame_times)
        return predicted_sample(output, noisy, timestep, kind)

    start = EPSILON_MAX_TIMESTEP if kind == "epsilon" else 1.0
    sample = euler_sample(denoise, noise, num_inference_steps, start)
    return sample[:, :, num_before:], states
