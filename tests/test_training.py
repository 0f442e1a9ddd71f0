"""Properties of regen.training: a run goes on where it stopped, says what is wrong, learns."""

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_train import TEST_PRESET
from test_data import written_by_another

from regen.chunking import to_float
from regen.data.batches import BatchConfig, TrainingBatches
from regen.data.clips import prepare_clips
from regen.flow import EPSILON_MAX_TIMESTEP
from regen.loading import load_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.objective import (
    ObjectiveConfig,
    REGENObjective,
    detail_weights,
    draw_timesteps,
)
from regen.model.patches import LinearCodec
from regen.training import loop
from regen.training.config import TrainConfig, check_run_config, write_run_config
from regen.training.distributed import StopSignals
from regen.training.embedder import solve_linear, train
from regen.training.loop import drop_records_after
from regen.training.optimizer import Muon, learning_rate_factor, make_optimizer
from regen.training.validation import validate, validation_chunks
from regen.video import write_video

pytestmark = pytest.mark.usefixtures("small_runs")


def moving_frames(num_frames: int, seed: int, height: int = 64, width: int = 72) -> np.ndarray:
    """A bright disc that crosses a smooth pattern: uint8 `[T, H, W, 3]`."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for index in range(num_frames):
        disc = np.exp(-((y - 20 - index) ** 2 + (x - 50 + 2 * index) ** 2) / 40)
        waves = np.stack([np.sin(x / (3 + seed)), np.cos(y / 7), np.sin((x + y) / 9)], -1)
        frames.append(127 + 60 * waves + 60 * disc[..., None])
    return np.stack(frames).round().clip(0, 255).astype(np.uint8)


def write_data(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed, num_frames in enumerate((24, 12, 7)):
        write_video(folder / f"{seed}.mkv", moving_frames(num_frames, seed), Fraction(24))
    for seed in range(2):
        Image.fromarray(moving_frames(1, seed, 80, 96)[0]).save(folder / f"{seed}.png")


def config_of(data: Path, output: Path, **options) -> TrainConfig:
    small = {
        "preset": "test",
        "steps": 4,
        "video_batch_size": 2,
        "image_batch_size": 2,
        "crop": 32,
        "warmup_steps": 2,
        "mixed_precision": "no",
        "cache": data.parent / "cache",
        "validation_sources": 1,
        "validate_every": 1,
        "checkpoint_every": 2,
        "num_workers": 0,
    }
    return TrainConfig(data=(data,), output=output, **small | options)


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, action) -> None:
    """Call `action` once, just before iteration `step` (from 0) is computed."""
    train_step = loop.train_step

    def patched(run, batch):
        if run.step == step:
            monkeypatch.setattr(loop, "train_step", train_step)
            action()
        return train_step(run, batch)

    monkeypatch.setattr(loop, "train_step", patched)


def state_of(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"step_{step:08d}.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def records(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]


def logged_steps(output: Path, name: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "logs" / "regen"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


# --- stop and go on ---


@pytest.mark.parametrize(
    ("num_workers", "number", "outcome", "precision", "preset", "optimizer"),
    [
        (0, signal.SIGINT, KeyboardInterrupt, "no", "test", "adamw"),
        (1, signal.SIGTERM, SystemExit, "bf16", "natural_test", "muon"),
    ],
)
def test_train_4_is_train_2_stop_and_go_on(
    data: Path,
    tmp_path: Path,
    monkeypatch,
    capfd,
    num_workers,
    number,
    outcome,
    precision,
    preset,
    optimizer,
) -> None:
    """Bit for bit: weights, averages, moments, what was measured, and the model."""
    options = {"num_workers": num_workers, "mixed_precision": precision, "checkpoint_every": 3}
    options |= {"preset": preset, "optimizer": optimizer, "chunks": 5}
    whole, pieces = (config_of(data, tmp_path / name, **options) for name in ("whole", "pieces"))
    train(whole)

    def stop() -> None:  # as Ctrl-C and a scheduler do: all processes of the group
        for process in multiprocessing.active_children():
            os.kill(process.pid, number)
        os.kill(os.getpid(), number)

    before_step(monkeypatch, 1, stop)
    handler = signal.getsignal(number)
    with pytest.raises(outcome):
        train(pieces)
    assert signal.getsignal(number) is handler
    assert "stopping after this step" in capfd.readouterr().err
    assert [path.name for path in (pieces.output / "checkpoints").iterdir()] == [
        "step_00000002.safetensors"  # the step under way, though none was due
    ]
    assert not (pieces.output / "model").exists()
    train(pieces)
    assert "resuming at step 2 of 4" in capfd.readouterr().out
    state = state_of(whole.output, 4)
    assert {name.split(".")[0] for name in state} == {"model", "ema", "optimizer"}
    assert_same(state, state_of(pieces.output, 4))
    model = "model/diffusion_pytorch_model.safetensors"
    assert_same(load_file(whole.output / model), load_file(pieces.output / model))
    one, other = records(whole.output), records(pieces.output)
    for record in (*one, *other):
        assert record.pop("elapsed_s") > 0
    assert one == other and [record["step"] for record in one] == [1, 2, 3, 4]


def test_an_end_without_a_checkpoint_and_a_damaged_one(
    data: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    """Ended in iteration 4 of 4, with checkpoints at 2; then with a half-written newer one."""
    whole, killed = (config_of(data, tmp_path / name) for name in ("whole", "killed"))

    def end() -> None:
        raise KeyboardInterrupt

    before_step(monkeypatch, 3, end)
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    folder = killed.output / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step_00000002.safetensors"]
    assert [record["step"] for record in records(killed.output)] == [1, 2, 3]
    two = (folder / "step_00000002.safetensors").read_bytes()
    (folder / "step_00000003.safetensors").write_bytes(two[: len(two) // 2])
    (folder / ".step_00000003.safetensors.tmp").write_bytes(two[:100])
    with (killed.output / "validation.jsonl").open("a") as file:
        file.write('{"step": 4, "elap')

    train(whole)
    capfd.readouterr()
    train(killed)
    printed = capfd.readouterr().out
    assert "step_00000003.safetensors.damaged" in printed and "resuming at step 2" in printed
    assert_same(state_of(whole.output, 4), state_of(killed.output, 4))
    assert [record["step"] for record in records(killed.output)] == [1, 2, 3, 4]
    for name in ("train/loss", "validation/psnr"):
        assert logged_steps(killed.output, name) == [1, 2, 3, 4]
    assert not list(folder.glob(".*"))


def test_a_finished_run_only_exports_again(data: Path, tmp_path: Path, capfd) -> None:
    config = config_of(data, tmp_path / "run", steps=2)
    train(config)
    weights = config.output / "model" / "diffusion_pytorch_model.safetensors"
    before, validation = weights.read_bytes(), (config.output / "validation.jsonl").read_text()
    weights.unlink()
    capfd.readouterr()
    train(config)
    assert "all 2 steps done" in capfd.readouterr().out
    assert weights.read_bytes() == before
    assert (config.output / "validation.jsonl").read_text() == validation
    assert (config.output / "sheets" / "step_00000002.png").is_file()


def test_a_second_signal_acts_at_once() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_under_a_launcher_a_second_signal_is_the_first_passed_on(monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    handler = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit):
            stop.raise_received()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_signals_that_are_ignored_stay_ignored() -> None:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            stop.raise_received()
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    handlers = []

    def enter() -> None:
        with StopSignals():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_records_after_a_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    drop_records_after(path, 3)  # none yet
    path.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"st')
    drop_records_after(path, 3)
    assert path.read_text() == '{"step": 2}\n{"step": 3}\n'


def test_other_options_do_not_go_on(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path / "run")
    path = config.output / "config.json"
    check_run_config(path, config)  # nothing there yet
    config.output.mkdir()
    write_run_config(path, config)
    check_run_config(path, config)
    free = replace(config, num_workers=3, validate_every=7, max_bad_fraction=0.5, cache=None)
    check_run_config(path, free)
    with pytest.raises(ValueError, match="started with seed = 0, now it is 1"):
        check_run_config(path, replace(config, seed=1))
    # An option that was added since then had its default.
    options = json.loads(path.read_text())
    del options["detail_weighting"]
    path.write_text(json.dumps(options))
    check_run_config(path, config)
    with pytest.raises(ValueError, match="detail_weighting = True, now it is False"):
        check_run_config(path, replace(config, detail_weighting=False))
    options["image_share"] = options.pop("image_fraction")  # its name of then
    path.write_text(json.dumps(options))
    check_run_config(path, config)
    with pytest.raises(ValueError, match="started with image_fraction"):
        check_run_config(path, replace(config, image_fraction=0.9))


# --- what cannot work ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "--preset is one of regen_4x, .* got 'huge'"),
        ({"crop": 100}, "--crop is a multiple of 32, got 100"),
        ({"crop": 0}, "--crop is a multiple of 32, got 0"),
        ({"steps": 0}, "--steps is at least 1, got 0"),
        ({"checkpoint_every": 0}, "--checkpoint-every is at least 1, got 0"),
        ({"num_workers": -1}, "--num-workers is at least 0, got -1"),
        ({"seed": -1}, "--seed is at least 0, got -1"),
        ({"seed": 2**63}, "--seed has 63 bits"),
        ({"other_tasks": 1.5}, "--other-tasks is from 0 to 1, got 1.5"),
        ({"learning_rate": float("nan")}, "--learning-rate is a positive number"),
        ({"data": ()}, "--data takes at least one folder"),
        ({"video_size": (192, 300)}, "--video-size is a multiple of 32, got 300"),
        ({"image_fraction": -0.1}, "--image-fraction is from 0 to 1"),
        ({"data": (Path("/nowhere/at/all"),)}, "/nowhere/at/all is not a folder"),
    ],
)
def test_options_that_cannot_work(data: Path, tmp_path: Path, options, message) -> None:
    config = replace(config_of(data, tmp_path / "run"), **options)
    with pytest.raises(ValueError, match=message) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert not config.output.exists()  # so the corrected command is not refused


def test_bad_files_are_counted_and_too_many_stop(tmp_path: Path, capfd) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    config = config_of(tmp_path / "data", tmp_path / "run", steps=1, max_bad_fraction=0.3)
    with pytest.raises(ValueError, match="holds no clips or photos"):
        train(replace(config, data=(tmp_path / "empty",)))
    (tmp_path / "data" / "text.mp4").write_text("no video\n")
    (tmp_path / "data" / "empty.mp4").touch()
    train(config)
    printed, listed = capfd.readouterr().out, (config.output / "bad_clips.txt").read_text()
    assert "skipped 2 of 7 files" in printed
    for name in ("text.mp4", "empty.mp4"):
        assert name in printed and name in listed
    strict = replace(config, max_bad_fraction=0.2)  # may change: the run is not another one by it
    with pytest.raises(
        ValueError, match=r"2 of 7 files cannot be read, above --max-bad-fraction 0\.2"
    ):
        train(strict)


def test_a_loss_that_is_not_finite_stops_before_the_weights(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    config = config_of(data, tmp_path / "run", steps=3, checkpoint_every=1)
    runs = []
    train_step = loop.train_step

    def broken(run, batch):
        runs.append(run)
        if run.step == 1:
            with torch.no_grad():
                run.model.dit.proj_out.bias.fill_(float("inf"))
            run.accelerator.backward = None  # on a CPU it may not be reached
        return train_step(run, batch)

    loop.train_step = broken
    try:
        with pytest.raises(ValueError, match=r"step 1: .* a lower --learning-rate; .*1.* intact"):
            train(config)
    finally:
        loop.train_step = train_step
    assert list(state_of(config.output, 1))  # intact
    weights = runs[0].model.dit.patch_embed.weight
    assert torch.isfinite(weights).all()
    capfd.readouterr()
    train(replace(config, learning_rate=config.learning_rate / 2))
    assert (config.output / "model" / "config.json").exists()
    assert f"started with {config.learning_rate:g}" in capfd.readouterr().out


# --- the data that a run sees ---


@pytest.mark.parametrize("pattern", ["*.png", "*.mkv", "0.mkv"])
def test_photos_alone_and_clips_alone(data: Path, tmp_path: Path, pattern: str) -> None:
    """Also a single clip, of which none can be held out."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in data.glob(pattern):
        (folder / path.name).write_bytes(path.read_bytes())
    config = replace(config_of(data, tmp_path / "run", steps=2), data=(folder,))
    train(config)
    assert load_model(str(config.output / "model")).latents_std.min() > 0
    assert (config.output / "validation.jsonl").exists() == (pattern == "*.mkv")


