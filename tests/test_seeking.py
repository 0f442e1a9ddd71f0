"""Frames read at random are the frames of reading from the start, bit for bit."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from regen.video import VideoError, VideoWriter, count_frames, open_video, read_frames_at, seeking

NUM_FRAMES = 60


def moving_frames(num_frames: int = NUM_FRAMES, height: int = 48, width: int = 64) -> np.ndarray:
    """A pattern that moves, with noise, so that no two frames are alike."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    frames = [
        128 + 80 * np.stack([np.sin((x + 2 * i) / 6), np.cos((y - i) / 5), np.sin((x + y) / 9)], -1)
        for i in range(num_frames)
    ]
    return (np.stack(frames) + rng.normal(0, 4, (num_frames, 1, 1, 3))).clip(0, 255).astype("uint8")


def encode(path: Path, codec: str, options: dict[str, str], pixel_format: str = "yuv420p") -> Path:
    """With PyAV alone, for what VideoWriter does not write."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for pixels in moving_frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def written(path: Path) -> Path:
    with VideoWriter(path, width=64, height=48, frame_rate=Fraction(25)) as writer:
        for index, frame in enumerate(moving_frames()):
            writer.write(frame, Fraction(index, 25))
    return path


X264 = {"crf": "30", "preset": "medium"}
KINDS = {
    "h264, one key frame": ("a.mp4", "libx264", X264 | {"g": "250"}),
    "h264, b-pyramid, open groups": (
        "a.mp4",
        "libx264",
        X264 | {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"},
    ),
    "h264, groups of two": ("a.mp4", "libx264", X264 | {"g": "2", "bf": "2"}),
    "h264, key frames only": ("a.mkv", "libx264", X264 | {"g": "1"}),
    "h264 in Matroska": ("a.mkv", "libx264", X264 | {"g": "15"}),
    "h264 in a transport stream": ("a.ts", "libx264", X264 | {"g": "15"}),
    "hevc": ("a.mp4", "libx265", {"g": "15", "x265-params": "log-level=none:open-gop=1"}),
    "vp9": ("a.webm", "libvpx-vp9", {"g": "15", "deadline": "realtime", "cpu-used": "8"}),
    "vp8, hidden frames": ("a.webm", "libvpx", {"g": "30", "auto-alt-ref": "1"}),
    "mpeg4": ("a.mp4", "mpeg4", {"g": "10", "bf": "2"}),
    "mpeg4 in AVI": ("a.avi", "mpeg4", {"g": "10"}),
}


def frames_of(path: Path) -> np.ndarray:
    with open_video(path) as reader:
        return np.stack([frame.pixels for frame in reader])


def check_random_reads(file: Path, expected: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    draws = [rng.choice(len(expected), size, replace=False) for size in (1, 1, 2, 5, 9, 20)]
    draws += [np.arange(start, start + 9) for start in rng.integers(0, len(expected) - 9, 4)]
    draws += [np.array([0]), np.array([len(expected) - 1]), np.array([7, 7, 7])]
    for indices in draws:
        found = read_frames_at(file, indices.tolist(), len(expected))
        assert set(found) == set(indices.tolist())
        for index, pixels in found.items():
            assert np.array_equal(pixels, expected[index]), index


@pytest.mark.parametrize("kind", KINDS)
def test_any_frames_of_any_kind(tmp_path: Path, kind: str) -> None:
    name, codec, options = KINDS[kind]
    try:
        path = encode(tmp_path / name, codec, options)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV does not encode {codec} ({error})")
    expected = frames_of(path)
    assert count_frames(path) == (len(expected), 64, 48)
    check_random_reads(path, expected)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv"])
def test_what_we_write(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    check_random_reads(path, frames_of(path))


@pytest.mark.parametrize("group_size", ["1", "15", "250"])
def test_files_with_times_are_not_read_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_size: str
) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", X264 | {"g": group_size, "bf": "2"})
    expected = frames_of(path)

    def never(*_: object) -> None:
        raise AssertionError("read from the start")

    monkeypatch.setattr(seeking, "_read_from_start", never)
    check_random_reads(path, expected)


def test_a_cut_at_the_start_by_an_edit_list(tmp_path: Path) -> None:
    """Frames before the cut are in the file, but not of the video."""
    whole = encode(tmp_path / "whole.mp4", "libx264", X264 | {"g": "30", "bf": "2"})
    path = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = int(Fraction(10, 25) / stream.time_base)
        for packet in source.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                target.mux(packet)
    expected = frames_of(path)
    assert count_frames(path)[0] == len(expected)
    check_random_reads(path, expected)


def test_bytes_in_place_of_a_path(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4")
    expected = frames_of(path)
    data = io.BytesIO(path.read_bytes())
    for _ in range(2):  # wherever the last reading ended
        assert count_frames(data) == (len(expected), 64, 48)
        found = read_frames_at(data, [3, 40], len(expected))
    assert np.array_equal(found[3], expected[3]) and np.array_equal(found[40], expected[40])


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mkv")
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    with pytest.raises(VideoError, match=r"text\.mp4"):
        count_frames(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match="frame 99 is asked for, 60 can be read"):
        read_frames_at(path, [99], 100)
    data = encode(tmp_path / "b.mp4", "libx264", X264 | {"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:40])
    with pytest.raises(VideoError, match="cut short or damaged"):
        count_frames(tmp_path / "cut.mp4")
