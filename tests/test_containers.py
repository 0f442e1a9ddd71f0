"""Containers x codecs, made by FFmpeg: frames in order, frames by number, count and times agree."""

import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from regen.video import (
    VideoError,
    count_frames,
    open_video,
    read_frames_at,
    seeking,
    write_video,
)

NUM_FRAMES, SIZE, FPS = 24, (64, 48), 25
TICK = Fraction(1, 12800)
X264 = {"crf": "30", "preset": "veryfast", "g": "8", "threads": "1", "b_strategy": "0"}
X265 = {"preset": "ultrafast", "g": "8"}
CODECS = {
    "h264": ("libx264", X264 | {"bf": "0"}),
    "h264, key frames only": ("libx264", X264 | {"g": "1"}),
    "h264, groups of two": ("libx264", X264 | {"g": "2", "bf": "2"}),
    "h264, one key frame": ("libx264", X264 | {"g": "250", "bf": "3"}),
    "h264, B-frames": ("libx264", X264 | {"bf": "3"}),
    "h264, open groups": (
        "libx264",
        X264 | {"bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"},
    ),
    "h264, refreshed by columns": ("libx264", X264 | {"x264-params": "intra-refresh=1"}),
    "hevc, open groups": (
        "libx265",
        X265 | {"x265-params": "log-level=none:open-gop=1:bframes=3:pools=1"},
    ),
    "mpeg4": ("mpeg4", {"g": "8"}),
    "mpeg4, B-frames": ("mpeg4", {"g": "8", "bf": "2"}),
    "mpeg2, B-frames": ("mpeg2video", {"g": "8", "bf": "2"}),
    "vp8, hidden frames": ("libvpx", {"g": "8", "deadline": "realtime", "auto-alt-ref": "1"}),
    "vp9": ("libvpx-vp9", {"g": "8", "deadline": "realtime", "cpu-used": "8"}),
    "ffv1": ("ffv1", {"level": "3"}),
    "mjpeg": ("mjpeg", {}),
    "wmv2": ("wmv2", {"g": "8"}),
}
ENDINGS = ("mp4", "mov", "mkv", "webm", "avi", "ts", "mxf", "flv", "mpg", "nut", "wmv", "3gp")
STEADY = [512 * index for index in range(NUM_FRAMES)]
UNEVEN = np.cumsum([0, *([512, 512, 1536, 512, 30720] * NUM_FRAMES)])[:NUM_FRAMES].tolist()


def moving_frame(index: int) -> np.ndarray:
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    waves = [np.sin((x + 3 * index) / 6), np.cos((y - 2 * index) / 5), np.sin((x + y + index) / 9)]
    return (128 + 90 * np.stack(waves, -1)).astype(np.uint8)


