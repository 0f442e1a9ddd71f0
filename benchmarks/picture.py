"""The picture of README.md: frames of a clip as the embedded model draws them.

From left to right: source, one step, several steps; from top to bottom: the middle frame of each
third of the video (of each fourth with --frames 4, and so on).

    python benchmarks/picture.py assets/bunny.mp4 assets/reconstruction.png [--steps 4]
                                 [--frames 3] [--width 912]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regen.loading import load_model
from regen.streaming import fast_precision
from regen.video import frames_to_video, read_frames, video_to_frames


@torch.inference_mode()
def rows(source: np.ndarray, num_rows: int, num_steps: int) -> list[np.ndarray]:
    """Frames of uint8 `[T, H, W, 3]`, each beside its two reconstructions."""
    model = load_model()
    with fast_precision(model.device):
        latents = model.encode(frames_to_video(source)[None]).latents
        which = [len(source) * (2 * row + 1) // (2 * num_rows) for row in range(num_rows)]
        again = [
            video_to_frames(
                model.decode(
                    latents,
                    frame_times=[float(one) for one in which],
                    height=source.shape[1],
                    width=source.shape[2],
                    num_inference_steps=steps,
                    generator=torch.Generator().manual_seed(0),
                ).sample[0]
            )
            for steps in (1, num_steps)
        ]
    return [
        np.concatenate([source[frame], again[0][row], again[1][row]], axis=1)
        for row, frame in enumerate(which)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path, help="a .png file")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--width", type=int, default=912)
    options = parser.parse_args()
    picture = Image.fromarray(
        np.concatenate(rows(read_frames(options.source), options.frames, options.steps))
    )
    height = round(picture.height * options.width / picture.width)
    picture = picture.resize((options.width, height), Image.Resampling.LANCZOS)
    # 256 colours, dithered: a third of the bytes.
    palette = picture.quantize(256, kmeans=3)
    picture = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    picture.save(options.output, optimize=True)
    num_bytes = options.output.stat().st_size
    print(f"{options.output}: {picture.width} x {picture.height} pixels, {num_bytes:,} bytes")


if __name__ == "__main__":
    main()
