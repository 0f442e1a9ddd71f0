"""The temporal codec: its coefficients, what it may see, its stage of the training."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_train import TEST_PRESET
from test_training import moving_chunks, write_data

from regen.data.batches import BatchConfig, TrainingBatches, to_float
from regen.data.clips import prepare_clips
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.shortcut import MotionShortcut
from regen.models.temporal import NUM_GATES, VALUES, TemporalCodec, cosines, patch_cosines
from regen.training import temporal_stage
from regen.training.picture_stage import init_picture
from regen.training.temporal_stage import ExampleBatches, temporal_loss, train_temporal

RATIO = 8


def codec(num_coefficients: int = 96) -> TemporalCodec:
    torch.manual_seed(0)
    return TemporalCodec(RATIO, 4, 12, num_coefficients, 8, (1, 1)).requires_grad_(False)


def frames(size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, RATIO, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_transforms_are_orthonormal() -> None:
    for matrix in (cosines(RATIO), patch_cosines()):
        assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5)


def test_all_coefficients_are_the_frames() -> None:
    """Energy is kept, and with all of them known each frame is drawn as it was."""
    one = codec(RATIO * VALUES)
    video = frames()
    known = one.coefficients(video)
    assert known.square().sum() == pytest.approx(video.square().sum().item(), rel=1e-4)
    times = torch.arange(1.0, RATIO + 1).expand(2, -1)
    assert torch.allclose(one.draw(known, times), video, atol=1e-4)
    assert not one.draw(known, torch.zeros(2, 1)).any()  # frame 0 is the picture codec's
    assert not one.draw(known, -torch.ones(2, 1)).any()


def test_between_frames_it_is_continuous() -> None:
    one = codec()
    known = torch.randn(1, 96, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, RATIO + 2, 400)[None]
    steps = one.draw(known, times).diff(dim=2).abs().amax()
    assert 0 < steps < 0.3 * one.draw(known, times).abs().amax()


def test_each_coefficient_has_a_gate_but_the_mean_colours() -> None:
    gates = codec(RATIO * VALUES).gates()
    means = (gates == NUM_GATES).nonzero()[:, 0].tolist()
    assert means == [0, 64, 128]  # order 0 in time and in space of each colour axis
    others = gates[gates < NUM_GATES].unique()
    assert others.min() >= 0 and len(others) > NUM_GATES / 2  # 8 frames have not all orders


def test_networks_start_as_nothing() -> None:
    """Codes are linear in what the warp leaves, and without codes nothing is added to the warp."""
    one = codec()
    torch.nn.init.zeros_(one.synthesis.bias)
    planes = torch.randn(2, 96, 4, 4)
    picture, conditions = torch.randn(2, VALUES, 4, 4), torch.zeros(2, 12, 4, 4)
    torch.nn.init.zeros_(one.analysis.bias)
    assert not one.encode(planes, planes, picture).any()
    assert not one.decode(torch.zeros(2, 4, 4, 4), conditions, planes, picture).any()


def test_refined_codes_decode_better_whoever_else_is_there() -> None:
    one = codec()
    torch.nn.init.normal_(one.decoder.conv_out.weight, std=0.1)
    generator = torch.Generator().manual_seed(0)
    chunk, base = torch.randn(2, 2, 96, 4, 4, generator=generator)
    picture, conditions = torch.randn(2, VALUES, 4, 4), torch.randn(2, 12, 4, 4)
    with torch.inference_mode():  # as the command line runs it
        codes = one.encode(chunk, base, picture)
        refined = one.refine(codes, conditions, chunk, base, picture)
        errors = [
            (base + one.decode(these, conditions, base, picture) - chunk).square().sum((1, 2, 3))
            for these in (codes, refined)
        ]
        given = (conditions[1:], 5 * chunk[1:], base[1:], picture[1:])
        alone = one.refine(codes[1:], conditions[1:], chunk[1:], base[1:], picture[1:])
        other = one.refine(codes[1:], *given)
    assert (errors[1] < errors[0]).all(), errors
    assert torch.allclose(alone, refined[1:], atol=1e-4)
    assert not torch.allclose(other, alone, atol=1e-2)


def model_of(preset: dict, **changes) -> AutoencoderREGEN:
    torch.manual_seed(0)
    return AutoencoderREGEN(**(preset | {"temporal_coefficients": 96, "temporal_width": 8}))


def test_a_model_with_it() -> None:
    """Latents of any size, content from frame 0 alone, frame 0 the same however it is asked for."""
    model = model_of(TEST_PRESET)
    assert model.linear_decoder is None and model.shortcut.temporal is not None
    torch.nn.init.normal_(model.shortcut.temporal.synthesis.weight, std=0.1)
    video = torch.rand(1, 3, 9, 40, 56) * 2 - 1  # 5 x 7 places: both odd
    with torch.no_grad():
        latents = model.encode(video).latents
        assert latents.shape == (1, 8, 2, 5, 7)
        alone = model.encode(video[:, :, :1]).latents
        assert torch.equal(alone[:, :, 0], latents[:, :, 0])
        all_frames = model.decode(latents, num_frames=9).sample
        some = model.decode(latents, frame_times=[0.0, 4.0, 8.0]).sample
    assert all_frames.shape == video.shape and all_frames.isfinite().all()
    # The DiT's attention sees the frames that are asked for; the shortcut's picture does not.
    raw, times = model.denormalize_latents(latents), torch.arange(9.0)[None]
    whole = model.predict_shortcut(raw, times)
    assert torch.allclose(whole[:, :, 4:5], model.predict_shortcut(raw, times[:, 4:5]), atol=1e-5)
    assert some.shape == (1, 3, 3, 40, 56)
    # To an image, whose motion latent is a constant, the codec adds nothing.
    image = model.fill_motion(raw[:, :, :1])
    as_image, as_chunk = (model.predict_shortcut(image, times, one) for one in (True, False))
    assert torch.allclose(as_image, as_image[:, :, :1].expand_as(as_image), atol=1e-5)
    assert not torch.allclose(as_chunk, as_image, atol=1e-3)


# --- its stage of the training ---


@pytest.fixture(autouse=True)
def _no_state_left():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("temporal") / "data"
    write_data(folder)
    return folder


def shortcut_of(data: Path) -> tuple[MotionShortcut, TrainingBatches]:
    clips = prepare_clips([data], data.parent / "cache").clips
    config = BatchConfig(seed=0, num_steps=4, chunk_length=9, crop=32)
    model = model_of(TEST_PRESET)
    assert model.shortcut is not None
    init_picture(model.shortcut.picture, [chunk[:, :, 0] for chunk in moving_chunks()])
    return model.shortcut, TrainingBatches(clips, config)


def train_small(data: Path, folder: Path, num_steps: int) -> MotionShortcut:
    shortcut, batches = shortcut_of(data)
    accelerator = Accelerator(mixed_precision="no")
    train_temporal(shortcut, batches, 24, num_steps, accelerator, folder, 1000, 0)
    return shortcut


def error(shortcut: MotionShortcut, folder: Path) -> float:
    """The stage's loss on the examples in `folder`."""
    assert shortcut.temporal is not None
    examples = ExampleBatches(folder / "examples", 24, 1, 0).read(range(24))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        loss = temporal_loss(shortcut.temporal, examples.to(torch.device("cpu")), generator)
    return loss.item()


