"""`regen info`: describes a video, a latent file, a model or a preset."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from regen.cli.options import LATENT_SUFFIX
from regen.cli.output import format_numbers, format_rate, length_rows, print_table, size_of

if TYPE_CHECKING:
    from regen.loading import Autoencoder


@dataclass(frozen=True)
class Info:
    """Describe a video, a latent file, a model or a preset.

    Example: regen info clip.mp4; regen info natural; regen info regen_32x
    """

    what: tyro.conf.Positional[str]
    """A file, its URL or - for standard input; the name or folder of a model (NAME@RATIO too), or a
    preset of regen.model.presets."""

    def run(self) -> None:
        from regen.data.locations import is_url, local_file
        from regen.loading import embedded_models, is_model
        from regen.model.presets import MAGVIT_PRESETS, PRESETS

        path = Path(self.what)
        if self.what in PRESETS or self.what in MAGVIT_PRESETS:
            print_table(_preset_rows(self.what))
        elif is_model(self.what):
            print_table(_model_rows(self.what))
        elif self.what == "-" or is_url(self.what) or path.exists() or path.suffix == LATENT_SUFFIX:
            with local_file(self.what) as file:
                is_latents = path.suffix.lower() == LATENT_SUFFIX
                print_table((_latents_rows if is_latents else _video_rows)(file, self.what))
        else:
            names = ", ".join([*embedded_models(), *PRESETS, *MAGVIT_PRESETS])
            raise ValueError(f"{self.what} is no file, and no model or preset ({names})")


def _preset_rows(name: str) -> list[tuple[str, str]]:
    import torch

    from regen.loading import new_model

    with torch.device("meta"):
        model = new_model(name)
    return [("preset", name), *_parameter_rows(model)]


def _model_rows(name: str) -> list[tuple[str, str]]:
    from regen.loading import load_model

    model = load_model(name)
    # MAGVIT-v2 writes no latent files, whose encoder the id tells.
    ids = [("encoder id", model.encoder_id())] if model.is_generative else []
    return [("model", name), *ids, *_parameter_rows(model)]


def _parameter_rows(model: "Autoencoder") -> list[tuple[str, str]]:
    ratio, space = model.temporal_compression_ratio, model.spatial_compression_ratio
    length, channels = model.geometry.chunk_length, model.config["latent_channels"]
    num_latents = model.geometry.latent_frames_per_chunk
    values = 3 * space * space * length / (num_latents * channels)
    rows = [
        ("nominal compression", f"{space} x {space} x {ratio}, {channels} channels"),
        ("chunk", f"{length} frames to {num_latents} latent frames"),
        ("frames per latent frame", f"{length / num_latents:.4g}"),
        ("pixel values per latent value", f"{values:g}"),
        ("prediction type", model.config.get("prediction_type", "none: one pass")),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
    ]
    for part, module in model.named_children():
        rows.append((f"  {part}", f"{sum(p.numel() for p in module.parameters()):,}"))
    return rows


def _latents_rows(path: Path, name: str) -> list[tuple[str, str]]:
    from regen.latent_file import read_latents

    video = read_latents(path)
    space, ratio = video.spatial_compression_ratio, video.temporal_compression_ratio
    channels, num_latent_frames, height, width = video.latents.shape
    return [
        ("latent file", f"{name} ({size_of(path)})"),
        ("video", f"{video.num_frames} frames of {video.width} x {video.height}"),
        ("frame rate", format_rate(video.frame_rate)),
        ("duration", f"{float(video.duration):.2f} s"),
        ("pixel shape", str(video.sample_aspect_ratio)),
        ("latents", f"{channels} channels x {num_latent_frames} x {height} x {width}"),
        ("stored as", video.storage),
        ("nominal compression", f"{space} x {space} x {ratio}"),
        *length_rows([size.num_frames for size in video.chunk_sizes()]),
        ("mean, content", format_numbers(video.latents_mean[:, 0].tolist())),
        ("mean, motion", format_numbers(video.latents_mean[:, 1].tolist())),
        ("standard deviation, content", format_numbers(video.latents_std[:, 0].tolist())),
        ("standard deviation, motion", format_numbers(video.latents_std[:, 1].tolist())),
        ("encoder id", video.encoder_id),
    ]


def _video_rows(path: Path, name: str) -> list[tuple[str, str]]:
    from regen.video import open_video

    with open_video(path) as reader:
        info = reader.info
    frames = "not declared" if info.num_frames is None else str(info.num_frames)
    duration = "not declared" if info.duration_s is None else f"{info.duration_s:.2f} s"
    kind = "folder of pictures" if path.is_dir() else "picture" if info.is_still else "video"
    return [
        (kind, f"{name} ({size_of(path)})"),
        ("size", f"{info.width} x {info.height}, rotated by {info.rotation} degrees"),
        ("pixel shape", str(info.sample_aspect_ratio)),
        ("frames", frames),
        ("frame rate", format_rate(info.frame_rate)),
        ("duration", duration),
        ("codec", f"{info.codec}, {info.pixel_format}"),
        ("sound", "yes" if info.has_audio else "no"),
        *(("note", note) for note in reader.notes),
    ]
