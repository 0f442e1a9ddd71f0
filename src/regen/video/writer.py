"""Frames uint8 [H, W, 3] with their times -> a video file, with the sound of another if asked."""

import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image

from regen.video.reader import (
    PICTURE_SUFFIXES,
    VideoError,
    one_line,
    open_container,
    video_stream,
)


class Rehearsed(Exception):
    """No error: raised within a `VideoWriter` that could open, it makes it go without a trace."""


def check_output(source: Path, output: Path) -> None:
    """ValueError where `output` would replace `source`, a part of it, or a read-only file."""
    if not output.exists():
        return
    if source.exists() and output.samefile(source):
        raise ValueError(f"{output}: is the input itself; give another name for the output")
    is_part = source.is_dir() and output.parent.samefile(source)
    if is_part and output.suffix.lower() in PICTURE_SUFFIXES:
        raise ValueError(f"{output}: is one of the input's pictures; give another name")
    if not os.access(output, os.W_OK):
        raise ValueError(f"{output}: cannot write there (the file is read-only); give another name")


class VideoWriter:
    """Writes frames one at a time; the file appears when all is written, or not at all.

    The ending of `path` chooses the format:
      .mp4   H.264; 4:2:0, or 4:4:4 where width or height is odd, which H.264 4:2:0 cannot hold
      .webm  VP9 4:2:0, times rounded to milliseconds
      .mkv   FFV1, lossless RGB, times rounded to milliseconds
      .png   one picture; a second frame is an error
      none   a folder of pictures frame_000000.png, frame_000001.png, ...

    `audio_from` names a file whose first sound track goes along (not into pictures), copied as it
    is where the format takes it, else as AAC (.mp4) or Opus (.webm), in time with that file's first
    video frame. Where that file's video goes on after the last frame written, its sound is cut
    there.
    `time_base` is the unit of the times, if known: .mp4 then keeps uneven times exactly. The last
    frame lasts 1 / frame_rate. PyAV can store non-square pixels in .mp4, not in .webm and .mkv.
    Raises VideoError for a target that cannot be written, at once, and where writing fails; leaving
    the `with` block by an exception leaves an earlier file untouched.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        width: int,
        height: int,
        frame_rate: Fraction,
        sample_aspect_ratio: Fraction = Fraction(1),
        audio_from: str | Path | None = None,
        time_base: Fraction | None = None,
    ) -> None:
        self.path, self._shape = Path(path), (height, width, 3)
        if width < 1 or height < 1 or frame_rate <= 0:
            raise ValueError(f"got {width}x{height} at {frame_rate}/s; expected positive numbers")
        suffix = self.path.suffix.lower()
        if suffix not in (*_CODECS, ".png", ""):
            endings = ", ".join((*_CODECS, ".png"))
            raise VideoError(
                f"{path}: cannot write {suffix}; end it in {endings}, or nothing: a folder"
            )
        if sample_aspect_ratio != 1 and suffix in (".webm", ".mkv"):
            raise VideoError(
                f"{path}: pixels of shape {sample_aspect_ratio} need .mp4; end it in that"
            )
        if self.path.is_dir() and (suffix or any(self.path.iterdir())):
            raise VideoError(
                f"{path}: is a folder{'' if suffix else ' with files'}; give a new name"
            )
        if self.path.exists() and not self.path.is_dir() and not suffix:
            raise VideoError(f"{path}: is a file; give a new name for the folder of pictures")
        self._temporary = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex[:8]}{suffix}")
        try:
            self._temporary.touch() if suffix else self._temporary.mkdir()
        except OSError as error:
            raise VideoError(
                f"{path}: cannot write there ({one_line(error)}); name an existing, writable folder"
            ) from error
        self._time, self._num_frames = Fraction(-1), 0
        self._finished = self._closed = False
        self._stream: _StreamSink | None = None
        if suffix in _CODECS:
            with self._undo_on_error():
                rate = Fraction(frame_rate).limit_denominator(100_000)
                self._stream = _StreamSink(
                    self._temporary, width, height, rate, sample_aspect_ratio, time_base
                )
                self._stream.start(audio_from)

    def write(self, pixels: np.ndarray, time: Fraction) -> None:
        """Append a frame, uint8 [H, W, 3] in RGB, shown from `time` (s, increasing) to the next."""
        if self._closed or self._finished:
            raise ValueError(f"{self.path}: the writer is closed; write before close")
        if pixels.dtype != np.uint8 or pixels.shape != self._shape:
            raise ValueError(
                f"got {pixels.dtype} {list(pixels.shape)}; expected uint8 {list(self._shape)}"
            )
        if time <= self._time or time < 0:
            raise ValueError(
                f"got time {time} after {self._time}; expected increasing times from 0"
            )
        with self._undo_on_error():
            if self._stream:
                self._stream.write(pixels, time)
            elif self._num_frames and self.path.suffix:
                raise VideoError(
                    f"{self.path}: a .png holds one frame; end the path in .mp4, or nothing"
                )
            else:
                name = "" if self.path.suffix else f"frame_{self._num_frames:06d}.png"
                # Level 1: five times as fast as Pillow's 6, files a sixth larger.
                Image.fromarray(pixels).save(self._temporary / name, "PNG", compress_level=1)
        self._time, self._num_frames = time, self._num_frames + 1

    def finish(self) -> None:
        """Write all but the name, which `close` gives: to finish several files together or none.

        VideoError if there was no frame, or writing fails.
        """
        if self._closed or self._finished:
            return
        with self._undo_on_error():
            if self._num_frames == 0:
                raise VideoError(f"{self.path}: no frame was written; expected at least one")
            if self._stream:
                self._stream.finish()
        self._finished = True

    def close(self) -> None:
        """Finish the file and name it. VideoError if there was no frame, or writing fails."""
        if self._closed:
            return
        self.finish()
        with self._undo_on_error():
            if self.path.is_dir():
                self.path.rmdir()
            self._temporary.replace(self.path)
        self._closed = True

    @contextmanager
    def _undo_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._abandon()
            if isinstance(error, (av.FFmpegError, OSError)):
                raise VideoError(f"{self.path}: writing failed ({one_line(error)})") from error
            raise

    def _abandon(self) -> None:
        self._closed = True
        if self._stream:
            self._stream.abandon()
        if self._temporary.is_dir():
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            self._abandon()


# ending: (encoder, its options, sound codecs copied as they are, encoder for other sound)
_CODECS: dict[str, tuple[str, dict[str, str], tuple[str, ...] | None, str]] = {
    ".mp4": ("libx264", {"crf": "14"}, ("aac", "mp3", "ac3", "eac3", "alac", "opus"), "aac"),
    ".webm": (
        "libvpx-vp9",
        {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
        ("opus", "vorbis"),
        "libopus",
    ),
    ".mkv": (
        "ffv1",
        {"level": "3", "slicecrc": "1"},
        None,
        "flac",
    ),  # None: all that Matroska takes
}


class _StreamSink:
    """A video stream being encoded into a container, with the packets of a sound track between."""

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        rate: Fraction,
        aspect: Fraction,
        time_base: Fraction | None,
    ) -> None:
        encoder, options, self._copied, self._sound_encoder = _CODECS[path.suffix]
        flags = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
        self._container = cast(Any, av.open(f"file:{path}", "w", options=flags))
        self._video = self._container.add_stream(encoder, rate=rate, options=options)
        self._video.width, self._video.height = width, height
        context = self._video.codec_context
        context.sample_aspect_ratio = aspect
        if path.suffix == ".mkv":
            self._video.pix_fmt = "bgr0"
        else:
            odd = path.suffix == ".mp4" and (width % 2 or height % 2)
            self._video.pix_fmt = "yuv444p" if odd else "yuv420p"
            context.colorspace, context.color_range = 1, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        # Matroska counts in milliseconds.
        ticks = _ticks_per_s(rate, time_base) if path.suffix == ".mp4" else 1000
        self._tick = Fraction(1, ticks)
        context.time_base = self._tick
        self._frame_time = 1 / rate
        self._held: Any = None  # a frame waits for the next one, which ends it
        self._sound: Iterator[Any] = iter(())
        self._next_sound: Any = None
        self._sound_video_end: Fraction | None = None

    def start(self, audio_from: str | Path | None) -> None:
        """Add the sound track and write the header."""
        if audio_from is not None and not Path(audio_from).is_dir():
            self._add_sound(Path(audio_from))
        self._container.start_encoding()
        self._next_sound = next(self._sound, None)

    def write(self, pixels: np.ndarray, time: Fraction) -> None:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if self._video.pix_fmt == "bgr0":
            frame = frame.reformat(format="bgr0")
        else:
            frame = frame.reformat(
                format=self._video.pix_fmt,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND,
            )
        frame.time_base, frame.pts = self._tick, round(time / self._tick)
        if self._held:
            frame.pts = max(frame.pts, self._held.pts + 1)
            self._encode_held(frame.pts)
        self._held = frame

    def finish(self) -> None:
        end = self._held.pts + max(1, round(self._frame_time / self._tick))
        self._encode_held(end)
        for packet in self._video.encode():
            self._mux(packet)
        whole = (
            self._sound_video_end is None
            or end * self._tick >= self._sound_video_end - Fraction(1, 2)
        )
        self._mux_sound(None if whole else end * self._tick)
        self._container.close()

    def abandon(self) -> None:
        with suppress(av.FFmpegError, OSError):
            self._container.close()

    def _encode_held(self, end: int) -> None:
        self._held.duration = end - self._held.pts
        for packet in self._video.encode(self._held):
            self._mux(packet)

    def _mux(self, packet: Any) -> None:
        self._mux_sound(packet.dts * packet.time_base)
        self._container.mux(packet)

    def _mux_sound(self, until: Fraction | None) -> None:
        while (packet := self._next_sound) is not None:
            if until is not None and packet.dts * packet.time_base >= until:
                break
            self._container.mux(packet)
            self._next_sound = next(self._sound, None)

    def _add_sound(self, path: Path) -> None:
        """Prepare the first sound track of a file, shifted: its first video frame is at 0."""
        source = open_container(path)
        if not source.streams.audio:
            source.close()
            return
        track = source.streams.audio[0]
        origin, self._sound_video_end = _video_span(path)
        codec = track.codec_context.codec.canonical_name
        if codec in (self._copied or self._container.supported_codecs):
            target = self._container.add_stream_from_template(track)
            # Decoders want the packet before the first; Matroska has no place for it, but for Opus.
            lead_in = codec == "opus" or self._copied == _CODECS[".mp4"][2]
            self._sound = _copied_packets(source, track, target, origin, lead_in)
        else:
            layout = "mono" if track.codec_context.channels == 1 else "stereo"
            target = self._container.add_stream(self._sound_encoder, rate=48_000, layout=layout)
            self._sound = _encoded_packets(source, track, target, origin)


def _ticks_per_s(rate: Fraction, time_base: Fraction | None) -> int:
    """Ticks that hold the frame rate and the usual time bases exactly; rather that of the times.

    Above 10 million, a frame of minutes would not fit MP4's 32 bits.
    """
    own = 1 if time_base is None else time_base.denominator
    choices = [math.lcm(own, rate.numerator, 90_000)]
    if time_base is not None:
        choices += [math.lcm(own, 90_000), math.lcm(own, rate.numerator), own]
    fallback = rate.numerator * -(-90_000 // rate.numerator)
    return next((ticks for ticks in choices if 1000 <= ticks <= 10_000_000), fallback)


def _video_span(path: Path) -> tuple[Fraction, Fraction | None]:
    """Time stamp of a file's first video frame, and how long its video lasts, None if unknown."""
    with open_container(path) as container:
        stream = video_stream(container)
        frame = None if stream is None else next(container.decode(stream), None)
        if stream is None or frame is None or frame.pts is None:
            return Fraction(0), None
        if stream.duration:
            return frame.pts * stream.time_base, stream.duration * stream.time_base
        if clock := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = (Fraction(part) for part in clock.groups())
            return frame.pts * stream.time_base, 3600 * hours + 60 * minutes + seconds
        return frame.pts * stream.time_base, None


def _copied_packets(
    source: Any, track: Any, target: Any, origin: Fraction, lead_in: bool
) -> Iterator[Any]:
    with source:
        for packet in source.demux(track):
            if packet.dts is None:
                continue
            shift = round(origin / packet.time_base)
            packet.dts -= shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            if packet.pts >= (-packet.duration if lead_in else 0):
                packet.stream = target
                yield packet


def _encoded_packets(source: Any, track: Any, target: Any, origin: Fraction) -> Iterator[Any]:
    with source:
        for frame in source.decode(track):
            frame.pts -= round(origin / frame.time_base)
            if frame.pts >= 0:
                yield from target.encode(frame)
        yield from target.encode()
