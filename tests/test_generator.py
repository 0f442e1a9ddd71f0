"""Properties of regen train-generator: its batches, its loss, resuming, learning, mistakes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import Run
from PIL import Image
from safetensors.torch import load_file, save_file
from small_generator import (
    config_of,
    make_transformer,
    save_text_encoder,
    write_cache,
)
from small_train import SMALL_TRANSFORMER, arguments_of
from test_parallel import launch_two

from regen.t2v.batches import LatentBatchConfig, LatentBatches, LatentClips
from regen.t2v.pipeline import load_pipeline
from regen.t2v.presets import GENERATOR_PRESETS
from regen.t2v.task import (
    GeneratorObjective,
    agree_on_latents,
    draw_generator_timesteps,
    load_models,
    take_transformer,
    train_generator,
)
from regen.training import loop

BATCHES = LatentBatchConfig(
    seed=0,
    image_steps=3,
    image_fraction=0.3,
    image_batch_size=5,
    video_batch_size=3,
    num_chunks=1,
    caption_dropout=0.5,
    conditioning_fraction=0.5,
)
NULL = torch.full((2, 24), 7.0)
CONFIG = config_of(Path("data"), Path("output"))


@pytest.fixture(autouse=True)
def preset(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(GENERATOR_PRESETS, "test", lambda: dict(SMALL_TRANSFORMER))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def cache(small_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    text = save_text_encoder(folder / "text")
    return write_cache(folder / "cache", small_model_folder, text)


def test_batches_are_a_function_of_seed_rank_and_step(cache: Path) -> None:
    clips = LatentClips([str(cache)])
    batches = LatentBatches(clips, range(24), NULL, BATCHES)
    again = LatentBatches(LatentClips([str(cache)]), range(24), NULL, BATCHES)
    for step in (0, 5, 6):
        assert torch.equal(batches[step]["latents"], again[step]["latents"])
    again.rank = 1
    assert not torch.equal(batches[5]["latents"], again[5]["latents"])
    assert [batches[s]["task"] for s in range(40)] == [again[s]["task"] for s in range(40)]


def test_images_first_then_both(cache: Path) -> None:
    batches = LatentBatches(LatentClips([str(cache)]), range(24), NULL, BATCHES)
    assert all(batches.is_image(step) for step in range(3))
    share = np.mean([batches.is_image(step) for step in range(3, 2003)])
    assert 0.26 < share < 0.34
    image, video = batches[0], next(batches[s] for s in range(3, 99) if not batches.is_image(s))
    assert image["latents"].shape == (5, 8, 1, 4, 4) and not image["num_conditioning"].any()
    assert video["latents"].shape == (3, 8, 2, 4, 4)  # one chunk of two


def test_shapes_are_drawn_apart_from_the_kind(cache: Path) -> None:
    """On every rank, also the first, images and videos are of both shapes."""
    clips = LatentClips([str(cache)])
    clips.shapes = [(n, 4, 4 + index // 12) for index, (n, _, _) in enumerate(clips.shapes)]
    batches = LatentBatches(clips, range(24), NULL, replace(BATCHES, image_steps=0))
    batches.clips = [
        {"latents": torch.zeros(8, *shape), "prompt_embeds": NULL} for shape in clips.shapes
    ]
    every = [batches[step] for step in range(40)]
    drawn = {(batch["task"], batch["latents"].shape[-1]) for batch in every}
    assert drawn == {(task, width) for task in ("image", "video") for width in (4, 5)}


def test_a_chunk_that_was_filled_up_is_no_video(cache: Path) -> None:
    clips = LatentClips([str(cache)])
    clips.shapes = [(6, 4, 4)] * 24
    clips.num_chunks = [2] * 20 + [0] * 4  # of three; of one
    config = replace(BATCHES, image_steps=0, num_chunks=4, video_batch_size=50)
    batches = LatentBatches(clips, range(24), NULL, config)
    latents = torch.arange(6.0).view(1, 6, 1, 1).expand(8, 6, 4, 4)
    batches.clips = [{"latents": latents, "prompt_embeds": NULL}] * 24
    assert {shape: len(found) for shape, found in batches.videos.items()} == {(4, 4, 4): 20}
    every = [batches[step] for step in range(40)]
    videos = {tuple(b["latents"][0, 0, :, 0, 0].tolist()) for b in every if b["task"] == "video"}
    assert videos == {(0, 1, 2, 3)}
    images = {float(x) for b in every if b["task"] == "image" for x in b["latents"][:, 0, 0, 0, 0]}
    assert images == {0, 2, 4}


def test_captions_are_dropped_and_frames_given(cache: Path) -> None:
    config = replace(BATCHES, video_batch_size=400, image_steps=0, image_fraction=0.0, num_chunks=2)
    batch = LatentBatches(LatentClips([str(cache)]), range(24), NULL, config)[0]
    dropped = (batch["prompt_embeds"][:, 0] == 7).all(1)
    assert 0.4 < dropped.float().mean() < 0.6
    assert batch["prompt_mask"][dropped].sum(1).eq(2).all()
    counts = batch["num_conditioning"].bincount(minlength=3) / 400
    assert counts.tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.08)


def test_captions_stay_with_their_latents(cache: Path) -> None:
    config = replace(BATCHES, caption_dropout=0.0, image_batch_size=50)
    batch = LatentBatches(LatentClips([str(cache)]), range(24), NULL, config)[0]
    level, length = batch["latents"].mean((1, 2, 3, 4)), batch["prompt_mask"].sum(1)
    # "a blue box" (5 tokens with the frame) is at 1, "a red ball rolls left" (7) at -1.
    assert set(zip(level.sign().int().tolist(), length.tolist(), strict=True)) == {(1, 5), (-1, 7)}


def test_whole_sources_are_held_out(cache: Path) -> None:
    clips = LatentClips([str(cache)])
    clips.sources = [f"{index // 2}" for index in range(24)]
    training, held_out = clips.hold_out(5, seed=0)
    assert len(held_out) == 1  # a tenth at most
    names = {clips.sources[index] for index in held_out}
    assert len(training) == 22 and not names & {clips.sources[index] for index in training}


def test_caches_of_different_models(cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in cache.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert len(LatentClips([str(cache), str(other)])) == 48
    fields = json.loads((other / "dataset.json").read_text())
    for name, value in (("encoder_id", "another"), ("temporal_compression_ratio", 4)):
        (other / "dataset.json").write_text(json.dumps(fields | {name: value}))
        with pytest.raises(ValueError, match=f"differ in their {name}"):
            LatentClips([str(cache), str(other)])


def test_the_embedder_stands_at_the_ratio_of_the_cache(cache: Path, tmp_path: Path) -> None:
    """Also one that --embedder names without it."""
    info = LatentClips([str(cache)]).info
    config = config_of(cache, tmp_path, embedder=info["model"])
    for ratio in (8, 3):
        vae, _, _ = load_models(config, info | {"temporal_compression_ratio": ratio})
        assert vae.geometry.chunk_length == ratio + 1


def test_a_run_does_not_go_on_with_other_latents(cache: Path, tmp_path: Path) -> None:
    info, path = LatentClips([str(cache)]).info, tmp_path / "run" / "latents.json"
    for _ in range(2):
        agree_on_latents(path, info, Accelerator(cpu=True))
    for name in ("encoder_id", "text_encoder_id", "temporal_compression_ratio"):
        with pytest.raises(ValueError, match=f"latents of {name}") as caught:
            agree_on_latents(path, info | {name: "other"}, Accelerator(cpu=True))
        assert "\n" not in str(caught.value)


def test_a_model_of_other_encoders_is_refused(cache: Path, tmp_path: Path) -> None:
    train_generator(config_of(cache, tmp_path / "base", steps=1))
    info, init = LatentClips([str(cache)]).info, str(tmp_path / "base" / "model")
    for name, words in (("encoder_id", "latents"), ("text_encoder_id", "texts")):
        with pytest.raises(ValueError, match=f"trained on {words} of encoder"):
            take_transformer(make_transformer(), init, info | {name: "another"})


def test_timesteps_are_logit_normal_and_shifted() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = draw_generator_timesteps(20000, 0.5, 0.8, 1.0, generator)
    logits = torch.logit(plain)
    assert abs(logits.mean() - 0.5) < 0.02 and abs(logits.std() - 0.8) < 0.02
    shifted = draw_generator_timesteps(20000, 0.5, 0.8, 3.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shifted, 3 * plain[: len(shifted)] / (1 + 2 * plain), atol=1, rtol=0)
    assert shifted.mean() > plain.mean() + 0.1


def test_given_frames_are_clean_and_carry_no_loss() -> None:
    model = make_transformer()
    objective, generator = GeneratorObjective(model, CONFIG), torch.Generator().manual_seed(0)
    latents = torch.randn(2, 8, 4, 4, 5, generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    text, mask = torch.randn(2, 3, 24, generator=generator), torch.ones(2, 3, dtype=torch.bool)
    timestep, given = torch.tensor([0.4, 0.9]), torch.tensor([0, 2])
    losses = objective(latents, noise, timestep, given, text, mask)
    noise[1, :, :2] += 5  # of what is given: not used
    torch.testing.assert_close(objective(latents, noise, timestep, given, text, mask), losses)
    noise[0, :, :2] += 5
    assert objective(latents, noise, timestep, given, text, mask)[0] > losses[0] + 1


def test_a_perfect_model_has_no_loss() -> None:
    """x = 0: eps - x is x_t / t."""

    class Perfect(torch.nn.Module):
        def normalize_latents(self, latents):
            return latents

        def forward(self, noisy, text, times, mask, return_dict):
            return (noisy / times[:, None, :, None, None],)

    noise = torch.randn(3, 8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    arguments = (torch.tensor([0.1, 0.5, 1.0]), torch.zeros(3, dtype=torch.long), None, None)
    losses = GeneratorObjective(Perfect(), CONFIG)(torch.zeros_like(noise), noise, *arguments)
    assert losses.max() < 1e-10


def test_the_loss_is_of_latents_normalised_by_the_models_statistics() -> None:
    """Content and motion apart: latents at their means are as good as zeros were."""
    model, mean = make_transformer(), torch.arange(16.0).view(8, 2)
    objective, generator = GeneratorObjective(model, CONFIG), torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 8, 4, 4, 4, generator=generator)
    text, mask = torch.randn(2, 3, 24, generator=generator), torch.ones(2, 3, dtype=torch.bool)
    rest = (noise, torch.tensor([0.4, 0.9]), torch.tensor([0, 1]), text, mask)
    plain = objective(latents, *rest)
    model.set_latent_statistics(mean, torch.full((8, 2), 3.0))
    moved = 3 * latents + torch.cat([mean, mean], dim=1)[None, :, :, None, None]
    torch.testing.assert_close(objective(moved, *rest), plain, atol=1e-4, rtol=1e-4)


def weights(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"step_{step:08d}.safetensors")


def test_a_stopped_run_goes_on_bit_for_bit(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config_of(cache, tmp_path / "whole", validate_every=2)
    train_generator(whole)
    train_step = loop.train_step

    def stopped(run, batches):
        if run.step == 2:
            raise KeyboardInterrupt
        return train_step(run, batches)

    config = config_of(cache, tmp_path / "parts", validate_every=2, checkpoint_every=2)
    monkeypatch.setattr(loop, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_generator(config)
    monkeypatch.setattr(loop, "train_step", train_step)
    train_generator(config)
    first, second = weights(whole.output, 4), weights(config.output, 4)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = [
        [json.loads(line) for line in (config.output / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "validation.jsonl")
    ]
    assert [record["step"] for record in records[0]] == [1, 2, 3, 4]
    assert {"validation/loss_image", "validation/loss_video"} <= set(records[1][-1])


def test_the_model_is_a_pipeline_and_sheets_are_pictures(cache: Path, tmp_path: Path) -> None:
    prompts = ("a red ball", "a blue box rolls left")
    config = config_of(cache, tmp_path / "run", prompts=prompts, steps=2, patch_size=1)
    train_generator(config)
    sheet = Image.open(config.output / "sheets" / "step_00000002.png")
    assert sheet.size == (5 * 32, 2 * 32)
    pipeline = load_pipeline(str(config.output / "model"))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.transformer.config.patch_size == 1
    statistics = pipeline.transformer.latents_mean[0], pipeline.transformer.latents_std[0]
    assert [one.tolist() for one in statistics] == [[0.25, -0.5], [0.75, 2.0]]  # the cache's
    video = pipeline("a red ball", num_inference_steps=2, output_type="np").frames
    assert video.shape == (1, 18, 32, 32, 3)
    train_generator(config)  # done: writes the model again
    assert not list(config.output.glob(".model*"))
    made_by = json.loads((config.output / "latents.json").read_text())
    (config.output / "latents.json").write_text(json.dumps(made_by | {"encoder_id": "other"}))
    with pytest.raises(ValueError, match="started with latents of encoder_id other"):
        train_generator(config)


def test_it_starts_from_another_model(cache: Path, tmp_path: Path, capfd) -> None:
    """Its weights and statistics, except those of a kind that it had not seen."""
    base = config_of(cache, tmp_path / "base", steps=1)
    train_generator(base)
    init = tmp_path / "base" / "model"
    model, info = make_transformer(1), LatentClips([str(cache)]).info
    model.set_latent_statistics(torch.full((8, 2), 5.0), torch.full((8, 2), 6.0))
    assert take_transformer(model, str(init), info) == []
    given = load_pipeline(str(init)).transformer
    assert all(torch.equal(model.state_dict()[k], v) for k, v in given.state_dict().items())

    file = init / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["latents_mean"][:, 1], state["latents_std"][:, 1] = 0.0, 1.0  # of images alone
    save_file(state, file, metadata={"format": "pt"})
    model.set_latent_statistics(torch.full((8, 2), 5.0), torch.full((8, 2), 6.0))
    take_transformer(model, str(init), info)
    assert model.latents_mean[0].tolist() == [0.25, 5.0]
    assert model.latents_std[0].tolist() == [0.75, 6.0]

    train_generator(config_of(cache, tmp_path / "fine", init=str(init), patch_size=1, steps=1))
    assert "randomly initialised: patch_embed, proj_out" in capfd.readouterr().out


@pytest.mark.slow
def test_two_processes_with_sharded_weights_are_one_process(cache: Path, tmp_path: Path) -> None:
    options = {"validate_every": 2, "prompts": ("a blue box",)}
    one = config_of(cache, tmp_path / "one", gradient_accumulation_steps=2, **options)
    train_generator(one)
    sharded = config_of(cache, tmp_path / "sharded", shard=True, **options)
    launch_two([arguments_of(sharded, "train-generator")], tmp_path)
    losses = []
    for config in (one, sharded):
        text = (config.output / "validation.jsonl").read_text()
        losses.append([json.loads(line)["validation/loss"] for line in text.splitlines()])
        assert (config.output / "sheets" / "step_00000004.png").exists()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    first, second = (load_pipeline(str(c.output / "model")).transformer for c in (one, sharded))
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=0.02, atol=1e-3)


@pytest.mark.slow
def test_it_learns_what_captions_say(cache: Path, tmp_path: Path) -> None:
    """Latents at 1 for one caption, at -1 for the other; a model that ignores them is at 0."""
    config = config_of(
        cache,
        tmp_path / "run",
        steps=250,
        image_batch_size=8,
        video_batch_size=8,
        learning_rate=3e-3,
        ema_decay=0.9,
        prompts=("a blue box",),
    )
    train_generator(config)
    pipeline = load_pipeline(str(config.output / "model"))
    pipeline.set_progress_bar_config(disable=True)
    for prompt, level in (("a red ball rolls left", -1), ("a blue box", 1)):
        latents = pipeline(
            [prompt] * 4,
            guidance_scale=1,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames
        # 0.95 was measured; without heed of the caption both would have one sign.
        assert latents.mean() * level > 0.8, prompt


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "huge"}, "--preset is one of t2v_nano"),
        ({"data": ()}, "--data takes at least one folder"),
        ({"steps": 0}, "--steps is at least 1"),
        ({"patch_size": 0}, "--patch-size is at least 1"),
        ({"image_fraction": 1.5}, "--image-fraction is from 0 to 1"),
        ({"caption_dropout": -0.1}, "--caption-dropout is from 0 to 1"),
        ({"timestep_shift": 0.0}, "--timestep-shift is a positive number"),
        ({"logit_mean": float("nan")}, "--logit-mean is from -10 to 10"),
        ({"data": ("missing",)}, r"missing holds no dataset\.json"),
        ({"embedder": "another model"}, "give the one that made them as --embedder"),
        ({"text_encoder": "missing/"}, "no text encoder missing/"),
        ({"init": "missing/"}, "no text-to-video model missing/"),
    ],
)
def test_bad_options_are_one_line(
    cache: Path, other_model_folder: Path, tmp_path: Path, options: dict, words: str
) -> None:
    if "embedder" in options:
        options = {"embedder": str(other_model_folder)}
    config = replace(config_of(cache, tmp_path / "run"), **options)
    with pytest.raises(ValueError, match=words) as caught:
        train_generator(config)
    assert "\n" not in str(caught.value)


def test_command(cache: Path, tmp_path: Path, run: Run) -> None:
    words = f"train-generator --data {cache} --output {tmp_path / 'run'} --preset test --steps 1"
    words += " --tracker none --num-workers 0 --num-inference-steps 1"
    assert "all 1 steps done" in run(*words.split())[1]
    said = run(*words.split(), "--patch-size", "1")[2]
    assert "was started with patch_size = 2, now it is 1" in said


def test_noise_is_shared_as_the_model_says() -> None:
    model = make_transformer()
    model.register_to_config(shared_noise=1.0)
    batch = {
        "latents": torch.zeros(2, 8, 6, 4, 4),
        "num_conditioning": torch.zeros(2, dtype=torch.long),
        "prompt_embeds": torch.zeros(2, 3, 16),
        "prompt_mask": torch.ones(2, 3, dtype=torch.bool),
    }
    objective = GeneratorObjective(model, CONFIG)
    noise = objective.prepare(batch, torch.Generator().manual_seed(0))["noise"]
    assert torch.equal(noise[:, :, ::2], noise[:, :, :1].expand(-1, -1, 3, -1, -1))
    assert not torch.equal(noise[:, :, 1], noise[:, :, 3])
