"""The command line: reads options, calls the public functions, prints what they report.

No logic of its own. torch is imported only when a command runs, so that `--help` is quick.
"""

import io
import math
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from regen.evaluation.config import EvaluateConfig
from regen.reproduction.config import Experiment, ReproduceConfig
from regen.training.config import TrainConfig
from regen.training.generator_config import GeneratorConfig
from regen.training.plan import PlanConfig

if TYPE_CHECKING:
    from regen.codec import Report
    from regen.models.loading import Autoencoder

InPlace = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
OutPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
LatentsPlace = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LATENTS")]
SUFFIX = ".safetensors"  # of latent files
BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str = "natural@8"
    """Name of embedded weights, a folder with config.json, or a hub id (owner/name). NAME@RATIO
    compresses RATIO times in time: natural@8 in chunks of 9 frames, natural in chunks of 33."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model; bfloat16 is faster on GPUs and recent CPUs."""

    def check_model(self) -> str:
        """The device to run on; ValueError where it or the model is not there. Loads nothing."""
        from regen.models.loading import find_device, find_model

        find_model(self.model)
        return find_device(self.device)

    def load(self) -> "Autoencoder":
        import torch

        from regen.models.loading import load_model

        return load_model(self.model, self.check_model(), getattr(torch, self.dtype))


@dataclass(frozen=True)
class SourceOptions:
    """How a video is read."""

    stream: int | None = None
    """Which video stream of a file with several, from 0; by default the one marked as default."""
    skip_damaged: bool = False
    """Read past damage; the frames lost are counted. By default a damaged file is an error."""


@dataclass(frozen=True)
class Reconstruct(ModelOptions, SourceOptions):
    """Compress a video to REGEN latents and re-generate it from them.

    Example: regen reconstruct clip.mp4 again.mp4 --compare
    """

    source: InPlace = tyro.MISSING
    """A video (MP4, MOV, MKV, WebM, GIF, ...), a picture, or a folder of pictures; also its URL, or
    - for standard input."""
    output: OutPath = tyro.MISSING
    """.mp4, .webm, lossless .mkv, .png of a picture; without an ending: a folder of PNGs."""
    num_inference_steps: int = 1
    """Denoising steps of the decoder. One is the fastest and has the best PSNR."""
    seed: int = 0
    """Seed of the decoder's noise."""
    compare: bool = False
    """Also write OUT.compare: source, reconstruction and 4 x error side by side."""
    short_side: int | None = None
    """Resize so that the short side has this many pixels; by default nothing is resized."""
    storage: Literal["float32", "bfloat16", "int8"] = "float32"
    """Round the latents as a latent file of this type would, to see what that costs."""

    def run(self) -> None:
        _check_numbers(
            num_inference_steps=self.num_inference_steps, short_side=self.short_side, seed=self.seed
        )
        from regen.data.places import local_file

        with local_file(self.source) as source:
            self._run(source)

    def _run(self, source: Path) -> None:
        from regen.codec import check_reconstruct, compare_path, reconstruct_file

        info = check_reconstruct(source, self.output, self.compare, self.short_side, self.stream)
        model = self.load()
        report = _with_progress(
            info.num_frames,
            lambda progress: reconstruct_file(
                model,
                source,
                self.output,
                num_inference_steps=self.num_inference_steps,
                seed=self.seed,
                compare=self.compare,
                short_side=self.short_side,
                storage=self.storage,
                progress=progress,
                stream=self.stream,
                skip_damaged=self.skip_damaged,
            ),
        )
        rows = [
            ("PSNR, mean over frames", f"{report.psnr:.2f} dB"),
            ("SSIM, mean over frames", _of_pictures(report.ssim)),
            ("LPIPS, mean over frames", _of_pictures(report.lpips, " (AlexNet)")),
            *_common_rows(report, model, model.temporal_compression_ratio, self.storage),
            ("source", f"{self.source} ({_size(source)})"),
            ("written", f"{self.output} ({_size(self.output)})"),
        ]
        if self.compare:
            rows.append(("side by side", str(compare_path(self.output))))
        _print_table(rows)


