"""Streams: chunks where the content asks for them, whatever the portions; nothing is shared."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_codec import H, W, container_times, in_memory, moving_frames, write_video

from regen.chunking import ChunkSize
from regen.codec import FrameGrid, decode_file, encode_file, reconstruct_file
from regen.latent_file import LatentVideo, joined, read_latents, read_parts, write_latents
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.chunk_lengths import ChunkLengths
from regen.streaming import (
    CutDetector,
    EncodedChunk,
    StreamDecoder,
    StreamEncoder,
    decode_stream,
    encode_stream,
    fast_precision,
)
from regen.video import (
    PIPE,
    frames_to_video,
    is_streamed,
    open_video,
    read_frames,
    video_to_frames,
)


def two_scenes() -> np.ndarray:
    """14 frames, and 10 of another scene."""
    return np.concatenate([moving_frames(14) // 4, 255 - moving_frames(10) // 4])


# -- where chunks begin ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (9, 17), (64, 48)])
def test_cuts_and_both_sides_of_a_flash(size: tuple[int, int]) -> None:
    frames = (
        np.full((14, *size, 3), 60, np.uint8) + np.arange(14, dtype=np.uint8)[:, None, None, None]
    )
    frames[6:] += 90
    frames[10] = 255
    cuts = CutDetector()
    assert [index for index, one in enumerate(frames) if cuts.is_cut(one)] == [6, 10, 11]


def test_motion_and_noise_are_no_cuts() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for frames in (moving_frames(30, 32, 48), noise):
        cuts = CutDetector()
        assert not any(cuts.is_cut(one) for one in frames)


def test_a_chunk_starts_at_a_cut(small_model: AutoencoderREGEN) -> None:
    sizes = [chunk.size for chunk in encode_stream(small_model, two_scenes())]
    assert [size.num_frames for size in sizes] == [9, 5, 9, 1]
    assert {size.ratio for size in sizes} == {8}


def test_a_cut_spoils_no_frame(tmp_path: Path, small_model: AutoencoderREGEN) -> None:
    """The frames of a scene are those of the scene alone."""
    frames = two_scenes()
    source = write_video(tmp_path / "in.mkv", frames)
    encode_file(small_model, source, tmp_path / "a.safetensors", "float32")
    video = read_latents(tmp_path / "a.safetensors")
    assert [size.num_frames for size in video.chunk_sizes()] == [9, 5, 9, 1]
    report = decode_file(small_model, video, tmp_path / "out.mkv")
    assert report.num_decoded == 24 and report.chunk_lengths == [9, 5, 9, 1]
    assert np.array_equal(
        read_frames(tmp_path / "out.mkv")[14:], in_memory(small_model, frames[14:])
    )
    reconstruct_file(small_model, source, tmp_path / "two.mkv")
    assert np.array_equal(read_frames(tmp_path / "two.mkv"), read_frames(tmp_path / "out.mkv"))


@pytest.mark.parametrize(
    "sizes", [[(9, 8), (4, 8)], [(9, 8), (9, 8)], [(12, 11), (0, 1)], [(10, 8), (2, 8)]]
)
def test_chunks_that_cannot_be_are_damage(
    tmp_path: Path, sizes: list[tuple[int, int]], small_model: AutoencoderREGEN
) -> None:
    source = write_video(tmp_path / "in.mkv", moving_frames(12))
    encode_file(small_model, source, tmp_path / "a.safetensors")
    fields = vars(read_latents(tmp_path / "a.safetensors"))
    wrong = LatentVideo(**fields | {"sizes": tuple(ChunkSize(*one) for one in sizes)})
    write_latents(tmp_path / "b.safetensors", wrong)
    with pytest.raises(ValueError, match="damaged"):
        read_latents(tmp_path / "b.safetensors")


# -- chunks as long as the content allows ---------------------------------------------------------


def chosen(model: AutoencoderREGEN, frames: np.ndarray, quality: float) -> int:
    lengths = ChunkLengths(model, quality)
    lengths._first_error = lambda _: 1e-3  # type: ignore[method-assign]  # of a trained model
    num_frames, motion = lengths.choose(frames_to_video(frames)[None])
    assert motion is not None and motion.shape[1] == 16
    return num_frames


def test_what_stands_still_costs_little(small_model: AutoencoderREGEN) -> None:
    still, noise = (
        np.repeat(moving_frames(1), 9, axis=0),
        np.random.default_rng(0).integers(0, 256, (9, H, W, 3), dtype=np.uint8),
    )
    assert [chosen(small_model, still, quality) for quality in (0, 50, 100)] == [9, 9, 9]
    lengths = [chosen(small_model, noise, quality) for quality in (0, 60, 100)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == 9 and lengths[-1] == 2


def test_a_file_of_uneven_chunks(
    tmp_path: Path, small_model: AutoencoderREGEN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChunkLengths, "_first_error", lambda *_: 1e-3)
    frames = np.concatenate([np.repeat(two_scenes()[:1], 11, axis=0), moving_frames(8)])
    source = write_video(tmp_path / "in.mkv", frames)
    report = encode_file(small_model, source, tmp_path / "a.safetensors", "float32", quality=95)
    video = read_latents(tmp_path / "a.safetensors")
    sizes = video.chunk_sizes()
    assert sum(size.num_frames for size in sizes) == 19 and sizes[0] == (9, 8)
    assert {size.ratio for size in sizes} != {8}
    assert all(size.ratio == max(1, size.num_frames - 1) for size in sizes)
    assert report.num_latent_frames == sum(size.num_latent_frames for size in sizes)
    decode_file(small_model, video, tmp_path / "out.mkv")
    out = read_frames(tmp_path / "out.mkv")
    reconstruct_file(small_model, source, tmp_path / "two.mkv", quality=95)
    assert np.array_equal(read_frames(tmp_path / "two.mkv"), out)
    first = small_model.decode(video.latents[None, :, :2], num_frames=9, height=H, width=W).sample
    expected = (first[0].permute(1, 2, 3, 0) + 1) * 127.5  # seen without the chunk that follows
    assert np.abs(out[0] - expected[0].detach().numpy()).max() < 2


@pytest.mark.parametrize("quality", [-1, 101])
def test_quality_is_from_0_to_100(small_model: AutoencoderREGEN, quality: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 100"):
        StreamEncoder(small_model, quality)


# -- streams --------------------------------------------------------------------------------------


def latents_of(chunks: list[EncodedChunk]) -> torch.Tensor:
    return torch.cat([chunk.latents for chunk in chunks], dim=1)


@pytest.mark.parametrize("portion", [1, 7, 24])
@pytest.mark.parametrize("quality", [None, 90])
def test_portions_change_nothing(
    small_model: AutoencoderREGEN, portion: int, quality: float | None
) -> None:
    frames = two_scenes()
    encoder = StreamEncoder(small_model, quality)
    chunks = []
    for start in range(0, len(frames), portion):
        chunks += encoder.push(frames[start : start + portion])
    chunks += encoder.finish()
    expected = list(encode_stream(small_model, frames, quality))
    assert [chunk.size for chunk in chunks] == [chunk.size for chunk in expected]
    assert torch.equal(latents_of(chunks), latents_of(expected))


def test_interleaved_streams_do_not_mix(small_model: AutoencoderREGEN) -> None:
    videos = [moving_frames(20), two_scenes()[:20]]
    alone = [
        np.stack(list(decode_stream(small_model, encode_stream(small_model, one), H, W)))
        for one in videos
    ]
    encoders = [StreamEncoder(small_model) for _ in videos]
    decoders = [StreamDecoder(small_model, H, W) for _ in videos]
    found: list[list[np.ndarray]] = [[], []]
    for index in range(20):
        for number, video in enumerate(videos):
            for chunk in encoders[number].push(video[index : index + 1]):
                found[number] += decoders[number].push(chunk)
    for number in range(2):
        for chunk in encoders[number].finish():
            found[number] += decoders[number].push(chunk)
        found[number] += decoders[number].finish()
        assert np.array_equal(np.concatenate(found[number]), alone[number])


def test_the_first_frame_comes_after_one_chunk(small_model: AutoencoderREGEN) -> None:
    num_read = 0

    def frames():
        nonlocal num_read
        for pixels in moving_frames(40):
            num_read += 1
            yield pixels

    shown = decode_stream(small_model, encode_stream(small_model, frames()), H, W)
    for index in range(40):
        next(shown)
        assert num_read <= (9 * -(-index // 9) + 9 if index % 9 == 0 else 9 * (index // 9) + 18)
    assert next(shown, None) is None
    assert index == 39


@pytest.mark.parametrize("step", [1, 9])
def test_memory_does_not_grow(small_model: AutoencoderREGEN, step: int) -> None:
    """Also where only the first frame of each chunk is wanted."""
    frames = np.repeat(moving_frames(1), 9 * 12, axis=0)
    encoder = StreamEncoder(small_model)
    decoder = StreamDecoder(small_model, H, W, frame_times=range(0, len(frames), step))
    num_shown = 0
    for pixels in frames:
        for chunk in encoder.push(pixels[None]):
            num_shown += sum(len(one) for one in decoder.push(chunk))
        assert len(encoder._frames) < 9
        assert len(decoder._decode_chunk.__self__.firsts) <= 2  # type: ignore[attr-defined]
    assert num_shown + sum(len(one) for one in decoder.finish()) == len(frames) // step


def test_frames_of_another_size_are_refused(small_model: AutoencoderREGEN) -> None:
    encoder = StreamEncoder(small_model)
    encoder.push(moving_frames(9))
    with pytest.raises(ValueError, match="one size"):
        encoder.push(moving_frames(1, 32, 32))
    with pytest.raises(ValueError, match="uint8"):
        encoder.push(moving_frames(1).astype(np.float32))


# -- pipes ----------------------------------------------------------------------------------------


@contextmanager
def standard_output(path: Path) -> Iterator[None]:
    """Into a file, for Python and for FFmpeg."""
    kept, before = os.dup(1), sys.stdout
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
        sys.stdout = io.TextIOWrapper(file)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
            sys.stdout = before


class OnceReadable(io.RawIOBase):
    """A pipe: bytes without a place among them."""

    def __init__(self, data: bytes) -> None:
        self.source = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.source.readinto(buffer)


def test_a_pipe_holds_the_same(
    tmp_path: Path, small_model: AutoencoderREGEN, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_video(tmp_path / "in.mkv", two_scenes())
    encode_file(small_model, source, tmp_path / "a.safetensors", "int8")
    expected = read_latents(tmp_path / "a.safetensors")
    decode_file(small_model, expected, tmp_path / "out.mkv")
    assert is_streamed(source.read_bytes()[:12])
    pipe = SimpleNamespace(buffer=io.BufferedReader(OnceReadable(source.read_bytes())))
    monkeypatch.setattr(sys, "stdin", pipe)
    with standard_output(tmp_path / "latents"):
        encode_file(small_model, open_video(PIPE), PIPE, "int8")
    data = (tmp_path / "latents").read_bytes()
    parts = list(read_parts(io.BytesIO(data)))
    assert [part.num_frames for part in parts] == [9, 5, 9, 1]
    video = joined(parts)
    assert torch.equal(video.latents, expected.latents) and video.times == expected.times
    assert video.sizes == expected.sizes and video.end == expected.end
    with standard_output(tmp_path / "live.mkv"):
        decode_file(small_model, read_parts(io.BytesIO(data)), PIPE)
    assert np.array_equal(read_frames(tmp_path / "live.mkv"), read_frames(tmp_path / "out.mkv"))
    assert container_times(tmp_path / "live.mkv") == container_times(source)
    decode_file(
        small_model, read_parts(io.BytesIO(data)), tmp_path / "few", grid=FrameGrid(every=10)
    )
    assert np.array_equal(read_frames(tmp_path / "few")[1], read_frames(tmp_path / "out.mkv")[10])
    with pytest.raises(ValueError, match="no latent file"):
        list(read_parts(io.BytesIO(data[:-10])))


def test_what_comes_from_a_pipe_is_decoded_at_once(
    tmp_path: Path, small_model: AutoencoderREGEN
) -> None:
    """The first part is decoded before the second is read."""
    source = write_video(tmp_path / "in.mkv", moving_frames(27))
    with standard_output(tmp_path / "latents"):
        encode_file(small_model, source, PIPE)
    seen: list[int] = []

    def parts():
        for index, part in enumerate(read_parts((tmp_path / "latents").open("rb"))):
            assert len(seen) >= index
            yield part

    decode_file(small_model, parts(), tmp_path / "out.mkv", progress=seen.append)
    assert sum(seen) == 27


def test_a_chunk_is_decoded_at_its_own_ratio(small_model: AutoencoderREGEN) -> None:
    latents = torch.randn(8, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    chunk = EncodedChunk(latents, ChunkSize(5, 4))
    frames = np.stack(list(decode_stream(small_model, [chunk], 16, 24)))
    with torch.inference_mode(), fast_precision(small_model.device):
        expected = small_model.decode(latents[None], num_frames=5, ratio=4).sample
        other = small_model.decode(latents[None], num_frames=5).sample
    assert np.array_equal(frames, video_to_frames(expected[0]))
    assert not np.array_equal(frames, video_to_frames(other[0]))
