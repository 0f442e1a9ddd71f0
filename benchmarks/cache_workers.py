"""How `regen cache` grows with its workers: clips per second with 1, with 2, ... by Ray.

    regen world few --clips 96 --frames 132 --size 64 64
    python benchmarks/cache_workers.py few --model shapes_32x --workers 1 2

Nothing is written. The first sixth of the clips is not counted: Ray starts, workers import.
"""

import argparse
import tempfile
import time
from pathlib import Path

from regen.data.finding import find_items
from regen.t2v.cache.building import encode_jobs
from regen.t2v.cache.config import CacheConfig
from regen.t2v.cache.encoding import job


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model", default="natural@8")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as indexes:
        items = find_items([arguments.clips], Path(indexes))
    if len(items) < 12:
        parser.error(f"{arguments.clips} holds {len(items)} clips; give at least 12")
    reference = 0.0
    for num_workers in arguments.workers:
        options = CacheConfig(model=arguments.model, num_workers=num_workers)
        started, times = time.perf_counter(), []
        for _ in encode_jobs((job(item, options.clips) for item in items), len(items), options):
            times.append(time.perf_counter() - started)
        skipped = len(times) // 6
        rate = (len(times) - skipped) / (times[-1] - times[skipped - 1])
        reference = reference or rate
        print(
            f"{num_workers} workers: {rate:.2f} clips/s, {rate / reference:.2f} times; "
            f"the first {skipped} after {times[skipped - 1]:.0f} s"
        )


if __name__ == "__main__":
    main()
