"""What is measured: a REGEN model, a callable, a folder of reconstructions, each as a `System`.

Frames uint8 `[T, H, W, 3]` go in and come out, with what is known of the latents between. Video
autoencoders of diffusers are in `diffusers_systems`.
"""

import hashlib
import importlib
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from regen.data.finding import files_below
from regen.evaluation.config import Storage
from regen.evaluation.networks import sha256_of
from regen.evaluation.protocols import EvalClip, stem_of
from regen.flops import FORMULAS
from regen.latent_file import round_latents
from regen.loading import Autoencoder, find_model, load_model
from regen.video import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    frames_to_video,
    read_prepared,
    video_to_frames,
)

Size = tuple[int, int, int]  # frames, height, width


@dataclass(frozen=True)
class Reconstruction:
    """Frames uint8 `[T, H, W, 3]`; of the latents `(channels, n, h, w)`; seconds that it took.

    `num_bytes` is of a compressed file, where there is one.
    """

    frames: np.ndarray
    latent_shape: tuple[int, int, int, int] | None = None
    encode_s: float | None = None
    decode_s: float | None = None
    num_bytes: int | None = None


class System(Protocol):
    """A row of the report.

    `about` tells it from any other (for JSON); a generative one has steps and seeds; `chunk_length`
    is the distance of its seams, None where it has none or they are not known.
    """

    name: str
    about: dict[str, Any]
    chunk_length: int | None

    @property
    def is_generative(self) -> bool: ...

    def reconstruct(
        self, clip: EvalClip, frames: np.ndarray, num_inference_steps: int, seed: int
    ) -> Reconstruction:
        """`frames` compressed and re-generated. ValueError where that cannot be."""
        ...

    def mark(self, clip: EvalClip) -> str:
        """What else the result depends on, of this clip; '' if on nothing."""
        ...


