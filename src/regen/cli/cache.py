"""`regen cache`: encodes a data set into latent shards."""

from dataclasses import dataclass

import tyro

from regen.cli.options import Paths, check_numbers, split_paths
from regen.cli.output import left_out, print_table
from regen.t2v.cache.config import CacheConfig


@dataclass(frozen=True)
class Cache(CacheConfig):
    """Encode a data set into latent shards with its captions' embeddings; the same command resumes.

    One latent for each clip. What cannot be read is left out and named in OUT/bad_clips.txt. Runs
    on Ray Data, on this machine with nothing set up, or on a cluster.

    Example: regen cache clips manifest.csv latents --num-frames 33 --height 192 --width 320
    """

    paths: Paths = tyro.MISSING
    """IN: folders, manifests (.csv, .jsonl, .parquet) and shards (.tar), as regen train takes them.
    OUT: folder for shard-000000.safetensors, ... and dataset.json."""

    def run(self) -> None:
        check_numbers(
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            shard_clips=self.shard_clips,
            num_workers=self.num_workers or None,
        )
        data, output = split_paths(self.paths, self.max_bad_fraction)
        from regen.loading import find_device
        from regen.t2v.cache.building import build_cache

        if self.address is None:  # a cluster has devices of its own
            find_device(self.device)
        report = build_cache(data, output, self)
        rows = [
            ("clips", f"{report.num_clips:,}"),
            ("left out", left_out(report.bad, output)),
            ("shards", f"{report.num_shards:,} ({report.num_bytes:,} bytes)"),
            ("finished before", f"{report.num_kept:,}"),
            ("described in", f"{output}/dataset.json"),
        ]
        print_table(rows)
