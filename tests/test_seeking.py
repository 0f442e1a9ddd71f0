"""Frames read at random: from bytes, without reading from the start, and what cannot be read.

That they are those of reading from the start, in any container, is in test_containers.py.
"""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_containers import FPS, NUM_FRAMES, STEADY, check, encode, moving_frame, remux

from regen.video import VideoError, count_frames, read_frames_at, seeking, write_video


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
    whole = remux(encode(tmp_path / "b", "h264", STEADY), tmp_path / "b.mp4", movflags="faststart")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:40])
    with pytest.raises(VideoError, match="cut short or damaged"):
        count_frames(tmp_path / "cut.mp4")
