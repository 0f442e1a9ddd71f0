"""The command line: reads options, calls the public functions, prints what they report. No logic of its own."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from regen.training.config import TrainConfig

if TYPE_CHECKING:
    from regen.codec import Report
    from regen.models.autoencoder import AutoencoderREGEN

PositionalPath = tyro.conf.Positional[Path]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str = "tiny-8x8x8"
    """Name of embedded weights, a folder written by regen train or save_pretrained, or a hub id (owner/name)."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model; bfloat16 is faster on GPUs and recent CPUs."""

    def load(self) -> "AutoencoderREGEN":
        import torch

        from regen.models.loading import load_model

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--device {device} cannot be used here ({reason}); try --device cpu") from None
        return load_model(self.model, device, getattr(torch, self.dtype))


@dataclass(frozen=True)
class Reconstruct(ModelOptions):
    """Compress a video to REGEN latents and re-generate it from them.

    Example: regen reconstruct clip.mp4 again.mp4 --compare
    """

    source: PositionalPath = tyro.MISSING
    """A video (MP4, MOV, MKV, WebM, GIF, ...), a picture, or a folder of pictures."""
    output: PositionalPath = tyro.MISSING
    """.mp4, .webm, lossless .mkv, .png for a picture; a name without an ending is a folder of PNGs."""
    num_inference_steps: int = 1
    """Denoising steps of the decoder. One is the fastest and has the best PSNR."""
    seed: int = 0
    """Seed of the decoder's noise."""
    compare: bool = False
    """Also write OUTPUT.compare: source, reconstruction and 4 x error side by side."""
    short_side: int | None = None
    """Resize so that the short side has this many pixels; by default nothing is resized."""
    storage: Literal["float32", "bfloat16", "int8"] = "float32"
    """Round the latents as a latent file of this type would, to see what that costs."""

    def run(self) -> None:
        from regen.codec import compare_path, reconstruct_file

        _at_least_one("--num-inference-steps", self.num_inference_steps)
        _at_least_one("--short-side", self.short_side)
        _check_source(self.source)
        model = self.load()
        report = _with_progress(
            self.source,
            lambda progress: reconstruct_file(
                model,
                self.source,
                self.output,
                num_inference_steps=self.num_inference_steps,
                seed=self.seed,
                compare=self.compare,
                short_side=self.short_side,
                storage=self.storage,
                progress=progress,
            ),
        )
        rows = [("PSNR, mean over frames", f"{report.psnr:.2f} dB"), ("SSIM", f"{report.ssim:.4f}")]
        rows += _common_rows(report, model)
        rows.append(("written", f"{self.output} ({_size(self.output)})"))
        if self.compare:
            rows.append(("side by side", str(compare_path(self.output))))
        _print_table(rows)


@dataclass(frozen=True)
class Encode(ModelOptions):
    """Compress a video to a latent file (safetensors).

    Example: regen encode clip.mp4 clip.safetensors --storage int8
    """

    source: PositionalPath = tyro.MISSING
    """A video, a picture, or a folder of pictures."""
    output: PositionalPath = tyro.MISSING
    """The latent file to write."""
    storage: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    """How a latent value is stored; docs/results.md says what each costs in PSNR."""
    short_side: int | None = None
    """Resize so that the short side has this many pixels; by default nothing is resized."""

    def run(self) -> None:
        from regen.codec import encode_file

        _at_least_one("--short-side", self.short_side)
        _check_source(self.source)
        model = self.load()
        report = _with_progress(
            self.source,
            lambda progress: encode_file(
                model, self.source, self.output, self.storage, self.short_side, progress
            ),
        )
        bits = 8 * self.output.stat().st_size / (report.num_frames * report.height * report.width)
        rows = [*_common_rows(report, model), ("bits per pixel", f"{bits:.3f}")]
        _print_table([*rows, ("written", f"{self.output} ({_size(self.output)})")])


@dataclass(frozen=True)
class Decode(ModelOptions):
    """Re-generate a video from a latent file.

    Example: regen decode clip.safetensors again.mp4 --audio clip.mp4
    """

    latents: PositionalPath = tyro.MISSING
    """A latent file that regen encode wrote with the same model."""
    output: PositionalPath = tyro.MISSING
    """.mp4, .webm, lossless .mkv, .png for a picture; a name without an ending is a folder of PNGs."""
    num_inference_steps: int = 1
    """Denoising steps of the decoder."""
    seed: int = 0
    """Seed of the decoder's noise."""
    audio: Path | None = None
    """Take the sound from this file (latents hold none)."""

    def run(self) -> None:
        from regen.codec import decode_file
        from regen.latents import read_latents

        _at_least_one("--num-inference-steps", self.num_inference_steps)
        video = read_latents(self.latents)
        model = self.load()
        report = _with_progress(
            None,
            lambda progress: decode_file(
                model, video, self.output, self.num_inference_steps, self.seed, self.audio, progress
            ),
            total=video.num_frames,
        )
        _print_table([*_common_rows(report, model), ("written", f"{self.output} ({_size(self.output)})")])


