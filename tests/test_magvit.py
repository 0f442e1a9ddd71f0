"""Properties of the baseline: shapes, causality, the paper's sizes, training and resumption."""

from pathlib import Path

import pytest
import small_train
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from test_training import assert_same, before_step, config_of, state_of, write_data

from regen.baselines import objective as baseline
from regen.baselines.discriminator import VideoDiscriminator
from regen.baselines.magvit import AutoencoderMAGVITv2, spread_latents
from regen.baselines.objective import DiscriminatorObjective, MAGVITObjective
from regen.baselines.pyramid import pyramid_distance
from regen.codec import reconstruct_file
from regen.data.clips import prepare_clips
from regen.loading import load_model, new_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.reproduction.experiments import gflops_per_frame
from regen.training.embedder import train

RATIOS = (4, 8, 16, 32)


def tiny(ratio: int = 8) -> AutoencoderMAGVITv2:
    halvings = ratio.bit_length()
    torch.manual_seed(ratio)
    model = new_model(
        f"magvit_small_{ratio}x",
        encoder_block_out_channels=(8,) * halvings,
        decoder_block_out_channels=(16,) * halvings,
    )
    assert isinstance(model, AutoencoderMAGVITv2)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return model.eval()


# --- model ---


@pytest.mark.parametrize(
    ("ratio", "length", "num_latents"), [(4, 17, 5), (8, 17, 3), (16, 17, 2), (32, 33, 2)]
)
def test_latent_frames_of_a_chunk(ratio: int, length: int, num_latents: int) -> None:
    """B.2.1: 17 frames become 5, 3, 2 latent frames, 33 become 2."""
    model = tiny(ratio)
    assert model.geometry.chunk_length == length
    latents = model.encode(torch.zeros(1, 3, length, 16, 16)).latents
    assert latents.shape == (1, 8, num_latents, 2, 2)
    assert model.decode(latents).sample.shape == (1, 3, length, 16, 16)


@pytest.mark.parametrize("num_frames", [1, 2, 9, 10, 17, 18, 20, 35])
def test_any_length_and_size(num_frames: int) -> None:
    model = tiny()
    video = torch.rand(1, 3, num_frames, 13, 21) * 2 - 1
    latents = model.encode(video).latents
    assert latents.shape == (1, 8, model.geometry.num_latent_frames(num_frames), 2, 3)
    assert model(video).sample.shape == video.shape
    with pytest.raises(ValueError, match="latent frames at ratio"):
        model.decode(latents, num_frames=num_frames + 17)


def test_encoder_and_decoder_are_causal() -> None:
    """Bit for bit: what a later frame changes lies after it."""
    model = tiny()
    video = torch.rand(1, 3, 17, 16, 16) * 2 - 1
    other = video.clone()
    other[:, :, 9:] = -other[:, :, 9:]
    one, two = (model.encode(each).latents for each in (video, other))
    assert torch.equal(one[:, :, :2], two[:, :, :2]) and not torch.equal(one, two)
    changed = one.clone()
    changed[:, :, 2] += 1
    one, two = (model.decode(each).sample for each in (one, changed))
    assert torch.equal(one[:, :, :9], two[:, :, :9]) and not torch.equal(one[:, :, 9], two[:, :, 9])


def test_each_frame_has_the_latent_that_stands_for_it() -> None:
    latents = torch.arange(3.0).view(1, 1, 3, 1, 1)
    spread = spread_latents(latents, torch.Size((17, 2, 2)))[0, 0, :, 1, 1]
    assert spread.tolist() == [0.0] + 8 * [1.0] + 8 * [2.0]
    assert spread_latents(latents[:, :, :1], torch.Size((1, 1, 1))).item() == 0


def test_what_it_has_no_part_for_is_refused() -> None:
    model, latents = tiny(), torch.zeros(1, 8, 3, 2, 2)
    with pytest.raises(ValueError, match="own times"):
        model.decode(latents, frame_times=[0.5])
    with pytest.raises(ValueError, match="one step"):
        model.decode(latents, num_inference_steps=2)
    with pytest.raises(ValueError, match="strides and patch"):
        new_model("magvit_small_8x", decoder_strides=((1, 1),) * 5)


