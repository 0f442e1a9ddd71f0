"""Kinds of files that public reports name: HDR, interlaced, alpha, several streams, odd sound."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from test_containers import STEADY, check, encode, moving_frame, remux
from test_video import picture, sound_of

from regen.video import VideoError, VideoWriter, open_video, read_frames, read_frames_at

FPS = 25


def make(
    path: Path, codec: str, frames: list[np.ndarray], pixel_format: str = "yuv420p", **options: str
) -> Path:
    """`frames` uint8 or uint16 `[H, W, 3 or 4]`; options named like an attribute are set so."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        for name in ("color_trc", "color_primaries", "colorspace", "flags"):
            if name in options:
                setattr(stream.codec_context, name, int(options.pop(name)))
        stream.codec_context.options = options
        names = {(1, 3): "rgb24", (1, 4): "rgba", (2, 3): "rgb48le"}
        for pixels in frames:
            name = names[pixels.dtype.itemsize, pixels.shape[2]]
            frame = av.VideoFrame.from_ndarray(pixels, format=name)
            matrix = {9: 9}.get(stream.codec_context.colorspace)
            frame = frame.reformat(format=pixel_format, dst_colorspace=matrix)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy(source: Path, target: Path) -> list[str]:
    """Through the reader and the writer; what both have to say."""
    with open_video(source) as reader:
        info = reader.info
        with VideoWriter(
            target,
            width=info.width,
            height=info.height,
            frame_rate=info.frame_rate,
            sample_aspect_ratio=info.sample_aspect_ratio,
            audio_from=source if info.has_audio else None,
            time_base=info.time_base,
        ) as writer:
            for frame in reader:
                writer.write(frame.pixels, frame.time)
            writer.end = reader.end
    return [*reader.notes, *writer.notes]


# --- colours ---

BT2100 = {"color_primaries": "9", "colorspace": "9", "x265-params": "log-level=none:qp=1"}


def pq(light: float) -> int:
    """cd/m2 to a code of 16 bits, SMPTE ST 2084."""
    power = (light / 10_000) ** 0.1593017578125
    code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return round(code * 65535)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_hdr_is_tone_mapped(tmp_path: Path, ending: str) -> None:
    lights = [0, 25, 100, 203, 1000, 4000]
    row = np.repeat(np.array([pq(light) for light in lights], np.uint16), 16)
    frame = np.repeat(np.tile(row, (48, 1))[..., None], 3, axis=2)
    path = tmp_path / f"a.{ending}"
    make(path, "libx265", [frame] * 3, "yuv420p10le", **BT2100, color_trc="16")
    with open_video(path) as reader:
        pixels = [one.pixels for one in reader]
    got = pixels[1][24, 8::16].astype(int)
    assert reader.notes == ["HDR (PQ), tone-mapped to SDR"]
    # White of 203 cd/m2 is near white; what is dark is as BT.1886 shows it beside that white.
    for value, light in zip(got[:3], lights[:3], strict=True):
        assert abs(value.mean() - 255 * (light / 203) ** (1 / 2.4)) < 5
    assert 225 <= got[3].mean() <= 240 and got[4].min() >= 254 and got[5].min() >= 254
    assert np.ptp(got, axis=1).max() <= 2  # grey stays grey
    found = read_frames_at(path, [1], 3)
    assert np.array_equal(found[1], pixels[1])