def encode(path: Path, kind: str, times: list[int]) -> Path:
    """Frames at `times`, by default in NUT, which holds all of these codecs."""
    codec, options = CODECS[kind]
    path = path if path.suffix in (".mxf", ".nut") else path.with_name(f"{path.name}.nut")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        is_steady = times == STEADY[: len(times)]
        stream.codec_context.time_base = Fraction(1, FPS) if is_steady else TICK
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(moving_frame(index), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(time * TICK / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, target: Path, cut: int = 0, shift: int = 0, **options: str) -> Path:
    """The packets from number `cut` on; `shift` frames are before the start, in an edit list."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream, opaque=True)
        back = round(Fraction(shift, FPS) / stream.time_base)
        for index, packet in enumerate(given.demux(stream)):
            if packet.size and index >= cut:
                packet.pts -= back
                packet.dts = None if packet.dts is None else packet.dts - back
                packet.stream = copy
                made.mux(packet)
    return target


def check(path: Path, times: list[Fraction] | None = None) -> int:
    """Compare all ways of reading; the number of frames. `times`: expected, None: FFmpeg's own."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        own = [None if one.pts is None else one.pts * stream.time_base for one in frames]
        expected = [one.to_ndarray(format="rgb24") for one in frames]
    with open_video(path) as reader:
        read = list(reader)
    assert len(read) == len(expected) == count_frames(path)[0]
    for one, pixels in zip(read, expected, strict=True):
        assert np.array_equal(one.pixels, pixels)
    rng = np.random.default_rng(1)
    draws = [rng.choice(len(read), size, replace=False).tolist() for size in (1, 2, 5, 9)]
    for indices in (*draws, [len(read) // 2], [7, 7], [0, len(read) - 1], range(len(read))):
        found = read_frames_at(path, indices, len(read))
        assert set(found) == set(indices)
        for index in indices:
            assert np.array_equal(found[index], expected[index])
    moments = [one.time for one in read]
    assert moments[0] == 0 and all(a < b for a, b in pairwise(moments))
    is_guessed = path.suffix in (".avi", ".wmv")  # they have no times of display
    if (
        times is None
        and not is_guessed
        and None not in own
        and all(a < b for a, b in pairwise(own))
    ):
        times = [one - own[0] for one in own]  # type: ignore[operator]
    if times is not None:
        assert max(abs(a - b) for a, b in zip(moments, times, strict=True)) < Fraction(1, 900)
        assert reader.end is not None and reader.end > times[-1]
    return len(read)


def is_readable(path: Path) -> bool:
    """Whether FFmpeg itself finds and decodes the video: not every pair of the table is."""
    try:
        with av.open(str(path)) as container:
            return len(list(container.decode(video=0))) > 0
    except (av.FFmpegError, IndexError, AttributeError):
        return False


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("encoded")
    return cache(lambda kind: encode(folder / kind, kind, STEADY))


def containers(source: Path, folder: Path, endings: Sequence[str], **how: Any) -> Iterator[Path]:
    """The packets of `source` in each container that takes them and that FFmpeg then reads."""
    for ending in endings:
        path = folder / f"a.{ending}"
        try:
            remux(source, path, **how)
        except (ValueError, av.FFmpegError):
            continue
        if is_readable(path):
            yield path
        else:
            with pytest.raises(VideoError):
                list(open_video(path))


@pytest.mark.parametrize("kind", CODECS)
def test_every_container(encoded: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    paths = list(containers(encoded(kind), tmp_path, ENDINGS))
    assert len(paths) >= 3
    for path in paths:
        assert check(path, [time * TICK for time in STEADY]) == NUM_FRAMES, path


@pytest.mark.parametrize("kind", ["h264", "h264, B-frames", "h264, open groups"])
def test_mxf(tmp_path: Path, kind: str) -> None:
    """It takes H.264 from the encoder alone; its times are of decoding."""
    path = encode(tmp_path / "a.mxf", kind, STEADY)
    assert check(path, [time * TICK for time in STEADY]) == NUM_FRAMES


@pytest.mark.parametrize("kind", [kind for kind in CODECS if kind != "h264, one key frame"])
def test_cut_between_key_frames(encoded: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """What comes before the first key frame cannot be decoded, and is not counted."""
    with av.open(str(encoded(kind))) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0)]
    second = keys.index(True, 3) if True in keys[3:] else 3  # frames before it may need others
    for cut in (3, second):
        for path in containers(encoded(kind), tmp_path, ("mp4", "mkv", "ts", "avi"), cut=cut):
            count = check(path)
            assert 10 <= count <= NUM_FRAMES - cut, path
            assert path.suffix != ".mp4" or open_video(path).info.num_frames in (None, count)


@pytest.mark.parametrize("kind", ["h264", "h264, open groups", "hevc, open groups", "mpeg4"])
def test_edit_lists_and_fragments(encoded: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    for path in containers(encoded(kind), tmp_path, ("mp4", "mov"), shift=3):
        assert NUM_FRAMES > check(path) == open_video(path).info.num_frames
    for flags in ("frag_keyframe+empty_moov", "frag_keyframe"):  # the index lists none, some
        for path in containers(encoded(kind), tmp_path, ("mp4", "3gp"), movflags=flags):
            assert check(path) == NUM_FRAMES


@pytest.mark.parametrize("kind", ["h264, B-frames", "hevc, open groups", "vp9"])
def test_variable_rate(tmp_path: Path, kind: str) -> None:
    source = encode(tmp_path / "source", kind, UNEVEN)
    for path in containers(source, tmp_path, ("mp4", "mkv", "webm", "ts", "flv", "nut")):
        assert check(path, [time * TICK for time in UNEVEN]) == NUM_FRAMES


def test_time_stamps_that_wrap_and_start_again(tmp_path: Path) -> None:
    """Of a transport stream: they have 33 bits; two recordings in one file have them twice."""
    source = encode(tmp_path / "source", "h264, B-frames", STEADY)
    path = remux(source, tmp_path / "a.ts", shift=-(2**33 // 3600 - 12), mpegts_copyts="1")
    assert check(path, [time * TICK for time in STEADY]) == NUM_FRAMES
    once = remux(source, tmp_path / "b.ts").read_bytes()
    (tmp_path / "b.ts").write_bytes(2 * once)
    assert check(tmp_path / "b.ts") == 2 * NUM_FRAMES


def test_a_key_frame_alone_by_number(encoded: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing comes out of the decoder with it that could show that times are of decoding."""
    path = remux(encoded("h264, open groups"), tmp_path / "a.avi")
    with open_video(path) as reader:
        expected = [frame.pixels for frame in reader]
    for index, pixels in enumerate(expected):
        assert np.array_equal(read_frames_at(path, [index], NUM_FRAMES)[index], pixels), index


# --- by number ---


def written(path: Path) -> Path:
    frames = [moving_frame(index) for index in range(NUM_FRAMES)]
    return write_video(path, frames, Fraction(FPS))


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv"])
def test_what_we_write(tmp_path: Path, name: str) -> None:
    assert check(written(tmp_path / name)) == NUM_FRAMES


@pytest.mark.parametrize("kind", ["h264, key frames only", "h264, B-frames", "h264, one key frame"])
def test_files_with_times_are_not_read_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = remux(encode(tmp_path / "a", kind, STEADY), tmp_path / "a.mp4")

    def never(*_: object) -> None:
        raise AssertionError("read from the start")

    monkeypatch.setattr(seeking, "_read_from_start", never)
    check(path)


def test_bytes_in_place_of_a_path(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4")
    expected = read_frames_at(path, [3, 20], NUM_FRAMES)
    data = io.BytesIO(path.read_bytes())
    for _ in range(2):  # wherever the last reading ended
        assert count_frames(data) == (NUM_FRAMES, 64, 48)
        found = read_frames_at(data, [3, 20], NUM_FRAMES)
        assert all(np.array_equal(found[index], expected[index]) for index in (3, 20))


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mkv")
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    with pytest.raises(VideoError, match=r"text\.mp4"):
        count_frames(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match=f"frame 99 is asked for, {NUM_FRAMES} can be read"):
        read_frames_at(path, [99], 100)
    whole = remux(encode(tmp_path / "b", "h264", STEADY), tmp_path / "b.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index is at the end
    with pytest.raises(VideoError, match="cut short or damaged"):
        count_frames(tmp_path / "cut.mp4")
