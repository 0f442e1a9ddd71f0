"""File to file: as many frames out as in, of the same size, at the same times, with the sound."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_motion import moved, smooth_picture

from regen.chunking import ChunkGeometry
from regen.codec import FrameGrid, compare_path, decode_file, encode_file, reconstruct_file
from regen.latent_file import LatentVideo, read_latents
from regen.perceptual.lpips import LPIPS
from regen.streaming import fast_precision
from regen.video import VideoWriter, frames_to_video, open_video, read_frames, video_to_frames

H, W = 16, 24


def moving_frames(num_frames: int, height: int = H, width: int = W) -> np.ndarray:
    """Smooth colours that drift: uint8 `[num_frames, height, width, 3]`."""
    n, y, x = np.mgrid[0:num_frames, 0:height, 0:width]
    phases = np.stack([x / 9 + n / 5, y / 7 - n / 6, (x + y) / 11 + n / 4], axis=-1)
    return np.round(127.5 + 120 * np.sin(phases)).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, times=None, rate=Fraction(25), **options) -> Path:
    times = [index / rate for index in range(len(frames))] if times is None else times
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, frame_rate=rate, **options) as writer:
        for picture, time in zip(frames, times, strict=True):
            writer.write(picture, time)
    return path


def write_tone(path: Path, seconds: float) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48000, layout="mono")
        tone = (np.sin(np.arange(int(48000 * seconds)) / 20) * 9000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def container_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def sound(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(float)


def in_memory(model, frames: np.ndarray, seed: int = 0, steps: int = 1) -> np.ndarray:
    """What the model makes of the whole video at once."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(), fast_precision(torch.device("cpu")):
        video = model(frames_to_video(frames)[None], steps, generator).sample
    return video_to_frames(video[0])


