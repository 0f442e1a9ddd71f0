"""Frames that the encoder did not see: between its frames, and after them, on real clips.

Between: the encoder sees every second frame (a chunk), the decoder is asked for those between.
After: the encoder sees a chunk, the decoder is asked for the frames that follow. PSNR per frame on
8-bit RGB, mean over frames, then over clips; beside what needs no model.

    python benchmarks/frame_times.py --clips DIR [--model natural@8] [--size 256]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from regen import load_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.video import VIDEO_SUFFIXES, frames_to_video, read_prepared, video_to_frames

NUM_AFTER = 4  # half a chunk at k = 8, as far as training goes


def psnr(frames: np.ndarray, source: np.ndarray) -> float:
    error = (frames.astype(np.float64) - source).reshape(len(source), -1) / 255
    return float((-10 * np.log10((error**2).mean(axis=1).clip(1e-10))).mean())


@torch.no_grad()
def decode(model: AutoencoderREGEN, latents: torch.Tensor, times: list[float]) -> np.ndarray:
    return video_to_frames(model.decode(latents, frame_times=times).sample[0])


def average(frames: np.ndarray) -> np.ndarray:
    """`[n + 1, ...]` -> `[n, ...]`: of each two neighbours."""
    return (frames[:-1].astype(np.float64) + frames[1:]) / 2


@torch.no_grad()
def measure(model: AutoencoderREGEN, frames: np.ndarray) -> dict[str, float]:
    length = model.geometry.chunk_length
    seen, between = frames[0 : 2 * length - 1 : 2], frames[1 : 2 * length - 1 : 2]
    latents = model.encode(frames_to_video(seen)[None]).latents
    rebuilt = decode(model, latents, [float(time) for time in range(length)])
    halves = decode(model, latents, [time + 0.5 for time in range(length - 1)])
    after = frames[length : length + NUM_AFTER]
    first = model.encode(frames_to_video(frames[:length])[None]).latents
    rest = decode(model, first, [float(length + time) for time in range(NUM_AFTER)])
    last = decode(model, first, [float(length - 1)])
    return {
        "between: the decoder at half times": psnr(halves, between),
        "between: averages of the reconstruction": psnr(average(rebuilt), between),
        "between: the reconstruction's frame before": psnr(rebuilt[:-1], between),
        "between: averages of the source": psnr(average(seen), between),
        "the frames that the encoder saw": psnr(rebuilt, seen),
        "after: the decoder": psnr(rest, after),
        "after: the reconstruction's last frame": psnr(np.repeat(last, NUM_AFTER, 0), after),
        "after: the source's last frame": psnr(
            np.repeat(frames[length - 1 : length], NUM_AFTER, 0), after
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--model", default="natural@8")
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    model = load_model(options.model).float()
    needed = 2 * model.geometry.chunk_length - 1
    results: dict[str, dict[str, float]] = {}
    paths = sorted(p for p in options.clips.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    for path in tqdm(paths, unit="clip"):
        frames = read_prepared(path, options.size, needed)
        if len(frames) == needed:
            results[path.stem] = measure(model, frames)
        else:
            print(f"{path.name} has {len(frames)} frames, {needed} are needed: left out")
    if not results:
        parser.error(f"{options.clips} holds no video of {needed} frames")
    rows = list(results.values())
    print(f"\n{len(rows)} clips, encoder {model.encoder_id()}\n\n| frames | PSNR |\n| --- | --- |")
    for name in rows[0]:
        print(f"| {name} | {np.mean([row[name] for row in rows]):.2f} |")
    for kind, ours, other in (
        ("between", "the decoder at half times", "averages of the reconstruction"),
        ("after", "the decoder", "the reconstruction's last frame"),
    ):
        gains = {
            clip: row[f"{kind}: {ours}"] - row[f"{kind}: {other}"] for clip, row in results.items()
        }
        order = sorted(gains, key=lambda clip: gains[clip])
        ends = ", ".join(f"{clip} {gains[clip]:+.1f}" for clip in (order[0], order[-1]))
        better = sum(gain > 0 for gain in gains.values())
        print(f"\n{kind}: better than {other} in {better} of {len(gains)} clips; ends: {ends}")


if __name__ == "__main__":
    main()