def test_colours_of_hdr_are_those_of_sdr(tmp_path: Path) -> None:
    """A saturated BT.709 colour in BT.2020 and HLG comes back in its hue."""
    to_2020 = np.array(
        [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    )
    light = to_2020 @ np.array([1.0, 0.25, 0.05]) * 0.1  # of 1000 cd/m2
    scene = light / (light @ [0.2627, 0.6780, 0.0593]) ** (1 - 1 / 1.2)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    code = np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)
    frame = np.tile((code * 65535).round().astype(np.uint16), (48, 64, 1))
    path = tmp_path / "a.mp4"
    make(path, "libx265", [frame] * 2, "yuv420p10le", **BT2100, color_trc="18")
    got = read_frames(path)[0][24, 32]
    expected = 255 * (np.array([1.0, 0.25, 0.05]) * 100 / 203) ** (1 / 2.4)
    assert abs(got - expected).max() < 8


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_alpha_of_webm_lies_on_white(tmp_path: Path, codec: str) -> None:
    frame = np.zeros((48, 64, 4), np.uint8)
    frame[:, 32:] = (40, 80, 120, 255)
    path = make(tmp_path / "a.webm", codec, [frame] * 5, "yuva420p", **{"auto-alt-ref": "0"})
    with av.open(str(path), "r") as container:
        assert container.streams.video[0].metadata["alpha_mode"] == "1"
    frames = read_frames(path)
    assert len(frames) == 5 and frames[2, 24, 8].min() > 250
    assert abs(frames[2, 24, 56].astype(int) - (40, 80, 120)).max() < 8
    assert np.array_equal(read_frames_at(path, [2], 5)[2], frames[2])