@dataclass(frozen=True)
class Info:
    """Describe a video, a latent file, a model or a preset.

    Example: regen info clip.mp4; regen info tiny-8x8x8; regen info regen_32x
    """

    what: tyro.conf.Positional[str]
    """A file, the name or folder of a model, or a preset of regen.models.presets."""

    def run(self) -> None:
        from regen.models.loading import embedded_models
        from regen.models.presets import PRESETS

        path = Path(self.what)
        if self.what in PRESETS:
            _print_table(_preset_rows(self.what))
        elif self.what in embedded_models() or (path / "config.json").is_file():
            _print_table(_model_rows(self.what))
        elif path.suffix == ".safetensors":
            _print_table(_latents_rows(path))
        elif path.exists():
            _print_table(_video_rows(path))
        else:
            names = ", ".join([*embedded_models(), *PRESETS])
            raise ValueError(f"{self.what} is no file, and no model or preset ({names})")


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train an embedder on folders of clips and photos; the same command again goes on where it stopped.

    Example: regen train --data clips photos --output runs/mine
    """

    def run(self) -> None:
        from regen.training.loop import train

        self.check()
        train(self)


Command = (
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Train, tyro.conf.subcommand("train")]
)


def main() -> None:
    """Entry point of `regen`. Bad input: one line on standard error, exit status 1; Ctrl-C: 130."""
    warnings.filterwarnings("ignore", category=UserWarning)
    command = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="regen",
        description="REGEN video embedder: compress videos to compact latents and re-generate them.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        command.run()
    except (ValueError, OSError) as error:
        print(f"regen: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("regen: interrupted", file=sys.stderr)
        sys.exit(130)


def _at_least_one(option: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{option} is at least 1, got {value}")


def _check_source(source: Path) -> None:
    if not source.exists():  # before seconds go into loading a model
        raise ValueError(f"{source} does not exist")


def _with_progress(
    source: Path | None, work: "Callable[[Callable[[int], None]], Report]", total: int | None = None
) -> "Report":
    """Run `work` under a progress bar that counts frames."""
    from tqdm import tqdm

    if source is not None:
        from regen.video import open_video

        with open_video(source) as reader:
            total = reader.info.num_frames
    with tqdm(total=total, unit="frame", leave=False, disable=not sys.stderr.isatty()) as bar:
        return work(lambda num_frames: bar.update(num_frames) and None)


def _size(path: Path) -> str:
    size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
    return f"{size:,} bytes"


def _common_rows(report: "Report", model: "AutoencoderREGEN") -> list[tuple[str, str]]:
    ratio, space = model.temporal_compression_ratio, model.spatial_compression_ratio
    speed = report.num_frames / report.elapsed_s
    return [
        ("video", f"{report.num_frames} frames of {report.width} x {report.height}"),
        ("latents", f"{report.num_latent_frames} latent frames, {report.latent_values:,} values"),
        ("nominal compression", f"{space} x {space} x {ratio}"),
        ("frames per latent frame", f"{report.frames_per_latent_frame:.2f}"),
        ("pixel values per latent value", f"{report.values_ratio:.1f}"),
        ("speed", f"{speed:.2f} frames/s ({report.elapsed_s:.1f} s)"),
    ]


def _preset_rows(name: str) -> list[tuple[str, str]]:
    import torch

    from regen.models.autoencoder import AutoencoderREGEN
    from regen.models.presets import PRESETS

    with torch.device("meta"):
        model = AutoencoderREGEN(**PRESETS[name]())
    return [("preset", name), *_parameter_rows(model)]


def _model_rows(name: str) -> list[tuple[str, str]]:
    from regen.models.loading import load_model

    model = load_model(name)
    return [("model", name), ("encoder id", model.encoder_id()), *_parameter_rows(model)]


def _parameter_rows(model: "AutoencoderREGEN") -> list[tuple[str, str]]:
    ratio, space = model.temporal_compression_ratio, model.spatial_compression_ratio
    length = model.geometry.chunk_length
    values = 3 * space * space * length / (2 * model.config.latent_channels)
    rows = [
        ("nominal compression", f"{space} x {space} x {ratio}, {model.config.latent_channels} channels"),
        ("chunk", f"{length} frames to 2 latent frames"),
        ("frames per latent frame", f"{length / 2:g}"),
        ("pixel values per latent value", f"{values:g}"),
        ("prediction type", model.config.prediction_type),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
    ]
    for part, module in model.named_children():
        rows.append((f"  {part}", f"{sum(p.numel() for p in module.parameters()):,}"))
    return rows


def _latents_rows(path: Path) -> list[tuple[str, str]]:
    from regen.latents import read_latents

    video = read_latents(path)
    return [
        ("latent file", f"{path} ({_size(path)})"),
        ("video", f"{video.num_frames} frames of {video.width} x {video.height}"),
        ("frame rate", _rate(video.frame_rate)),
        ("latents", f"{list(video.latents.shape)}, stored as {video.storage}"),
        ("temporal compression ratio", str(video.temporal_compression_ratio)),
        ("encoder id", video.encoder_id),
    ]


def _video_rows(path: Path) -> list[tuple[str, str]]:
    from regen.video import open_video

    with open_video(path) as reader:
        info = reader.info
    frames = "not declared" if info.num_frames is None else str(info.num_frames)
    duration = "not declared" if info.duration_s is None else f"{info.duration_s:.2f} s"
    return [
        ("video", str(path)),
        ("size", f"{info.width} x {info.height}, rotated by {info.rotation} degrees"),
        ("frames", frames),
        ("frame rate", _rate(info.frame_rate)),
        ("duration", duration),
        ("codec", f"{info.codec}, {info.pixel_format}"),
        ("sound", "yes" if info.has_audio else "no"),
    ]


def _rate(frame_rate: Fraction) -> str:
    return f"{float(frame_rate):.3f} frames/s ({frame_rate})"


def _print_table(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    Console(highlight=False, soft_wrap=True).print(table)
