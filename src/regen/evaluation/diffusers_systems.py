"""The video autoencoders of diffusers as systems, from their class and a local folder.

Each takes float video in [-1, 1] and gives it back. What differs is which numbers of frames and
which sizes it takes, how its latents come out, and what its decoder is given besides. Here every
clip is filled up to what the class takes, by repeating the last frame and the edges, and what comes
back is cut to the clip: T frames in, T frames out.

Latents go from encode to decode as they are: scaling factors, latents_mean and latents_std serve
diffusion models between the two, and would cancel. Latents are the mode of the posterior.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from regen.evaluation.systems import NeuralSystem, Size, weights_hash
from regen.loading import load_strictly, loading

DIFFUSION_DECODER = "LTX2VideoDiffusionDecoderModel"  # CLASS:FOLDER:FOLDER of the autoencoder


Number = Callable[[Any], int]  # of the loaded model
Taken = Callable[[Any, int], int]  # the smallest number that it takes, not below the given one


@dataclass(frozen=True)
class Rule:
    """What a class takes; `time` and `space` are its compression ratios.

    r n + 1 frames (or r n), and multiples of the spatial ratio, but for what is given.
    """

    time: Number
    space: Number
    has_first_frame: bool = True
    frames: Taken | None = None
    height: Taken | None = None
    width: Taken | None = None
    needs_tiling: bool = False

    def taken(self, model: Any, size: Size) -> Size:
        """The smallest size that the model takes, not below `size`."""
        frames, height, width = size
        steps = (self.time(model), self.space(model), self.space(model))
        return (
            self.frames(model, frames)
            if self.frames
            else _up(frames, steps[0], int(self.has_first_frame)),
            self.height(model, height) if self.height else _up(height, steps[1]),
            self.width(model, width) if self.width else _up(width, steps[2]),
        )


def _up(number: int, step: int, first: int = 0) -> int:
    """The smallest of first, first + step, ... (but not 0) that is at least `number`."""
    number = max(number, first or step)
    return first + -(-(number - first) // step) * step


def _levels(model: Any) -> int:
    return int(2 ** (len(model.config.block_out_channels) - 1))


def _time(model: Any) -> int:
    return int(model.temporal_compression_ratio)


def _space(model: Any) -> int:
    return int(model.spatial_compression_ratio)


def _config(name: str) -> Number:
    return lambda model: int(model.config[name])


def _tiles(axis: int) -> Taken:
    """Allegro decodes whole tiles only: kernel, kernel + stride, ..."""
    return lambda model, number: _up(number, model.stride[axis], model.kernel[axis])


def _vidtok_frames(model: Any, number: int) -> int:
    if model.is_causal:
        return _up(number, _time(model), 1)
    return _up(number, model.num_sample_frames_batch_size)  # its decoder cuts what is left over


def _minimax_frames(model: Any, number: int) -> int:
    """Clips of 17 frames, and what the last one would have overlapped of its neighbour."""
    length, tail = model.config.clip_length, model.frame_overlap
    return _up(number, length, length + tail)


def _two_or_more(model: Any, number: int) -> int:
    """LTX-2's decoder pads latents by reflection, which takes two of them."""
    return _up(max(number, 2 * _space(model)), _space(model))


class DiffusionDecoded(torch.nn.Module):
    """LTX-2's autoencoder with its diffusion decoder in place of its own, as one model."""

    def __init__(self, vae: Any, decoder: Any) -> None:
        super().__init__()
        self.vae, self.decoder, self.config = vae, decoder, decoder.config
        self.temporal_compression_ratio = vae.temporal_compression_ratio
        self.spatial_compression_ratio = vae.spatial_compression_ratio

    def encode(self, video: torch.Tensor) -> Any:
        return self.vae.encode(video)


def _neighbourhood(axis: int) -> Taken:
    """LTX-2's diffusion decoder attends within windows that the latents have to hold."""

    def up(model: Any, number: int) -> int:
        least = model.config.decoder_stage_kernels[0][axis] * _space(model)
        return _up(max(number, least), _space(model))

    return up


_PER_RATIO = Rule(_time, _space)
_TIME = _config("temporal_compression_ratio")
VIDEO_AUTOENCODERS: dict[str, Rule] = {
    "AutoencoderKLAllegro": Rule(
        _TIME, _space, True, _tiles(0), _tiles(1), _tiles(2), needs_tiling=True
    ),
    "AutoencoderKLCogVideoX": Rule(_TIME, _levels),
    "AutoencoderKLCosmos": Rule(_TIME, _config("spatial_compression_ratio")),
    "AutoencoderKLHunyuanVideo": _PER_RATIO,
    "AutoencoderKLHunyuanVideo15": _PER_RATIO,
    "AutoencoderKLKVAEVideo": Rule(
        _config("temporal_compress_times"), lambda model: 2 ** (len(model.config.ch_mult) - 1)
    ),
    "AutoencoderKLLTXVideo": _PER_RATIO,
    "AutoencoderKLLTX2Video": Rule(_time, _space, height=_two_or_more, width=_two_or_more),
    "AutoencoderKLMagvit": _PER_RATIO,
    "AutoencoderKLMiniMaxH3": Rule(_time, _space, frames=_minimax_frames),
    "AutoencoderKLMochi": _PER_RATIO,
    "AutoencoderKLQwenImage": Rule(lambda model: 4, _space),
    "AutoencoderKLTemporalDecoder": Rule(lambda model: 1, _levels, has_first_frame=False),
    "AutoencoderKLWan": Rule(_config("scale_factor_temporal"), _config("scale_factor_spatial")),
    DIFFUSION_DECODER: Rule(_time, _space, height=_neighbourhood(1), width=_neighbourhood(2)),
    "AutoencoderVidTok": Rule(
        _time, lambda model: int(2 ** len(model.encoder.spatial_ds)), frames=_vidtok_frames
    ),
}