def test_validation_takes_the_middle(data: Path, tmp_path: Path) -> None:
    clips = [c for c in prepare_clips([data], data.parent / "cache").clips if not c.is_photo]
    bad: list[str] = []
    chunks = list(validation_chunks(clips, 9, bad, size=50))
    assert [list(chunk.shape) for chunk in chunks] == [
        [1, 3, 9, 50, 50],
        [1, 3, 9, 50, 50],
        [1, 3, 7, 50, 50],  # the clip has no more
    ]
    frames = torch.from_numpy(moving_frames(24, 0)[7:16, 7:57, 11:61])
    assert torch.equal(chunks[0][0], to_float(frames).permute(3, 0, 1, 2))
    objective = REGENObjective(AutoencoderREGEN(**TEST_PRESET), ObjectiveConfig())
    device, sheet = torch.device("cpu"), tmp_path / "sheet.png"
    values = validate(objective.reconstruct, clips, 9, device, bad, sheet)
    names = {
        f"validation/{name}" for name in ("psnr", "psnr_first_frame", "psnr_last_frame", "ssim")
    }
    names |= {f"frames/psnr_{index:02d}" for index in range(9)}
    assert set(values) == names and all(0 < value < 60 for value in values.values())
    assert values["frames/psnr_00"] == values["validation/psnr_first_frame"]
    assert Image.open(tmp_path / "sheet.png").size == (9 * 72, 2 * 64)  # the two of 9 frames
    assert not bad
    gone = replace(
        clips[0], array_path=None, item=replace(clips[0].item, location=str(tmp_path / "gone"))
    )
    values = validate(objective.reconstruct, [gone, *clips[1:]], 9, device, bad)
    assert set(values) == names and len(bad) == 1
    assert validate(objective.reconstruct, [gone], 9, device, bad) == {}


