"""What a video codec of today makes of the same bits: x264 and SVT-AV1 at the size of int8 latents.

Each clip is encoded with the lowest quality parameter (found by bisection) whose file, container
included, is no larger than the model's latents of that clip as int8. The files go through
`regen evaluate` as any reconstruction made elsewhere:

    regen evaluate --data DIR --num-frames 36 --export prepared --output evaluation
    python benchmarks/codecs.py --clips prepared --output codecs [--model natural@8]
    regen evaluate --data DIR --num-frames 36 --output evaluation --reconstruction codecs/x264
    regen evaluate --data DIR --num-frames 36 --output evaluation --reconstruction codecs/av1
    regen evaluate --data DIR --num-frames 36 --output evaluation --model natural@8 --storage int8

A codec may look at the whole clip, both ways in time; the model sees one chunk at a time.
"""

import argparse
import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from tqdm import tqdm

from regen.loading import load_model
from regen.video import read_prepared

CODECS = {  # folder -> encoder, options, highest parameter (the worst picture)
    "x264": ("libx264", {"preset": "veryslow", "g": "999"}, 51),
    "av1": ("libsvtav1", {"preset": "4", "g": "999"}, 63),
}


def encode(frames: np.ndarray, encoder: str, options: dict[str, str], crf: int) -> bytes:
    """uint8 `[T, H, W, 3]` as 8-bit 4:2:0 BT.709 in an MP4 file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            encoder, rate=Fraction(25), options=options | {"crf": str(crf)}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = 1, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def encode_within(
    frames: np.ndarray, encoder: str, options: dict[str, str], worst: int, num_bytes: int
) -> tuple[bytes, int]:
    """The best file of at most `num_bytes`, and its parameter; the worst if none is so small."""
    low, high = 0, worst  # high fits, or is all there is
    best = encode(frames, encoder, options, worst)
    while low < high:
        middle = (low + high) // 2
        data = encode(frames, encoder, options, middle)
        if len(data) <= num_bytes:
            best, high = data, middle
        else:
            low = middle + 1
    return best, high


def main() -> None:
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True, help="what --export wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="natural@8")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    options = parser.parse_args()
    model = load_model(options.model)
    kept = options.output / "model.txt"
    if kept.exists() and kept.read_text() != f"{options.model}\n":
        raise SystemExit(
            f"{options.output} is of {kept.read_text().strip()}: give another --output"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    kept.write_text(f"{options.model}\n")
    space, channels = model.spatial_compression_ratio, model.config["latent_channels"]
    clips = sorted(options.clips.rglob("*.mkv"))
    for name in options.codecs:
        encoder, settings, worst = CODECS[name]
        total, allowed, over = 0, 0, []
        for clip in tqdm(clips, name, leave=False, disable=None):
            frames = read_prepared(clip)
            num_frames, height, width = frames.shape[:3]
            places = -(-height // space) * -(-width // space)
            budget = channels * places * model.geometry.num_latent_frames(num_frames)
            target = options.output / name / clip.relative_to(options.clips).with_suffix(".mp4")
            if target.exists():
                data = target.read_bytes()
            else:
                data, _ = encode_within(frames, encoder, settings, worst, budget)
                target.parent.mkdir(parents=True, exist_ok=True)
                beside = target.with_name(f".{target.name}")
                beside.write_bytes(data)
                beside.replace(target)
            total, allowed = total + len(data), allowed + budget
            if len(data) > budget:
                over.append(clip.stem)
        print(f"{name}: {total:,} bytes of {allowed:,} allowed, {len(clips)} clips")
        if over:
            print(f"{name}: larger than the latents even at its worst: {', '.join(over)}")


if __name__ == "__main__":
    main()