@dataclass(frozen=True)
class Encode(ModelOptions, SourceOptions):
    """Compress a video to a latent file.

    Example: regen encode clip.mp4 clip.safetensors --storage int8
    """

    source: InPlace = tyro.MISSING
    """A video (MP4, MOV, MKV, WebM, GIF, ...), a picture, or a folder of pictures; also its URL, or
    - for standard input."""
    output: OutPath = tyro.MISSING
    """The latent file to write; ends in .safetensors."""
    storage: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    """How a latent value is stored; docs/results.md says what each costs in PSNR."""
    short_side: int | None = None
    """Resize so that the short side has this many pixels; by default nothing is resized."""

    def run(self) -> None:
        _check_numbers(short_side=self.short_side)
        from regen.data.places import local_file

        with local_file(self.source) as source:
            self._run(source)

    def _run(self, source: Path) -> None:
        from regen.codec import check_encode, encode_file

        info = check_encode(source, self.output, self.stream)
        model = self.load()
        report = _with_progress(
            info.num_frames,
            lambda progress: encode_file(
                model,
                source,
                self.output,
                self.storage,
                self.short_side,
                progress,
                self.stream,
                self.skip_damaged,
            ),
        )
        pixels = report.num_frames * report.height * report.width
        rows = [
            *_common_rows(report, model, model.temporal_compression_ratio, self.storage),
            ("bits per pixel", f"{8 * self.output.stat().st_size / pixels:.3f}"),
            ("source", f"{self.source} ({_size(source)})"),
            ("written", f"{self.output} ({_size(self.output)})"),
        ]
        _print_table(rows)


@dataclass(frozen=True)
class Decode(ModelOptions):
    """Re-generate a video from a latent file: as it was, a quick preview, or in slow steps between.

    Example: regen decode clip.safetensors again.mp4 --audio clip.mp4
    """

    source: LatentsPlace = tyro.MISSING
    """A latent file that regen encode wrote with the same model; also its URL, or -."""
    output: OutPath = tyro.MISSING
    """.mp4, .webm, lossless .mkv, .png of a picture; without an ending: a folder of PNGs."""
    num_inference_steps: int = 1
    """Denoising steps of the decoder. One is the fastest and has the best PSNR."""
    seed: int = 0
    """Seed of the decoder's noise."""
    audio: Path | None = None
    """Take the sound from this file (latents hold none)."""
    every: int = 1
    """A quick preview: generate every Nth frame only, shown N times as long."""
    frame_rate_multiplier: int = 1
    """Frames per frame: N - 1 more are generated between neighbours, at times between."""

    def run(self) -> None:
        _check_numbers(
            num_inference_steps=self.num_inference_steps,
            seed=self.seed,
            every=self.every,
            frame_rate_multiplier=self.frame_rate_multiplier,
        )
        if self.every > 1 and self.frame_rate_multiplier > 1:
            raise ValueError("--every and --frame-rate-multiplier exclude each other: give one")
        from regen.data.places import local_file

        with local_file(self.source) as source:
            self._run(source)

    def _run(self, source: Path) -> None:
        from regen.codec import FrameGrid, check_decode, decode_file
        from regen.latents import read_latents

        grid = FrameGrid(self.every, self.frame_rate_multiplier)
        video = read_latents(source)
        check_decode(source, video, self.output, self.audio, grid)
        model = self.load()
        report = _with_progress(
            grid.num_frames(video.num_frames),
            lambda progress: decode_file(
                model,
                video,
                self.output,
                num_inference_steps=self.num_inference_steps,
                seed=self.seed,
                audio_from=self.audio,
                progress=progress,
                grid=grid,
            ),
        )
        rows = [
            *_common_rows(report, model, video.temporal_compression_ratio, video.storage),
            ("generated", f"{report.num_decoded} frames"),
            ("latent file", f"{self.source} ({_size(source)})"),
            ("written", f"{self.output} ({_size(self.output)})"),
        ]
        _print_table(rows)


