"""A prompt to a video file: what `regen generate` calls. The pipeline comes in ready, the file goes
out whole or not at all. `check_generate` finds what is wrong before a model is loaded."""

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regen.t2v.config import Request
from regen.t2v.pipeline import RegenTextToVideoPipeline
from regen.video import Rehearsed, VideoWriter, check_output, open_video, write_video


def frame_rate(request: Request) -> Fraction:
    """Frames/s of what `request` asks for."""
    if request.frame_rate is not None:
        return Fraction(str(request.frame_rate))
    if request.video is not None:
        with open_video(request.video) as reader:
            return reader.info.frame_rate
    return Fraction(24)


def check_generate(request: Request, output: Path) -> None:
    """ValueError for what `generate_file` could not read or write; leaves no trace."""
    if request.image is not None and request.video is not None:
        raise ValueError("--image and --video exclude each other: give one of them")
    if not 0 <= request.guidance_scale < math.inf:
        raise ValueError(f"--guidance-scale is at least 0, got {request.guidance_scale}")
    if request.frame_rate is not None and not 0 < request.frame_rate < math.inf:
        raise ValueError(f"--frame-rate is a positive number, got {request.frame_rate}")
    if output.suffix.lower() == ".png" and request.num_frames != 1:
        raise ValueError(
            f"{output}: a .png holds one frame; give --frames 1, or an output that ends in .mp4"
        )
    for path in (request.image, request.video):
        if path is None:
            continue
        with open_video(path):
            pass
        check_output(path, output)
    with (
        suppress(Rehearsed),
        VideoWriter(output, width=16, height=16, frame_rate=frame_rate(request)),
    ):
        raise Rehearsed


def generate_file(
    pipeline: RegenTextToVideoPipeline,
    request: Request,
    output: Path,
    on_step: Callable[[], None] | None = None,
) -> np.ndarray:
    """Generate `output`; returns its frames, uint8 `[T, H, W, 3]`.

    `on_step` is called after each step. Raises ValueError, in one line, for what cannot be made.
    """
    check_generate(request, output)
    given: dict[str, Any] = {}
    if request.image is not None:
        with open_video(request.image) as reader:
            given["image"] = next(iter(reader)).pixels
    if request.video is not None:
        length = pipeline.vae.geometry.chunk_length
        with open_video(request.video) as reader:
            given["video"] = [frame.pixels for frame in deque(reader, maxlen=length)]

    def after_step(*_: Any) -> dict[str, Any]:
        if on_step is not None:
            on_step()
        return {}

    video = pipeline(
        request.prompt,
        request.negative_prompt,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
        callback_on_step_end=after_step,
        return_dict=False,
        **given,
    )[0][0]
    frames: np.ndarray = (255 * video).round().astype(np.uint8)
    write_video(output, frames, frame_rate(request))
    return frames