def listing(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@pytest.mark.parametrize("num_frames", range(1, 28))
def test_as_many_frames_out_as_in(tmp_path, small_model, num_frames):
    frames = moving_frames(num_frames)
    source = write_video(tmp_path / "in.mkv", frames)
    seen: list[int] = []
    report = reconstruct_file(small_model, source, tmp_path / "out.mkv", progress=seen.append)
    out = read_frames(tmp_path / "out.mkv")
    assert np.array_equal(out, in_memory(small_model, frames))  # chunk by chunk, lossless
    assert report.num_frames == report.num_decoded == sum(seen) == num_frames
    assert report.num_latent_frames == ChunkGeometry(8).num_latent_frames(num_frames)
    assert report.latent_values == 8 * report.num_latent_frames * 2 * 3
    assert container_times(tmp_path / "out.mkv") == container_times(source)


SIZES = [(1, 1), (1, 40), (8, 8), (8, 130), (9, 17), (15, 16), (31, 33), (48, 64), (130, 8)]


@pytest.mark.parametrize(("height", "width"), [*SIZES, (65, 127), (130, 130)])
@pytest.mark.parametrize("ending", [".mkv", ".mp4"])
def test_any_size(tmp_path, small_model, height, width, ending):
    frames = moving_frames(2, height, width)
    source = write_video(tmp_path / "in.mkv", frames)
    report = reconstruct_file(small_model, source, tmp_path / f"out{ending}")
    out = read_frames(tmp_path / f"out{ending}")
    assert out.shape == (2, height, width, 3) and (report.height, report.width) == (height, width)
    if ending == ".mkv":
        assert np.array_equal(out, in_memory(small_model, frames))


def test_report_is_measured_on_the_written_pictures(tmp_path, small_model):
    frames = moving_frames(11, 32, 48)
    source = write_video(tmp_path / "in.mkv", frames)
    report = reconstruct_file(small_model, source, tmp_path / "out.mkv")
    error = (frames.astype(float) - read_frames(tmp_path / "out.mkv")) ** 2
    expected = np.mean(10 * np.log10(255**2 / error.mean(axis=(1, 2, 3))))
    assert report.psnr == pytest.approx(expected, abs=1e-4)
    assert 0 < report.ssim < 1 and report.elapsed_s > 0
    assert report.frames_per_latent_frame == 11 / 4
    assert report.values_ratio == 3 * 11 * 32 * 48 / (8 * 4 * 4 * 6)


@pytest.mark.published
def test_lpips_is_of_the_written_pictures(tmp_path, small_model):
    source = write_video(tmp_path / "a.mkv", moving_frames(11, 32, 40))
    report = reconstruct_file(small_model, source, tmp_path / "out.mkv")
    one, other = (
        frames_to_video(read_frames(path)).transpose(0, 1)
        for path in (source, tmp_path / "out.mkv")
    )
    assert report.lpips == pytest.approx(LPIPS("alex")(other, one).mean().item(), abs=1e-6)


def test_ssim_of_a_tiny_picture_is_no_number(tmp_path, small_model):
    source = write_video(tmp_path / "in.mkv", moving_frames(1, 4, 4))
    assert np.isnan(reconstruct_file(small_model, source, tmp_path / "out.png").ssim)


# 90 kHz ticks of an uneven recording, and steps of 24000/1001 with some frames missing
UNEVEN = [
    [Fraction(n, 90000) for n in np.cumsum([0, *[3003, 2999, 6007, 1] * 4]).tolist()],
    [Fraction(1001 * n, 24000) for n in (0, 1, 2, 4, 5, 8, 9, 10, 11, 12, 20)],
]


@pytest.mark.parametrize("times", UNEVEN)
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_encode_and_decode_are_reconstruct(tmp_path, small_model, times, storage):
    """Pictures are compared lossless: x264's bytes of tiny pictures vary from run to run."""
    frames, rate = moving_frames(len(times)), Fraction(24000, 1001)
    source = write_video(tmp_path / "in.mp4", frames, times, rate)
    assert container_times(source) == times
    encode_file(small_model, source, tmp_path / "a.safetensors", storage)
    video = read_latents(tmp_path / "a.safetensors")
    assert video.times == times and video.storage == storage
    options = {"num_inference_steps": 2, "seed": 5}
    for ending in (".mkv", ".mp4"):
        one, two = tmp_path / f"one{ending}", tmp_path / f"two{ending}"
        reconstruct_file(small_model, source, one, storage=storage, **options)
        decode_file(small_model, video, two, **options)
        assert container_times(one) == container_times(two)
    assert container_times(two) == times  # .mp4 keeps them exactly, .mkv in milliseconds
    expected = read_frames(tmp_path / "one.mkv")
    assert np.array_equal(read_frames(tmp_path / "two.mkv"), expected)
    decode_file(small_model, video, tmp_path / "three.mkv", num_inference_steps=2, seed=6)
    assert not np.array_equal(read_frames(tmp_path / "three.mkv"), expected)


def test_storage_changes_the_reconstruction_a_little(tmp_path, small_model):
    frames = video_to_frames(moved(smooth_picture(48), (5.0, -3.0), (0.0, 0.0))[0])
    source = write_video(tmp_path / "in.mkv", frames)
    out = {}
    for storage in ("float32", "bfloat16", "int8"):
        reconstruct_file(small_model, source, tmp_path / f"{storage}.mkv", storage=storage)
        out[storage] = read_frames(tmp_path / f"{storage}.mkv").astype(int)
    for storage in ("bfloat16", "int8"):
        difference = np.abs(out[storage] - out["float32"])
        assert 0 < difference.mean() < 5  # of 255, by random weights


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".mkv"])
def test_sound_and_uneven_times_go_along(tmp_path, small_model, ending):
    times = [Fraction(n, 1000) for n in (0, 40, 80, 200, 240, 280, 290, 400, 440, 480, 520)]
    tone = write_tone(tmp_path / "tone.wav", 0.56)
    source = tmp_path / "in.mp4"
    write_video(source, moving_frames(len(times), 32, 48), times, audio_from=tone)
    out = tmp_path / f"out{ending}"
    reconstruct_file(small_model, source, out)
    assert container_times(out) == times
    assert np.std(sound(out)) > 0.5 * np.std(sound(source)) > 0
    encode_file(small_model, source, tmp_path / "a.safetensors")
    video = read_latents(tmp_path / "a.safetensors")
    decode_file(small_model, video, tmp_path / f"two{ending}", audio_from=source)
    assert np.array_equal(sound(tmp_path / f"two{ending}"), sound(out))


def test_folder_in_folder_out(tmp_path, small_model):
    frames = moving_frames(11)
    write_video(tmp_path / "in", frames)
    reconstruct_file(small_model, tmp_path / "in", tmp_path / "out", compare=True)
    assert np.array_equal(read_frames(tmp_path / "out"), in_memory(small_model, frames))
    assert read_frames(tmp_path / "out-compare").shape == (11, H, 3 * W, 3)


