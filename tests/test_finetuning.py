"""From any checkpoint on: the decoder alone, another ratio, noise on the latents; recipes."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import small_train
import torch
from accelerate.state import AcceleratorState
from conftest import Run
from safetensors.torch import load_file
from test_training import config_of as plain_config_of

from regen.loading import load_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.objective import ObjectiveConfig, REGENObjective, draw_latent_noise
from regen.model.presets import PRESETS
from regen.training import embedder
from regen.training.config import TrainConfig
from regen.training.embedder import train
from regen.training.recipes import RECIPES, STAGES


@pytest.fixture(autouse=True)
def another_ratio(small_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"temporal_compression_ratio": 4, "encoder_strides": ((1, 1), (1, 1))}
    monkeypatch.setitem(PRESETS, "natural4", lambda: small_train.SMALL | other)


def config_of(data: Path, output: Path, **options) -> TrainConfig:
    """Of a model with moving content; all runs share one store of chunks."""
    moving = {"preset": "natural_test", "chunks": 5, "chunk_cache": data.parent / "chunks"}
    return plain_config_of(data, output, **(moving | options))


@pytest.fixture(scope="module")
def base(data: Path) -> Path:
    """A trained model."""
    with pytest.MonkeyPatch.context() as patch:
        small_train.make_small(patch)
        train(config_of(data, data.parent / "base", validate_every=100))
        AcceleratorState._reset_state(reset_partial_state=True)
    return data.parent / "base" / "model"


def test_the_decoder_alone(data: Path, base: Path, tmp_path: Path, capfd) -> None:
    """The latents stay those of the model that it starts from, to the bit, and their statistics."""
    config = config_of(data, tmp_path / "run", init=str(base), train_only="decoder")
    train(config)
    assert "randomly initialised: nothing" in capfd.readouterr().out
    before, after = load_model(str(base)), load_model(str(config.output / "model"))
    assert before.encoder_id() == after.encoder_id()
    moved = {
        name.rpartition(".")[0] if name.startswith("linear") else name.split(".")[0]
        for (name, one), other in zip(
            before.state_dict().items(), after.state_dict().values(), strict=True
        )
        if not torch.equal(one, other)
    }
    assert moved >= {"dit", "conditioning", "linear.synthesis"}
    assert moved.isdisjoint({"encoder", "linear.analysis", "latents_mean", "latents_std"})


def test_a_whole_model_goes_on_from_another(data: Path, base: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path / "run", init=str(base), steps=1, learning_rate=1e-9)
    train(config)
    state = load_file(config.output / "checkpoints" / "step_00000001.safetensors")
    for name, tensor in load_model(str(base)).state_dict().items():
        assert torch.allclose(state[f"model.{name}"], tensor, atol=1e-6), name


def test_another_ratio(data: Path, base: Path, tmp_path: Path, capfd) -> None:
    """What does not fit is named and randomly initialised; the linear codec fits and is not solved
    again."""
    config = config_of(data, tmp_path / "run", preset="natural4", init=str(base), steps=1)
    train(replace(config, learning_rate=1e-9))
    said = capfd.readouterr().out
    assert "randomly initialised: encoder.blocks.1" in said and "linear codec has" not in said
    before, after = load_model(str(base)), load_model(str(config.output / "model"))
    assert after.temporal_compression_ratio == 4
    for name, tensor in before.linear.state_dict().items():
        assert torch.allclose(tensor, after.linear.state_dict()[name], atol=1e-5), name
    with pytest.raises(ValueError, match="which is not that of preset natural4"):
        train(replace(config, output=tmp_path / "other", train_only="decoder"))


def test_starts_that_cannot_work(data: Path, base: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path / "run")
    for options, message in (
        ({"train_only": "decoder"}, "keeps the encoder of --init MODEL"),
        ({"init": "nowhere"}, "no model nowhere"),
        (
            {"init": str(base), "prediction_type": "v_prediction", "preset": "test"},
            "give --prediction-type sample",
        ),
        ({"prediction_type": "v_prediction"}, "moving_content takes prediction_type sample"),
        ({"latent_noise": -1.0}, "--latent-noise is at least 0"),
        ({"tracker": "notebook"}, "--tracker is one of .*tensorboard.* or none, got 'notebook'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(replace(config, **options))


def test_latent_noise_reaches_the_decoder_in_deviations() -> None:
    torch.manual_seed(0)
    model = AutoencoderREGEN(**small_train.TEST_PRESET)
    torch.nn.init.normal_(model.dit.proj_out.weight, std=0.1)  # or no latents reach a new model
    objective = REGENObjective(model, ObjectiveConfig(detail_weighting=False))
    chunk = torch.rand(2, 3, 9, 32, 32) * 2 - 1
    arguments = (chunk, chunk, torch.arange(9.0).expand(2, -1), chunk, torch.ones(2))
    seen = []
    fill_motion = model.conditioning.forward
    model.conditioning.forward = lambda latents, times: (
        seen.append(latents) or fill_motion(latents, times)
    )
    noise = torch.randn(2, 8, 2, 4, 4)
    with torch.no_grad():
        plain, none, noisy = (
            objective(*arguments, given) for given in (None, torch.zeros_like(noise), noise)
        )
    assert torch.equal(plain, none) and not torch.equal(plain, noisy)
    added = (seen[2] - seen[0]) / noise
    deviation = seen[0].std(dim=(0, 3, 4), keepdim=True).expand_as(added)
    assert torch.allclose(added, deviation, rtol=1e-2, atol=1e-3)


def test_latent_noise_has_every_strength(data: Path, tmp_path: Path) -> None:
    chunk = torch.zeros(500, 3, 1, 32, 32)
    noise = draw_latent_noise(chunk, 8, torch.Generator().manual_seed(0))
    assert noise.shape == (500, 8, 2, 4, 4)
    strength = noise.flatten(1).std(1)  # of 256 numbers: good to 5 %
    assert strength.min() < 0.05 and strength.max() > 0.9
    assert strength.mean().item() == pytest.approx(0.5, abs=0.05)  # deviation 0.29 / sqrt(500)
    train(plain_config_of(data, tmp_path / "run", steps=1, latent_noise=0.3))


@pytest.mark.parametrize("ratio", [4, 8, 16, 32])
def test_the_recipes_of_the_paper(ratio: int, tmp_path: Path) -> None:
    config = TrainConfig(data=("clips",), output=tmp_path, **RECIPES[f"paper_{ratio}x"])
    config.check()
    assert PRESETS[config.preset]()["temporal_compression_ratio"] == ratio
    assert config.num_targets == ratio + 1 and config.steps == 100_000
    assert config.video_batch_size == {4: 6, 8: 4, 16: 3, 32: 1}[ratio]
    assert set(RECIPES[f"paper_{ratio}x"]) <= {field.name for field in fields(TrainConfig)}


def test_an_option_prevails_over_its_recipe(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Also one that is given as it is by default without a recipe."""
    seen: list[TrainConfig] = []
    monkeypatch.setattr(embedder, "train", seen.append)
    words = ["train", "--data", "clips", "--output", "run", "--recipe"]
    default = str(TrainConfig.image_batch_size)
    given = ["--steps", "7", "--crop", "64", "--image-batch-size", default]
    run(*words, "paper_8x", *given)
    (config,) = seen
    assert (config.steps, config.crop, config.image_batch_size) == (7, 64, int(default))
    assert (config.preset, config.ema_decay, config.data) == ("regen_8x", 0.9999, ("clips",))
    assert "--recipe is one of natural, shapes, paper_4x, " in run(*words, "paper_64x")[2]