def test_a_folder_loads_and_reconstructs_a_file(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert isinstance(loaded, AutoencoderMAGVITv2)
    video = torch.rand(1, 3, 17, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(video).latents, model.encode(video).latents)
    write_data(tmp_path / "data")
    report = reconstruct_file(loaded, tmp_path / "data" / "0.mkv", tmp_path / "again.mkv")
    assert (report.num_frames, report.num_latent_frames) == (24, 5)  # 17 + 7 frames: 3 + 2
    again = load_model(str(tmp_path / "model"))
    assert isinstance(again, AutoencoderMAGVITv2)


# --- presets ---


def count(name: str, part: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for n, p in new_model(name).named_parameters() if n.startswith(part))


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_encoder_is_regens(ratio: int) -> None:
    """B.2.2: the same design; MAGVIT-v2's gives means and variances."""
    for kind in ("", "small_"):
        own, other = f"magvit_{kind}{ratio}x", f"{kind or 'regen_'}{ratio}x"
        with torch.device("meta"):
            baseline, regen = new_model(own), new_model(other)
        one, two = (dict(model.encoder.named_parameters()) for model in (baseline, regen))
        different = {name for name in one if one[name].shape != two[name].shape}
        assert one.keys() == two.keys() and different == {"conv_out.weight", "conv_out.bias"}


@pytest.mark.parametrize("ratio", [16, 32])
def test_the_widened_decoder_has_the_parameters_of_regens(ratio: int) -> None:
    """App. E."""
    with torch.device("meta"):
        regen = new_model(f"regen_{ratio}x")
    other = sum(p.numel() for n, p in regen.named_parameters() if not n.startswith("encoder"))
    assert count(f"magvit_{ratio}x_wide", "decoder") == pytest.approx(other, rel=0.05)
    assert count(f"magvit_{ratio}x", "decoder") < 0.3 * other


@pytest.mark.parametrize("ratio", RATIOS)
def test_small_decoders_cost_the_same(ratio: int) -> None:
    baseline, regen = gflops_per_frame([f"magvit_small_{ratio}x", f"small_{ratio}x"], 256).values()
    assert baseline == pytest.approx(regen, rel=0.08)


# --- discriminator and losses ---


def test_pyramid_distance() -> None:
    frames = torch.rand(3, 3, 33, 18)
    assert torch.equal(pyramid_distance(frames, frames), torch.zeros(3))
    flat = pyramid_distance(frames, frames + 0.25)  # the mean is in the coarsest band alone
    assert torch.allclose(flat, torch.tensor(0.25), atol=1e-6)
    blurred = F.avg_pool2d(frames, 3, 1, 1)
    assert (pyramid_distance(frames, blurred) > 0.1).all()


def objectives() -> tuple[MAGVITObjective, DiscriminatorObjective]:
    torch.manual_seed(0)
    discriminator = VideoDiscriminator(8, (2,), 4)
    objective = MAGVITObjective(tiny().train(), discriminator, pyramid_distance, True)
    return objective, DiscriminatorObjective(discriminator, objective)


def batch_at(progress: float) -> dict:
    generator = torch.Generator().manual_seed(1)
    chunk = torch.randint(0, 256, (2, 3, 17, 16, 16), dtype=torch.uint8, generator=generator)
    return {"chunk": chunk, "progress": progress}


def test_they_learn_in_turn() -> None:
    """Neither's loss moves the other; the discriminator waits for a third of the run."""
    objective, opponent = objectives()
    generator = torch.Generator().manual_seed(0)
    early = batch_at(0.3)
    objective(**objective.prepare(early, generator)).mean().backward()
    assert opponent.prepare(early, generator) is None and "adversarial" not in objective.terms
    late = batch_at(0.4)
    objective(**objective.prepare(late, generator)).mean().backward()
    assert all(p.grad is None for p in opponent.parameters())
    assert all(p.grad is not None for p in objective.model.parameters())
    assert not any(name.startswith("discriminator") for name, _ in objective.named_parameters())
    objective.zero_grad(set_to_none=True)
    inputs = opponent.prepare(late, generator)
    assert inputs is not None
    opponent(**inputs).mean().backward()
    assert all(p.grad is not None for p in opponent.parameters())
    assert all(p.grad is None for p in objective.parameters())
    assert opponent.prepare(late, generator) is None


def test_the_adversarial_gradient_is_a_tenth_at_the_last_layer() -> None:
    objective, _ = objectives()
    last = objective.model.decoder.conv_out.weight

    def gradient(progress: float) -> torch.Tensor:
        inputs = objective.prepare(batch_at(progress), torch.Generator().manual_seed(1))
        return torch.autograd.grad(objective(**inputs).mean(), last)[0]

    without, with_it = gradient(0.0), gradient(1.0)
    ratio = ((with_it - without).norm() / without.norm()).item()
    assert ratio == pytest.approx(baseline.ADVERSARIAL_WEIGHT, rel=0.02)


# --- training ---


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch):
    small_train.make_small(monkeypatch)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("magvit") / "data"
    write_data(folder)
    prepare_clips([folder], folder.parent / "cache")
    return folder


