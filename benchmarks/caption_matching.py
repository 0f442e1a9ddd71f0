"""Does a text-to-video model know which caption belongs to a real clip? Without another network.

    regen cache clips latents --model shapes_32x --height 80 --width 128
    regen train-generator --data latents --output runs/real
    regen cache others latents-others --model shapes_32x --height 80 --width 128
    python benchmarks/caption_matching.py runs/real/model latents-others --output matching

Of each clip the first chunks, of all clips as many, at most one clip of a caption. Two questions,
each with chance beside it:

- Of all captions, is its own the one with which the model predicts the noise in a clip best? (A
  generative classifier; the noise and the timesteps are the same for all captions.)
- Of all clips, is its own the most like a video made from a caption? By its colours in an 8 x 8
  picture of each chunk's content.

With OUTPUT/samples.png, a row a caption: the clip through the embedder, and what was made. The
same seed gives the same numbers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from tqdm import tqdm

from regen.evaluation.sheets import write_samples
from regen.flow import training_target
from regen.t2v.batches import LatentClips, pad_texts
from regen.t2v.config import GeneratorConfig
from regen.t2v.pipeline import load_pipeline


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional]
    """Folder of the pipeline."""
    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of latents and captions, of the same encoders."""
    part: Literal["all", "training", "held_out"] = "all"
    """Of these folders, where regen train-generator had the same ones with its default options: the
    sources that it trained on, or those that it held out."""
    output: Path = Path("matching")
    """Folder for the report and the sheet."""
    num_clips: int = 32
    num_chunks: int = 1
    timesteps: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    num_noises: int = 4
    """For each timestep."""
    num_inference_steps: int = 30
    guidance_scale: float = 4.0
    num_videos: int = 4
    """Made from each caption; what is compared is their mean."""
    seed: int = 0


def pick(clips: LatentClips, options: Options) -> list[int]:
    """Clips that are long enough, of different captions, and of the shape that most have."""
    indices = list(range(len(clips)))
    if options.part != "all":
        training, _ = clips.hold_out(GeneratorConfig.validation_sources, GeneratorConfig.seed)
        is_training = options.part == "training"
        known = set(training)
        indices = [index for index in indices if (index in known) == is_training]
    fitting = [
        i for i in indices if clips.num_chunks[i] >= options.num_chunks and clips.captions[i]
    ]
    sizes = [clips.shapes[index][1:] for index in fitting]
    fitting = [index for index in fitting if clips.shapes[index][1:] == max(sizes, key=sizes.count)]
    first: dict[str, int] = {}
    for index in np.random.default_rng(options.seed).permutation(fitting):
        first.setdefault(clips.captions[index], int(index))
    return list(first.values())[: options.num_clips]


@torch.inference_mode()
def losses(pipeline, latents: torch.Tensor, texts: list[torch.Tensor], options: Options):
    """`[N, N]`: error of the prediction for each clip (row) with each caption."""
    model = pipeline.transformer
    normalized = model.normalize_latents(latents)
    embeds, mask = pad_texts(texts)
    found = torch.zeros(len(latents), len(texts))
    generator = torch.Generator().manual_seed(options.seed)
    draws = [t for t in options.timesteps for _ in range(options.num_noises)]
    for timestep in tqdm(draws, unit="draw"):
        noise = torch.randn(normalized.shape, generator=generator)
        noisy = (1 - timestep) * normalized + timestep * noise
        target = training_target(normalized, noise, "v_prediction")
        for row in range(len(latents)):
            states = noisy[row : row + 1].expand(len(texts), *noisy.shape[1:])
            times = torch.full((len(texts), noisy.shape[2]), timestep)
            with torch.autocast("cpu", torch.bfloat16):
                output = model(states, embeds, times, mask).sample
            found[row] += (output.float() - target[row]).square().flatten(1).mean(1) / len(draws)
    return found


