"""Does a text-to-video model make what its prompt asks? Measured on the generated world.

    regen world world --clips 20000 --frames 33 --size 96 96
    regen cache world latents --model shapes_32x
    regen train-generator --data latents --output runs/t2v
    python examples/moving_shapes/prompt_following.py runs/t2v/model --output following

Prompts are captions of the split held_out: no combination of colour, shape and direction in them
has trained. For each attribute the share that is right stands between chance (another prompt's
scene) and what the embedder lets through (the true clip, encoded and decoded). Writes
OUTPUT/report.json and OUTPUT/samples.png, a row a prompt; the same seed gives the same numbers.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from scoring import ATTRIBUTES, chance, score
from tqdm import tqdm

from regen.evaluation.sheets import write_samples
from regen.moving_shapes import make_scene, render
from regen.t2v.pipeline import load_pipeline


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional]
    """Folder of the pipeline."""
    output: Path = Path("following")
    """Folder for the report and the sheet."""
    num_prompts: int = 64
    batch_size: int = 8
    num_inference_steps: int = 30
    guidance_scale: float = 5.0
    split: str = "held_out"
    """train: combinations that have trained, in scenes that have not (another seed)."""
    seed: int = 1
    """Of the scenes and the noise; 0 is the seed of the training's world."""


def shares(scores: list[dict[str, bool]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores])) for name in ATTRIBUTES}


def training_speed(pipeline, batch_size: int = 32, num_steps: int = 5) -> tuple[float, float]:
    """Wall and processor seconds of a training step in bfloat16 on clips of the usual size."""
    model = type(pipeline.transformer).from_config(pipeline.transformer.config)
    model.to(pipeline.device)
    config = model.config
    num_frames = pipeline.vae.geometry.num_latent_frames(config.sample_frames)
    shape = (batch_size, config.in_channels, num_frames, config.sample_height, config.sample_width)
    latents = torch.randn(shape, device=pipeline.device)
    text = torch.randn(batch_size, 24, config.joint_attention_dim, device=pipeline.device)
    mask = torch.ones(text.shape[:2], dtype=torch.bool, device=pipeline.device)
    timestep = torch.rand(batch_size, device=pipeline.device)
    optimizer = torch.optim.AdamW(model.parameters())
    wall, processor = [], []
    for _ in range(num_steps):
        before = time.perf_counter(), time.process_time()
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            output = model(latents, text, timestep, mask).sample
        (output.float() - latents).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - before[0])
        processor.append(time.process_time() - before[1])
    return float(np.median(wall)), float(np.median(processor))


@torch.inference_mode()
def reconstruct(pipeline, frames: np.ndarray) -> np.ndarray:
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(pipeline.device) / 127.5 - 1
    sample = pipeline.vae(video, generator=torch.Generator().manual_seed(0)).sample[0]
    return ((sample.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def main(options: Options) -> None:
    pipeline = load_pipeline(options.model, "cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    config, space = pipeline.transformer.config, pipeline.vae.spatial_compression_ratio
    height, width = config.sample_height * space, config.sample_width * space
    scenes = [make_scene(options.seed, i, options.split) for i in range(options.num_prompts)]
    videos, started = [], time.perf_counter()
    for start in tqdm(range(0, len(scenes), options.batch_size), unit="batch"):
        some = scenes[start : start + options.batch_size]
        seeds = range(1000 * options.seed + start, 1000 * options.seed + start + len(some))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            latents = pipeline(
                [scene.caption for scene in some],
                generator=generators,
                num_inference_steps=options.num_inference_steps,
                guidance_scale=options.guidance_scale,
                output_type="latent",
            ).frames
        denoised = time.perf_counter()
        with torch.inference_mode():
            decoded = pipeline.vae.decode(
                latents, num_frames=config.sample_frames, generator=generators[0]
            ).sample
        videos.append((decoded.clamp(-1, 1) + 1) / 2)
        if not start:
            denoise_s = (denoised - started) / len(some)
            decode_s = (time.perf_counter() - denoised) / len(some)
    video = torch.cat(videos).transpose(1, 2).float().cpu()  # [N, T, 3, H, W]
    frames = (255 * video).round().byte().permute(0, 1, 3, 4, 2).numpy()
    made = [score(one, scene) for one, scene in zip(frames, scenes, strict=True)]
    truth = [render(scene, config.sample_frames, height, width) for scene in scenes]
    through = [
        score(reconstruct(pipeline, one), scene)
        for one, scene in zip(tqdm(truth, unit="clip"), scenes, strict=True)
    ]
    num_latent_frames = pipeline.vae.geometry.num_latent_frames(config.sample_frames)
    places = -(-config.sample_height // config.patch_size) * -(
        -config.sample_width // config.patch_size
    )
    step_s, step_processor_s = training_speed(pipeline)
    report = {
        "model": options.model,
        "split": options.split,
        "num_prompts": len(scenes),
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
        "chance": chance(scenes),
        "generated": shares(made),
        "embedder": shares(through),
        "all_right": float(np.mean([all(one.values()) for one in made])),
        "size": [config.sample_frames, height, width],
        "latent_frames": num_latent_frames,
        "tokens": num_latent_frames * places,
        "parameters": sum(p.numel() for p in pipeline.transformer.parameters()),
        "denoise_s_per_video": denoise_s,
        "decode_s_per_video": decode_s,
        "training_step_s_batch_32": step_s,
        "training_step_processor_s_batch_32": step_processor_s,
        "prompts": [scene.caption for scene in scenes],
        "scores": made,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    write_samples(options.output / "samples.png", video[:8])
    print(f"{'':10}" + "".join(f"{name:>11}" for name in ATTRIBUTES))
    for name in ("chance", "generated", "embedder"):
        print(f"{name:10}" + "".join(f"{report[name][one]:11.2f}" for one in ATTRIBUTES))
    print(
        f"{report['tokens']} tokens; a video: {denoise_s:.2f} s to denoise, {decode_s:.2f} s to "
        f"decode; a training step of 32: {step_s:.2f} s ({step_processor_s:.2f} s of processor)"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
