"""The latent file: everything comes back exactly; every damage is found; nothing is left behind."""

import json
import os
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from regen.chunking import ChunkGeometry
from regen.latent_file import (
    LatentVideo,
    StorageDtype,
    check_writable,
    quantize,
    read_latents,
    round_latents,
    write_latents,
)

STORAGES: tuple[StorageDtype, ...] = ("float32", "bfloat16", "int8")


def latent_video(num_frames: int = 12, storage: StorageDtype = "float32", **changes) -> LatentVideo:
    generator = torch.Generator().manual_seed(num_frames)
    num_latent_frames = ChunkGeometry(8).num_latent_frames(num_frames)
    video = LatentVideo(
        latents=torch.randn(8, num_latent_frames, 2, 3, generator=generator),
        times=[Fraction(1001 * index, 24000) for index in range(num_frames)],
        height=15,
        width=24,
        frame_rate=Fraction(24000, 1001),
        time_base=Fraction(1, 90000),
        sample_aspect_ratio=Fraction(16, 15),
        temporal_compression_ratio=8,
        spatial_compression_ratio=8,
        latents_mean=torch.randn(8, 2, generator=generator),
        latents_std=torch.rand(8, 2, generator=generator),
        encoder_id="0123456789abcdef",
        storage=storage,
    )
    return replace(video, **changes)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("num_frames", [1, 2, 9, 10, 12])
def test_everything_comes_back(tmp_path, num_frames, storage):
    video = latent_video(num_frames, storage)
    write_latents(tmp_path / "a.safetensors", video)
    again = read_latents(tmp_path / "a.safetensors")
    assert torch.equal(again.latents, round_latents(video.latents, storage))
    for field in fields(LatentVideo):
        one, other = getattr(video, field.name), getattr(again, field.name)
        if field.name != "latents":
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    "times",
    [
        [Fraction(1001 * n, 24000) for n in range(0, 10**7, 1234567)],
        [Fraction(n, 90000) for n in (0, 1, 3003, 2**33)],  # a day of 90 kHz ticks
        [Fraction(n, 10**7) for n in (0, 333667, 667333, 10**12 + 1)],
        [Fraction(n, 1000) for n in (0, 33, 67, 100)],
        [Fraction(0), Fraction(1, 24), Fraction(1001, 24000), Fraction(7, 90000) + 1],
    ],
)
def test_times_are_exact(tmp_path, times):
    num_latent_frames = ChunkGeometry(8).num_latent_frames(len(times))
    video = latent_video(times=times, latents=torch.zeros(8, num_latent_frames, 2, 3))
    write_latents(tmp_path / "a.safetensors", video)
    assert read_latents(tmp_path / "a.safetensors").times == times


@pytest.mark.parametrize("storage", STORAGES)
def test_a_chunk_is_rounded_alike_alone_and_in_its_video(storage):
    latents = latent_video(27).latents * torch.linspace(0.1, 10, 6)[:, None, None]
    whole = round_latents(latents, storage)
    chunks = [round_latents(latents[:, start : start + 2], storage) for start in (0, 2, 4)]
    assert torch.equal(torch.cat(chunks, dim=1), whole)


def test_rounding_errors_are_those_of_the_types():
    latents = latent_video(27).latents
    assert torch.equal(round_latents(latents, "float32"), latents)
    bound = latents.abs() * 2**-8  # bfloat16 has 8 significant bits: half a step is 2**-9
    assert ((round_latents(latents, "bfloat16") - latents).abs() <= bound).all()
    _, scale = quantize(latents)
    error = (round_latents(latents, "int8") - latents).abs()
    assert (error <= 0.5001 * scale[:, :, None, None]).all()
    assert not round_latents(torch.zeros(8, 2, 2, 3), "int8").any()


def test_metadata_is_complete(tmp_path):
    write_latents(tmp_path / "a.safetensors", latent_video(storage="int8"))
    data = (tmp_path / "a.safetensors").read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert len(metadata.pop("checksum")) == 64
    assert metadata == {
        "format": "regen-latents-1",
        "num_frames": "12",
        "height": "15",
        "width": "24",
        "frame_rate": "24000/1001",
        "time_base": "1/90000",
        "ticks_per_s": "24000",
        "sample_aspect_ratio": "16/15",
        "temporal_compression_ratio": "8",
        "spatial_compression_ratio": "8",
        "encoder_id": "0123456789abcdef",
        "storage": "int8",
    }
    tensors = load_file(tmp_path / "a.safetensors")
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert shapes == {
        "latents": (torch.int8, (8, 4, 2, 3)),
        "scale": (torch.float32, (8, 4)),
        "times": (torch.int64, (12,)),
        "latents_mean": (torch.float32, (8, 2)),
        "latents_std": (torch.float32, (8, 2)),
    }


def error_of(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_latents(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("storage", "stride"), [("float32", 7), ("int8", 1)])
def test_every_flipped_byte_is_found(tmp_path, storage, stride):
    path = tmp_path / "a.safetensors"
    write_latents(path, latent_video(2, storage))
    data = path.read_bytes()
    for index in range(0, len(data), stride):
        path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        error_of(path)


def test_every_cut_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write_latents(path, latent_video(2))
    data = path.read_bytes()
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        error_of(path)
    path.write_bytes(data + b"x")
    error_of(path)


def test_foreign_and_missing_files_are_named(tmp_path):
    (tmp_path / "text.safetensors").write_text("not a safetensors file, but long enough for one")
    assert "not a latent file" in error_of(tmp_path / "text.safetensors")
    save_file({"latents": torch.zeros(8, 2, 2, 3)}, tmp_path / "foreign.safetensors")
    assert "not a latent file" in error_of(tmp_path / "foreign.safetensors")
    assert "no such file" in error_of(tmp_path / "missing.safetensors")
    assert "is not a file" in error_of(tmp_path)


def test_bad_targets_are_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    targets = ("folder.safetensors", "missing/a.safetensors", "a.mp4", "a", "/proc/a.safetensors")
    for target in targets:
        with pytest.raises(ValueError, match=target.split("/")[-1]):
            check_writable(tmp_path / target)
    for target in (targets[0], targets[1], targets[-1]):
        with pytest.raises(ValueError, match="cannot write there"):
            write_latents(tmp_path / target, latent_video())
    check_writable(tmp_path / "good.safetensors")
    assert os.listdir(tmp_path) == ["folder.safetensors"]


def test_read_only_file_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_latents(path, latent_video())
    before = path.read_bytes()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write read-only files
    with pytest.raises(ValueError, match="read-only"):
        check_writable(path)
    with pytest.raises(ValueError, match="read-only"):
        write_latents(path, latent_video(2))
    assert path.read_bytes() == before and len(os.listdir(tmp_path)) == 1


def test_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_latents(tmp_path / "a.safetensors", latent_video())
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