@torch.inference_mode()
def generate(pipeline, captions: list[str], num_frames: int, size, options: Options):
    """Latents `[N, V, 8, n, h, w]` of the videos made from each caption."""
    made = []
    for index, caption in enumerate(tqdm(captions, unit="caption")):
        seeds = range(1000 * index, 1000 * index + options.num_videos)
        with torch.autocast("cpu", torch.bfloat16):
            made.append(
                pipeline(
                    caption,
                    num_frames=num_frames,
                    height=size[0],
                    width=size[1],
                    num_videos_per_prompt=options.num_videos,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    num_inference_steps=options.num_inference_steps,
                    guidance_scale=options.guidance_scale,
                    output_type="latent",
                ).frames
            )
    return torch.stack(made)


@torch.inference_mode()
def pictures(pipeline, latents: torch.Tensor, num_frames: int, size) -> torch.Tensor:
    """Latents `[B, 8, n, h, w]` -> video `[B, T, 3, H, W]` in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    sample = pipeline.vae.decode(
        latents, num_frames=num_frames, height=size[0], width=size[1], generator=generator
    ).sample
    return ((sample.clamp(-1, 1) + 1) / 2).transpose(1, 2)


def thumbnails(video: torch.Tensor, chunk_length: int) -> torch.Tensor:
    """`[B, T, 3, H, W]` -> `[B, D]`: colours of the chunks' first frames, on 8 x 8 places."""
    frames = video[:, ::chunk_length]
    small = F.interpolate(frames.flatten(0, 1), (8, 8), mode="area")
    return small.reshape(len(video), -1)


def ranks(scores: torch.Tensor) -> np.ndarray:
    """0 where the diagonal entry of a row `[N, N]` is the smallest of it, N - 1: the largest."""
    return (scores < scores.diagonal()[:, None]).sum(1).numpy()


def main(options: Options) -> None:
    pipeline = load_pipeline(options.model)
    pipeline.set_progress_bar_config(disable=True)
    clips = LatentClips(options.data)
    picked = pick(clips, options)
    if len(picked) < 2:
        raise SystemExit(f"{' '.join(options.data)} has no two captioned clips of that length")
    chunk_length = pipeline.vae.geometry.chunk_length
    space = pipeline.vae.spatial_compression_ratio
    num_frames = options.num_chunks * chunk_length
    latents = torch.stack([clips[i]["latents"][:, : 2 * options.num_chunks] for i in picked])
    size = (latents.shape[3] * space, latents.shape[4] * space)
    captions = [clips.captions[index] for index in picked]
    found = losses(pipeline, latents, [clips[i]["prompt_embeds"] for i in picked], options)
    by_loss = ranks(found)
    made = generate(pipeline, captions, num_frames, size, options)
    truth = pictures(pipeline, latents, num_frames, size)
    videos = torch.stack([pictures(pipeline, one, num_frames, size) for one in tqdm(made)])
    true_small = thumbnails(truth, chunk_length)
    made_small = torch.stack([thumbnails(one, chunk_length).mean(0) for one in videos])
    by_picture = ranks(torch.cdist(made_small, true_small))
    report = {
        "model": options.model,
        "data": options.data,
        "part": options.part,
        "clips": len(picked),
        "frames": num_frames,
        "chance_first": 1 / len(picked),
        "loss_own_caption": float(found.diagonal().mean()),
        "loss_other_captions": float((found.sum() - found.trace()) / (found.numel() - len(found))),
        "captions": captions,
    }
    for name, rank in (("caption_of_clip", by_loss), ("clip_of_caption", by_picture)):
        report[name] = {
            "first": float((rank == 0).mean()),
            "in_first_5": float((rank < 5).mean()),
            "mean_rank": float(1 + rank.mean()),
            "mean_rank_by_chance": (len(picked) + 1) / 2,
        }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    rows = [one for pair in zip(truth[:8], videos[:8, 0], strict=True) for one in pair]
    write_samples(options.output / "samples.png", torch.stack(rows))
    print(json.dumps({k: v for k, v in report.items() if k != "captions"}, indent=1))
    print("\n".join(captions[:8]))


if __name__ == "__main__":
    main(tyro.cli(Options))
