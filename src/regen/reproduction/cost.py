"""What decoding a chunk costs (Table 4): FLOPs, and milliseconds and memory on this machine.

FLOPs are counted on fake tensors, so that no size is too large. Beside ours stand the decoders of
diffusers at their published configurations; all weights are random, which changes no cost.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from regen.baselines.magvit import AutoencoderMAGVITv2
from regen.loading import Autoencoder, new_model
from regen.training.step_cost import FORMULAS

REPEATS = 3  # timings of which the median counts, after one that does not
PEER_FRAMES = 25


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

    def decode(self, model: Any, size: int) -> torch.Tensor:
        """`PEER_FRAMES` frames from latents of zeros."""
        positions, times = size // self.spatial, (PEER_FRAMES - 1) // self.temporal + 1
        weights = next(model.parameters())
        shape = (1, self.channels, times, positions, positions)
        decoded = model.decode(torch.zeros(shape, device=weights.device, dtype=weights.dtype))
        return decoded if isinstance(decoded, torch.Tensor) else decoded.sample


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


def decode_chunk(model: Autoencoder, size: int) -> torch.Tensor:
    """One chunk of `size` x `size` pixels decoded in one step from latents of zeros."""
    positions, geometry = size // model.spatial_compression_ratio, model.geometry
    weights = next(model.parameters())
    options = {"device": weights.device, "dtype": weights.dtype}
    num_latent_frames, channels = geometry.latent_frames_per_chunk, model.config["latent_channels"]
    latents = torch.zeros((1, channels, num_latent_frames, positions, positions), **options)
    if isinstance(model, AutoencoderMAGVITv2):
        return model.decode_chunk(latents)
    frame_times = torch.zeros(1, geometry.chunk_length, device=weights.device)
    noise = torch.zeros(1, 3, geometry.chunk_length, size, size, **options)
    timestep = torch.ones(1, device=weights.device)
    return model.predict(noise, timestep, latents, frame_times)


def build_decoder(name: str) -> Any:
    """A preset or a name of `PEERS`, with random weights."""
    return PEERS[name].build() if name in PEERS else new_model(name)


def decode(name: str, model: Any, size: int) -> torch.Tensor:
    return PEERS[name].decode(model, size) if name in PEERS else decode_chunk(model, size)


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


def decode_flops(name: str, size: int = 256) -> tuple[int, int]:
    """(FLOPs, frames) of decoding a whole chunk of a preset, or a piece of a peer, in one step."""
    lengths: list[int] = []

    def call(model: Any) -> None:
        lengths.append(decode(name, model, size).shape[2])

    flops = count_flops(lambda: build_decoder(name), call)
    return flops, lengths[0]


def measure_here(name: str, size: int) -> tuple[float, float] | None:
    """(milliseconds, MiB) of decoding that on this machine; None where its memory does not do.

    In a process of its own. On a GPU in bfloat16, memory as PyTorch allocates it; on a CPU in
    float32, memory as the process grows: weights included.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(time_and_memory, name, size).result()
        except (MemoryError, BrokenProcessPool):  # the kernel ends what takes too much
            return None


@torch.inference_mode()
def time_and_memory(name: str, size: int) -> tuple[float, float]:
    """`measure_here` within this process. Raises MemoryError."""
    is_cuda, times = torch.cuda.is_available(), []
    before = _largest_bytes()
    try:
        with torch.device("cuda" if is_cuda else "cpu"):
            model = build_decoder(name).eval()
        if is_cuda:
            model = model.to(torch.bfloat16)
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            decode(name, model, size)
            if is_cuda:
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
    except torch.OutOfMemoryError as error:
        raise MemoryError from error
    return float(np.median(times[1:])), (_largest_bytes() - before) / 2**20


def _largest_bytes() -> int:
    """The most memory that this process has held so far, on the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024)