@dataclass
class NeuralSystem:
    """Encoder and decoder as functions of float videos `[1, 3, T, H, W]` in [-1, 1].

    `encode` gives latents `[1, C, n, h, w]`; `decode` takes them with the size, the steps and a
    generator and gives the video back in that size.
    """

    name: str
    about: dict[str, Any]
    model: torch.nn.Module
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor, Size, int, torch.Generator], torch.Tensor]
    is_generative: bool = False
    chunk_length: int | None = None
    cost_frames: int = 17  # of the clip that FLOPs and latency are measured on
    uncounted: torch.nn.Module | None = None  # a decoder that no counter sees into

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def mark(self, clip: EvalClip) -> str:
        return ""

    @torch.inference_mode()
    def reconstruct(
        self, clip: EvalClip, frames: np.ndarray, num_inference_steps: int, seed: int
    ) -> Reconstruction:
        video = frames_to_video(frames)[None].to(self.device)
        size: Size = (video.shape[2], video.shape[3], video.shape[4])
        start = self._now()
        latents = self.encode(video)
        encoded = self._now()
        generator = torch.Generator().manual_seed(seed)
        again = self.decode(latents, size, num_inference_steps, generator)
        decoded = self._now()
        if again.shape != video.shape:
            raise ValueError(
                f"{self.name} made {list(again.shape)} of {list(video.shape)}: a system gives back "
                "the frames and the size that it was given"
            )
        _, channels, *rest = latents.shape
        return Reconstruction(
            video_to_frames(again[0].float().clamp(-1, 1).cpu()),
            (channels, rest[0], rest[1], rest[2]),
            encoded - start,
            decoded - encoded,
        )

    @torch.inference_mode()
    def cost(self, frames: np.ndarray, num_inference_steps: int) -> dict[str, Any]:
        """Decoder parameters, FLOPs (multiply and add are two) and latency, on one short clip.

        Latency is the median of three after one that is not counted. FLOPs are None where torch's
        counter does not see them (flex attention).
        """
        frames = frames[: self.cost_frames]
        video = frames_to_video(frames)[None].to(self.device)
        size: Size = (video.shape[2], video.shape[3], video.shape[4])
        latents = self.encode(video)

        def run() -> float:
            start = self._now()
            self.decode(latents, size, num_inference_steps, torch.Generator().manual_seed(0))
            return self._now() - start

        if self.uncounted is not None:
            run()
            num_used, flops = sum(part.numel() for part in self.uncounted.parameters()), None
        else:
            used = UsedParameters(self.model)
            with (
                used,
                FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter,
            ):
                run()
            num_used, flops = used.num_used(), counter.get_total_flops()
        times = sorted(run() for _ in range(3))
        return {
            "decoder_parameters": num_used,
            "decoder_flops": flops,
            "decoder_latency_s": times[1],
            "frames": len(frames),
            "height": size[1],
            "width": size[2],
        }

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class UsedParameters(TorchDispatchMode):
    """Notes which parameters of a model, and buffers of its weights, operations are given."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.sizes = {part.data_ptr(): part.numel() for part in model.parameters()}
        self.seen: set[int] = set()

    def num_used(self) -> int:
        return sum(self.sizes[one] for one in self.seen)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for one in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(one, torch.Tensor) and one.data_ptr() in self.sizes:
                self.seen.add(one.data_ptr())
        return func(*args, **(kwargs or {}))


# -- REGEN models ---------------------------------------------------------------------------------


def regen_system(
    name: str, device: str, dtype: torch.dtype, storage: Storage = "float32"
) -> NeuralSystem:
    """A model of `regen.loading`; `storage` rounds the latents as a latent file would.

    Raises ValueError where there is no such model.
    """
    model = load_model(name, device, dtype)
    length = model.geometry.chunk_length

    def encode(video: torch.Tensor) -> torch.Tensor:
        latents = model.encode(video).latents
        # As latent files round: each chunk by its own scale.
        chunks = latents[0].split(model.geometry.latent_frames_per_chunk, dim=1)
        return torch.cat([round_latents(one, storage) for one in chunks], dim=1)[None]

    def decode(
        latents: torch.Tensor, size: Size, steps: int, generator: torch.Generator
    ) -> torch.Tensor:
        num_frames, height, width = size
        return model.decode(
            latents,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            generator=generator,
        ).sample

    about = {
        "kind": "regen",
        "model": name,
        "weights_sha256": _weights_hash(model, name),
        "dtype": str(dtype).removeprefix("torch."),
        "storage": storage,
        "bits_per_latent_value": {"float32": 32, "bfloat16": 16, "int8": 8}[storage],
        "nominal": [model.temporal_compression_ratio, model.spatial_compression_ratio],
        "latent_channels": model.config["latent_channels"],
    }
    if model.is_generative:
        about["encoder_id"] = model.encoder_id()
    title = name if storage == "float32" else f"{name}, {storage}"
    return NeuralSystem(title, about, model, encode, decode, model.is_generative, length, length)


def _weights_hash(model: Autoencoder, name: str) -> str:
    folder = find_model(name)
    if isinstance(folder, Path):
        return weights_hash(folder)
    digest = hashlib.sha256()  # of the hub
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def weights_hash(folder: Path) -> str:
    """SHA-256 over config.json and the weights of a folder of `save_pretrained`."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return " ".join(sha256_of(file)[:16] for file in files if file.is_file())


# -- any callable ---------------------------------------------------------------------------------


@dataclass
class CallableSystem:
    """`function(video)`, or with `seed` and `num_inference_steps` if it has parameters of the name.

    `video` is float `[1, 3, T, H, W]` in [-1, 1] on `device`; it returns a video of that shape and
    range, or `(video, latents)` with latents `[1, C, n, h, w]`.
    """

    name: str
    about: dict[str, Any]
    function: Callable[..., Any]
    device: str
    chunk_length: int | None = None
    parameters: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.parameters = frozenset(inspect.signature(self.function).parameters)
        except (TypeError, ValueError):
            self.parameters = frozenset()

    @property
    def is_generative(self) -> bool:
        return bool(self.parameters & {"seed", "num_inference_steps"})

    def mark(self, clip: EvalClip) -> str:
        return ""

    @torch.inference_mode()
    def reconstruct(
        self, clip: EvalClip, frames: np.ndarray, num_inference_steps: int, seed: int
    ) -> Reconstruction:
        video = frames_to_video(frames)[None].to(self.device)
        options = {"num_inference_steps": num_inference_steps, "seed": seed}
        given = {name: value for name, value in options.items() if name in self.parameters}
        start = time.perf_counter()
        result = self.function(video, **given)
        elapsed = time.perf_counter() - start
        again, latents = result if isinstance(result, tuple) else (result, None)
        if not isinstance(again, torch.Tensor) or again.shape != video.shape:
            got = list(again.shape) if isinstance(again, torch.Tensor) else type(again).__name__
            raise ValueError(f"{self.name} returned {got} for a video {list(video.shape)}")
        if not torch.isfinite(again).all() or again.abs().max() > 1.5:
            raise ValueError(
                f"{self.name} returned values from {again.min():.3g} to {again.max():.3g}; a video "
                "is in [-1, 1]"
            )
        if latents is not None and latents.ndim != 5:
            raise ValueError(f"{self.name}: latents are [1, C, n, h, w], got {list(latents.shape)}")
        shape = None
        if latents is not None:
            shape = (latents.shape[1], latents.shape[2], latents.shape[3], latents.shape[4])
        pixels = video_to_frames(again[0].float().clamp(-1, 1).cpu())
        return Reconstruction(pixels, shape, decode_s=elapsed)


