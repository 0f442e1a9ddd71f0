"""Peak memory of `regen reconstruct` on videos of growing length: a Markdown table and their ratio.

Each video is a moving pattern, reconstructed by a process of its own; the number is that process's
largest resident set, as the kernel counts it. Exit status 1 where the ratio is above LIMIT.

    python benchmarks/memory.py [--model NAME] [--frames 33 330 3300] [--limit 1.10] [--compare]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from regen.video import VideoWriter


def write_pattern(path: Path, num_frames: int, height: int, width: int) -> None:
    """Stripes of colour that drift, at 25 frames/s."""
    y, x = np.mgrid[0:height, 0:width]
    rate = Fraction(25)
    with VideoWriter(path, width=width, height=height, frame_rate=rate) as writer:
        for n in range(num_frames):
            phases = np.stack([x / 9 + n / 5, y / 7 - n / 6, (x + y) / 11 + n / 4], axis=-1)
            writer.write((127.5 + 120 * np.sin(phases)).astype(np.uint8), n / rate)


def peak_bytes(command: list[str]) -> int:
    """Run a command and return its largest resident set; RuntimeError where it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ends with status {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="natural@8")
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 330, 3300])
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--limit", type=float, default=1.10)
    parser.add_argument("--compare", action="store_true", help="also write the comparison")
    options = parser.parse_args()
    peaks = []
    print("| frames | peak memory, MiB | seconds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for num_frames in options.frames:
            source, output = Path(folder) / f"{num_frames}.mp4", Path(folder) / "out.mp4"
            write_pattern(source, num_frames, options.height, options.width)
            command = [sys.executable, "-m", "regen", "reconstruct", str(source), str(output)]
            command += ["--model", options.model] + ["--compare"] * options.compare
            start = time.perf_counter()
            peaks.append(peak_bytes(command))
            elapsed_s = time.perf_counter() - start
            print(f"| {num_frames} | {peaks[-1] / 2**20:.1f} | {elapsed_s:.0f} |", flush=True)
    ratio = max(peaks) / min(peaks)
    print(f"\nlargest / smallest: {ratio:.3f}")
    sys.exit(ratio > options.limit)


if __name__ == "__main__":
    main()
