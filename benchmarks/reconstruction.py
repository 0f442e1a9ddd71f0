"""PSNR and SSIM of a model on a folder of clips: a Markdown table, and JSON if asked.

Each clip: short side to SIZE (bicubic), centre crop SIZE x SIZE, first FRAMES frames, encoded and
decoded in chunks; metrics on 8-bit RGB per frame, mean over frames, then over clips. The same
reading as the linear reference codec's.

    python benchmarks/reconstruction.py --clips DIR [--model NAME] [--size 256] [--frames 36]
        [--steps 1 8] [--storage float32 bfloat16 int8] [--output FILE] [--sheets DIR]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from regen.codec import decode_frames, encode_frames
from regen.evaluation.metrics import psnr, ssim
from regen.evaluation.sheets import comparison
from regen.latents import StorageDtype, round_latents
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.loading import load_model
from regen.video import frames_to_video


def read_clip(path: Path, size: int, num_frames: int) -> np.ndarray:
    """uint8 `[T, size, size, 3]`, T at most `num_frames`."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scale = size / min(frame.height, frame.width)
            width, height = (
                max(size, round(frame.width * scale)),
                max(size, round(frame.height * scale)),
            )
            picture = frame.reformat(
                width=width, height=height, format="rgb24", interpolation="BICUBIC"
            )
            top, left = (height - size) // 2, (width - size) // 2
            frames.append(picture.to_ndarray()[top : top + size, left : left + size])
            if len(frames) == num_frames:
                break
    return np.stack(frames)


def measure(
    model: AutoencoderREGEN, frames: np.ndarray, steps: int, storage: StorageDtype, seed: int
) -> dict[str, Any]:
    """The metrics of one clip, PSNR by position in the chunk, and the reconstruction."""
    generator = torch.Generator().manual_seed(seed)
    length = model.geometry.chunk_length
    rebuilt = []
    for start in range(0, len(frames), length):
        chunk = frames[start : start + length]
        latents = round_latents(encode_frames(model, chunk)[0], storage)[None]
        rebuilt.append(
            decode_frames(model, latents, len(chunk), *chunk.shape[1:3], steps, generator)
        )
    reconstruction = np.concatenate(rebuilt)
    source, other = frames_to_video(frames)[None], frames_to_video(reconstruction)[None]
    values = psnr(other, source)[0]
    positions = [values[place::length].mean().item() for place in range(min(length, len(frames)))]
    return {
        "psnr": values.mean().item(),
        "ssim": ssim(other, source)[0].mean().item(),
        "psnr_by_position": positions,
        "reconstruction": reconstruction,
    }


def write_sheet(path: Path, frames: np.ndarray, reconstruction: np.ndarray) -> None:
    """First, middle and last frame: source, reconstruction, error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = comparison(frames, reconstruction)[[0, len(frames) // 2, len(frames) - 1]]
    Image.fromarray(np.concatenate(list(rows))).save(path)


def mean_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over clips; by position over the clips that have a whole chunk."""
    longest = max(len(result["psnr_by_position"]) for result in results)
    whole = [r["psnr_by_position"] for r in results if len(r["psnr_by_position"]) == longest]
    return {
        "psnr": float(np.mean([result["psnr"] for result in results])),
        "ssim": float(np.mean([result["ssim"] for result in results])),
        "psnr_by_position": np.mean(whole, axis=0).round(2).tolist(),
    }


def print_row(name: str, results: dict[str, dict[str, Any]]) -> None:
    cells = [f"{result['psnr']:.2f} | {result['ssim']:.4f}" for result in results.values()]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--model", default="tiny-8x8x8")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=36)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--storage", nargs="+", default=["float32"], help="float32, bfloat16, int8: of the latents"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--sheets", type=Path, help="folder for a PNG per clip: frames 0, middle, last, compared"
    )
    options = parser.parse_args()
    model = load_model(options.model)
    columns = {  # title -> (steps, storage)
        f"{steps} step{'s' * (steps > 1)}, {storage}": (steps, storage)
        for steps in options.steps
        for storage in options.storage
    }
    results: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    print("| clip | " + " | ".join(f"PSNR, {title} | SSIM" for title in columns) + " |")
    print("| --- " * (1 + 2 * len(columns)) + "|")
    for path in sorted(options.clips.glob("*.mp4")):
        frames = read_clip(path, options.size, options.frames)
        results[path.stem] = {}
        for title, (steps, storage) in columns.items():
            result = measure(model, frames, steps, storage, options.seed)
            reconstruction = result.pop("reconstruction")
            if options.sheets and not results[path.stem]:
                write_sheet(options.sheets / f"{path.stem}.png", frames, reconstruction)
            results[path.stem][title] = result
        print_row(path.stem, results[path.stem])
    means = {title: mean_of([result[title] for result in results.values()]) for title in columns}
    print_row(f"**mean of {len(results)}**", means)
    for title in columns:
        print(f"\nPSNR by position in the chunk, {title}: {means[title]['psnr_by_position']}")
    print(f"{time.perf_counter() - start:.0f} s")
    if options.output:
        record = {
            "model": options.model,
            "encoder_id": model.encoder_id(),
            "size": options.size,
            "frames": options.frames,
            "seed": options.seed,
            "torch": torch.__version__,
            "mean": means,
            "clips": results,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