def test_picture_in_picture_out(tmp_path, small_model):
    frames = moving_frames(1, 21, 19)
    Image.fromarray(frames[0]).save(tmp_path / "in.png")
    reconstruct_file(small_model, tmp_path / "in.png", tmp_path / "out.png")
    out = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(out, in_memory(small_model, frames)[0])


def test_short_side(tmp_path, small_model):
    source = write_video(tmp_path / "in.mkv", moving_frames(2, 30, 50))
    report = reconstruct_file(small_model, source, tmp_path / "out.mkv", short_side=15)
    assert (report.height, report.width) == (15, 25)
    assert read_frames(tmp_path / "out.mkv").shape == (2, 15, 25, 3)
    encode_file(small_model, source, tmp_path / "a.safetensors", "float32", short_side=15)
    decode_file(small_model, read_latents(tmp_path / "a.safetensors"), tmp_path / "two.mkv")
    assert np.array_equal(read_frames(tmp_path / "two.mkv"), read_frames(tmp_path / "out.mkv"))


def test_compare_shows_source_reconstruction_and_error(tmp_path, small_model):
    frames = moving_frames(10)
    source = write_video(tmp_path / "in.mkv", frames)
    reconstruct_file(small_model, source, tmp_path / "out.mkv", compare=True)
    left, middle, right = np.split(read_frames(compare_path(tmp_path / "out.mkv")), 3, axis=2)
    assert np.array_equal(left, frames)
    assert np.array_equal(middle, read_frames(tmp_path / "out.mkv"))
    assert np.array_equal(right, np.minimum(4 * np.abs(left.astype(int) - middle), 255))


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv"])
@pytest.mark.parametrize("existing", [False, True])
def test_truncated_video_leaves_nothing(tmp_path, small_model, name, existing):
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    data = write_video(tmp_path / name, noise).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
    outputs = ["out.mkv", "out.compare.mkv", "a.safetensors"] if existing else []
    for output in outputs:
        (tmp_path / output).write_text("old")
    with pytest.raises(ValueError, match=name):
        reconstruct_file(small_model, tmp_path / name, tmp_path / "out.mkv", compare=True)
    with pytest.raises(ValueError, match=name):
        encode_file(small_model, tmp_path / name, tmp_path / "a.safetensors")
    assert listing(tmp_path) == {name, *outputs}
    assert all((tmp_path / output).read_text() == "old" for output in outputs)


@pytest.mark.parametrize("failing", ["out.mkv", "out.compare.mkv"])
@pytest.mark.parametrize("method", ["write", "finish"])
def test_a_failure_in_one_file_leaves_neither(tmp_path, small_model, monkeypatch, failing, method):
    source = write_video(tmp_path / "in.mkv", moving_frames(10))
    original = getattr(VideoWriter, method)

    def broken(writer: VideoWriter, *arguments: object) -> None:
        if writer.path.name == failing:
            raise OSError("no space left on device")
        original(writer, *arguments)

    monkeypatch.setattr(VideoWriter, method, broken)
    with pytest.raises(OSError, match="no space"):
        reconstruct_file(small_model, source, tmp_path / "out.mkv", compare=True)
    assert listing(tmp_path) == {"in.mkv"}


# -- other times ----------------------------------------------------------------------------------


def video_of(times: list[Fraction]) -> LatentVideo:
    """One of no content; 24 frames/s where its `times` do not say."""
    return LatentVideo(
        *(torch.zeros(8, 1, 1, 1), times, 8, 8, Fraction(24), Fraction(1, 24000), Fraction(1)),
        *(8, 8, torch.zeros(8, 2), torch.ones(8, 2), "0" * 16),
    )


def shown(grid: FrameGrid, times: list[Fraction]) -> list[tuple[float, float]]:
    """(frame of the source, seconds) of each frame."""
    video = video_of(times)
    pairs = list(zip(grid.timestamps(video), grid.shown_at(video), strict=True))
    assert len(pairs) == grid.num_frames(video)
    return [(float(frame), float(seconds)) for frame, seconds in pairs]


