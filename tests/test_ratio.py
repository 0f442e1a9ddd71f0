"""One model at every ratio up to its own: shorter chunks, stretched in time."""

from pathlib import Path

import pytest
import torch
from small_train import TEST_PRESET
from test_codec import moving_frames, write_video

from regen.chunking import stretch
from regen.codec import decode_file, encode_file
from regen.evaluation.metrics import psnr
from regen.latent_file import read_latents
from regen.loading import load_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.extension import decode_extended
from regen.training.config import TrainConfig
from regen.training.embedder import take_weights
from regen.video import read_frames


def test_stretching_blends_in_time() -> None:
    ramp = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 3, 3, 2, 2)
    stretched = stretch(ramp, 9)
    assert stretched.shape == (1, 3, 9, 2, 2)
    torch.testing.assert_close(stretched[0, 0, :, 0, 0], torch.linspace(0, 2, 9))
    assert stretch(ramp, 3) is ramp
    assert stretch(ramp[:, :, :1], 9).shape[2] == 1


@pytest.mark.parametrize("ratio", [1, 3, 8])
def test_any_length_at_any_ratio(small_model_folder: Path, ratio: int) -> None:
    model = load_model(f"{small_model_folder}@{ratio}")
    own = load_model(str(small_model_folder))
    assert model.temporal_compression_ratio == ratio and model.geometry.chunk_length == ratio + 1
    assert model.encoder_id() == own.encoder_id()
    video = torch.rand(1, 3, 3 * ratio + 4, 16, 24) * 2 - 1
    with torch.no_grad():
        latents = model.encode(video).latents
        again = model.decode(latents, num_frames=video.shape[2]).sample
    assert latents.shape[2] == model.geometry.num_latent_frames(video.shape[2])
    assert again.shape == video.shape and again.isfinite().all()


def test_the_encoder_sees_stretched_chunks() -> None:
    """Without moving content nothing else of a model sees the chunk."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderREGEN(**TEST_PRESET).eval()
    video = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = model.encode(stretch(video, 9)).latents
        model.set_chunk_ratio(4)
        torch.testing.assert_close(model.encode(video).latents, expected)


def test_its_own_ratio_changes_nothing(small_model_folder: Path) -> None:
    own, same = load_model(str(small_model_folder)), load_model(f"{small_model_folder}@8")
    video = torch.rand(1, 3, 12, 16, 24) * 2 - 1
    with torch.no_grad():
        assert torch.equal(own.encode(video).latents, same.encode(video).latents)


def test_shorter_chunks_are_nearer_to_a_moving_clip() -> None:
    """The embedded model on a square that jumps about: at 4x it is far better than at 32x."""
    video = torch.full((1, 3, 33, 64, 64), -0.6)
    for frame in range(33):
        place = 8 + (7 * frame * frame) % 40
        video[:, 0, frame, place : place + 16, 24:40] = 0.8
    found = {}
    for name in ("natural", "natural@4"):
        model = load_model(name)
        with torch.no_grad():
            again = model.decode(model.encode(video).latents, num_frames=33).sample
        found[name] = psnr(again, video).mean().item()
    assert found["natural@4"] > found["natural"] + 3, found


def test_the_ratio_is_saved(small_model_folder: Path, tmp_path: Path) -> None:
    load_model(f"{small_model_folder}@4").save_pretrained(tmp_path)
    loaded = AutoencoderREGEN.from_pretrained(tmp_path)
    assert loaded.temporal_compression_ratio == 4
    assert loaded.config.temporal_compression_ratio == 8


def test_a_latent_file_knows_its_ratio(small_model_folder: Path, tmp_path: Path) -> None:
    """It is decoded with the model that made it, whatever ratio that one stands at."""
    source = write_video(tmp_path / "in.mkv", moving_frames(12))
    encode_file(load_model(f"{small_model_folder}@3"), source, tmp_path / "a.safetensors")
    video = read_latents(tmp_path / "a.safetensors")
    assert video.temporal_compression_ratio == 3 and video.latents.shape[1] == 6
    written = []
    for name in (f"{small_model_folder}@3", str(small_model_folder)):
        out = tmp_path / f"{len(written)}.mkv"
        report = decode_file(load_model(name), video, out)
        assert report.num_decoded == 12
        written.append(read_frames(out).astype(int))
    assert abs(written[0] - written[1]).max() <= 1


def test_extended_chunks_are_at_their_own_times() -> None:
    """Chunk by chunk, with the frames before at another time, the first one is that of decode."""
    torch.manual_seed(0)
    model = AutoencoderREGEN(**TEST_PRESET).eval()
    torch.nn.init.normal_(model.dit.proj_out.weight, std=0.1)
    model.set_chunk_ratio(4)
    video = torch.rand(1, 3, 10, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = model.encode(video).latents
    plain = model.decode(latents, generator=torch.Generator().manual_seed(0)).sample
    extended = decode_extended(model, latents, 1, torch.Generator().manual_seed(0))
    assert extended.shape == plain.shape == video.shape
    torch.testing.assert_close(extended[:, :, :5], plain[:, :, :5])


def test_training_does_not_start_at_another_ratio(small_model_folder: Path) -> None:
    config = TrainConfig(data=("x",), output=Path("x"), init=f"{small_model_folder}@4")
    with pytest.raises(ValueError, match="give --init without @"):
        take_weights(load_model(str(small_model_folder)), config)


@pytest.mark.parametrize(
    ("ratio", "message"), [("9", "1 to 8x, got 9"), ("0", "got 0"), ("x", "a ratio in time")]
)
def test_other_ratios_are_refused(small_model_folder: Path, ratio: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_model(f"{small_model_folder}@{ratio}")
    assert "\n" not in str(caught.value)