@dataclass(frozen=True)
class Info:
    """Describe a video, a latent file, a model or a preset.

    Example: regen info clip.mp4; regen info natural; regen info regen_32x
    """

    what: tyro.conf.Positional[str]
    """A file, its URL or - for standard input; the name or folder of a model (NAME@RATIO too), or a
    preset of regen.models.presets."""

    def run(self) -> None:
        from regen.data.places import is_url, local_file
        from regen.models.loading import embedded_models, is_model
        from regen.models.presets import MAGVIT_PRESETS, PRESETS

        path = Path(self.what)
        if self.what in PRESETS or self.what in MAGVIT_PRESETS:
            _print_table(_preset_rows(self.what))
        elif is_model(self.what):
            _print_table(_model_rows(self.what))
        elif self.what == "-" or is_url(self.what) or path.exists() or path.suffix == SUFFIX:
            with local_file(self.what) as file:
                is_latents = path.suffix.lower() == SUFFIX
                _print_table((_latents_rows if is_latents else _video_rows)(file, self.what))
        else:
            names = ", ".join([*embedded_models(), *PRESETS, *MAGVIT_PRESETS])
            raise ValueError(f"{self.what} is no file, and no model or preset ({names})")


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train an embedder on clips and photos; the same command again resumes.

    Example: regen train --data clips photos --output runs/mine
    """

    recipe: str | None = None
    """natural, shapes: how the embedded models were made, stage by stage. paper_4x, paper_8x,
    paper_16x, paper_32x: options of the paper. Options that you give prevail, in every stage."""

    def run(self) -> None:
        from regen.training.recipes import stages
        from regen.training.stages import chain, train_stages
        from regen.training.start import train

        if self.recipe is None:
            self.check()
            train(self)
            return
        needed = {"data": tyro.MISSING, "output": tyro.MISSING, "recipe": self.recipe}
        options = stages(self.recipe)
        runs = {name: _parse(Train(**needed, **some)) for name, some in options.items()}
        train_stages(chain(runs))


@dataclass(frozen=True)
class TrainGenerator(GeneratorConfig):
    """Train a text-to-video model on cached latents; the same command again resumes.

    Example: regen cache clips latents; regen train-generator --data latents --output runs/t2v
    """

    def run(self) -> None:
        from regen.training.generator import train_generator

        train_generator(self)


@dataclass(frozen=True)
class Generate:
    """Generate a video from a text, also from its first picture, also on from a video.

    Example: regen generate "a red ball rolls left" out.mp4 --model runs/t2v/model --frames 132
    """

    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """What the video shows."""
    output: OutPath
    """.mp4, .webm, lossless .mkv, .png of one frame; without an ending: a folder of PNGs."""
    model: str | None = None
    """Folder OUTPUT/model of regen train-generator, or a hub id (owner/name); none is embedded."""
    num_frames: Annotated[int | None, tyro.conf.arg(name="frames")] = None
    """How many frames; default: as many as the model was trained on."""
    height: int | None = None
    """In pixels; default: that of the training."""
    width: int | None = None
    """In pixels; default: that of the training."""
    negative_prompt: str = ""
    """What the video is to be unlike."""
    image: Path | None = None
    """A picture: the first frame, from which the video goes on."""
    video: Path | None = None
    """A video to go on from: its last chunk is given, what follows is written."""
    num_inference_steps: int = 30
    """Denoising steps."""
    guidance_scale: float = 5.0
    """How much more than without it the prompt counts; 1: no guidance, half the time."""
    seed: int = 0
    """The same seed gives the same video."""
    frame_rate: float | None = None
    """Frames a second; default: those of --video, else 24."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model; bfloat16 is faster on GPUs and recent CPUs."""

    def run(self) -> None:
        if self.model is None:
            raise ValueError(
                "no text-to-video model comes with regen: give --model, a folder OUTPUT/model of "
                "regen train-generator (docs/generation.md) or a hub id"
            )
        numbers = ("num_inference_steps", "height", "width")
        _check_numbers(self.seed, frames=self.num_frames, **{n: getattr(self, n) for n in numbers})
        import time

        import torch
        from tqdm import tqdm

        from regen.generation import Request, check_generate, generate_file
        from regen.pipeline import load_pipeline

        request = Request(
            self.prompt,
            self.negative_prompt,
            self.num_frames,
            self.height,
            self.width,
            self.num_inference_steps,
            self.guidance_scale,
            self.seed,
            self.image,
            self.video,
            None if self.frame_rate is None else Fraction(str(self.frame_rate)),
        )
        check_generate(request, self.output)
        from regen.models.loading import find_device

        device = find_device(self.device)
        pipeline = load_pipeline(self.model, device, getattr(torch, self.dtype))
        pipeline.set_progress_bar_config(disable=True)
        start, shown = time.perf_counter(), sys.stderr.isatty()
        with tqdm(total=self.num_inference_steps, leave=False, disable=not shown) as bar:
            frames = generate_file(pipeline, request, self.output, lambda: bar.update() and None)
        elapsed_s = time.perf_counter() - start
        geometry = pipeline.vae.geometry
        rows = [
            ("video", f"{len(frames)} frames of {frames.shape[2]} x {frames.shape[1]}"),
            ("latents", f"{geometry.num_latent_frames(len(frames))} latent frames"),
            ("speed", f"{len(frames) / elapsed_s:.2f} frames/s ({elapsed_s:.1f} s)"),
            ("written", f"{self.output} ({_size(self.output)})"),
        ]
        _print_table(rows)


