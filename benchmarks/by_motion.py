"""PSNR by the amount of motion in a clip, from reports of `regen evaluate` of the same clips.

    python benchmarks/by_motion.py clips runs/evaluation/results.json runs/other/results.json

Motion is the mean change of a pixel from a frame to the next, in levels of 255, of the frames that
were evaluated. The clips in order of it, in `--groups` of equal size; a column for each row of the
reports, and the difference of the first two.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from regen.video import read_prepared


def change(frames: np.ndarray) -> float:
    """Mean change of uint8 `[T, H, W, 3]` from frame to frame, in levels."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, help="the folder that was evaluated")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--groups", type=int, default=4)
    options = parser.parse_args()
    reports = [json.loads(path.read_text()) for path in options.results]
    rows = [row for report in reports for row in report["rows"]]
    protocol = reports[0]["protocol"]
    names = [Path(clip["id"]).name for clip in rows[0]["clips"]]
    for row in rows:
        if [Path(clip["id"]).name for clip in row["clips"]] != names:
            parser.error(f"{row['name']} is of other clips than {rows[0]['name']}")
    size = protocol["size"] if isinstance(protocol["size"], int) else None  # as the files are
    num_frames = protocol["num_frames"]
    motion = np.array(
        [change(read_prepared(options.clips / name, size, num_frames)) for name in names]
    )
    psnr = np.array([[clip["psnr"] for clip in row["clips"]] for row in rows])
    heads = ["motion, levels a frame", "clips", *(row["name"] for row in rows)]
    if len(rows) > 1:
        heads.append("first less second")
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for group in (*np.array_split(np.argsort(motion), options.groups), np.arange(len(names))):
        cells = [f"{motion[group].min():.1f} to {motion[group].max():.1f}", str(len(group))]
        means = psnr[:, group].mean(axis=1)
        cells += [f"{value:.2f}" for value in means]
        cells += [f"{means[0] - means[1]:+.2f}"] * (len(rows) > 1)
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