# --- objective and optimiser ---


def test_the_loss_is_weighted_mse() -> None:
    torch.manual_seed(0)
    model = AutoencoderREGEN(**TEST_PRESET)
    generator = torch.Generator().manual_seed(0)
    chunk = torch.rand(3, 3, 9, 32, 32, generator=generator) * 2 - 1
    target, noise = chunk[:, :, 2:5], torch.randn(3, 3, 3, 32, 32, generator=generator)
    times, timestep = torch.tensor([[2.0, 3, 4]] * 3), torch.tensor([0.1, 0.6, 1.0])
    arguments = (chunk, target, times, noise, timestep)
    with torch.no_grad():
        latents = model.encode_chunk(chunk)
        noisy = (1 - timestep.view(3, 1, 1, 1, 1)) * target + timestep.view(3, 1, 1, 1, 1) * noise
        output = model.predict(noisy, timestep, latents, times)
        expected = torch.stack([(o - t).pow(2).mean() for o, t in zip(output, target, strict=True)])
        plain = REGENObjective(model, ObjectiveConfig(detail_weighting=False))(*arguments)
        weighted = REGENObjective(model, ObjectiveConfig(detail_weighting=True))(*arguments)
    assert torch.allclose(plain, expected, rtol=1e-5)
    assert torch.allclose(weighted, expected * detail_weights(target), rtol=1e-5)