def test_a_recipe_of_stages(data: Path, tmp_path: Path, monkeypatch, run: Run) -> None:
    """Each stage starts from the one before; the same command again does only what is left."""
    small = {"preset": "natural_test", "crop": 32, "video_batch_size": 1, "image_batch_size": 2}
    pictures = {**small, "image_fraction": 1.0, "steps": 2, "learning_rate": 1e-2}
    video = {**small, "image_fraction": 0.0, "steps": 1, "warmup_steps": 100, "ema_decay": 0.0}
    monkeypatch.setitem(STAGES, "natural", {"pictures": pictures, "video": video})
    output = tmp_path / "run"
    words = ["train", "--recipe", "natural", "--data", str(data), "--output", str(output)]
    words += ["--chunks", "5", "--chunk-cache", str(data.parent / "chunks"), "--tracker", "none"]
    words += ["--cache", str(data.parent / "cache"), "--validation-sources", "1"]
    assert run(*words)[0] == 0
    pictures_model = output / "pictures" / "model"
    assert json.loads((output / "config.json").read_text())["init"] == str(pictures_model)
    first, last = (
        load_model(str(one)).state_dict()["linear.synthesis.weight"]
        for one in (pictures_model, output / "model")
    )
    assert (first - last).abs().max() < 1e-2 * first.abs().max()
    (output / "model" / "config.json").unlink()
    trained: list[TrainConfig] = []
    monkeypatch.setattr(embedder, "train", trained.append)
    run(*words)
    assert [run.output for run in trained] == [output]


def test_no_tracker(data: Path, tmp_path: Path) -> None:
    config = plain_config_of(data, tmp_path / "run", steps=1, tracker="none")
    train(config)
    assert not (config.output / "logs").exists()
    assert (config.output / "metrics.jsonl").read_text()
