"""What commands print: a table of rows, a progress bar."""

import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from regen.codec import Report
    from regen.loading import Autoencoder


BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "int8": 1}


def with_progress(total: int | None, work: "Callable[[Callable[[int], None]], Report]") -> "Report":
    """Run `work` under a progress bar that counts frames, `total` where it is known."""
    from tqdm import tqdm

    with tqdm(total=total, unit="frame", leave=False, disable=not sys.stderr.isatty()) as bar:
        return work(lambda num_frames: bar.update(num_frames) and None)


def size_of(path: Path) -> str:
    files = path.iterdir() if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files):,} bytes"


def common_rows(report: "Report", model: "Autoencoder", storage: str) -> list[tuple[str, str]]:
    space = model.spatial_compression_ratio
    num_bytes = BYTES_PER_VALUE[storage] * report.latent_values
    latents = f"{report.num_latent_frames} latent frames, {report.latent_values:,} values"
    return [
        ("video", f"{report.num_frames} frames of {report.width} x {report.height}"),
        ("latents", f"{latents}, {num_bytes:,} bytes as {storage}"),
        ("nominal compression", f"{space} x {space} x {report.ratio}"),
        *length_rows(report.chunk_lengths),
        ("frames per latent frame", f"{report.frames_per_latent_frame:.2f}"),
        ("pixel values per latent value", f"{report.values_ratio:.1f}"),
        ("speed", f"{report.frames_per_s:.2f} frames/s ({report.elapsed_s:.1f} s)"),
        *(("note", note) for note in report.notes),
    ]


def left_out(bad: list[str], output: str) -> str:
    """How many files, and where they are named."""
    return f"{len(bad)}, listed in {Path(output) / 'bad_clips.txt'}" if bad else "0"


def length_rows(lengths: Sequence[int]) -> list[tuple[str, str]]:
    """A row for chunks, in frames, of which another than the last is shorter than others."""
    if len(set(lengths[:-1])) < 2:
        return []
    return [("chunks", f"{len(lengths)} of {min(lengths)} to {max(lengths)} frames")]


def format_rate(frame_rate: Fraction) -> str:
    return f"{float(frame_rate):.3f} frames/s ({frame_rate})"


def format_numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def print_table(rows: list[tuple[str, str]], file: TextIO | None = None) -> None:
    """`file`: by default standard output."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}", file=file)
