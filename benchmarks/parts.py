"""What each part of a model with moving content is worth: metrics with one part switched off.

    python benchmarks/parts.py data/eval --num-frames 36 --ratio 8

The transformer's output is set to 0 (what is left: the linear picture, warped); what the encoder
has learned is set to 0 (what is left: the linear code and the estimated motion); the motion latents
are those of an image. The mean over all clips, and over those that move: where the frames of a
chunk are told from its first one at less than `--moving-below` decibels.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from regen.evaluation.metrics import psnr
from regen.loading import load_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.perceptual.lpips import LPIPS
from regen.streaming import fast_precision
from regen.video import frames_to_video, read_prepared

PARTS = ("whole", "no transformer", "no learned encoder", "motion of an image")


@contextmanager
def switched_off(model: AutoencoderREGEN, part: str) -> Iterator[None]:
    """`model` without one of `PARTS`."""
    modules = {"no transformer": [model.dit.proj_out], "no learned encoder": [model.encoder]}
    handles = [
        module.register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
        for module in modules.get(part, [])
    ]
    yield
    for handle in handles:
        handle.remove()


def reconstruct(model: AutoencoderREGEN, video: torch.Tensor, part: str) -> torch.Tensor:
    with torch.inference_mode(), switched_off(model, part), fast_precision(model.device):
        latents = model.encode(video).latents
        if part == "motion of an image":
            still = model.encode(video[:, :, :1]).latents
            still = model.normalize_latents(model.fill_motion(model.denormalize_latents(still)))
            latents[:, :, 1::2] = still[:, :, 1:]
        decoded: torch.Tensor = model.decode(latents, num_frames=video.shape[2]).sample
    return decoded


def stillness(video: torch.Tensor, chunk_length: int) -> float:
    """PSNR of each chunk's first frame in place of its others, mean, dB."""
    firsts = torch.arange(video.shape[2]) // chunk_length * chunk_length
    later = firsts != torch.arange(video.shape[2])
    return float(psnr(video[:, :, firsts][:, :, later], video[:, :, later]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model", default="natural")
    parser.add_argument("--ratio", type=int, default=8)
    parser.add_argument("--num-frames", type=int, default=36)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--moving-below", type=float, default=25.0)
    options = parser.parse_args()
    model = load_model(f"{options.model}@{options.ratio}")
    assert isinstance(model, AutoencoderREGEN)
    lpips, rows, moves = LPIPS("alex"), [], []
    for path in tqdm(sorted(options.clips.glob("*.mp4")), "clips"):
        frames = read_prepared(path, options.size, options.num_frames)
        video = frames_to_video(frames)[None]
        moves.append(stillness(video, options.ratio + 1) < options.moving_below)
        row = []
        for part in PARTS:
            decoded = reconstruct(model, video, part)
            with torch.inference_mode():
                pairs = (one[0].transpose(0, 1) for one in (decoded, video))
                row.append([float(psnr(decoded, video).mean()), float(lpips(*pairs).mean())])
        rows.append(row)
    values, moving = torch.tensor(rows), torch.tensor(moves)
    print(f"{options.model} at {options.ratio}x, {len(rows)} clips of {options.num_frames} frames")
    print("| | PSNR, dB | LPIPS | PSNR, moving | LPIPS, moving |\n|" + " --- |" * 5)
    for part, means, of_moving in zip(
        PARTS, values.mean(dim=0), values[moving].mean(dim=0), strict=True
    ):
        cells = [f"{means[0]:.2f}", f"{means[1]:.4f}", f"{of_moving[0]:.2f}", f"{of_moving[1]:.4f}"]
        print(f"| {part} | " + " | ".join(cells) + " |")
    print(f"{int(moving.sum())} clips move")


if __name__ == "__main__":
    main()
