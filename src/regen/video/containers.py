"""Containers (MP4, Matroska, AVI, ...) -> PyAV frames in display order with their times.

What every reader of containers shares: which stream is the video, which decoder it takes, when its
time stamps can be trusted, where it ends, and what happens where it is damaged.
"""

import heapq
import os
import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.filter

from regen.video.colour import hdr_kind
from regen.video.matroska import read_number
from regen.video.media import PICTURE_FRAME_RATE, VideoError, one_line

_TEXT_ART_FORMATS = ("tty", "bin", "xbin", "adf", "idf")  # FFmpeg renders text files as video
_NO_VIDEO = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
_MAX_PIXELS = 178_956_970  # of a frame, as Pillow has it: a damaged header asks for more memory
_NO_DISPLAY_TIMES = ("avi", "asf")  # they store dts alone, from which FFmpeg guesses pts
_NUM_HEAD = 32  # packets that tell whether time stamps are in display order; H.264 reorders 16


class Pipe:
    """Bytes that can be read once. FFmpeg looks for a `seek`, and is not to find it."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def __str__(self) -> str:
        return "-"


def is_streamed(head: bytes) -> bool:
    """Whether these first bytes, 12 or more, are of a format that can be read from a pipe.

    The index of an MP4 may come last, and pictures have readers of their own.
    """
    starts = (b"\x1aE\xdf\xa3", b"YUV4MPEG2", b"nut/", b"FLV", b"\0\0\1\xba")
    return head.startswith(starts) or (head[:1] == b"G" and head[:4] != b"GIF8")  # MPEG-TS


def open_container(file: Path | BinaryIO | Pipe) -> Any:
    """PyAV's container for a local file; "file:" lest a colon in the name makes it an address.

    Also for bytes that read and seek, or a pipe; `str` of them is their name in messages.
    """
    source = f"file:{file}" if isinstance(file, Path) else file
    if not isinstance(file, Path | Pipe):
        file.seek(0)
    try:
        container = av.open(
            source, options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except (av.FFmpegError, OSError) as error:
        if _first_bytes(file)[4:] in (b"ftyp", b"mdat", b"wide", b"moov"):
            raise VideoError(
                f"{file}: the file is cut short or damaged: its index is missing"
            ) from error
        raise VideoError(
            f"{file}: not a video that FFmpeg can read ({one_line(error)}); expected e.g. MP4, "
            "MOV, MKV, WebM, GIF, a picture or a folder of pictures"
        ) from error
    if container.format.name in _TEXT_ART_FORMATS:
        container.close()
        raise VideoError(
            f"{file}: a text file, not a video; expected e.g. MP4, MOV, MKV, WebM, GIF"
        )
    return container


def _first_bytes(file: Path | BinaryIO | Pipe) -> bytes:
    if isinstance(file, Pipe):
        return b""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(8)
    file.seek(0)
    return file.read(8)


def has_sound(path: Path) -> bool:
    """Whether a media file has a sound track. Raises VideoError where FFmpeg cannot read it."""
    with open_container(path) as container:
        return bool(container.streams.audio)


def video_streams(container: Any) -> list[Any]:
    """Those that are not a cover or thumbnails."""
    return [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]


def video_stream(container: Any, file: Path | BinaryIO | Pipe, number: int | None = None) -> Any:
    """Video stream `number`; None: the one that the file marks as default, else the first.

    Raises VideoError where there is none that can be decoded.
    """
    streams = video_streams(container)
    if not streams:
        kinds = {"a cover picture" if s.type == "video" else s.type for s in container.streams}
        found = " and ".join(sorted(kinds, reverse=True)) or "nothing"
        raise VideoError(f"{file}: no video stream in the file, only {found}; expected a video")
    if number is None:
        default = av.stream.Disposition.default
        stream = next((one for one in streams if one.disposition & default), streams[0])
    elif number < len(streams):
        stream = streams[number]
    else:
        raise VideoError(f"{file}: has no video stream {number}; expected 0 to {len(streams) - 1}")
    if stream.codec_context is None:
        raise VideoError(f"{file}: its video is of a codec that this FFmpeg cannot decode")
    return stream


def decoder_of(stream: Any) -> Any:
    """The stream's own decoder, or for VP8 and VP9 with alpha the one that decodes that too."""
    names = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
    decoder = stream.codec_context
    has_alpha = ("alpha_mode", "1") in {(key.lower(), one) for key, one in stream.metadata.items()}
    if has_alpha and decoder.name in names:
        decoder = av.CodecContext.create(names[decoder.name], "r")
    decoder.options = {"max_pixels": str(_MAX_PIXELS)}
    return decoder


def num_listed(container: Any, stream: Any) -> int:
    """Packets that an MP4 lists in front, those that an edit list hides too; 0: no list."""
    is_listed = "mp4" in container.format.name and stream.frames  # a fragmented one: frames = 0
    return len(stream.index_entries) if is_listed else 0