def test_detail_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.full((1, 3, 2, 16, 16), 0.3)
    busy = torch.rand(1, 3, 2, 16, 16, generator=generator) - 0.5  # variance 1/12
    weights = detail_weights(torch.cat([smooth, busy, busy]))
    assert weights.mean().item() == pytest.approx(1)
    assert (weights[0] / weights[1]).item() == pytest.approx((1 / 12 + 0.02) / 0.02, rel=0.1)
    blocks = smooth.clone()
    blocks[..., :8] = -0.9  # what changes between 8 x 8 patches is no detail
    assert torch.allclose(detail_weights(torch.cat([smooth, blocks])), torch.ones(2), atol=1e-4)


@pytest.mark.parametrize("latest", [1.0, EPSILON_MAX_TIMESTEP])
def test_timestep_shares(latest: float) -> None:
    times = draw_timesteps(4000, 0.25, torch.Generator().manual_seed(0), latest)
    # 25 % of 4000: deviation 0.7 %; four deviations.
    assert (times == latest).float().mean().item() == pytest.approx(0.25, abs=0.028)
    rest = times[times < latest]
    assert rest.min() > 0 and rest.mean().item() == pytest.approx(latest / 2, abs=0.022)
    generator = torch.Generator()
    assert (draw_timesteps(50, 1.0, generator) == 1).all()
    assert (draw_timesteps(50, 0.0, generator) < 1).all()