@dataclass(frozen=True)
class Plan(PlanConfig):
    """Say what a training run needs, before paying: memory, FLOPs, time, cost. Runs nothing.

    Example: regen plan --preset regen_8x --gpus 32 --gpu h100 --gradient-checkpointing
    """

    def run(self) -> None:
        from regen.training.plan import plan

        _print_table(plan(self))


@dataclass(frozen=True)
class Reproduce(ReproduceConfig):
    """Reproduce a table or figure of the paper: train what is missing, measure, compare.

    Example: regen reproduce table1 --data clips photos --eval-data held-out --minutes 60
    """

    experiment: tyro.conf.Positional[Experiment] = tyro.MISSING
    """Which one; docs/reproduce.md says what each asks."""

    def run(self) -> None:
        from regen.reproduction.experiments import reproduce

        print(reproduce(self.experiment, self).markdown(), end="")


@dataclass(frozen=True)
class Shard:
    """Pack clips and photos into shards, which train as the files do; the same command resumes.

    A shard is an ordinary webdataset tar file (KEY.mp4 and KEY.json with caption and source) with
    an index beside it. Every file is decoded once to see that it is whole; what is not is left out
    and named in OUT/bad_clips.txt. The same inputs give the same bytes.

    Example: regen shard clips photos.csv shards; regen train --data shards --output runs/mine
    """

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...] OUT")
    ]
    """IN: folders of clips and photos, and manifests (.csv, .jsonl, .parquet) with the column file,
    and if known source and caption. OUT: folder for shard-000000.tar, shard-000000.index.json,
    ..."""
    max_shard_mb: int = 512
    """Size of a shard in MB (1,000,000 bytes), which only a larger file exceeds."""
    max_bad_share: float = 0.05
    """Stop when more than this share of the files cannot be read."""
    num_workers: int | None = None
    """Processes that decode; by default one for each core."""

    def run(self) -> None:
        _check_numbers(max_shard_mb=self.max_shard_mb, num_workers=self.num_workers)
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"--max-bad-share is from 0 to 1, got {self.max_bad_share}")
        if len(self.paths) < 2:
            raise ValueError("regen shard takes inputs and, last, the folder for the shards")
        from regen.data.sharding import write_shards

        *data, output = self.paths
        report = write_shards(
            data,
            output,
            1_000_000 * self.max_shard_mb,
            self.max_bad_share,
            self.num_workers,
        )
        bad = (
            f"{len(report.bad)}, listed in {Path(output) / 'bad_clips.txt'}" if report.bad else "0"
        )
        rows = [
            ("clips", f"{report.num_videos:,}"),
            ("photos", f"{report.num_photos:,}"),
            ("left out", bad),
            ("shards", f"{report.num_shards:,} ({report.num_bytes:,} bytes)"),
            ("finished before", f"{report.num_kept:,}"),
            ("train on them", f"regen train --data {output} --output runs/mine"),
        ]
        _print_table(rows)


