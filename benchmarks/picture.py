"""The picture of README.md: frames of a comparison that `regen reconstruct --compare` wrote.

From left to right: source, reconstruction, 4 x the absolute error; from top to bottom: the middle
frame of each third of the video (of each fourth with --frames 4, and so on).

    regen reconstruct assets/bunny.mp4 out.mp4 --compare
    python benchmarks/picture.py out.compare.mp4 assets/reconstruction.png [--frames 3]
                                 [--width 912]
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from regen.video import read_frames


def sheet(frames: np.ndarray, num_rows: int, width: int) -> Image.Image:
    """uint8 `[T, H, W, 3]` -> `num_rows` of the frames, one below the other, `width` wide."""
    rows = frames[[len(frames) * (2 * row + 1) // (2 * num_rows) for row in range(num_rows)]]
    picture = Image.fromarray(np.concatenate(list(rows)))
    height = round(picture.height * width / picture.width)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path)
    parser.add_argument("output", type=Path, help="a .png file")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--width", type=int, default=912)
    options = parser.parse_args()
    picture = sheet(read_frames(options.comparison), options.frames, options.width)
    # 256 colours, dithered: a third of the bytes.
    palette = picture.quantize(256, kmeans=3)
    picture = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    picture.save(options.output, optimize=True)
    num_bytes = options.output.stat().st_size
    print(f"{options.output}: {picture.width} x {picture.height} pixels, {num_bytes:,} bytes")


if __name__ == "__main__":
    main()
