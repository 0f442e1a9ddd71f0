"""Frames uint8 [H, W, 3] with their times -> a video file, with the sound of another if asked."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image

from regen.files import Draft
from regen.video.containers import ContainerFrames, stream_end
from regen.video.matroska import set_pixel_shape
from regen.video.media import PICTURE_SUFFIXES, PIPE, VideoError, one_line
from regen.video.sound import prepare_sound


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
    The path "-" is standard output, into which frames go as .mkv has them, at once.

    `audio_from` names a file whose first sound track goes along (not into pictures), copied as it
    is where the format takes it, else as AAC (.mp4), Opus (.webm) or FLAC (.mkv) in stereo, in time
    with that file's first video frame. Where that file's video continues after the last frame
    written, its sound is cut there.
    `time_base` is the unit of the times, if known: .mp4 then keeps uneven times exactly, down to
    1 / 1,000,000 s. The last frame ends at `end` (s), which may be set until the file is finished;
    by default it lasts 1 / frame_rate. `notes` says what the user may not expect of the sound.
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
        suffix = ".mkv" if self.path == PIPE else self.path.suffix.lower()
        if suffix not in (*_CODECS, ".png", ""):
            endings = ", ".join((*_CODECS, ".png"))
            raise VideoError(
                f"{path}: cannot write {suffix}; the output must end in {endings}, or have no "
                "suffix (a folder of PNGs)"
            )
        self._draft: Draft | None = None
        if self.path.is_dir() and (suffix or any(self.path.iterdir())):
            raise VideoError(
                f"{path}: is a folder{'' if suffix else ' with files'}; give a new name"
            )
        if self.path.exists() and not self.path.is_dir() and not suffix:
            raise VideoError(f"{path}: is a file; give a new name for the folder of pictures")
        try:
            if self.path != PIPE:
                self._draft = Draft(self.path, is_folder=not suffix)
        except OSError as error:
            raise VideoError(
                f"{path}: cannot write there ({one_line(error)}); name an existing, writable folder"
            ) from error
        self.end: Fraction | None = None
        self.notes: list[str] = []
        self._frame_time = 1 / Fraction(frame_rate)
        self._time, self._num_frames = Fraction(-1), 0
        self._finished = self._closed = False
        self._stream: _StreamSink | None = None
        if suffix in _CODECS:
            with self._undo_on_error():
                rate = Fraction(frame_rate).limit_denominator(100_000)
                self._stream = _StreamSink(
                    self._draft.path if self._draft else None,
                    *(suffix, width, height, rate, sample_aspect_ratio, time_base),
                )
                if audio_from is not None and not Path(audio_from).is_dir():
                    self.notes += self._stream.add_sound(Path(audio_from))
                self._stream.start()

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
                    f"{self.path}: a .png holds one frame; the output must end in .mp4, or have no "
                    "suffix (a folder of PNGs)"
                )
            else:
                assert self._draft is not None
                name = "" if self.path.suffix else f"frame_{self._num_frames:06d}.png"
                # Level 1: five times as fast as Pillow's 6, files a sixth larger.
                Image.fromarray(pixels).save(self._draft.path / name, "PNG", compress_level=1)
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
                self._stream.finish(self.end or self._time + self._frame_time)
        self._finished = True

    def close(self) -> None:
        """Finish the file and name it. VideoError if there was no frame, or writing fails."""
        if self._closed:
            return
        self.finish()
        with self._undo_on_error():
            if self._draft:
                self._draft.finish()
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
        if self._draft:
            self._draft.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            self._abandon()


# ending: (encoder, its options, options of the container)
_CODECS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    ".mp4": ("libx264", {"crf": "14"}, {"movflags": "+faststart"}),
    ".webm": (
        "libvpx-vp9",
        {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
        {},
    ),
    ".mkv": ("ffv1", {"level": "3", "slicecrc": "1"}, {}),
}
_MAX_TICKS = 2**31 - 1  # of a frame in .mp4


def write_video(
    path: Path, frames: Sequence[np.ndarray] | np.ndarray, frame_rate: Fraction, **options: Any
) -> Path:
    """`frames` uint8 [H, W, 3] each, at a constant rate; `options` are those of `VideoWriter`."""
    height, width, _ = frames[0].shape
    with VideoWriter(path, width=width, height=height, frame_rate=frame_rate, **options) as writer:
        for index, pixels in enumerate(frames):
            writer.write(pixels, index / frame_rate)
    return path


class _StreamSink:
    """A video stream being encoded into a container, with the packets of a sound track between.

    `path` None: standard output, in the container that ends in `suffix`.
    """

    def __init__(
        self,
        path: Path | None,
        suffix: str,
        width: int,
        height: int,
        rate: Fraction,
        aspect: Fraction,
        time_base: Fraction | None,
    ) -> None:
        encoder, options, flags = _CODECS[suffix]
        self._path, self._suffix, self._aspect = path, suffix, aspect
        if path is None:  # each frame goes out by itself, and no place for an index is left
            flags = {"live": "1", "cluster_time_limit": "1", "flush_packets": "1"}
            self._container = cast(Any, av.open("pipe:1", "w", format="matroska", options=flags))
        else:
            self._container = cast(Any, av.open(f"file:{path}", "w", options=flags))
        self._video = self._container.add_stream(encoder, rate=rate, options=options)
        self._video.width, self._video.height = width, height
        context = self._video.codec_context
        context.sample_aspect_ratio = aspect
        if suffix == ".mkv":
            self._video.pix_fmt = "bgr0"
        else:
            odd = suffix == ".mp4" and (width % 2 or height % 2)
            self._video.pix_fmt = "yuv444p" if odd else "yuv420p"
            context.colorspace, context.color_range = 1, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        # Matroska counts in milliseconds.
        ticks = _ticks_per_s(rate, time_base) if suffix == ".mp4" else 1000
        self._tick = Fraction(1, ticks)
        self._usual = max(1, round(ticks / rate))  # duration of a frame
        context.time_base = self._tick
        self._durations: dict[int, int] = {}
        self._held: Any = None  # a frame waits for the next one, which ends it
        self._sound: Iterator[Any] = iter(())
        self._next_sound: Any = None
        self._sound_video_end: Fraction | None = None

    def add_sound(self, path: Path) -> list[str]:
        """The first sound track of a file, shifted: its first video frame is at 0. What to say."""
        start, end = _video_span(path)
        sound, notes = prepare_sound(path, self._suffix, start)
        if sound:
            self._sound = sound.packets(self._container)
            self._sound_video_end = None if end is None else end - start
        return notes

    def start(self) -> None:
        """Write the header."""
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
            if self._path:
                self._encode_held(frame.pts)
        self._held = frame
        if self._path is None:  # it is to be seen now, before it is known how long it lasts
            self._encode_held(frame.pts + self._usual)

    def finish(self, end: Fraction) -> None:
        """`end`, in s, is that of the last frame."""
        last = max(self._held.pts + 1, round(end / self._tick))
        if self._path:
            self._encode_held(last)
        packets = self._video.encode()
        if packets and self._suffix == ".mp4":  # which adds up durations in decoding order
            self._durations[packets[-1].pts] = last - packets[-1].pts
        for packet in packets:
            self._mux(packet)
        whole = (
            self._sound_video_end is None
            or last * self._tick >= self._sound_video_end - Fraction(1, 2)
        )
        self._mux_sound(None if whole else last * self._tick)
        self._container.close()
        if self._path and self._aspect != 1 and self._suffix != ".mp4":
            set_pixel_shape(self._path, self._video.width, self._video.height, self._aspect)

    def abandon(self) -> None:
        with suppress(av.FFmpegError, OSError):
            self._container.close()

    def _encode_held(self, end: int) -> None:
        self._durations[self._held.pts] = self._held.duration = end - self._held.pts
        if self._suffix == ".mp4" and self._held.duration > _MAX_TICKS:
            seconds = float(self._held.duration * self._tick)
            raise VideoError(
                f"a frame of {seconds:.0f} s is longer than .mp4 holds with times this fine, "
                f"{float(_MAX_TICKS * self._tick):.0f} s; end it in .mkv"
            )
        for packet in self._video.encode(self._held):
            self._mux(packet)

    def _mux(self, packet: Any) -> None:
        packet.duration = self._durations.pop(packet.pts)  # encoders leave it out
        self._mux_sound(packet.dts * packet.time_base)
        self._container.mux(packet)

    def _mux_sound(self, until: Fraction | None) -> None:
        while (packet := self._next_sound) is not None:
            if until is not None and packet.dts * packet.time_base >= until:
                break
            self._container.mux(packet)
            self._next_sound = next(self._sound, None)


def _ticks_per_s(rate: Fraction, time_base: Fraction | None) -> int:
    """Ticks that hold the frame rate and the usual time bases exactly; rather that of the times.

    Above a million, a frame of half an hour would not fit MP4's 32 bits.
    """
    own = 1 if time_base is None else time_base.denominator
    choices = [math.lcm(own, rate.numerator, 90_000)]
    if time_base is not None:
        choices += [math.lcm(own, 90_000), math.lcm(own, rate.numerator), own]
    fallback = rate.numerator * -(-90_000 // rate.numerator)
    return next((ticks for ticks in choices if 1000 <= ticks <= 1_000_000), fallback)


def _video_span(path: Path) -> tuple[Fraction, Fraction | None]:
    """Time stamps (s) of a file's first video frame and of its video's end, None: unknown."""
    frames = ContainerFrames(path)
    passing = iter(frames)
    try:
        _, start = next(passing)
        return start or Fraction(0), stream_end(frames.container, frames.stream)
    except VideoError:  # no picture: a file of sound
        return Fraction(0), None
    finally:
        passing.close()  # type: ignore[attr-defined]  # a generator
