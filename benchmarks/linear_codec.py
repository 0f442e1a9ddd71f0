"""The linear codec of the same latent budget: what any learned embedder at 8 x 8 x k has to beat.

For each 8 x 8 pixels of a chunk, 8 values for the first frame (PCA of its 192 numbers) and 8 for
the k others (PCA of what the first 8 do not predict linearly). Fitted on training clips, then
measured like any system; PYTHONPATH because `--system` imports this module:

    python benchmarks/linear_codec.py --train data/train --k 8 32
    PYTHONPATH=benchmarks regen evaluate --data DIR --system linear_codec:k8 --output out

The fit is kept in linear_codec_K.npz in the working folder. A last chunk of fewer frames is filled
with its last frame. Sides are multiples of 8.
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from tqdm import tqdm

from regen.video import read_prepared

BLOCKS = "t (h p) (w q) c -> (h w) (t p q c)"
NUM_VALUES = 8  # of each latent frame
BLOCKS_PER_CHUNK = 64  # drawn for the fit


def split(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float `[k + 1, H, W, 3]` -> blocks of the first frame `[N, 192]`, of the others."""
    return rearrange(chunk[:1], BLOCKS, p=8, q=8), rearrange(chunk[1:], BLOCKS, p=8, q=8)


def principal_directions(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows = rows[rng.choice(len(rows), min(len(rows), 4000), replace=False)]
    return np.linalg.svd(rows, full_matrices=False)[2][:NUM_VALUES]


def with_one(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)


def fit(folder: Path, k: int) -> dict[str, np.ndarray]:
    """The mean block, the directions of first and later frames, the prediction between them."""
    rng, firsts, others = np.random.default_rng(0), [], []
    for path in tqdm(sorted(folder.glob("*.mp4")), f"clips, k = {k}"):
        video = read_prepared(path, 256, 2 * (k + 1)).astype(np.float32) / 255
        for start in range(0, len(video) - k, k + 1):
            first, rest = split(video[start : start + k + 1])
            drawn = rng.choice(len(first), BLOCKS_PER_CHUNK, replace=False)
            firsts.append(first[drawn])
            others.append(rest[drawn])
    first, rest = np.concatenate(firsts), np.concatenate(others)
    mean = first.mean(axis=0)
    content = principal_directions(first - mean, rng)
    values = with_one((first - mean) @ content.T)
    prediction = np.linalg.lstsq(values, rest, rcond=None)[0]
    motion = principal_directions(rest - values @ prediction, rng)
    return {"mean": mean, "content": content, "prediction": prediction, "motion": motion}


@cache
def fitted(k: int) -> dict[str, np.ndarray]:
    with np.load(f"linear_codec_{k}.npz") as arrays:
        return dict(arrays)


def reconstruct(video: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`[1, 3, T, H, W]` in [-1, 1] -> the same, and latents `[1, 8, 2 n, h, w]` to be counted."""
    codec, frames = fitted(k), rearrange(video[0].float().cpu().numpy(), "c t h w -> t h w c") / 2
    num_frames, height, width, _ = frames.shape
    chunks = [frames[start : start + k + 1] + 0.5 for start in range(0, num_frames, k + 1)]
    again = []
    for chunk in chunks:
        filled = np.concatenate([chunk, np.repeat(chunk[-1:], k + 1 - len(chunk), axis=0)])
        first, rest = split(filled)
        values = (first - codec["mean"]) @ codec["content"].T
        predicted = with_one(values) @ codec["prediction"]
        later = predicted + (rest - predicted) @ codec["motion"].T @ codec["motion"]
        shape = {"h": height // 8, "p": 8, "q": 8}
        inverse = " -> ".join(reversed(BLOCKS.split(" -> ")))
        blocks = (values @ codec["content"] + codec["mean"], later)
        rebuilt = [rearrange(one, inverse, c=3, **shape) for one in blocks]
        again.append(np.concatenate(rebuilt)[: len(chunk)])
    pixels = np.concatenate(again).clip(0, 1) * 2 - 1
    latents = torch.zeros(1, NUM_VALUES, 2 * len(chunks), height // 8, width // 8)
    return torch.from_numpy(rearrange(pixels, "t h w c -> 1 c t h w")), latents


def k8(video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return reconstruct(video, 8)


def k32(video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return reconstruct(video, 32)


for k, system in ((8, k8), (32, k32)):
    system.chunk_length, system.name = k + 1, f"linear codec, k = {k}"  # type: ignore[attr-defined]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32])
    options = parser.parse_args()
    for ratio in options.k:
        np.savez(f"linear_codec_{ratio}.npz", **fit(options.train, ratio))