@dataclass(frozen=True)
class Evaluate(EvaluateConfig):
    """Measure REGEN models, other embedders and codecs on clips: results.json and report.html.

    Example: regen evaluate --data clips --model natural --steps 1 8 --output runs/evaluation
    """

    def run(self) -> None:
        self.check()
        from regen.evaluation.evaluate import evaluate, summary_rows

        _print_table(summary_rows(self, evaluate(self)))


@dataclass(frozen=True)
class World:
    """Draw clips of a small generated world, with exact captions; the same command goes on.

    Coloured shapes that move, for text-to-video on a small machine. The split held_out has the
    combinations of colour, shape and direction that the split train never shows.

    Example: regen world world --clips 1000; regen cache world latents
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder for clip-000000.mp4, ... and manifest.csv with the captions."""
    clips: int = 1000
    """Number of clips."""
    size: tuple[int, int] = (64, 64)
    """Height and width in pixels."""
    frames: int = 17
    """Frames of a clip."""
    fps: int = 24
    """Frames a second."""
    split: Literal["train", "held_out"] = "train"
    """Which combinations of colour, shape and direction."""
    seed: int = 0
    """Another seed is another world."""

    def run(self) -> None:
        _check_numbers(seed=self.seed, clips=self.clips, frames=self.frames, fps=self.fps)
        from regen.data.world import write_world

        height, width = self.size
        num_kept = write_world(
            self.folder, self.clips, self.frames, height, width, self.fps, self.seed, self.split
        )
        rows = [
            ("clips", f"{self.clips:,} of {self.frames} frames of {width} x {height}"),
            ("drawn before", f"{num_kept:,}"),
            ("captions", str(self.folder / "manifest.csv")),
            ("encode them", f"regen cache {self.folder} latents"),
        ]
        _print_table(rows)


