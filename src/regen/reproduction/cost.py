"""What decoding a chunk costs: FLOPs counted on fake tensors, so that no size is too large."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from regen.models.loading import Autoencoder
from regen.models.magvit import AutoencoderMAGVITv2
from regen.training.step_cost import FORMULAS


def count_flops(build: Callable[[], nn.Module], call: Callable[[Any], Any]) -> int:
    """FLOPs of `call(model)`, two a multiply-add: matrix products, convolutions, attention.

    `build` makes the model; neither its weights nor its pictures ever take memory.
    """
    with torch.device("meta"):
        model = build().eval()
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.to_empty(device="cpu")
        with counter:
            call(model)
    return counter.get_total_flops()


def decode_chunk(model: Autoencoder, size: int) -> torch.Tensor:
    """One chunk of `size` x `size` pixels decoded in one step from latents of zeros."""
    places, geometry = size // model.spatial_compression_ratio, model.geometry
    weights = next(model.parameters())
    options = {"device": weights.device, "dtype": weights.dtype}
    shape = (1, model.config["latent_channels"], geometry.latent_frames_per_chunk, places, places)
    latents = torch.zeros(shape, **options)
    if isinstance(model, AutoencoderMAGVITv2):
        return model.decode_chunk(latents)
    frame_times = torch.zeros(1, geometry.chunk_length, device=weights.device)
    noise = torch.zeros(1, 3, geometry.chunk_length, size, size, **options)
    timestep = torch.ones(1, device=weights.device)
    return model.predict(noise, timestep, latents, frame_times)


def decode_flops_per_frame(build: Callable[[], Autoencoder], size: int = 256) -> float:
    """FLOPs of decoding a whole chunk in one step, for each of its frames."""
    lengths: list[int] = []

    def call(model: Autoencoder) -> None:
        lengths.append(decode_chunk(model, size).shape[2])

    return count_flops(build, call) / lengths[0]
