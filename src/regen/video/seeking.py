"""Some frames of a video without decoding all of it: seek to the key frame before, decode, stop.

Which frame is which is told by presentation times, so that what comes is exactly what reading from
the start gives. A file whose times do not tell its frames is read from the start: AVI and MXF with
B-frames, files that begin between key frames, interlaced video, hidden frames; and any file whose
frames do not come out of the decoder as its times say. Takes a path, or bytes that read and seek
(a member of a shard), named by their `str`.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from regen.video.colour import frame_orientation, frame_pixels
from regen.video.containers import (
    ContainerFrames,
    decoder_of,
    is_in_decoding_order,
    num_listed,
    open_container,
    video_stream,
)
from regen.video.media import VideoError, one_line

# A packet of theirs is a frame, and a key frame needs none before it.
_SEEKABLE_CODECS = ("h264", "hevc", "vp9", "av1", "ffv1", "mjpeg")


@dataclass(frozen=True)
class _Times:
    """Presentation times of all frames and of the key frames, both in order."""

    frames: list[int]
    keys: list[int]


def count_frames(file: Path | BinaryIO) -> tuple[int, int, int]:
    """(number of frames, width, height as displayed); decodes one frame where times can be trusted.

    Raises VideoError where nothing can be read, or less than the file lists.
    """
    with open_container(file) as container:
        stream = video_stream(container, file)
        times = _list_times(container, stream, file)
        try:
            container.seek(0)
        except av.FFmpegError:
            times = None
    frames = ContainerFrames(file)
    first, count = None, 0
    for frame, stamp in frames:
        first = first or frame
        count += 1
        # A file may begin with what is called a key frame and needs more to be shown.
        if times is not None and stamp == times.frames[0] * frames.stream.time_base:
            count = len(times.frames)
            break
    assert first is not None
    quarter_turns, _ = frame_orientation(first)
    turned = quarter_turns % 2 == 1
    size = (first.height, first.width) if turned else (first.width, first.height)
    return count, *size


def read_frames_at(
    file: Path | BinaryIO, indices: Iterable[int], num_frames: int
) -> dict[int, np.ndarray]:
    """Frames `indices` of a video of `num_frames`: index -> uint8 [H, W, 3].

    Raises VideoError where the file cannot be read or has no such frame.
    """
    wanted = sorted(set(indices))
    with open_container(file) as container:
        stream = video_stream(container, file)
        times = _list_times(container, stream, file)
        if times is not None and len(times.frames) == num_frames and wanted[-1] < num_frames:
            found = _seek_all(container, stream, times, [times.frames[i] for i in wanted], file)
            if len(found) == len(wanted):
                return dict(zip(wanted, (found[times.frames[i]] for i in wanted), strict=True))
    return _read_from_start(file, wanted)


def _list_times(container: Any, stream: Any, file: Path | BinaryIO) -> _Times | None:
    """Of all packets, without decoding; None where they do not tell the frames."""
    all_pts: list[int | None] = []
    all_dts: list[int] = []
    frames: list[int] = []
    keys: list[int] = []
    is_whole = True
    for packet in _guarded(container.demux(stream), file):
        if packet.size == 0:
            continue
        is_whole = is_whole and not packet.is_corrupt
        all_pts.append(packet.pts)
        if packet.dts is not None:
            all_dts.append(packet.dts)
        if packet.pts is not None:
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard:  # before the start that an edit list sets
                frames.append(packet.pts)
    if len(all_pts) < num_listed(container, stream):
        raise VideoError(f"{file}: the file is cut short; get it again in full")
    is_clear = (
        stream.codec_context.name in _SEEKABLE_CODECS
        and is_whole
        and None not in all_pts
        and not is_in_decoding_order(stream, all_pts)
        and all(a < b for a, b in pairwise(all_dts))
        and len(set(frames)) == len(frames) > 0 < len(keys)
    )
    return _Times(sorted(frames), sorted(keys)) if is_clear else None


def _seek_all(
    container: Any, stream: Any, times: _Times, wanted: Sequence[int], file: Path | BinaryIO
) -> dict[int, np.ndarray]:
    """Pictures at the presentation times `wanted` (sorted), as far as seeking finds them."""

    def key_before(pts: int) -> int:
        return times.keys[max(0, bisect.bisect_right(times.keys, pts) - 1)]

    found: dict[int, np.ndarray] = {}
    turns = None
    decoder = decoder_of(stream)
    decoder.thread_count = 1  # the processes that prepare batches are many
    for key, group in groupby(wanted, key_before):
        before = None
        for frame in _guarded(_decode_from(container, stream, decoder, key, set(group)), file):
            is_misplaced = frame.pts is None or (before is not None and frame.pts <= before)
            if is_misplaced or frame.interlaced_frame:
                return {}  # the times are not to be trusted, or neighbours are needed
            before = frame.pts
            if frame.pts in wanted:
                turns = turns or frame_orientation(frame)
                found[frame.pts] = frame_pixels(frame, *turns)
    return found


def _decode_from(
    container: Any, stream: Any, decoder: Any, start: int, wanted: set[int]
) -> Iterator[Any]:
    """Frames decoded from the key frame at `start` until those with the times `wanted` are out."""
    container.seek(start, stream=stream)
    decoder.flush_buffers()
    # H.264 marks frames that no other one refers to: those that nobody wants are not decoded.
    is_marked = decoder.name == "h264"
    to_send = set(wanted)
    for packet in container.demux(stream):
        if is_marked:
            decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        to_send.discard(packet.pts)
        yield from decoder.decode(packet)
        if not to_send and packet.size:
            yield from decoder.decode(None)  # those that the decoder still holds
        if not to_send:
            break


def _read_from_start(file: Path | BinaryIO, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    turns = None
    index = -1
    for index, (frame, _) in enumerate(ContainerFrames(file)):
        if index in wanted:
            turns = turns or frame_orientation(frame)
            found[index] = frame_pixels(frame, *turns)
            if len(found) == len(wanted):
                return found
    raise VideoError(f"{file}: frame {wanted[-1]} is asked for, {index + 1} can be read")


def _guarded(parts: Iterable[Any], file: Path | BinaryIO) -> Iterator[Any]:
    """The same, with PyAV's errors as VideoError."""
    try:
        yield from parts
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{file}: reading stops ({one_line(error)})") from error