@dataclass(frozen=True)
class Cache:
    """Encode a data set into latent shards with its captions' embeddings; the same command resumes.

    One latent for each clip. What cannot be read is left out and named in OUT/bad_clips.txt. Runs
    on Ray Data, on this machine with nothing set up, or on a cluster.

    Example: regen cache clips manifest.csv latents --num-frames 33 --height 192 --width 320
    """

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...] OUT")
    ]
    """IN: folders, manifests (.csv, .jsonl, .parquet) and shards (.tar), as regen train takes them.
    OUT: folder for shard-000000.safetensors, ... and dataset.json."""
    model: str = "natural@8"
    """Embedder: an embedded model, a folder, or a hub id; NAME@RATIO as for regen reconstruct."""
    text_encoder: str | None = None
    """Folder or hub id of an encoder of transformers; by default all-MiniLM-L6-v2."""
    storage: Literal["bfloat16", "int8"] = "bfloat16"
    """How latents are stored; int8 with a scale for each channel and latent frame."""
    num_frames: int | None = None
    """The first frames of each clip; shorter clips are left out. By default all, 600 at most."""
    height: int | None = None
    """Resize to cover this height and --width, crop about the middle. By default as they are."""
    width: int | None = None
    """See --height."""
    shard_clips: int = 1000
    """Clips of a shard."""
    max_bad_share: float = 0.05
    """Stop when more than this share of the files cannot be read."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to encode."""
    num_workers: int | None = None
    """Workers that encode; by default one for each GPU, else for each two cores. 0: without Ray, in
    this process."""
    address: str | None = None
    """Of a Ray cluster (auto on one of its machines, or HOST:PORT of its head); its machines read
    IN. By default Ray runs here alone."""

    def run(self) -> None:
        _check_numbers(
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            shard_clips=self.shard_clips,
            num_workers=self.num_workers or None,
        )
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"--max-bad-share is from 0 to 1, got {self.max_bad_share}")
        if len(self.paths) < 2:
            raise ValueError("regen cache takes inputs and, last, the folder for the latents")
        from regen.cache.building import CacheOptions, build_cache
        from regen.cache.encoding import ClipOptions
        from regen.models.loading import find_device

        if self.address is None:  # a cluster has devices of its own
            find_device(self.device)
        *data, output = self.paths
        options = CacheOptions(
            self.model,
            self.text_encoder,
            self.storage,
            ClipOptions(self.num_frames, self.height, self.width),
            self.shard_clips,
            self.max_bad_share,
            self.device,
            self.num_workers,
            self.address,
        )
        report = build_cache(data, output, options)
        bad = (
            f"{len(report.bad)}, listed in {Path(output) / 'bad_clips.txt'}" if report.bad else "0"
        )
        rows = [
            ("clips", f"{report.num_clips:,}"),
            ("left out", bad),
            ("shards", f"{report.num_shards:,} ({report.num_bytes:,} bytes)"),
            ("finished before", f"{report.num_kept:,}"),
            ("described in", str(Path(output) / "dataset.json")),
        ]
        _print_table(rows)


@dataclass(frozen=True)
class Stats:
    """Merge the statistics of a cache's shards anew, into its dataset.json, and print them.

    Example: regen stats latents
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """What regen cache wrote, or shards of several such folders in one of them."""

    def run(self) -> None:
        from regen.cache.building import recompute_statistics

        moments = recompute_statistics(self.folder)
        rows = [("cache", str(self.folder))]
        for kind, name in enumerate(("content", "motion")):
            rows += [
                (f"values a channel, {name}", f"{moments.count[kind].item():,.0f}"),
                (f"mean, {name}", _numbers(moments.mean[:, kind].tolist())),
                (f"deviation, {name}", _numbers(moments.std[:, kind].tolist())),
            ]
        _print_table(rows)


Command = (
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[TrainGenerator, tyro.conf.subcommand("train-generator")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Shard, tyro.conf.subcommand("shard")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[World, tyro.conf.subcommand("world")]
    | Annotated[Cache, tyro.conf.subcommand("cache")]
    | Annotated[Stats, tyro.conf.subcommand("stats")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)


DESCRIPTION = """REGEN video embedder: compress videos to compact latents, re-generate them.

Start with: regen reconstruct clip.mp4 again.mp4 --compare

Each command explains itself: regen reconstruct --help
"""


def main() -> None:
    """Entry point of `regen`. Bad input: one line on standard error, exit status 1; Ctrl-C: 130."""
    warnings.filterwarnings("ignore", category=UserWarning)
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _parse().run()
    except (ValueError, OSError) as error:
        _fail(1, str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        _fail(1, f"out of memory ({error}); try a smaller picture: --short-side")
    except Terminated:
        _fail(143, "terminated")
    except KeyboardInterrupt:
        _fail(130, "interrupted")


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does, so that nothing half-written stays."""


def _terminate(*_: object) -> None:
    raise Terminated