def test_train_6_is_train_4_stop_and_go_on(data: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """Bit for bit, with the discriminator, its moments and LeCAM's means."""
    options = {"preset": "magvit_test", "steps": 6, "validate_every": 6}
    whole, pieces = (config_of(data, tmp_path / name, **options) for name in ("whole", "pieces"))
    train(whole)

    def fail() -> None:
        raise KeyboardInterrupt

    before_step(monkeypatch, 5, fail)
    with pytest.raises(KeyboardInterrupt):
        train(pieces)
    train(pieces)
    assert "resuming at step 4 of 6" in capfd.readouterr().out
    one, other = state_of(whole.output, 6), state_of(pieces.output, 6)
    assert_same(one, other)
    kinds = {".".join(name.split(".")[:2]) for name in one if name.startswith("discriminator.")}
    assert kinds == {"discriminator.model", "discriminator.optimizer"}
    assert one["discriminator.model.real_logit"] != 0
    assert (
        one["discriminator.optimizer.step.discriminator.conv_in.weight"] == 4
    )  # of 6: from 1/3 on
    model = "model/diffusion_pytorch_model.safetensors"
    assert_same(load_file(whole.output / model), load_file(pieces.output / model))
    assert isinstance(load_model(str(whole.output / "model")), AutoencoderMAGVITv2)
    assert "Laplacian pyramid" in (whole.output / "losses.txt").read_text()


def test_a_checkpoint_of_another_discriminator_is_refused(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path / "run", preset="magvit_test", steps=2, validate_every=9)
    train(config)
    path = config.output / "checkpoints" / "step_00000002.safetensors"
    tensors = load_file(path)
    tensors.pop("discriminator.model.discriminator.conv_in.weight")
    save_file(tensors, path, metadata={"step": "2", "ema_steps": "2"})
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="of another model"):
        train(config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shard": True}, "--shard: not for preset magvit_test"),
        ({"prediction_type": "epsilon"}, "--prediction-type: not for"),
        ({"latent_noise": 0.1}, "--latent-noise: not for"),
        ({"perceptual_weights": Path("nowhere")}, "no such file"),
    ],
)
def test_options_that_are_not_the_baselines(data: Path, tmp_path: Path, options, said) -> None:
    with pytest.raises(ValueError, match=said):
        train(config_of(data, tmp_path / "run", preset="magvit_test", **options))
    assert not (tmp_path / "run").exists()


# --- in-context conditioning ---


def test_in_context_latents_reach_the_video_and_positions_are_fixed() -> None:
    torch.manual_seed(0)
    model = new_model("small_in_context_8x", num_layers=1)
    assert isinstance(model, AutoencoderREGEN)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    latents, times = torch.randn(1, 8, 2, 4, 4), torch.tensor([[0.0, 2.5]])
    noise, now = torch.randn(1, 3, 2, 32, 32), torch.ones(1)
    predict = lambda one: model.predict(noise, now, one, times)  # noqa: E731
    assert predict(latents).shape == noise.shape
    assert not torch.allclose(predict(latents), predict(latents + 1))
    added = model.conditioning(latents, times)[0]
    assert torch.equal(added, model.conditioning(latents + 1, times)[0])  # nothing of the latents
    assert len({tuple(row) for row in added.flatten(0, 3).tolist()}) == 2 * 4 * 4
    with pytest.raises(ValueError, match="conditioning_type is one of"):
        new_model("small_8x", conditioning_type="none")