def test_learning_rate() -> None:
    expected = {0: 0.1, 4: 0.5, 9: 1.0, 50: 1.0, 80: 1.0, 90: 0.5, 99: 0.05, 100: 0.0}
    for step, factor in expected.items():
        assert learning_rate_factor(step, 100, 10, 0.2) == pytest.approx(factor)
    assert {learning_rate_factor(step, 100, 0, 0.0) for step in range(100)} == {1.0}


def test_optimizer_groups(tmp_path: Path) -> None:
    config = TrainConfig(data=(tmp_path,), output=tmp_path, weight_decay=0.3)
    model = AutoencoderREGEN(**TEST_PRESET)
    model.conditioning.norm.requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    trained = sorted(set(names.values()) - {"conditioning.norm"})
    groups = make_optimizer(model, config).param_groups
    assert [(group["weight_decay"], group["scale"]) for group in groups] == [(0.3, 1), (0, 1)]
    assert sorted(names[p] for group in groups for p in group["params"]) == trained
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    groups = make_optimizer(model, replace(config, optimizer="muon")).param_groups
    assert [(group["weight_decay"], group["scale"]) for group in groups] == [(0.3, 1), (0, 0.5)]
    assert sorted(names[p] for group in groups for p in group["params"]) == trained
    matrices = {names[p] for p in groups[0]["params"]}
    assert "dit.blocks.0.attn.to_qkv.weight" in matrices
    assert "encoder.blocks.0.conv1.weight" in matrices
    assert all("blocks." in name and name.endswith("weight") for name in matrices)


@pytest.mark.parametrize("shape", [(7, 20), (20, 7), (6, 4, 3, 3)])
def test_a_step_of_muon(shape: tuple[int, ...], tmp_path: Path) -> None:
    """As long as AdamW's (0.2 an entry, times the rate), against the gradient; vectors: AdamW's."""
    torch.manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.zeros(shape)), torch.nn.Parameter(torch.zeros(5))
    group = {"weight_decay": 0.0}
    optimizer = Muon(
        [{"params": [matrix], "muon": True, **group}, {"params": [vector], "muon": False, **group}],
        lr=0.01,
    )
    matrix.grad, vector.grad = torch.randn(shape), torch.randn(5)
    gradients = matrix.grad.clone(), vector.grad.clone()
    optimizer.step()
    assert matrix.square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.25)
    cosine = torch.nn.functional.cosine_similarity(-matrix.flatten(), gradients[0].flatten(), 0)
    assert cosine > 0.5
    assert torch.allclose(vector, -0.01 * gradients[1].sign(), rtol=1e-3)


# --- the linear start ---


