"""`regen cache`: encodes a data set into latent shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from regen.cli.options import check_numbers
from regen.cli.output import print_table


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
    max_bad_fraction: float = 0.05
    """Stop when more than this fraction of the files cannot be read."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to encode."""
    num_workers: int | None = None
    """Workers that encode; by default one for each GPU, else for each two cores. 0: without Ray, in
    this process."""
    address: str | None = None
    """Of a Ray cluster (auto on one of its machines, or HOST:PORT of its head); its machines read
    IN. By default Ray runs here alone."""

    def run(self) -> None:
        check_numbers(
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            shard_clips=self.shard_clips,
            num_workers=self.num_workers or None,
        )
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"--max-bad-fraction is from 0 to 1, got {self.max_bad_fraction}")
        if len(self.paths) < 2:
            raise ValueError("regen cache takes inputs and, last, the folder for the latents")
        from regen.loading import find_device
        from regen.t2v.cache.building import CacheOptions, build_cache
        from regen.t2v.cache.encoding import ClipOptions

        if self.address is None:  # a cluster has devices of its own
            find_device(self.device)
        *data, output = self.paths
        options = CacheOptions(
            self.model,
            self.text_encoder,
            self.storage,
            ClipOptions(self.num_frames, self.height, self.width),
            self.shard_clips,
            self.max_bad_fraction,
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
        print_table(rows)
