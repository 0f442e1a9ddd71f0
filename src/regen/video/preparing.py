"""A clip as benchmarks read it: short side to a size, centre crop, the first frames.

Beside what `open_video` reads: headerless YUV files, whose names carry their size and rate.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from regen.video.colour import frame_pixels, has_alpha, hdr_kind
from regen.video.containers import ContainerFrames
from regen.video.media import VideoError, one_line
from regen.video.reader import open_video

RAW_SUFFIX = ".yuv"
RAW_NAME = re.compile(r"_(\d+)x(\d+)_(\d+)(?:\D|$)")  # videoSRC01_1920x1080_30.yuv


def read_prepared(
    path: str | Path, size: int | None = None, num_frames: int | None = None
) -> np.ndarray:
    """The first `num_frames` (None: all) of a video, picture or folder: uint8 `[T, H, W, 3]`.

    `size`: the short side is brought to it (FFmpeg's bicubic, from the file's own pixel format, as
    `ffmpeg -vf scale` does) and the centre `size` x `size` is cut out; None: pixels as they are.
    A video shorter than `num_frames` gives what it has. Raises VideoError.
    """
    path = Path(path)
    frames: list[np.ndarray] = []
    for pixels in _pictures(path, size):
        if frames and pixels.shape != frames[0].shape:
            raise VideoError(f"{path}: the size changes within the file")
        frames.append(pixels)
        if len(frames) == num_frames:
            break
    if not frames:
        raise VideoError(f"{path}: holds no frame")
    return np.stack(frames)


def _pictures(path: Path, size: int | None) -> Iterator[np.ndarray]:
    if path.suffix.lower() == RAW_SUFFIX:
        for frame in _raw_frames(path):
            yield _crop(_scaled(frame, size), size)
        return
    with open_video(path) as reader:
        is_plain = path.is_file() and not reader.info.is_still and not reader.info.rotation
        if not is_plain:
            for picture in reader:
                frame = av.VideoFrame.from_ndarray(picture.pixels, format="rgb24")
                yield _crop(_scaled(frame, size), size)
            return
    for frame, _ in ContainerFrames(path):
        if has_alpha(frame) or hdr_kind(frame):
            frame = av.VideoFrame.from_ndarray(frame_pixels(frame, 0, False), format="rgb24")
        yield _crop(_scaled(frame, size), size)


def _scaled(frame: Any, size: int | None) -> np.ndarray:
    """A PyAV frame as uint8 `[H, W, 3]`, its short side `size`."""
    if size is None:
        pixels: np.ndarray = frame.to_ndarray(format="rgb24")
        return pixels
    scale = size / min(frame.height, frame.width)
    width, height = (max(size, round(side * scale)) for side in (frame.width, frame.height))
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    pixels = scaled.to_ndarray()
    return pixels


def _crop(pixels: np.ndarray, size: int | None) -> np.ndarray:
    if size is None:
        return pixels
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def _raw_frames(path: Path) -> Iterator[Any]:
    """Frames of 8-bit 4:2:0 without a header."""
    found = RAW_NAME.search(path.stem + "_")
    if not found:
        raise VideoError(
            f"{path}: a .yuv file says its size and rate in its name: NAME_1920x1080_30.yuv"
        )
    width, height, rate = (int(group) for group in found.groups())
    num_bytes = width * height * 3 // 2
    if path.stat().st_size % num_bytes:
        raise VideoError(
            f"{path}: {path.stat().st_size} bytes are no whole number of 8-bit 4:2:0 frames of "
            f"{width} x {height} ({num_bytes} bytes each); its name says another size than it has"
        )
    options = {
        "video_size": f"{width}x{height}",
        "pixel_format": "yuv420p",
        "framerate": str(Fraction(rate)),
    }
    try:
        with av.open(str(path), format="rawvideo", options=options) as container:
            yield from container.decode(video=0)
    except av.FFmpegError as error:
        raise VideoError(f"{path}: {one_line(error)}") from error


def interpolate_frames(frames: np.ndarray) -> np.ndarray:
    """The frames half-way between neighbours, by FFmpeg's motion compensation (minterpolate).

    uint8 `[T, H, W, 3]` -> `[T - 1, H, W, 3]`. Raises VideoError where the filter cannot.
    """
    height, width = frames.shape[1:3]
    graph, tick = av.filter.Graph(), Fraction(1, 25)
    pixel_format = av.VideoFormat("rgb24", width, height)
    source = graph.add_buffer(width=width, height=height, format=pixel_format, time_base=tick)
    options = "fps=50:mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"
    nodes = [graph.add("minterpolate", options), graph.add("format", "rgb24")]
    made: list[np.ndarray] = []
    try:
        graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
        for index, pixels in enumerate([*frames, frames[-1]]):  # it holds the last one back
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, tick
            graph.push(frame)
        graph.push(None)
        while True:
            made.append(graph.vpull().to_ndarray(format="rgb24"))
    except (av.error.EOFError, av.error.BlockingIOError):
        return np.stack(made[1 : 2 * len(frames) - 1 : 2])
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"minterpolate of {width} x {height}: {one_line(error)}") from error