def test_the_linear_codec_starts_at_the_principal_components() -> None:
    """Those of numpy, whitened; the PSNR is of what they leave."""
    rng = np.random.default_rng(0)
    batches = [np.stack([moving_frames(1, seed)[0] for seed in range(n, n + 3)]) for n in (0, 3)]
    batches = [batch + rng.integers(-9, 9, batch.shape) for batch in batches]
    pictures = torch.from_numpy(np.concatenate(batches).clip(0, 255).astype(np.uint8))
    pictures = pictures.permute(0, 3, 1, 2)
    codec = LinearCodec(8)
    decibels = solve_linear(codec, pictures.split(3))
    patches = pictures.numpy() / 127.5 - 1  # [6, 3, 64, 72]
    patches = patches.reshape(6, 3, 8, 8, 9, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 192)
    mean = patches.mean(0)
    _, values, directions = np.linalg.svd(patches - mean, full_matrices=False)
    expected = (patches - mean) @ directions[:8].T @ directions[:8] + mean
    with torch.no_grad():
        latents = codec.encode(to_float(pictures))
        again = codec.decode(latents)
    assert latents.shape == (6, 8, 8, 9)
    rows = latents.permute(0, 2, 3, 1).reshape(-1, 8)
    assert torch.allclose(rows.T @ rows / len(rows), torch.eye(8), atol=1e-3)  # whitened
    again = again.reshape(6, 3, 8, 8, 9, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 192)
    assert np.allclose(again, expected, atol=2e-3)
    error = np.square(patches - expected).mean()
    assert error == pytest.approx(np.square(values[8:]).sum() / patches.size)
    assert decibels == pytest.approx(-10 * np.log10(error / 4), abs=0.01)


def test_data_with_few_directions() -> None:
    """Grey pictures have one; nothing must blow up."""
    values = torch.randint(0, 256, (6, 1, 1, 1), generator=torch.Generator().manual_seed(0))
    pictures = values.to(torch.uint8).expand(-1, 3, 32, 32)
    codec = LinearCodec(8)
    assert solve_linear(codec, [pictures]) > 60
    with torch.no_grad():
        latents = codec.encode(to_float(pictures))
    assert latents.abs().max() < 10


# --- learning ---


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_other_prediction_types_learn(
    data: Path, tmp_path: Path, monkeypatch, prediction_type: str
) -> None:
    config = config_of(
        data,
        tmp_path / "run",
        prediction_type=prediction_type,
        steps=80,
        learning_rate=4e-3,
        detail_weighting=False,
        validate_every=100,
        checkpoint_every=100,
    )
    losses = []
    train_step = loop.train_step

    def kept(run, batch):
        losses.append(train_step(run, batch))
        return losses[-1]

    monkeypatch.setattr(loop, "train_step", kept)
    train(config)
    assert np.isfinite(losses).all() and len(losses) == 80
    # Measured: 0.94 and 0.93 of the first; a mean of 20 is good to 0.01.
    assert np.mean(losses[-20:]) < 0.97 * np.mean(losses[:20])
    model = load_model(str(config.output / "model"))
    assert model.config.prediction_type == prediction_type


# --- export ---


def test_the_exported_model(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path / "run", steps=6, learning_rate=1e-3)
    train(config)
    model = load_model(str(config.output / "model"))
    assert model.image_motion_latents.shape == (8,)
    state = model.state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, tensor.bfloat16().float()), name
    checkpoint = state_of(config.output, 6)
    for name, _ in model.named_parameters():  # the averaged weights, nothing else
        assert torch.equal(state[name], checkpoint[f"ema.{name}"].bfloat16().float())
    assert [path.name for path in config.output.glob(".*")] == [".lock"]
    # Unseen crops of the training clips: statistics of 50 batches against those of 60 others.
    clips = prepare_clips([data], data.parent / "cache").clips
    batches = TrainingBatches(
        clips,
        BatchConfig(seed=9, num_steps=60, chunk_length=9, crop=32, other_tasks=0),
    )
    latents = []
    with torch.no_grad():
        for step in range(60):
            chunk = batches[step]["chunk"]
            assert isinstance(chunk, torch.Tensor)
            if chunk.shape[2] == 9:
                latents.append(model.encode(to_float(chunk)).latents)
    every = torch.cat(latents)
    # Mean and standard deviation differ by 0.25 at most here (the few clips' crops are not
    # independent).
    assert every.mean(dim=(0, 3, 4)).abs().max() < 0.4
    assert (every.std(dim=(0, 3, 4)) - 1).abs().max() < 0.4
    assert not torch.equal(model.latents_mean[:, 0], model.latents_mean[:, 1])


def test_two_trainings_do_not_write_to_one_folder(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path / "run", steps=1)
    with written_by_another(config.output), pytest.raises(ValueError, match="another process"):
        train(config)


def test_a_run_in_its_data_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--output .* is inside"):
        train(replace(config_of(data, tmp_path), output=data / "run"))
    assert not (data / "run").exists()