def test_which_frames_and_when() -> None:
    times = [Fraction(n, 24) for n in range(4)]
    assert shown(FrameGrid(), times) == [(n, n / 24) for n in range(4)]
    assert shown(FrameGrid(every=2), times) == [(0, 0), (2, 2 / 24)]
    assert shown(FrameGrid(multiplier=2), times) == [(n / 2, n / 48) for n in range(7)]
    around = FrameGrid(frames_before=2, frames_after=1)
    assert shown(around, times) == [(n - 2, n / 24) for n in range(7)]
    # The last frame lasts as it did: there is nothing after it.
    faster = [(min(n * 0.4, 3), n / 60) for n in range(10)]
    np.testing.assert_allclose(shown(FrameGrid(frame_rate=Fraction(60)), times), faster)
    slower = [(min(n / 2.5, 3), n / 24) for n in range(10)]
    np.testing.assert_allclose(shown(FrameGrid(slow_motion=Fraction(5, 2)), times), slower)
    assert FrameGrid(slow_motion=Fraction(5, 2)).end(video_of(times)) == Fraction(10, 24)
    both = FrameGrid(
        frame_rate=Fraction(12), slow_motion=Fraction(1, 2), frames_before=1, frames_after=2
    )
    assert shown(both, times) == [(-1, 0), (3, 1 / 12)]


def test_a_constant_rate_of_uneven_times() -> None:
    """A frame of 1 s between frames of 0.1 s: the time within it is gone through evenly."""
    times = [Fraction(0), Fraction(1, 10), Fraction(11, 10), Fraction(12, 10)]
    found = shown(FrameGrid(frame_rate=Fraction(2)), times)
    np.testing.assert_allclose(found, [(0, 0), (1.4, 0.5), (1.9, 1)])


@pytest.mark.parametrize("num_frames", [1, 9, 10, 20])
def test_frames_between(tmp_path, small_model, num_frames):
    times = [Fraction(n * n, 1000) for n in range(num_frames)]
    source = write_video(tmp_path / "in.mp4", moving_frames(num_frames), times)
    encode_file(small_model, source, tmp_path / "a.safetensors", "float32")
    video = read_latents(tmp_path / "a.safetensors")
    seen: list[int] = []
    grid = FrameGrid(multiplier=4)
    report = decode_file(
        small_model, video, tmp_path / "out", progress=seen.append, grid=grid, seed=3
    )
    generator = torch.Generator().manual_seed(3)
    frame_times = torch.arange(4 * (num_frames - 1) + 1) / 4
    with torch.inference_mode(), fast_precision(torch.device("cpu")):
        whole = small_model.decode(
            video.latents[None], frame_times=frame_times, height=H, width=W, generator=generator
        ).sample
    difference = read_frames(tmp_path / "out").astype(int) - video_to_frames(whole[0])
    assert np.abs(difference).max() <= 1  # frames go through the network in other groups
    assert sum(seen) == report.num_decoded == len(frame_times)
    assert report.num_frames == num_frames and max(seen) <= 9  # never more than a chunk at once
    decode_file(small_model, video, tmp_path / "out.mp4", grid=grid)
    written = container_times(tmp_path / "out.mp4")
    assert written[::4] == times and written == sorted(set(written))
    if num_frames > 1:
        assert written[1] == pytest.approx(float(times[1]) / 4, abs=1e-5)


def test_quick_preview(tmp_path, small_model):
    times = [Fraction(1001 * n, 24000) for n in range(24)]
    rate = Fraction(24000, 1001)
    source = write_video(tmp_path / "in.mp4", moving_frames(24), times, rate)
    encode_file(small_model, source, tmp_path / "a.safetensors")
    video = read_latents(tmp_path / "a.safetensors")
    report = decode_file(small_model, video, tmp_path / "out.mp4", grid=FrameGrid(every=5))
    assert container_times(tmp_path / "out.mp4") == times[::5] and report.num_decoded == 5
    with open_video(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 5 and reader.end == 24 / rate  # as long as the source
    sparse = decode_file(small_model, video, tmp_path / "one.png", grid=FrameGrid(every=24))
    assert sparse.num_decoded == 1 and read_frames(tmp_path / "one.png").shape == (1, H, W, 3)


@pytest.mark.parametrize(
    "options",
    [
        *({"every": 0}, {"multiplier": -3}, {"frames_before": -1}, {"frame_rate": Fraction(0)}),
        *({"slow_motion": Fraction(0)}, {"every": 2, "multiplier": 2}),
        {"every": 2, "frame_rate": Fraction(60)},
    ],
)
def test_bad_grids_are_refused(options):
    with pytest.raises(ValueError, match=r"at least|above 0|exclude"):
        FrameGrid(**options)