def callable_system(spec: str, device: str) -> CallableSystem:
    """`MODULE:CALLABLE`, found as Python finds modules from the working folder.

    Its attributes `chunk_length` and `name` are taken, where it has them.
    """
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise ValueError(f"--system is MODULE:CALLABLE, such as my_codec:reconstruct, got {spec}")
    try:
        target: Any = importlib.import_module(module_name)
        for part in path.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--system {spec}: {error}") from None
    if not callable(target):
        raise ValueError(f"--system {spec} is a {type(target).__name__}, not a callable")
    file = inspect.getsourcefile(importlib.import_module(module_name))
    about = {
        "kind": "callable",
        "system": spec,
        "source_sha256": sha256_of(Path(file)) if file else "",
    }
    name = str(getattr(target, "name", spec))
    return CallableSystem(name, about, target, device, getattr(target, "chunk_length", None))


# -- reconstructions made elsewhere ---------------------------------------------------------------


@dataclass
class FolderSystem:
    """Files, or folders of pictures, that some codec or closed model made of the prepared clips."""

    name: str
    about: dict[str, Any]
    paths: dict[str, Path]  # stem of the clip -> file
    is_generative: bool = False
    chunk_length: int | None = None

    def mark(self, clip: EvalClip) -> str:
        return sha256_of(self.paths[clip.stem])

    def reconstruct(
        self, clip: EvalClip, frames: np.ndarray, num_inference_steps: int, seed: int
    ) -> Reconstruction:
        path = self.paths[clip.stem]
        again = read_prepared(path)
        if again.shape != frames.shape:
            got, expected = (
                f"{s[0]} frames of {s[2]} x {s[1]}" for s in (again.shape, frames.shape)
            )
            raise ValueError(
                f"{path} has {got}, the clip {clip.id} has {expected}: reconstruct the prepared "
                "clips, which --export writes, frame by frame"
            )
        files = path.iterdir() if path.is_dir() else [path]
        return Reconstruction(again, num_bytes=sum(file.stat().st_size for file in files))


def folder_system(folder: Path, name: str, clips: list[EvalClip]) -> FolderSystem:
    """The reconstructions of all `clips` in `folder`; ValueError names those that are missing."""
    if not folder.is_dir():
        raise ValueError(f"--reconstruction {folder} is not a folder")
    found: dict[str, Path] = {}
    for path in files_below(folder):
        is_picture = path.suffix.lower() in PICTURE_SUFFIXES
        if not is_picture and path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        for one in (path, path.parent) if is_picture and path.parent != folder else (path,):
            stem = stem_of(one.relative_to(folder).as_posix())
            other = found.setdefault(stem, one)
            if other != one:
                raise ValueError(f"{folder}: {other.name} and {one.name} are of one clip")
    missing = [clip.id for clip in clips if clip.stem not in found]
    if missing:
        raise ValueError(
            f"{folder} has no reconstruction of {len(missing)} of {len(clips)} clips: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )
    about = {"kind": "folder", "folder": str(folder)}
    return FolderSystem(name, about, {clip.stem: found[clip.stem] for clip in clips})