def diffusers_system(spec: str, device: str, dtype: torch.dtype) -> NeuralSystem:
    """`CLASS:FOLDER`, or `CLASS:FOLDER:tiled` to save memory, which changes what comes out.

    LTX-2's diffusion decoder, which has steps and seeds, is `CLASS:FOLDER:FOLDER`: its own, and
    that of the autoencoder whose latents it decodes.

    Raises ValueError for a class that is none of `VIDEO_AUTOENCODERS` or not in the installed
    diffusers, and for weights that cannot be loaded.
    """
    class_name, _, place = spec.partition(":")
    folder, is_tiled = (place.removesuffix(":tiled"), place.endswith(":tiled"))
    if class_name not in VIDEO_AUTOENCODERS or not folder:
        raise ValueError(
            f"--diffusers {spec}: give CLASS:FOLDER with one of {', '.join(VIDEO_AUTOENCODERS)}"
        )
    is_generative, vae_folder = class_name == DIFFUSION_DECODER, ""
    if is_generative:
        folder, _, vae_folder = folder.partition(":")
        if not vae_folder:
            raise ValueError(
                f"--diffusers {spec}: give {DIFFUSION_DECODER}:FOLDER:FOLDER, the second that of "
                "the AutoencoderKLLTX2Video whose latents it decodes"
            )
    model, rule = _load(class_name, Path(folder), dtype).to(device), VIDEO_AUTOENCODERS[class_name]
    if is_tiled or rule.needs_tiling:
        model.enable_tiling()
    if is_generative:
        vae = _load("AutoencoderKLLTX2Video", Path(vae_folder), dtype).to(device)
        model = DiffusionDecoded(vae, model)
    is_pictures = class_name == "AutoencoderKLTemporalDecoder"

    def encode(video: torch.Tensor) -> torch.Tensor:
        size: Size = (video.shape[2], video.shape[3], video.shape[4])
        extra = [more - here for more, here in zip(rule.taken(model, size), size, strict=True)]
        padding = (0, extra[2], 0, extra[1], 0, extra[0])
        video = F.pad(video, padding, mode="replicate").to(dtype)
        if is_pictures:
            pictures = model.encode(rearrange(video, "b c t h w -> (b t) c h w")).latent_dist.mode()
            return rearrange(pictures, "(b t) c h w -> b c t h w", b=len(video))
        if class_name == "AutoencoderVidTok" and model.is_causal:
            # Its encoder takes r n frames, and its decoder drops the r - 1 first ones.
            video = torch.cat([video[:, :, :1]] * (_time(model) - 1) + [video], dim=2)
        return _latents(model.encode(video))

    def decode(
        latents: torch.Tensor, size: Size, steps: int, generator: torch.Generator
    ) -> torch.Tensor:
        num_frames, height, width = size
        if is_pictures:
            count = latents.shape[2]
            pictures = rearrange(latents, "b c t h w -> (b t) c h w")
            decoded = model.decode(pictures, num_frames=count).sample
            decoded = rearrange(decoded, "(b t) c h w -> b c t h w", b=len(latents))
        elif is_generative:
            decoded = model.decoder.decode(
                latents, generator=generator, num_inference_steps=steps
            ).sample
        else:
            decoded = model.decode(latents, **_decoder_options(model, latents))
            decoded = getattr(decoded, "sample", decoded)
            if class_name == "AutoencoderKLAllegro":
                decoded = decoded.transpose(1, 2)  # its decoder gives [B, T, 3, H, W]
        return decoded[:, :, :num_frames, :height, :width]

    decoder = model.decoder if is_generative else model
    is_tiled = bool(getattr(decoder, "use_tiling", False))
    about = {
        "kind": "diffusers",
        "class": class_name,
        "folder": folder,
        "weights_sha256": weights_hash(Path(folder)),
        "dtype": str(dtype).removeprefix("torch."),
        "tiled": is_tiled,
        "nominal": [rule.time(model), rule.space(model)],
    }
    if is_generative:
        about["autoencoder_sha256"] = weights_hash(Path(vae_folder))
    name = f"{class_name} ({Path(folder).resolve().name}{', tiled' if is_tiled else ''})"
    uncounted = decoder if is_generative else None  # flex attention
    return NeuralSystem(name, about, model, encode, decode, is_generative, uncounted=uncounted)


def _latents(encoded: Any) -> torch.Tensor:
    # A tuple is VidTok's with FSQ: values, indices.
    latents = encoded[0] if isinstance(encoded, tuple) else encoded.latent_dist.mode()
    assert isinstance(latents, torch.Tensor)
    return latents


def _decoder_options(model: Any, latents: torch.Tensor) -> dict[str, Any]:
    """LTX-Video's decoders since 0.9.1 take a timestep: 0, no noise on the latents, its pipeline's
    default."""
    if getattr(model.config, "timestep_conditioning", False):
        return {"temb": torch.zeros(len(latents), dtype=latents.dtype, device=latents.device)}
    return {}


def _load(class_name: str, folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    try:
        kind = getattr(diffusers, class_name)
    except (AttributeError, RuntimeError):
        raise ValueError(
            f"diffusers {diffusers.__version__} has no {class_name}: pip install -U diffusers"
        ) from None
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: give the folder of the autoencoder")
    with loading(f"{class_name} of {folder}"):
        return load_strictly(kind, folder, dtype).eval()
