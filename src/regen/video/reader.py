"""Video files, pictures, folders of pictures -> frames uint8 [H, W, 3] in RGB with exact times."""

import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import torch

from regen.video.colour import frame_orientation, frame_pixels
from regen.video.containers import ContainerFrames, Pipe, num_shown
from regen.video.media import PICTURE_FRAME_RATE, PIPE, Frame, VideoError, VideoInfo
from regen.video.pictures import is_picture, open_folder, picture_info, read_picture


class VideoReader:
    """Iterable over the frames of a video file, picture or folder of pictures; see `open_video`.

    Each `for` starts from the first frame again. `close`, or leaving the `with` block, ends a pass.
    After a pass `end` is the time, in s from the first frame, at which the last one ends.
    """

    info: VideoInfo
    end: Fraction | None = None

    def __init__(
        self, path: str | Path, stream: int | None = None, skip_damaged: bool = False
    ) -> None:
        path = Path(path)
        if path != PIPE and not path.exists():
            raise VideoError(
                f"{path}: no such file; give a video, a picture or a folder of pictures"
            )
        self._passes: list[Iterator[Frame]] = []
        self._container: ContainerFrames | None = None
        self._files = [path]
        self._begun: Iterator[tuple[Any, Fraction | None]] | None = None  # of a pipe, read once
        if path == PIPE:
            self._container = ContainerFrames(Pipe(sys.stdin.buffer), stream, skip_damaged)
            begun = iter(self._container)
            first = next(begun)
            self.info = _container_info(path, self._container, *first)
            self._begun = chain([first], begun)
        elif path.is_dir():
            self.info, self._files = open_folder(path)
        elif path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes); expected a video or a picture")
        elif is_picture(path):
            self.info = picture_info(path)
            read_picture(path)
        else:
            self._container = ContainerFrames(path, stream, skip_damaged)
            begun = iter(self._container)
            self.info = _container_info(path, self._container, *next(begun))
            begun.close()  # type: ignore[attr-defined]  # a generator

    @property
    def notes(self) -> list[str]:
        """What the user may not expect of how the file is read: HDR, interlaced, damage, ...

        Complete after a pass.
        """
        return [] if self._container is None else self._container.notes

    def __iter__(self) -> Iterator[Frame]:
        self.close()
        self._passes.append(self._frames())
        return self._passes[-1]

    def _frames(self) -> Iterator[Frame]:
        time = origin = None
        for pixels, stamp in self._pictures():
            if time is None:
                time, origin = Fraction(0), stamp
            elif stamp is not None and origin is not None and stamp - origin > time:
                time = stamp - origin
            else:  # no time, or one that does not advance
                time += 1 / self.info.frame_rate
            yield Frame(pixels, time)
        assert time is not None
        self.end = time + 1 / self.info.frame_rate
        if self._container and self._container.end is not None and origin is not None:
            self.end = max(time, self._container.end - origin)

    def _pictures(self) -> Iterator[tuple[np.ndarray, Fraction | None]]:
        """Pixels and time stamps (s)."""
        if self._container is None:
            for index, file in enumerate(self._files):
                yield read_picture(file), index / PICTURE_FRAME_RATE
            return
        orientation = None
        for frame, stamp in self._begun or self._container:
            # Of the first frame: reading side data ties a frame into a cycle, and costs memory.
            orientation = orientation or frame_orientation(frame)
            yield frame_pixels(frame, *orientation), stamp

    def close(self) -> None:
        """End a pass under way and release its file."""
        while self._passes:
            self._passes.pop().close()  # type: ignore[attr-defined]  # generators have it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_video(
    path: str | Path, stream: int | None = None, skip_damaged: bool = False
) -> VideoReader:
    """Open a video for reading: a file FFmpeg knows, a picture, or a folder of pictures.

    "-" is standard input, read as it comes and once; see `is_streamed`.
    Pictures of a folder come in natural order. The first frame is decoded at once. Frames are
    turned as the file says; transparent pixels lie on white; HDR is tone-mapped to SDR; interlaced
    frames are deinterlaced. `stream` is a number among the video streams, from 0; None: the one
    marked as default, else the first. Raises VideoError at once if nothing can be read, and on the
    way where a file ends early or is damaged; `skip_damaged` reads on, and `VideoReader.notes` says
    how many frames are lost.
    """
    return VideoReader(path, stream, skip_damaged)


def read_frames(
    path: str | Path, start: int = 0, num_frames: int | None = None, stride: int = 1
) -> np.ndarray:
    """Frames start, start + stride, ... as uint8 [T, H, W, 3]; `num_frames` None: all there are.

    Holds all of them in memory. Raises VideoError as `open_video` does, and where no frame is left.
    """
    if start < 0 or stride < 1 or (num_frames is not None and num_frames < 1):
        raise ValueError(
            f"got start={start}, num_frames={num_frames}, stride={stride}; "
            "expected start >= 0, num_frames >= 1 or None, stride >= 1"
        )
    frames: list[np.ndarray] = []
    with open_video(path) as reader:
        for index, frame in enumerate(reader):
            if index >= start and (index - start) % stride == 0:
                frames.append(frame.pixels)
                if len(frames) == num_frames:
                    break
    if not frames:
        raise VideoError(f"{path}: has {index + 1} frames, none from frame {start}; lower start")
    return np.stack(frames)


def frames_to_video(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Frames uint8 [T, H, W, 3] to video float32 [3, T, H, W] in [-1, 1]."""
    frames = torch.as_tensor(frames)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"got {frames.dtype} {list(frames.shape)}; expected uint8 [T, H, W, 3]")
    return frames.permute(3, 0, 1, 2).contiguous().float() / 127.5 - 1


def video_to_frames(video: torch.Tensor) -> np.ndarray:
    """Video float [3, T, H, W] in [-1, 1] to frames uint8 [T, H, W, 3], clamped and rounded."""
    if not video.is_floating_point() or video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"got {video.dtype} {list(video.shape)}; expected float [3, T, H, W]")
    levels = ((video.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def _container_info(
    path: Path, frames: ContainerFrames, frame: Any, stamp: Fraction | None
) -> VideoInfo:
    """Of a pass that has begun with this frame."""
    container, stream = frames.container, frames.stream
    start = stream.start_time
    is_whole = None in (start, stamp) or stamp <= start * stream.time_base
    quarter_turns, _ = frame_orientation(frame)
    turned = quarter_turns % 2 == 1
    lasting = frame.duration * stream.time_base if frame.duration else 0
    rate = stream.average_rate or (1 / lasting if lasting else None) or PICTURE_FRAME_RATE
    duration = stream.duration * stream.time_base if stream.duration else None
    if duration is None and container.duration:
        duration = Fraction(container.duration, av.time_base)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return VideoInfo(
        path=path,
        width=frame.height if turned else frame.width,
        height=frame.width if turned else frame.height,
        frame_rate=Fraction(rate),
        time_base=stream.time_base,
        num_frames=num_shown(container, stream) if is_whole else None,
        duration_s=None if duration is None else float(duration),
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=frame.format.name,
        rotation=90 * quarter_turns,
        sample_aspect_ratio=1 / aspect if turned else aspect,
        has_audio=bool(container.streams.audio),
        is_still=False,
    )