def _parse(default: Any = tyro.MISSING) -> Any:
    """The command of the line; `default`: one whose options stand where the line has none."""
    return tyro.cli(
        Command,
        prog="regen",
        description=DESCRIPTION,
        default=default,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _fail(status: int, message: str) -> None:
    print(f"regen: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _check_numbers(seed: int = 0, **at_least_one: int | None) -> None:
    """ValueError for an option out of range; None is an option not given."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is at least 0 and below 2**63, got {seed}")
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1, got {value}")


def _with_progress(
    total: int | None, work: "Callable[[Callable[[int], None]], Report]"
) -> "Report":
    """Run `work` under a progress bar that counts frames, `total` where it is known."""
    from tqdm import tqdm

    with tqdm(total=total, unit="frame", leave=False, disable=not sys.stderr.isatty()) as bar:
        return work(lambda num_frames: bar.update(num_frames) and None)


def _size(path: Path) -> str:
    files = path.iterdir() if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files):,} bytes"


def _of_pictures(value: float | None, network: str = "") -> str:
    if value is None:
        from regen.evaluation.networks import ABSENT

        return ABSENT
    return "n/a (the picture is too small)" if math.isnan(value) else f"{value:.4f}{network}"


def _common_rows(
    report: "Report", model: "Autoencoder", ratio: int, storage: str
) -> list[tuple[str, str]]:
    """`ratio` in time, of the latents: `model` has its own."""
    space = model.spatial_compression_ratio
    num_bytes = BYTES_PER_VALUE[storage] * report.latent_values
    latents = f"{report.num_latent_frames} latent frames, {report.latent_values:,} values"
    return [
        ("video", f"{report.num_frames} frames of {report.width} x {report.height}"),
        ("latents", f"{latents}, {num_bytes:,} bytes as {storage}"),
        ("nominal compression", f"{space} x {space} x {ratio}"),
        ("frames per latent frame", f"{report.frames_per_latent_frame:.2f}"),
        ("pixel values per latent value", f"{report.values_ratio:.1f}"),
        ("speed", f"{report.frames_per_s:.2f} frames/s ({report.elapsed_s:.1f} s)"),
        *(("note", note) for note in report.notes),
    ]


def _preset_rows(name: str) -> list[tuple[str, str]]:
    import torch

    from regen.models.loading import new_model

    with torch.device("meta"):
        model = new_model(name)
    return [("preset", name), *_parameter_rows(model)]


def _model_rows(name: str) -> list[tuple[str, str]]:
    from regen.models.loading import load_model

    model = load_model(name)
    # MAGVIT-v2 writes no latent files, whose encoder the id tells.
    ids = [("encoder id", model.encoder_id())] if hasattr(model, "encoder_id") else []
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
    from regen.latents import read_latents

    video = read_latents(path)
    space, ratio = video.spatial_compression_ratio, video.temporal_compression_ratio
    channels, num_latent_frames, height, width = video.latents.shape
    return [
        ("latent file", f"{name} ({_size(path)})"),
        ("video", f"{video.num_frames} frames of {video.width} x {video.height}"),
        ("frame rate", _rate(video.frame_rate)),
        ("duration", f"{float(video.duration):.2f} s"),
        ("pixel shape", str(video.sample_aspect_ratio)),
        ("latents", f"{channels} channels x {num_latent_frames} x {height} x {width}"),
        ("stored as", video.storage),
        ("nominal compression", f"{space} x {space} x {ratio}"),
        ("mean, content", _numbers(video.latents_mean[:, 0].tolist())),
        ("mean, motion", _numbers(video.latents_mean[:, 1].tolist())),
        ("deviation, content", _numbers(video.latents_std[:, 0].tolist())),
        ("deviation, motion", _numbers(video.latents_std[:, 1].tolist())),
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
        (kind, f"{name} ({_size(path)})"),
        ("size", f"{info.width} x {info.height}, rotated by {info.rotation} degrees"),
        ("pixel shape", str(info.sample_aspect_ratio)),
        ("frames", frames),
        ("frame rate", _rate(info.frame_rate)),
        ("duration", duration),
        ("codec", f"{info.codec}, {info.pixel_format}"),
        ("sound", "yes" if info.has_audio else "no"),
        *(("note", note) for note in reader.notes),
    ]


def _rate(frame_rate: Fraction) -> str:
    return f"{float(frame_rate):.3f} frames/s ({frame_rate})"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _print_table(rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