def num_shown(container: Any, stream: Any) -> int | None:
    """Frames as the container declares them, less those that an edit list hides."""
    if num_listed(container, stream):
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames or None


def stream_end(container: Any, stream: Any) -> Fraction | None:
    """The time stamp, in s, at which the stream ends, where the container tells."""
    if "mp4" in container.format.name and stream.duration:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    if clock := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = (Fraction(part) for part in clock.groups())
        return 3600 * hours + 60 * minutes + seconds
    return None


def is_in_decoding_order(stream: Any, times: list[int | None]) -> bool:
    """Whether these time stamps of packets cannot be of display, as AVI has them: the codec says
    that it reorders, and they do not."""
    if not stream.codec_context.reorder_depth or None in times:
        return False
    return len(times) > 1 and all(a < b for a, b in pairwise(times))  # type: ignore[operator]


class ContainerFrames:
    """A pass through a container: iterates over (PyAV frame, time stamp in s or None).

    Interlaced frames come deinterlaced. After the pass `end` is the time stamp at which the last
    frame ends, None if unknown, and `notes` says what the user may not expect.
    `skip_damaged` passes over what cannot be decoded and counts the frames lost; else VideoError
    is raised there. Several passes at once need several objects.
    """

    def __init__(
        self, file: Path | BinaryIO | Pipe, number: int | None = None, skip_damaged: bool = False
    ) -> None:
        self.file, self.number, self.skip_damaged = file, number, skip_damaged
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[tuple[Any, Fraction | None]]:
        self.end: Fraction | None = None
        self._count, self._num_failed, self._num_concealed = 0, 0, 0
        self._first: Fraction | None = None  # time stamps, and the shortest time between two
        self._last: Fraction | None = None
        self._shortest: Fraction | None = None
        with open_container(self.file) as self.container:
            self.stream = video_stream(self.container, self.file, self.number)
            streams = video_streams(self.container)
            if len(streams) > 1:
                index = streams.index(self.stream)
                self._note(f"{len(streams)} video streams, {index} is read (--stream)")
            try:
                yield from self._deinterlaced(self._decoded())
            except (av.FFmpegError, OSError) as error:
                raise self._damaged(error) from error

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _decoded(self) -> Iterator[tuple[Any, Fraction | None]]:
        decoder = decoder_of(self.stream)
        decoder.thread_type = "FRAME"  # slices of damaged MPEG-2 race: not the same frame each time
        size, num_packets, cut = None, 0, False
        try:
            for packet in self._packets():
                num_packets += packet.size > 0
                # Broadcast recordings often have corrupt packets.
                cut = packet.is_corrupt and "mpegts" not in self.container.format.name
                for frame in self._decode(decoder, packet, cut):
                    size = size or (frame.width, frame.height)
                    if (frame.width, frame.height) != size:
                        raise VideoError(
                            f"{self.file}: the picture changes from {size[0]}x{size[1]} to "
                            f"{frame.width}x{frame.height} after frame {self._count}; expected one "
                            "size: split the file"
                        )
                    yield frame, self._time_of(frame)
                if cut and not self.skip_damaged:
                    break
        except (av.FFmpegError, OSError) as error:
            if not self.skip_damaged:
                raise self._damaged(error) from error
            self._num_failed += 1
        listed = num_listed(self.container, self.stream)
        self._conclude(cut or num_packets < listed or (not listed and self._is_cut_short()))

    def _decode(self, decoder: Any, packet: Any, cut: bool) -> list[Any]:
        if not self.skip_damaged:
            frames = decoder.decode(None if cut else packet)
            self._num_concealed += sum(frame.is_corrupt for frame in frames)
            return frames
        try:
            frames = decoder.decode(packet)
        except (av.FFmpegError, OSError):
            self._num_failed += 1
            return []
        whole = [frame for frame in frames if not frame.is_corrupt]
        self._num_failed += len(frames) - len(whole)
        return whole

    def _time_of(self, frame: Any) -> Fraction | None:
        """The frame's time stamp in s; takes note of it and of what the frame is."""
        if kind := hdr_kind(frame):
            self._note(f"HDR ({kind}), tone-mapped to SDR")
        if frame.interlaced_frame:
            self._note("interlaced, deinterlaced")
        stamp = self._stamp_of(frame)
        time = None if stamp is None else stamp * self.stream.time_base
        if self._last is not None and time is not None and self._last < time:
            self._shortest = min(self._shortest or time - self._last, time - self._last)
        self._first = time if self._first is None else self._first
        self._last, self._lasting = time, frame.duration * self.stream.time_base
        self._count += 1
        return time

    def _conclude(self, is_short: bool) -> None:
        """After the last frame: where it ends, and what was wrong. `is_short`: the file is cut."""
        if is_short and not self.skip_damaged:
            raise self._damaged("the file is cut short")
        if self._count == 0:
            raise VideoError(
                f"{self.file}: no frame can be decoded; the file is damaged or has no picture"
            )
        if self._num_concealed:
            self._note(f"{self._num_concealed} damaged frames, as far as they could be decoded")
        if self._num_failed or is_short:
            expected = 0
            if num_listed(self.container, self.stream):
                expected = num_shown(self.container, self.stream) or 0
            elif self._first is not None and self._last is not None:
                rate = self.stream.average_rate or PICTURE_FRAME_RATE
                expected = round((self._last - self._first) * rate) + 1
            num_lost = max(self._num_failed, expected - self._count)
            self._note(f"damaged: {num_lost} frames{' or more' if is_short else ''} are lost")
        self.end = stream_end(self.container, self.stream)
        if self._last is not None and (self.end is None or self.end <= self._last):
            lasting = None if self._is_guessed() else self._lasting
            lasting = lasting or self._shortest
            self.end = None if lasting is None else self._last + lasting

    def _packets(self) -> Iterator[Any]:
        packets = self.container.demux(self.stream)
        head = list(islice(packets, _NUM_HEAD)) if self.stream.codec_context.reorder_depth else []
        is_guessed = self._is_guessed()
        pts = [packet.pts for packet in head if packet.size]
        in_order = is_guessed or is_in_decoding_order(self.stream, pts)
        has_begun = False
        self._early: dict[int, int] = {}
        self._stamps: list[int] = []  # a heap
        for packet in chain(head, packets):
            has_begun = has_begun or packet.is_keyframe
            stamp = packet.dts if is_guessed else packet.pts
            if in_order and stamp is not None:
                if has_begun:
                    heapq.heappush(self._stamps, stamp)
                else:
                    self._early[packet.pts] = stamp
            yield packet

    def _is_guessed(self) -> bool:
        return self.container.format.name in _NO_DISPLAY_TIMES

    def _stamp_of(self, frame: Any) -> int | None:
        """Where packets have no times of display, the frames take theirs in turn.

        Packets before the first key frame are seldom decoded: a frame of such a one takes its own.
        """
        if frame.pts in self._early:
            return self._early.pop(frame.pts)
        return heapq.heappop(self._stamps) if self._stamps else frame.pts

    def _deinterlaced(
        self, frames: Iterator[tuple[Any, Fraction | None]]
    ) -> Iterator[tuple[Any, Fraction | None]]:
        """As many frames, at the same times; from the first interlaced one through bwdif."""
        graph, kind = None, ""
        times: deque[Fraction | None] = deque()
        for frame, time in frames:
            if graph is None and not frame.interlaced_frame:
                yield frame, time
                continue
            if frame.format.name != kind:
                yield from _pulled(graph, None, times)
                graph, kind = _deinterlacer(frame), frame.format.name
            times.append(time)
            yield from _pulled(graph, frame, times)
        yield from _pulled(graph, None, times)

    def _is_cut_short(self) -> bool:
        """Whether what the container states lies past the end of the file."""
        if isinstance(self.file, Pipe):
            return False
        if isinstance(self.file, Path):
            with self.file.open("rb") as opened:
                return _ends_early(opened, self.container.format.name)
        return _ends_early(self.file, self.container.format.name)

    def _damaged(self, reason: object) -> VideoError:
        return VideoError(
            f"{self.file}: reading stops after frame {self._count} ({one_line(reason)}); get the "
            "file again in full, or read past the damage: --skip-damaged"
        )


