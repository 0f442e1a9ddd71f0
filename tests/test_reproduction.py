"""regen reproduce: what it enforces, what it keeps, and that its measures measure."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import small_train
import torch
from conftest import Run
from PIL import Image
from test_training import moving_frames, write_data

from regen.data.clips import prepare_clips
from regen.loading import new_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.extension import decode_extended
from regen.model.presets import PRESETS
from regen.reproduction import experiments, measuring, models
from regen.reproduction.config import ReproduceConfig
from regen.reproduction.cost import PEERS, count_flops, time_and_memory
from regen.reproduction.experiments import (
    EXPERIMENTS,
    check_equal_cost,
    geometry_cells,
    reproduce,
)
from regen.reproduction.measuring import draw, find_clips, means, over_clips
from regen.reproduction.paper import Table, paper_cell, spread
from regen.video import interpolate_frames, read_prepared, write_video

BUNNY = Path(__file__).parents[1] / "assets" / "bunny.mp4"


@pytest.fixture(autouse=True)
def smaller(small_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small_8x", lambda: dict(small_train.TEST_PRESET))
    monkeypatch.setattr(models, "SMALL", {"crop": 32, "video_batch_size": 2, "image_batch_size": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reproduction")
    for name in ("data", "clips"):
        write_data(made / name)
    prepare_clips([made / "data"], made / "cache")
    return made


def config_of(folder: Path, output: Path, **options) -> ReproduceConfig:
    small = {"minutes": 0.01, "eval_size": 32, "eval_frames": 18, "max_clips": 1, "seeds": (0,)}
    return ReproduceConfig(
        data=(str(folder / "data"),),
        eval_data=folder / "clips",
        output=output,
        cache=folder / "cache",
        **small | options,
    )


def test_figures_of_one_model_train_it_once(folder: Path, tmp_path: Path, monkeypatch) -> None:
    config = config_of(folder, tmp_path, seeds=(0, 1))
    table = reproduce("figure13", config)
    assert [row[1] for row in table.rows] == ["the source", *["the latents"] * 3]
    runs = sorted(path.name for path in (tmp_path / "models").iterdir() if path.name[0] != ".")
    assert runs == [f"small_8x-0.01min-seed{seed}" for seed in (0, 1)]
    plan = json.loads((tmp_path / "models" / runs[0] / "plan.json").read_text())
    assert plan["steps"] == max(1, round(0.6 / plan["seconds_per_step"]))
    lines = (tmp_path / "models" / runs[0] / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == plan["steps"]
    validated = (tmp_path / "models" / runs[0] / "validation.jsonl").read_text().splitlines()
    curve = ", ".join(f"{json.loads(line)['validation/psnr']:.2f}" for line in validated)
    assert 1 <= len(validated) <= 4 and f"small_8x, seed 0: {curve};" in " ".join(table.notes)

    def fail(*_) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(models, "train", fail)
    monkeypatch.setattr(models, "seconds_per_step", fail)
    figure7, figure9 = reproduce("figure7", config), reproduce("figure9", config)
    assert [row[0] for row in figure7.rows] == ["1", "2", "4", "8", "25"]
    assert " to " in figure7.rows[0][1]  # two seeds have a range
    assert [row[0] for row in figure9.rows] == ["1", "4", "8"]
    kept = json.loads((tmp_path / "figure7-32.json").read_text())
    assert kept["rows"] == figure7.rows and (tmp_path / "figure7-32.md").read_text()
    assert list(figure7.columns) == ["steps", "PSNR", "SSIM"]
    assert any("LPIPS VGG, rFVD: absent" in note for note in figure7.notes)
    for name, height, width in (
        ("figure9", 3 * 32 + 2 * 16, 6 * 18),
        ("figure13", 32, 5 * 32),
    ):
        assert Image.open(tmp_path / f"{name}.png").size == (width, height)


def test_numbers_of_other_weights_are_measured_anew(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path)
    before = reproduce("figure7", config).rows
    model_folder = next((tmp_path / "models").glob("small_8x*")) / "model"
    torch.manual_seed(5)
    new_model("small_8x").save_pretrained(model_folder)
    assert reproduce("figure7", config).rows != before


def test_models_of_other_data_are_refused(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path / "out")
    reproduce("figure7", config)
    shutil.copytree(folder / "data", tmp_path / "other")
    with pytest.raises(ValueError, match=r"was trained on .*data, --data is .*other"):
        reproduce("figure7", replace(config, data=(str(tmp_path / "other"),)))


def test_data_that_leaves_nothing_to_validate_on(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for photo in (folder / "data").glob("*.png"):
        shutil.copy(photo, data)
    with pytest.raises(ValueError, match="leaves no clip to validate on"):
        reproduce("figure7", replace(config_of(folder, tmp_path), data=(str(data),)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": ()}, "--data names what to train on"),
        ({"eval_data": Path("nowhere")}, "--eval-data is a folder"),
        ({"minutes": 0.0}, "--minutes is above 0"),
        ({"seeds": (1, 1)}, "--seeds are different numbers"),
        ({"eval_size": 50}, "--eval-size is a multiple of 32"),
    ],
)
def test_bad_options(folder: Path, tmp_path: Path, options, said) -> None:
    config = replace(config_of(folder, tmp_path), **options)
    with pytest.raises(ValueError, match=said):
        reproduce("figure13", config)
    assert list(tmp_path.iterdir()) == []


def test_unequal_decoders_are_refused() -> None:
    assert set(check_equal_cost(["magvit_small_16x", "small_16x"], 64)) == {
        "magvit_small_16x",
        "small_16x",
    }
    with pytest.raises(ValueError, match="do not cost the same"):
        check_equal_cost(["magvit_small_8x", "small_8x"], 64)  # which is a smaller one here


def test_latent_extension_begins_as_plain_decoding_and_meets_at_the_seam() -> None:
    torch.manual_seed(0)
    model = new_model("small_8x").eval()
    assert isinstance(model, AutoencoderREGEN)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    latents = torch.randn(1, 8, 4, 4, 4)

    def plain(generator: torch.Generator) -> torch.Tensor:
        with torch.no_grad():
            return model.decode(latents, num_inference_steps=8, generator=generator).sample

    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    extended = decode_extended(model, latents, 8, other)
    assert extended.shape == (1, 3, 18, 32, 32)
    with pytest.raises(ValueError, match="whole chunks"):
        decode_extended(model, latents[:, :, :3], 1)
    assert torch.equal(extended[:, :, :9], plain(one)[:, :, :9])
    assert not torch.equal(extended[:, :, 9:], plain(torch.Generator().manual_seed(0))[:, :, 9:])


def test_flops_of_a_product_are_counted_once() -> None:
    def call(model: torch.nn.Module) -> None:
        model(torch.zeros(5, 30))

    assert count_flops(lambda: torch.nn.Linear(30, 7, bias=False), call) == 2 * 5 * 30 * 7


def test_accounting_of_frames() -> None:
    """The nominal ratio is not the real one: 8x is 17 / 3 and 9 / 2 frames per latent frame."""
    assert geometry_cells("magvit_8x") == ["5.667", "136"]
    assert geometry_cells("regen_8x") == ["4.5", "108"]
    assert geometry_cells("regen_32x") == geometry_cells("magvit_32x") == ["16.5", "396"]
    assert PEERS["LTX-Video"].factor == 192  # as LTX-Video's paper says


def test_cells() -> None:
    assert spread([1.0, 2.0], 1) == "1.5 (1.0 to 2.0)" and spread([1.0], 2) == "1.00"
    assert spread([1.0, float("nan")], 1) == "-"
    assert paper_cell((1, 2, 3)) == "1.00 / 2.000 / 3.00" and paper_cell(None) == "-"
    assert "| a | b |" in Table("T", ["x", "y"], [["a", "b"]]).markdown()


def test_clips_are_those_of_regen_evaluate(folder: Path, tmp_path: Path) -> None:
    """Prepared by the same reader, first frames, from the middle."""
    config = ReproduceConfig(eval_data=folder / "clips", eval_size=64, eval_frames=5)
    seen: list[np.ndarray] = []

    def measure(frames: np.ndarray) -> dict[str, float]:
        seen.append(frames)
        return {"psnr": float(len(seen))}

    found = find_clips(config)
    assert means(over_clips(config, tmp_path, "x", measure)) == {"psnr": (len(found) + 1) / 2}
    assert all(
        np.array_equal(frames, read_prepared(path, 64, 5))
        for frames, path in zip(seen, found, strict=True)
    )
    assert np.abs(seen[0][3].astype(int) - moving_frames(24, 0)[3][:, 4:68]).max() <= 8  # 4:2:0


def test_clips_are_checked_before_anything_trains(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    def fail(*_) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(models, "train", fail)
    config = config_of(folder, tmp_path / "out")
    short = tmp_path / "short"
    short.mkdir()
    with pytest.raises(ValueError, match="holds no videos"):
        reproduce("table1", replace(config, eval_data=short))
    grey = [np.full((64, 64, 3), 20 * number, np.uint8) for number in range(10)]
    write_video(short / "a.mkv", grey, Fraction(24))
    for name, needed in (("figure9", 18), ("figure13", 17)):
        with pytest.raises(ValueError, match=rf"a\.mkv has 10 frames, this takes {needed}"):
            reproduce(name, replace(config, eval_data=short))
    known = next((folder / "data").glob("*.mkv"))
    shutil.copy(known, short / "another name.mkv")
    with pytest.raises(ValueError, match=r"another name.mkv of --eval-data is .*mkv of --data"):
        reproduce("table1", replace(config, eval_data=short, max_clips=0))
    with pytest.raises(ValueError, match="--eval-size is a multiple of 32"):
        reproduce("table4", replace(config, eval_size=100))


def test_davis_as_it_is_published_is_measured(folder: Path, tmp_path: Path) -> None:
    for part in ("JPEGImages", "Annotations"):
        sequence = tmp_path / part / "Full-Resolution" / "dog"
        sequence.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(sequence / "00000.jpg")
    config = config_of(folder, tmp_path / "out", eval_frames=1)
    found = find_clips(replace(config, eval_data=tmp_path))
    assert found == [tmp_path / "JPEGImages" / "Full-Resolution" / "dog"]


def test_pictures_have_clips_and_sizes_as_rows(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path)
    draw(config, "x", lambda frames: [[frames[4], 255 - frames[4]]], 9, (32, 64))
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert pixels.shape == (2 * 64, 2 * 64, 3)  # one clip at both sizes
    (clip,) = find_clips(config)
    assert np.array_equal(pixels[:64:2, :64:2], read_prepared(clip, 32, 9)[4])
    assert np.array_equal(pixels[64:, :64], read_prepared(clip, 64, 9)[4])
    assert np.array_equal(pixels[64:, 64:], 255 - read_prepared(clip, 64, 9)[4])


def test_frames_beyond_the_chunk_and_another_interpolator(folder: Path, tmp_path: Path) -> None:
    """What that made of the frames which figure13 wrote stands beside the other ways."""
    config = config_of(folder, tmp_path / "out")
    for name in ("figure14", "figure15"):
        table = reproduce(name, config)
        assert [row[0] for row in table.rows] == ["1", "2", "4", "8"]
        assert len(table.columns) == 5 and all(float(cell) for cell in table.rows[0])
        assert Image.open(tmp_path / "out" / f"{name}.png").size == (4 * 32, 2 * 32)
    before = reproduce("figure13", config)
    (clip,) = (tmp_path / "out" / "figure13").iterdir()
    rebuilt = read_prepared(clip)
    assert len(rebuilt) == 9
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with pytest.raises(ValueError, match=f"holds no {clip.stem}"):
        reproduce("figure13", replace(config, interpolated=theirs))
    for pixels, name in ((rebuilt, "wrong"), (interpolate_frames(rebuilt), clip.stem)):
        write_video(theirs / f"{clip.stem}.mkv", pixels, Fraction(24))
        if name == "wrong":
            with pytest.raises(ValueError, match="has 9 frames of 32 x 32: give the 8 between"):
                reproduce("figure13", replace(config, interpolated=theirs))
    table = reproduce("figure13", replace(config, interpolated=theirs))
    assert table.rows[-1] == ["theirs of the reconstruction", "the latents", *before.rows[2][2:]]


def test_motion_compensated_frames_are_nearer_than_averages() -> None:
    """Of every second frame of the sample clip: 32.7 dB, averages 30.4."""
    frames = read_prepared(BUNNY, 128, 17)
    between = interpolate_frames(frames[::2]).astype(float)
    averages = (frames[:-2:2].astype(float) + frames[2::2]) / 2
    errors = [np.square(one - frames[1::2]).mean() for one in (between, averages)]
    assert len(between) == 8 and errors[0] < 0.8 * errors[1], errors


@pytest.mark.published
def test_tables_have_lpips_and_rfvd(folder: Path, tmp_path: Path, monkeypatch) -> None:
    measuring.networks.cache_clear()
    monkeypatch.setattr(measuring, "RFVD_FRAMES", 9)
    monkeypatch.setattr(experiments, "STEPS", (1,))
    config = config_of(folder, tmp_path)
    table = reproduce("figure7", config)
    measuring.networks.cache_clear()
    assert list(table.columns) == ["steps", "PSNR", "SSIM", "LPIPS AlexNet", "LPIPS VGG", "rFVD"]
    assert all(float(cell) > 0 for cell in table.rows[0])


def test_the_papers_numbers_stand_beside_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 1 is of 256 and of 512, Table 2 of 512, Table 5 of 256."""
    monkeypatch.setattr(experiments, "check_equal_cost", lambda names, _: dict.fromkeys(names, 1))
    one = models.Trained("x", 0, Path(), 1, 1.0, [])
    monkeypatch.setattr(experiments, "trained", lambda *_: one)
    monkeypatch.setattr(experiments, "reconstruction", lambda *_: {"psnr": 1.0, "ssim": 1.0})
    found = {}
    for size in (128, 256, 512):
        config = ReproduceConfig(data=("x",), eval_data=Path(), eval_size=size)
        for name in ("table1", "table2", "table5"):
            table = EXPERIMENTS[name](config)
            assert all(len(row) == len(table.columns) for row in table.rows)
            found[name, size] = [cell for row in table.rows for cell in row if " / " in cell]
    assert {key: len(cells) for key, cells in found.items() if cells} == {
        ("table1", 256): 12,
        ("table1", 512): 10,
        ("table2", 512): 10,
        ("table5", 256): 6,
    }
    assert found["table1", 512][0] == "29.14 / 0.771 / 72.07"


def test_validation_takes_a_bounded_share(folder: Path, tmp_path: Path, monkeypatch) -> None:
    config = config_of(folder, tmp_path)
    monkeypatch.setattr(models, "seconds_per_step", lambda _: (0.1, 1.0, 12, "a clock"))
    plans = {minutes: models._plan(config, minutes) for minutes in (0.1, 1, 4, 60)}
    found = {minutes: (p["validations"], p["validation_clips"]) for minutes, p in plans.items()}
    assert found == {0.1: (1, 1), 1: (4, 3), 4: (4, 12), 60: (4, 12)}


def test_time_and_memory_of_a_decoder() -> None:
    milliseconds, mebibytes = time_and_memory("small_8x", 64)
    assert 0 < milliseconds < 60_000 and mebibytes >= 0


def test_one_line_on_the_command_line(run: Run) -> None:
    status, _, said = run("reproduce", "table1")
    assert status == 1 and said.startswith("regen: --data names what to train on")
