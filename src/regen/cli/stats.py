"""`regen stats`: statistics of a cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from regen.cli.output import format_numbers, print_table


@dataclass(frozen=True)
class Stats:
    """Merge the statistics of a cache's shards again, into its dataset.json, and print them.

    Example: regen stats latents
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """What regen cache wrote, or shards of several such folders in one of them."""

    def run(self) -> None:
        from regen.t2v.cache.building import recompute_statistics

        moments = recompute_statistics(self.folder)
        rows = [("cache", str(self.folder))]
        for kind, name in enumerate(("content", "motion")):
            rows += [
                (f"values per channel, {name}", f"{moments.count[kind].item():,.0f}"),
                (f"mean, {name}", format_numbers(moments.mean[:, kind].tolist())),
                (f"standard deviation, {name}", format_numbers(moments.std[:, kind].tolist())),
            ]
        print_table(rows)