def _deinterlacer(frame: Any) -> Any:
    graph = av.filter.Graph()
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1000",
    )
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    )
    graph.configure()
    return graph


def _pulled(
    graph: Any, frame: Any, times: deque[Fraction | None]
) -> Iterator[tuple[Any, Fraction | None]]:
    """What the graph gives for a frame; for None, the rest. Nothing where there is no graph."""
    if graph is not None:
        graph.push(frame)
    while graph is not None and times:
        try:
            made = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield made, times.popleft()


def _ends_early(file: BinaryIO, format_name: str) -> bool:
    """Whether the sizes or the end mark of a container lie past the end of the file."""
    num_bytes = file.seek(0, os.SEEK_END)
    if "matroska" in format_name:
        file.seek(0)
        head = file.read(1024)
        size, at = read_number(head, 4)
        at += size or 0
        if head[at : at + 4] != b"\x18\x53\x80\x67":  # the segment
            return False
        size, at = read_number(head, at + 4)
        return size is not None and at + size > num_bytes  # None: live, of unknown size
    if "mp4" in format_name:
        start = 0
        while start + 16 <= num_bytes:
            file.seek(start)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            length = int.from_bytes(header[8:], "big") if length == 1 else length
            if length < 8:  # 0: to the end
                return False
            start += length
        return start > num_bytes and header[4:8] in (b"moof", b"mdat")
    mark = {"gif": b";", "apng": b"IEND\xaeB`\x82"}.get(format_name, b"")
    file.seek(max(0, num_bytes - 64))
    return not file.read().rstrip(b"\0").endswith(mark)
