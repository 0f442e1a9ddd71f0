"""`regen generate`: a text to a video."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from regen.cli.options import OutPath, check_numbers
from regen.cli.output import print_table, size_of
from regen.t2v.config import Request


@dataclass(frozen=True)
class Generate(Request):
    """Generate a video from a text, also from its first picture, also continuing a video.

    Example: regen generate "a red ball rolls left" out.mp4
    """

    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")] = tyro.MISSING
    """What the video shows."""
    num_frames: Annotated[int | None, tyro.conf.arg(name="frames")] = None
    """How many frames; default: as many as the model was trained on."""
    output: OutPath = tyro.MISSING
    """.mp4, .webm, lossless .mkv, .png of one frame; without a suffix: a folder of PNGs."""
    model: str = "shapes_t2v"
    """shapes_t2v, which is embedded and knows a small generated world; the folder OUTPUT/model of
    regen train-generator; or a hub id (owner/name)."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model; bfloat16 is faster on GPUs and recent CPUs."""

    def run(self) -> None:
        numbers = ("num_inference_steps", "height", "width")
        check_numbers(self.seed, frames=self.num_frames, **{n: getattr(self, n) for n in numbers})
        import time

        import torch
        from tqdm import tqdm

        from regen.t2v.generation import check_generate, generate_file
        from regen.t2v.pipeline import load_pipeline, unknown_words

        check_generate(self, self.output)
        if unknown := unknown_words(self.model, self.prompt):
            print(
                f"regen: {self.model} has not learned {', '.join(unknown)}: it knows balls, "
                "squares, triangles and crosses in six colours that move",
                file=sys.stderr,
            )
        from regen.loading import find_device

        device = find_device(self.device)
        pipeline = load_pipeline(self.model, device, getattr(torch, self.dtype))
        pipeline.set_progress_bar_config(disable=True)
        start, shown = time.perf_counter(), sys.stderr.isatty()
        with tqdm(total=self.num_inference_steps, leave=False, disable=not shown) as bar:
            frames = generate_file(pipeline, self, self.output, lambda: bar.update() and None)
        elapsed_s = time.perf_counter() - start
        geometry = pipeline.vae.geometry
        rows = [
            ("video", f"{len(frames)} frames of {frames.shape[2]} x {frames.shape[1]}"),
            ("latents", f"{geometry.num_latent_frames(len(frames))} latent frames"),
            ("speed", f"{len(frames) / elapsed_s:.2f} frames/s ({elapsed_s:.1f} s)"),
            ("written", f"{self.output} ({size_of(self.output)})"),
        ]
        print_table(rows)
