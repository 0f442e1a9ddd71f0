"""The sound track of a file -> packets for another container, in time with its pictures.

A track goes along as it is where the container takes its codec, else encoded again. All of it is
tried first on a scratch file, so that nothing that can fail waits until the pictures are made.
"""

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter

from regen.video.containers import open_container
from regen.video.media import VideoError, one_line

_RATE = 48_000  # of what is encoded
# ending: (FFmpeg's format, codecs copied as they are, None: all that it takes, encoder for others)
_FORMATS: dict[str, tuple[str, tuple[str, ...] | None, str]] = {
    ".mp4": ("mp4", ("aac", "mp3", "ac3", "eac3", "alac", "opus"), "aac"),
    ".webm": ("webm", ("opus", "vorbis"), "libopus"),
    ".mkv": ("matroska", None, "flac"),
}


class Sound:
    """The first sound track of `path` for a file that ends in `suffix`; `start` (s) becomes 0.

    `notes` says, after `try_out`, what the user may not expect of it.
    """

    def __init__(self, path: Path, suffix: str, start: Fraction, is_copied: bool) -> None:
        self.path, self.suffix, self.start, self.is_copied = path, suffix, start, is_copied
        self.notes: list[str] = []

    def try_out(self) -> None:
        """Write the whole track to a scratch file. Raises as PyAV does."""
        self.notes = []
        with (
            tempfile.TemporaryFile() as scratch,
            av.open(scratch, "w", format=_FORMATS[self.suffix][0]) as container,
        ):
            packets = self.packets(container)
            container.start_encoding()
            for packet in packets:
                container.mux(packet)

    def packets(self, container: Any) -> Iterator[Any]:
        """Add the track to `container` at once; the packets follow as they are asked for."""
        source = open_container(self.path)
        track = source.streams.audio[0]
        if self.is_copied:
            return self._copied(source, track, container.add_stream_from_template(track))
        layout = "mono" if track.codec_context.channels == 1 else "stereo"
        encoder = _FORMATS[self.suffix][2]
        target = container.add_stream(encoder, rate=_RATE, layout=layout)
        return self._encoded(source, track, target)

    def _copied(self, source: Any, track: Any, target: Any) -> Iterator[Any]:
        # Decoders want the packet before the first; Matroska has no place for it, but for Opus.
        has_lead_in = self.suffix == ".mp4" or track.codec_context.name == "opus"
        expected = before = None
        with source:
            for packet in source.demux(track):
                if packet.size == 0:
                    continue
                shift = round(self.start / packet.time_base)
                dts = expected if packet.dts is None else packet.dts - shift
                if dts is None:  # no packet before tells its time
                    continue
                dts = dts if before is None else max(dts, before + 1)
                packet.pts = dts if packet.pts is None else max(dts, packet.pts - shift)
                packet.dts = before = dts
                expected = dts + packet.duration
                if packet.pts >= (-packet.duration if has_lead_in else 0):
                    packet.stream = target
                    yield packet

    def _encoded(self, source: Any, track: Any, target: Any) -> Iterator[Any]:
        """Gaps are filled with silence; rate, layout and format may change on the way."""
        graph, kind, end, num_failed = None, None, 0, 0
        expected = Fraction(0)  # s, where a frame without a time stamp continues
        with source:
            for packet in source.demux(track):
                try:
                    frames = track.codec_context.decode(packet)
                except (av.FFmpegError, OSError):
                    num_failed += 1
                    continue
                for frame in frames:
                    if frame.pts is not None:
                        expected = frame.pts * frame.time_base - self.start
                    if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
                        for made in _pulled(graph, None):
                            end = made.pts + made.samples
                            yield from target.encode(made)
                        graph = _converter(frame, target, end or max(0, round(expected * _RATE)))
                        self._say_channels(frame.layout.nb_channels, target.layout.nb_channels)
                    frame.time_base = Fraction(1, frame.sample_rate)
                    frame.pts = round(expected * frame.sample_rate)
                    expected += Fraction(frame.samples, frame.sample_rate)
                    for made in _pulled(graph, frame):
                        end = made.pts + made.samples
                        yield from target.encode(made)
        for made in _pulled(graph, None):
            yield from target.encode(made)
        yield from target.encode()
        if num_failed:
            self.notes.append(f"{num_failed} packets of sound cannot be decoded and are silent")

    def _say_channels(self, num_channels: int, num_made: int) -> None:
        note = (
            f"its sound of {num_channels} channels becomes {'stereo' if num_made > 1 else 'mono'}"
        )
        if num_channels != num_made and note not in self.notes:
            self.notes.append(note)


def prepare_sound(path: Path, suffix: str, start: Fraction) -> tuple[Sound | None, list[str]]:
    """The sound of a file for one that ends in `suffix`, tried out, and what to say of it.

    None where there is none that can be decoded. Raises VideoError where it cannot be written.
    """
    _, copied, _ = _FORMATS[suffix]
    with open_container(path) as source:
        if not source.streams.audio:
            return None, []
        context = source.streams.audio[0].codec_context
        if context is None:
            return None, ["its sound is of a codec that this FFmpeg cannot decode: left out"]
        codec = context.codec.canonical_name
    reason: object = ""
    for is_copied in (True, False) if copied is None or codec in copied else (False,):
        sound = Sound(path, suffix, start, is_copied)
        try:
            sound.try_out()
            return sound, sound.notes
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = error
    raise VideoError(f"{path}: its sound ({codec}) cannot go into {suffix} ({one_line(reason)})")


def _converter(frame: Any, target: Any, first_pts: int) -> Any:
    """A filter graph from frames like this one to what `target` encodes, without gaps."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_abuffer(
            sample_rate=frame.sample_rate,
            format=frame.format.name,
            layout=frame.layout.name,
            time_base=Fraction(1, frame.sample_rate),
        ),
        graph.add("aresample", f"{_RATE}:async=1:first_pts={first_pts}"),
        graph.add(
            "aformat", f"sample_fmts={target.format.name}:channel_layouts={target.layout.name}"
        ),
        graph.add("abuffersink"),
    )
    graph.configure()
    return graph


def _pulled(graph: Any, frame: Any) -> Iterator[Any]:
    """What a graph gives for a frame; for None, the rest. Nothing where there is no graph."""
    if graph is None:
        return
    graph.push(frame)
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