def test_the_stage_learns(data: Path, tmp_path: Path) -> None:
    """It beats its linear start, which beats the warp alone; only the codec has changed."""
    shortcut, batches = shortcut_of(data)
    before = {name: one.clone() for name, one in shortcut.picture.state_dict().items()}
    start = train_small(data, tmp_path / "short", 1)
    after = train_small(data, tmp_path / "long", 150)
    for name, one in after.picture.state_dict().items():
        assert torch.equal(one, before[name]), name
    assert not any(parameter.requires_grad for parameter in after.parameters())
    video, times = to_float(batches.video(np.random.default_rng(0))), torch.arange(9.0)[None]
    with torch.no_grad():
        seen = start.warped(video, start.picture.encode(video[:, :, 0]))[2]
        again = start(start.encode(video), times)
    assert (again - video).square().mean() < 0.9 * (seen - video[:, :, 1:]).square().mean()
    gain = error(start, tmp_path / "long") - error(after, tmp_path / "long")
    assert gain > 0.1, gain  # 0.4 dB


def test_a_stopped_stage_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and no example is made twice."""
    whole = train_small(data, tmp_path / "whole", 6)
    loss, calls = temporal_stage.temporal_loss, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*arguments)

    monkeypatch.setattr(temporal_stage, "temporal_loss", interrupted)
    with pytest.raises(SystemExit):
        train_small(data, tmp_path / "pieces", 6)
    monkeypatch.setattr(temporal_stage, "make_example", None)
    again = train_small(data, tmp_path / "pieces", 6)
    assert len(calls) == 6
    for (name, tensor), other in zip(
        whole.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
