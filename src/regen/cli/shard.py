"""`regen shard`: packs clips into shards."""

from dataclasses import dataclass

from regen.cli.options import Paths, check_numbers, split_paths
from regen.cli.output import left_out, print_table


@dataclass(frozen=True)
class Shard:
    """Pack clips and photos into shards, which train as the files do; the same command resumes.

    A shard is an ordinary webdataset tar file (KEY.mp4 and KEY.json with caption and source) with
    an index beside it. Every file is decoded once to see that it is whole; what is not is left out
    and named in OUT/bad_clips.txt. The same inputs give the same bytes.

    Example: regen shard clips photos.csv shards; regen train --data shards --output runs/mine
    """

    paths: Paths
    """IN: folders of clips and photos, and manifests (.csv, .jsonl, .parquet) with the column file,
    and if known source and caption. OUT: folder for shard-000000.tar, shard-000000.index.json,
    ..."""
    max_shard_mb: int = 512
    """Size of a shard in MB (1,000,000 bytes), which only a larger file exceeds."""
    max_bad_fraction: float = 0.05
    """Stop when more than this fraction of the files cannot be read."""
    num_workers: int | None = None
    """Processes that decode; by default one for each core."""

    def run(self) -> None:
        check_numbers(max_shard_mb=self.max_shard_mb, num_workers=self.num_workers)
        data, output = split_paths(self.paths, self.max_bad_fraction)
        from regen.data.shard_writer import write_shards

        report = write_shards(
            data,
            output,
            1_000_000 * self.max_shard_mb,
            self.max_bad_fraction,
            self.num_workers,
        )
        rows = [
            ("clips", f"{report.num_videos:,}"),
            ("photos", f"{report.num_photos:,}"),
            ("left out", left_out(report.bad, output)),
            ("shards", f"{report.num_shards:,} ({report.num_bytes:,} bytes)"),
            ("finished before", f"{report.num_kept:,}"),
            ("train on them", f"regen train --data {output} --output runs/mine"),
        ]
        print_table(rows)