@pytest.mark.parametrize("matrix", ["1", "5", "0"])  # BT.709, BT.601, and one that is no YUV
def test_interlaced_is_deinterlaced(tmp_path: Path, matrix: str) -> None:
    """Of an object that moves 4 pixels from field to field the combing goes; times stay."""
    fields = [
        np.roll(np.tile(np.arange(96) // 24 % 2 * 200 + 20, (64, 1)), 4 * i, 1) for i in range(40)
    ]
    woven = []
    for top, bottom in zip(fields[::2], fields[1::2], strict=True):
        frame = np.repeat(top[..., None], 3, axis=2).astype(np.uint8)
        frame[1::2] = bottom[1::2, :, None]
        frame[..., 2] //= 2
        woven.append(frame)
    flags = str(1 << 18 | 1 << 29)  # interlaced
    path = make(tmp_path / "a.mp4", "libx264", woven, flags=flags, crf="10", colorspace=matrix)
    plain = [f.to_ndarray(format="rgb24") for f in av.open(str(path)).decode(video=0)]

    def combing(frame: np.ndarray) -> float:
        lines = frame[8:-8, :, 0].astype(float)
        return float(abs(2 * lines[1:-1] - lines[:-2] - lines[2:]).mean())

    with open_video(path) as reader:
        frames = list(reader)
    assert reader.notes == ["interlaced, deinterlaced"]
    assert [one.time for one in frames] == [Fraction(i, FPS) for i in range(20)]
    assert combing(frames[9].pixels) < 0.2 * combing(plain[9])
    colour, expected = (one.mean((0, 1)) for one in (frames[9].pixels, plain[9]))
    assert abs(colour - expected).max() < 3
    found = read_frames_at(path, range(20), 20)
    assert all(np.array_equal(found[i], frames[i].pixels) for i in range(20))


# --- streams ---


def two_streams(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        streams = []
        for size, disposition in (((32, 32), 0), ((64, 48), av.stream.Disposition.default)):
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height = size
            stream.disposition = disposition
            streams.append(stream)
        for index in range(6):
            for stream in streams:
                pixels = picture(index, stream.height, stream.width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return path


def test_the_default_of_several_streams(tmp_path: Path) -> None:
    path = two_streams(tmp_path / "a.mkv")
    with open_video(path) as reader:
        assert (reader.info.width, reader.info.height) == (64, 48)
        assert reader.notes == ["2 video streams, 1 is read (--stream)"]
        assert next(iter(reader)).pixels.shape == (48, 64, 3)
    assert read_frames_at(path, [3], 6)[3].shape == (48, 64, 3)
    assert open_video(path, stream=0).info.width == 32
    with pytest.raises(VideoError, match="no video stream 2; expected 0 to 1"):
        open_video(path, stream=2)


def test_sound_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=48000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.start_encoding()
        for packet in cover.encode(av.VideoFrame.from_ndarray(picture(0, 16, 16), format="rgb24")):
            container.mux(packet)
        container.mux(audio.encode(tone(0, 4608)))
        container.mux(audio.encode())
    with pytest.raises(VideoError, match="only audio and a cover picture; expected a video"):
        open_video(path)


def test_a_title_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "A TITLE"
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height = 64, 48
        container.mux(stream.encode(av.VideoFrame.from_ndarray(moving_frame(0), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"A TITLE", "テスト ".encode("shift-jis")))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert len(read_frames(path)) == 1


# --- damage ---


def test_damage_is_passed_over_and_counted(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a", "h264, B-frames", STEADY)
    for ending in ("mp4", "mkv"):
        path = remux(whole, tmp_path / f"a.{ending}")
        with av.open(str(path)) as container:
            positions = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        data = bytearray(path.read_bytes())
        for position, size in positions[9:11]:  # not those of a key frame
            data[position + 8 : position + size] = bytes(size - 8)
        path.write_bytes(data)
        with pytest.raises(VideoError, match=r"reading stops after frame \d+ .*--skip-damaged"):
            list(open_video(path))
        with open_video(path, skip_damaged=True) as reader:
            frames = list(reader)
        num_lost = len(STEADY) - len(frames)
        assert 1 <= num_lost < 12
        assert reader.notes == [f"damaged: {num_lost} frames are lost"]
        assert frames[-1].time == STEADY[-1] * Fraction(1, 12800)


def test_a_cut_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = remux(encode(tmp_path / "a", "h264", STEADY), tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with open_video(path, skip_damaged=True) as reader:
        assert 8 < len(list(reader)) < 20
    assert "or more are lost" in reader.notes[0]


# --- time ---


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("gap_s", [60, 900])
@pytest.mark.parametrize("last_s", [Fraction(1, 25), Fraction(2)])
def test_gaps_and_the_last_frame(tmp_path: Path, ending: str, gap_s: int, last_s: Fraction) -> None:
    times = [Fraction(i, 25) + (gap_s if i > 4 else 0) for i in range(9)]
    first, second = tmp_path / "first.mp4", tmp_path / f"second{ending}"
    size = {"width": 48, "height": 32, "frame_rate": Fraction(1), "time_base": Fraction(1, 12800)}
    with VideoWriter(first, **size) as writer:
        for index, time in enumerate(times):
            writer.write(picture(index), time)
        writer.end = times[-1] + last_s
    copy(first, second)
    for path in (first, second):
        with open_video(path) as reader:
            assert [one.time for one in reader] == times
        assert reader.end == times[-1] + last_s
        assert abs(reader.info.duration_s - float(times[-1] + last_s)) < 0.002


def test_a_frame_too_long_for_mp4_is_one_line(tmp_path: Path) -> None:
    size = {"width": 48, "height": 32, "frame_rate": Fraction(25)}
    with (
        pytest.raises(VideoError, match=r"longer than \.mp4 holds .* end it in \.mkv"),
        VideoWriter(tmp_path / "a.mp4", time_base=Fraction(1, 10**6), **size) as writer,
    ):
        writer.write(picture(0), Fraction(0))
        writer.write(picture(1), Fraction(3000))
    assert not list(tmp_path.iterdir())


def test_b_frames_in_avi_begin_without_a_gap(tmp_path: Path) -> None:
    path = remux(encode(tmp_path / "a", "h264, B-frames", STEADY), tmp_path / "a.avi")
    assert check(path, [Fraction(i, FPS) for i in range(len(STEADY))]) == len(STEADY)
    with open_video(path) as reader:
        list(reader)
    assert reader.end == Fraction(len(STEADY), FPS)


# --- sound ---


def tone(start: int, count: int, layout: str = "mono", rate: int = 48000) -> av.AudioFrame:
    wave = (np.sin(np.arange(start, start + count) / 8) * 12000).astype(np.int16)
    channels = av.AudioLayout(layout).nb_channels
    frame = av.AudioFrame.from_ndarray(np.repeat(wave, channels)[None], format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame


def with_sound(path: Path, codec: str, layout: str = "stereo", seconds: float = 1.0) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream("wmv2" if path.suffix == ".wmv" else "mpeg4", rate=FPS)
        video.width, video.height = 64, 48
        audio = container.add_stream(codec, rate=48000, layout=layout)
        audio.bit_rate = 128_000
        for index in range(FPS):
            frame = av.VideoFrame.from_ndarray(moving_frame(index), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, int(48000 * seconds), 960):
            container.mux(audio.encode(tone(start, 960, layout)))
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
def test_sound_without_time_stamps(tmp_path: Path, ending: str) -> None:
    """The last packet of WMA has none."""
    source = with_sound(tmp_path / "a.wmv", "wmav2")
    with av.open(str(source)) as container:
        stamps = [frame.pts for frame in container.decode(audio=0)]
    assert None in stamps
    assert copy(source, tmp_path / f"b{ending}") == []
    _, expected, _ = sound_of(tmp_path / "a.wmv")
    _, start, _ = sound_of(tmp_path / f"b{ending}")
    assert abs(start - expected) < 0.03
    lengths = []
    for path in (source, tmp_path / f"b{ending}"):
        with av.open(str(path)) as container:
            lengths.append(sum(frame.samples for frame in container.decode(audio=0)))
    assert abs(lengths[1] - lengths[0]) < 1500
    assert len(read_frames(tmp_path / f"b{ending}")) == FPS


def test_a_change_of_channels_is_said(tmp_path: Path) -> None:
    source = with_sound(tmp_path / "a.mkv", "flac", "5.1")
    assert copy(source, tmp_path / "b.mp4") == ["its sound of 6 channels becomes stereo"]
    assert copy(source, tmp_path / "b.mkv") == []  # as it is
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.audio[0].codec_context.channels == 2


def test_damaged_sound_is_said_before_the_pictures_are_made(tmp_path: Path) -> None:
    source = with_sound(tmp_path / "a.mkv", "flac")
    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    data = bytearray(source.read_bytes())
    for position, size in packets[3:5]:
        data[position + 16 : position + size] = bytes(size - 16)
    source.write_bytes(data)
    size = {"width": 64, "height": 48, "frame_rate": Fraction(FPS)}
    with VideoWriter(tmp_path / "b.mp4", audio_from=source, **size) as writer:
        assert "packets of sound cannot be decoded and are silent" in writer.notes[0]
        for index in range(FPS):
            writer.write(moving_frame(index), Fraction(index, FPS))
    _, _, samples = sound_of(tmp_path / "b.mp4")
    assert abs(len(samples) / 48000 - 1) < 0.05


def test_sound_that_starts_late_and_pauses(tmp_path: Path) -> None:
    """Encoded again, it stays where it is; a pause is silence."""
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("mpeg4", rate=FPS)
        video.width, video.height = 64, 48
        audio = container.add_stream("pcm_s16le", rate=48000, layout="mono")
        for index in range(2 * FPS):
            frame = av.VideoFrame.from_ndarray(moving_frame(index), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in [*range(12000, 36000, 960), *range(72000, 96000, 960)]:
            container.mux(audio.encode(tone(start, 960)))
        container.mux(audio.encode())
    copy(source, tmp_path / "b.webm")
    _, start, samples = sound_of(tmp_path / "b.webm")
    loud = np.convolve(abs(samples) > 0.1 * abs(samples).max(), np.ones(960) / 960, "same") > 0.1
    edges = (np.flatnonzero(np.diff(loud.astype(int))) / 48000 + start)[:2]
    assert abs(start - 0.25) < 0.03 and abs(edges - [0.75, 1.5]).max() < 0.04
