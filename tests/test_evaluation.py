"""`regen evaluate`: its numbers against closed forms, its systems against the classes' own forward,
its protocol against other files, and what happens when it is cut off."""

import json
import math
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Run
from safetensors.torch import save_file

import regen.evaluation.evaluate as evaluation
import regen.evaluation.networks as networks
from regen.evaluation.config import EvaluateConfig
from regen.evaluation.evaluate import evaluate
from regen.evaluation.frechet import frechet_distance
from regen.evaluation.measure import measure
from regen.evaluation.protocols import find_clips, rotate_hue, stem_of
from regen.evaluation.temporal import (
    colour_error,
    colour_shift,
    flicker,
    frame_steps,
    seam_ratio,
)
from regen.loading import new_model
from regen.video import VideoError, frames_to_video, read_prepared, write_video


def texture(seed: int, num_frames: int = 20, height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth colours that move to the right: uint8 `[T, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phases, speeds = rng.uniform(0, 6, 3), rng.uniform(0.2, 0.5, 3)
    frames = [
        127 + 90 * np.stack([np.sin((x - v * 4 * t) / 5 + p) * np.cos(y / 6) for p, v in
                             zip(phases, speeds, strict=True)], -1)
        for t in range(num_frames)
    ]  # fmt: skip
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def write_clip(path: Path, frames: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, frames, Fraction(25))


def write_pictures(folder: Path, frames: np.ndarray) -> Path:
    from PIL import Image

    folder.mkdir(parents=True)
    for index, picture in enumerate(frames):
        Image.fromarray(picture).save(folder / f"{index:05d}.png")
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "clips"
    for seed, name in enumerate(("a", "b", "c")):
        write_clip(folder / f"{name}.mkv", texture(seed))
    return folder


# -- metrics --------------------------------------------------------------------------------------


def test_seam_ratio_of_known_steps() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.6, 0.7])  # steps 0.1 but for 0.3 at frame 3
    video = values[None, None, :, None, None].expand(1, 3, 6, 4, 4)
    assert seam_ratio(video, 3).tolist() == pytest.approx([3.0], abs=1e-4)
    assert seam_ratio(video, 3).item() > seam_ratio(video, 2).item()
    assert frame_steps(video)[0].tolist() == pytest.approx([12.75, 12.75, 38.25, 12.75, 12.75])
    assert seam_ratio(torch.zeros(1, 3, 6, 4, 4), 3).isnan().all()  # nothing moves
    assert seam_ratio(video, 9).isnan().all()  # no seam


def test_a_seam_ratio_without_that_of_the_source_does_not_count() -> None:
    still = np.repeat(texture(0, 1), 20, axis=0)
    noisy = np.random.default_rng(0).integers(0, 256, still.shape, dtype=np.uint8)
    values = measure(still, noisy, 9)
    assert math.isnan(values["seam_ratio"]) and math.isnan(values["seam_ratio_source"])
    moving = measure(texture(0, 20), noisy, 9)
    assert moving["seam_ratio"] > 0 and moving["seam_ratio_source"] > 0


def test_flicker_is_of_errors_that_change_in_time() -> None:
    source = torch.rand(1, 3, 5, 8, 8) * 2 - 1
    assert flicker(source + 0.2, source).abs().max() < 1e-4  # an error that stands still
    blinking = source.clone()
    blinking[:, :, 1::2] += 0.2
    assert torch.allclose(flicker(blinking, source), torch.full((1, 4), 0.2 * 127.5), atol=1e-3)
    tinted = source.clone()
    tinted[:, 0] += 0.2  # differs between channels, not in time
    assert flicker(tinted, source).abs().max() < 1e-4


def test_colour_error_sees_a_tint_and_no_texture() -> None:
    source = torch.zeros(1, 3, 2, 8, 8)
    tinted = source.clone()
    tinted[:, 2] += 2 / 255
    assert colour_shift(tinted, source)[0, 0].tolist() == pytest.approx([0, 0, 1], abs=1e-5)
    assert colour_error(tinted, source)[0].tolist() == pytest.approx([1 / 3, 1 / 3], abs=1e-5)
    checks = source.clone()
    checks[..., ::2], checks[..., 1::2] = 0.5, -0.5
    assert colour_error(checks, source).max() < 1e-5


def test_pooled_psnr_is_of_the_mean_error() -> None:
    source = np.full((2, 16, 16, 3), 100, np.uint8)
    other = source.copy()
    other[0] += 10
    values = measure(source, other, None)
    one = 20 * math.log10(255 / 10)
    assert values["psnr"] == pytest.approx((one + 100) / 2, abs=1e-4)
    assert values["psnr_pooled"] == pytest.approx(one + 10 * math.log10(2), abs=1e-4)


# -- Frechet distance -----------------------------------------------------------------------------


def samples_of(mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """200 samples with just these moments (1 / N)."""
    samples = np.random.default_rng(seed).normal(size=(200, len(mean)))
    samples -= samples.mean(axis=0)
    white = samples @ np.linalg.inv(np.linalg.cholesky(samples.T @ samples / 200)).T
    return mean + white @ np.linalg.cholesky(covariance).T


def test_distance_of_gaussians_with_known_moments() -> None:
    mean, other_mean = np.array([1.0, 2.0, 0.0]), np.array([0.0, 0.0, 2.0])
    ours, theirs = np.diag([4.0, 1.0, 9.0]), np.diag([1.0, 1.0, 16.0])
    distance = frechet_distance(samples_of(mean, ours, 0), samples_of(other_mean, theirs, 1))
    assert distance == pytest.approx(9 + (2 - 1) ** 2 + 0 + (3 - 4) ** 2)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    one = samples_of(turn @ mean, turn @ ours @ turn.T, 2)
    other = samples_of(turn @ other_mean, turn @ theirs @ turn.T, 3)
    assert frechet_distance(one, other) == pytest.approx(11)


def test_distance_with_fewer_samples_than_features_is_of_the_whole_set() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(size=(8, 40)), rng.normal(size=(8, 40))
    whole = frechet_distance(ours, theirs)
    assert frechet_distance(ours, ours) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(ours[::-1], theirs[::-1]) == pytest.approx(whole)
    batches = np.mean([frechet_distance(ours[i : i + 2], theirs[i : i + 2]) for i in (0, 2, 4, 6)])
    assert batches > 1.2 * whole  # why an average over batches is another number
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(ours[:1], theirs)


# -- clips ----------------------------------------------------------------------------------------


def test_prepared_clips_are_what_ffmpeg_scales_to(clips: Path, tmp_path: Path) -> None:
    import av

    frames = read_prepared(clips / "a.mkv", 24, 5)
    assert frames.shape == (5, 24, 24, 3)
    graph = av.filter.Graph()
    with av.open(str(clips / "a.mkv")) as container:
        stream = container.streams.video[0]
        nodes = [
            graph.add_buffer(template=stream),
            graph.add("scale", "34:24:flags=bicubic"),
            graph.add("crop", "24:24:5:0"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        graph.push(next(container.decode(stream)))
        theirs = graph.pull().to_ndarray(format="rgb24")
    assert np.abs(frames[0].astype(int) - theirs).max() <= 2
    assert np.array_equal(read_prepared(clips / "a.mkv"), texture(0))
    folder = write_pictures(tmp_path / "pictures", texture(0, 3))
    assert np.array_equal(read_prepared(folder), texture(0, 3))


def test_headerless_video_takes_its_size_from_its_name(tmp_path: Path) -> None:
    path = tmp_path / "videoSRC07_32x16_30.yuv"
    planes = np.full(32 * 16 * 3 // 2, 128, np.uint8)
    planes[: 32 * 16] = 126  # grey
    path.write_bytes(planes.tobytes() * 3)
    frames = read_prepared(path, 16)
    assert frames.shape == (3, 16, 16, 3) and abs(int(frames.mean()) - 128) <= 1
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(VideoError, match="no whole number"):
        read_prepared(path)
    nameless = path.rename(tmp_path / "clip.yuv")
    with pytest.raises(VideoError, match="in its name"):
        read_prepared(nameless)


def config_of(output: Path, **options) -> EvaluateConfig:
    return EvaluateConfig(output=output, export=output / "unused", **options)


def test_benchmarks_in_their_published_layout_and_in_part(tmp_path: Path) -> None:
    davis = tmp_path / "DAVIS"
    for name in ("bear", "camel"):
        write_pictures(davis / "JPEGImages" / "Full-Resolution" / name, texture(0, 2))
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    (davis / "ImageSets" / "2017" / "val.txt").write_text("camel\ncows\n")
    (davis / "ImageSets" / "2017" / "train.txt").write_text("bear\n")
    found, notes = find_clips(config_of(tmp_path, data=(str(davis),), benchmark="davis2019"))
    assert [clip.id for clip in found] == ["davis2019/bear", "davis2019/camel"]
    part = "2 of 150 sequences (train 1 of 1, val 1 of 2)"
    assert notes["davis2019"] == {"part": part, "num_clips": 2}
    assert found[0].read(config_of(tmp_path, data=("x",), size=32)).shape == (2, 32, 32, 3)

    jcv = tmp_path / "MCL-JCV"
    write_clip(jcv / "videoSRC02_1920x1080_30.mkv", texture(0, 2))
    write_clip(jcv / "videoSRC01_1920x1080_30.mkv", texture(0, 2))
    found, notes = find_clips(config_of(tmp_path, data=(str(jcv),), benchmark="mcl-jcv"))
    assert [clip.name[:10] for clip in found] == ["videoSRC01", "videoSRC02"]
    assert notes["mcl-jcv"]["part"].startswith("2 of 30 clips (missing: 03, 04")
    with pytest.raises(ValueError, match="Full-Resolution"):
        find_clips(config_of(tmp_path, data=(str(jcv),), benchmark="davis2019"))
    with pytest.raises(ValueError, match="videoSRC01"):
        find_clips(config_of(tmp_path, data=(str(davis),), benchmark="mcl-jcv"))


def test_clips_of_several_sets_and_of_a_manifest(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"file\n{clips / 'b.mkv'}\n{clips / 'a.mkv'}\n")
    write_pictures(tmp_path / "more" / "folder", texture(0, 2))
    data = (str(tmp_path / "list.csv"), str(tmp_path / "more"))
    found, notes = find_clips(config_of(tmp_path, data=data))
    assert [clip.set_name for clip in found] == ["list", "list", "more"]
    assert [Path(clip.stem).name for clip in found] == ["b", "a", "folder"]
    assert notes["list"]["num_clips"] == 2
    write_clip(tmp_path / "twice" / "a.mkv", texture(0, 2))
    write_clip(tmp_path / "twice" / "a.mp4", texture(0, 2))
    with pytest.raises(ValueError, match="one name"):
        find_clips(config_of(tmp_path, data=(str(tmp_path / "twice"),)))


def test_a_manifest_exports_into_the_folder_only(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copy(clips / "b.mkv", tmp_path / "b.mkv")
    (tmp_path / "a" / "b" / "list.csv").write_text(f"file\n{clips / 'a.mkv'}\n../../b.mkv\n")
    exported = tmp_path / "exported"
    before = set(tmp_path.rglob("*")) | set(clips.rglob("*"))
    config = {"data": (str(tmp_path / "a" / "b" / "list.csv"),), "export": exported, **SMALL}
    evaluate(EvaluateConfig(tmp_path / "out", **config))
    new = (set(tmp_path.rglob("*")) | set(clips.rglob("*"))) - before
    assert all(
        path.is_relative_to(exported) or path.is_relative_to(tmp_path / "out") for path in new
    )
    assert len(list(exported.rglob("*.mkv"))) == 2
    results = evaluate(EvaluateConfig(tmp_path / "out", reconstruction=exported, **config))
    assert results["rows"][0]["sets"]["list"]["mean"]["psnr"] == 100
    assert stem_of("s3://bucket/films/a.mp4") == "bucket/films/a"


# -- the command ----------------------------------------------------------------------------------

SMALL = {"size": 32, "num_frames": 18}


@pytest.fixture(scope="module")
def measured(
    clips: Path, small_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """An evaluation of the small model: two numbers of steps, two seeds."""
    output = tmp_path_factory.mktemp("measured")
    options = {"model": (str(small_model_folder),), "steps": (1, 3), "seeds": (0, 1)}
    return output, evaluate(EvaluateConfig(output, (str(clips),), **options, **SMALL))


def means_of(results: dict) -> list[dict]:
    return [{name: one["mean"] for name, one in row["sets"].items()} for row in results["rows"]]


def test_rows_say_what_they_are(measured: tuple[Path, dict], clips: Path) -> None:
    output, results = measured
    assert [row["about"]["steps"] for row in results["rows"]] == [1, 3]
    row = results["rows"][0]
    compression = row["compression"]
    assert compression["frames_per_latent_frame"] == 4.5
    assert compression["values_ratio"] == 3 * 18 * 32 * 32 / (8 * 4 * 4 * 4)
    assert compression["nominal"] == "8 x 8 x 8" and compression["factor"] == 192
    assert row["cost"]["decoder_flops"] > 1e6 and row["cost"]["decoder_parameters"] > 0
    summary = row["sets"]["clips"]
    assert summary["num_clips"] == 3 and len(summary["psnr_by_position"]) == 9
    assert summary["spread"]["psnr"] >= 0 and "rfvd" not in summary["mean"]
    by_hand = [clip["psnr_by_seed"] for clip in row["clips"]]
    assert summary["mean"]["psnr"] == pytest.approx(np.mean(by_hand))
    protocol = results["protocol"]
    assert protocol["size"] == 32 and protocol["lpips_vgg"] is None and len(protocol["clips"]) == 3
    assert json.loads((output / "results.json").read_text())["protocol"] == protocol


def test_steps_multiply_the_flops(measured: tuple[Path, dict]) -> None:
    one, three = (row["cost"]["decoder_flops"] for row in measured[1]["rows"])
    assert 1.2 < three / one < 3  # what comes before the steps is done once


def test_what_was_measured_is_not_measured_again(
    measured: tuple[Path, dict],
    clips: Path,
    small_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut off within the second clip, then the same command: the same results, one clip less."""
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(evaluation, "measure", counted)
    options = {"model": (str(small_model_folder),), "seeds": (0, 1)}
    config = EvaluateConfig(tmp_path, (str(clips),), **options, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert not (tmp_path / "results.json").exists()
    assert not list(tmp_path.rglob(".*"))  # nothing half-written
    results = evaluate(config)
    assert len(calls) == 2 + 5  # three clips, two seeds, one of them done before
    assert means_of(results) == means_of(measured[1])[:1]
    evaluate(config)
    assert len(calls) == 7


def test_two_processes_give_the_numbers_of_one(
    measured: tuple[Path, dict],
    clips: Path,
    small_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One after the other instead of side by side; docs/evaluation.md has the real launch."""
    options = {"model": (str(small_model_folder),), "steps": (1, 3), "seeds": (0, 1)}
    config = EvaluateConfig(tmp_path, (str(clips),), **options, **SMALL)
    (tmp_path / "protocol.json").write_text((measured[0] / "protocol.json").read_text())
    for rank in (1, 0):
        process = SimpleNamespace(
            process_index=rank,
            num_processes=2,
            is_main_process=rank == 0,
            device=torch.device("cpu"),
            wait_for_everyone=lambda: None,
        )
        monkeypatch.setattr(evaluation, "_accelerator", lambda process=process: process)
        results = evaluate(config)
        assert (rank == 1) == (results == {})
    assert means_of(results) == means_of(measured[1])


def test_the_baseline_and_models_of_one_name(
    measured: tuple[Path, dict], clips: Path, small_model_folder: Path, tmp_path: Path
) -> None:
    """MAGVIT-v2 has no encoder id and one step; folders that are all named `model` stay apart."""
    models = [tmp_path / name / "model" for name in ("magvit", "regen")]
    new_model("magvit_small_8x").save_pretrained(models[0])
    shutil.copytree(small_model_folder, models[1])
    options = {"model": tuple(map(str, models)), "steps": (1, 3)}
    output = tmp_path / "output"
    results = evaluate(EvaluateConfig(output, (str(clips),), **options, **SMALL))
    names = [f"{models[0]}", f"{models[1]}, 1 step", f"{models[1]}, 3 steps"]
    assert [row["name"] for row in results["rows"]] == names
    assert "encoder_id" not in results["rows"][0]["about"]


def test_exports_of_another_protocol_are_refused(clips: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(tmp_path / "a", (str(clips),), export=tmp_path / "mkv", **SMALL)
    evaluate(config)
    evaluate(config)
    with pytest.raises(ValueError, match="exported by another protocol"):
        evaluate(replace(config, output=tmp_path / "b", num_frames=9))


def test_another_protocol_or_clip_is_refused(
    measured: tuple[Path, dict], clips: Path, small_model_folder: Path, tmp_path: Path
) -> None:
    output, _ = measured
    options = {"model": (str(small_model_folder),), "num_frames": 18}
    with pytest.raises(ValueError, match=r"another protocol.*size"):
        evaluate(EvaluateConfig(output, (str(clips),), size=16, **options))
    changed = tmp_path / "clips"
    for name in "abc":
        write_clip(changed / f"{name}.mkv", texture(9))
    with pytest.raises(ValueError, match=r"another protocol.*clips"):
        evaluate(EvaluateConfig(output, (str(changed),), size=32, **options))


def test_reconstructions_made_elsewhere(clips: Path, tmp_path: Path) -> None:
    exported, other = tmp_path / "prepared", tmp_path / "codec"
    evaluate(EvaluateConfig(tmp_path / "out", (str(clips),), export=exported, **SMALL))
    for path in sorted(exported.glob("*.mkv")):
        frames = read_prepared(path)
        assert np.array_equal(frames, read_prepared(clips / path.name, 32, 18))
        write_pictures(other / path.stem, frames // 2 * 2)  # the lowest bit is gone
    same = {"reconstruction": exported, "reconstruction_name": "lossless"}
    evaluate(EvaluateConfig(tmp_path / "out", (str(clips),), **same, **SMALL))
    results = evaluate(
        EvaluateConfig(tmp_path / "out", (str(clips),), reconstruction=other, **SMALL)
    )
    assert [row["name"] for row in results["rows"]] == ["lossless", "codec"]
    lossless, codec = (row["sets"]["clips"]["mean"] for row in results["rows"])
    assert lossless["psnr"] == 100 and lossless["ssim"] == pytest.approx(1)
    assert 45 < codec["psnr"] < 60  # half the pixels off by one: 51 dB
    assert results["rows"][1]["compression"]["bits_per_pixel"] > 0

    as_it_is = evaluate(EvaluateConfig(tmp_path / "own", reference=exported, reconstruction=other))
    mean = as_it_is["rows"][0]["sets"]["prepared"]["mean"]
    assert mean["psnr"] == pytest.approx(codec["psnr"])

    (other / "a" / "00017.png").unlink()
    with pytest.raises(ValueError, match=r"17 frames of 32 x 32.*18 frames of 32 x 32"):
        evaluate(EvaluateConfig(tmp_path / "out", (str(clips),), reconstruction=other, **SMALL))
    for path in (other / "b").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"no reconstruction of 1 of 3 clips: clips/b\.mkv"):
        evaluate(EvaluateConfig(tmp_path / "new", (str(clips),), reconstruction=other, **SMALL))


MODULE = """
import torch
def keep(video): return video
def noisy(video, seed, num_inference_steps):
    generator = torch.Generator().manual_seed(seed)
    again = video + torch.randn(video.shape, generator=generator) / (5 * num_inference_steps)
    return again.clamp(-1, 1), video[:, :1, ::4, ::8, ::8]
noisy.chunk_length = 4
def short(video): return video[:, :, 1:]
def loud(video): return 255 * video
"""


def test_any_callable(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_codecs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"steps": (1, 4), "seeds": (0, 1, 2), **SMALL}
    systems = ("my_codecs:keep", "my_codecs:noisy")
    results = evaluate(EvaluateConfig(tmp_path / "out", (str(clips),), system=systems, **options))
    names = ["my_codecs:keep", "my_codecs:noisy, 1 step", "my_codecs:noisy, 4 steps"]
    assert [row["name"] for row in results["rows"]] == names
    keep, one, four = (row["sets"]["clips"] for row in results["rows"])
    assert keep["mean"]["psnr"] == 100 and not keep["spread"]
    assert 19 < one["mean"]["psnr"] < 22 and one["mean"]["psnr"] + 9 < four["mean"]["psnr"]
    assert one["spread"]["psnr"] > 0 and one["mean"]["seam_ratio"] == pytest.approx(1, abs=0.1)
    assert results["rows"][1]["compression"]["latent_channels"] == 1
    assert results["rows"][1]["compression"]["frames_per_latent_frame"] == 18 / 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "±" in page and page.count("<svg") == 3  # PSNR and SSIM by steps, PSNR by position
    for clip in results["rows"][1]["clips"]:  # means over seeds, as all is
        assert clip["psnr"] == pytest.approx(np.mean(clip["psnr_by_seed"]))
        assert np.ptp(clip["psnr_by_seed"]) > 0
    assert np.mean(one["psnr_by_position"]) == pytest.approx(one["mean"]["psnr"], abs=0.05)
    more = evaluate(
        EvaluateConfig(
            tmp_path / "out", (str(clips),), system=systems[:1], **(options | {"seeds": (3,)})
        )
    )
    assert more["rows"][0]["seeds"] == [0]  # nothing is drawn
    (tmp_path / "my_codecs.py").write_text(f"{MODULE}\n# another version\n")
    again = evaluate(EvaluateConfig(tmp_path / "out", (str(clips),), system=systems, **options))
    names = [row["name"] for row in again["rows"]]
    assert len(set(names)) == 6 and all(name.endswith("]") for name in names)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("my_codecs:noisy [") >= 2  # by steps, a line of each version
    for name, message in (("short", "returned"), ("loud", r"in \[-1, 1\]"), ("none", "none")):
        with pytest.raises(ValueError, match=message):
            system = (f"my_codecs:{name}",)
            evaluate(EvaluateConfig(tmp_path / "x", (str(clips),), system=system, **SMALL))


def test_the_report_is_one_file(measured: tuple[Path, dict]) -> None:
    output, results = measured
    page = (output / "report.html").read_text()
    for outside in ("src='http", 'src="http', "<link", "<script", "@import", "url("):
        assert outside not in page
    assert page.count("data:image/jpeg;base64,") == 6  # three worst clips of two rows
    assert "LPIPS AlexNet, LPIPS VGG, rFVD: absent, the weights are not installed: pip inst" in page
    for row in results["rows"]:
        assert f"{row['sets']['clips']['mean']['psnr']:.2f}" in page
    assert results["protocol"]["clips"][0]["sha256"] in page


def test_bad_options_are_one_line(
    clips: Path,
    small_model_folder: Path,
    tmp_path: Path,
    run: Run,
) -> None:
    def fail(*words: str) -> str:
        status, _, said = run("evaluate", "--output", tmp_path, *words)
        assert status == 1 and said.count("\n") == 1
        return said

    model = ("--model", str(small_model_folder))
    data = ("--data", str(clips), *model)
    assert "nothing to do" in fail("--data", str(clips))
    assert "--data or --reference" in fail(*model)
    assert "at least 1" in fail(*data, "--steps", "0")
    assert "twice" in fail(*data, "--seeds", "1", "1")
    assert "no such file" in fail(*data, "--lpips-weights", "nowhere.pth")
    (tmp_path / "none").mkdir()
    assert "no clips" in fail("--data", str(tmp_path / "none"), *model)
    assert f"--output {tmp_path} is inside" in fail("--data", str(tmp_path), *data[2:])
    inside = ("--data", str(tmp_path / "none"), "--export", str(tmp_path / "none" / "x"))
    assert f"--export {tmp_path / 'none' / 'x'} is inside" in fail(*inside)
    assert "no model nothing" in fail("--data", str(clips), "--model", "nothing")
    assert "MODULE:CALLABLE" in fail("--data", str(clips), "--system", "json")
    assert "--device none" in fail(*data, "--device", "none")
    assert "give CLASS:FOLDER" in fail("--data", str(clips), "--diffusers", "AutoencoderKL:x")
    (tmp_path / "protocol.json").unlink()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.mp4").write_bytes(b"no video")
    assert "a.mp4" in fail("--data", str(broken), "--reconstruction", str(clips))


# -- networks of metrics --------------------------------------------------------------------------


class FakeI3D(torch.nn.Module):
    """The interface of `i3d_torchscript.pt`, and fewer features."""

    def forward(
        self,
        video: torch.Tensor,
        rescale: bool = True,
        resize: bool = True,
        return_features: bool = False,
    ) -> torch.Tensor:
        assert not rescale and not resize and return_features
        means = video.mean(dim=(3, 4))
        return torch.cat([means.mean(dim=2), means.std(dim=2)], dim=1)


def test_rfvd_is_of_the_whole_set_and_of_a_known_network(
    clips: Path, small_model_folder: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "network.pt"
    torch.jit.script(FakeI3D()).save(str(weights))
    options = {"model": (str(small_model_folder),), "fvd_weights": weights, "size": 32}
    config = EvaluateConfig(tmp_path / "a", (str(clips),), fvd_frames=10, **options)
    with pytest.raises(ValueError, match="--fvd-sha256"):
        evaluate(config)
    known = networks.sha256_of(weights)
    config = EvaluateConfig(
        tmp_path / "b", (str(clips),), fvd_frames=10, fvd_sha256=known, **options
    )
    results = evaluate(config)
    summary = results["rows"][0]["sets"]["clips"]
    assert summary["rfvd_samples"] == 6  # two pieces of each of three clips of 20 frames
    records = [
        json.loads(path.read_text()) for path in sorted((tmp_path / "b").glob("rows/*/clips/*"))
    ]
    sources = [json.loads(path.read_text()) for path in sorted((tmp_path / "b").glob("source/*"))]
    ours = [row for record in records for row in record["seeds"]["0"]["features"]]
    theirs = [row for record in sources for row in record["features"]]
    expected = frechet_distance(np.array(ours), np.array(theirs))
    assert summary["mean"]["rfvd"] == pytest.approx(expected)
    assert results["protocol"]["rfvd"]["sha256"] == known
    with pytest.raises(ValueError, match="not the expected"):
        networks.load_i3d(weights, "0" * 64)


def test_i3d_sees_frames_as_cd_fvd_prepares_them(tmp_path: Path) -> None:
    weights = tmp_path / "network.pt"
    torch.jit.script(FakeI3D()).save(str(weights))
    network = networks.load_i3d(weights, networks.sha256_of(weights))
    clips = np.stack([texture(seed, 10) for seed in range(3)])
    features = network.features(clips)
    assert np.allclose(features, np.concatenate([network.features(one[None]) for one in clips]))
    frames = torch.from_numpy(clips[0]).permute(0, 3, 1, 2).float()
    frames = torch.nn.functional.interpolate(frames, (224, 224), mode="bilinear") / 127.5 - 1
    assert features[0, :3] == pytest.approx(frames.mean(dim=(0, 2, 3)).numpy(), abs=1e-5)


def test_lpips_takes_the_published_backbones_only(tmp_path: Path) -> None:
    other = tmp_path / "alexnet-owt-7be5be79.pth"
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no backbone of LPIPS"):
        networks.load_networks(other, None, "", "cpu")


def test_lpips_of_a_named_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in a file of torchvision's layout stand in for the published ones."""
    torch.manual_seed(0)
    widths, kernels, state = (3, 64, 192, 384, 256, 256), (11, 5, 3, 3, 3), {}
    for place, index in enumerate((0, 3, 6, 8, 10)):
        convolution = torch.nn.Conv2d(widths[place], widths[place + 1], kernels[place])
        state |= {f"features.{index}.{name}": one for name, one in convolution.state_dict().items()}
    weights = tmp_path / "backbone.safetensors"
    save_file(state, weights)
    monkeypatch.setitem(networks.LPIPS_FILES, networks.sha256_of(weights), "alex")
    found = networks.load_networks(weights, None, "", "cpu")
    assert found.about["lpips_alex"]["file"] == weights.name
    assert found.about["lpips_vgg"] is None and found.i3d is None
    run = found.lpips["lpips_alex"].run
    video = frames_to_video(texture(0, 3, 64, 64))[None].repeat(2, 1, 1, 1, 1)
    other = (video + 0.2 * torch.randn(video.shape)).clamp(-1, 1)
    assert run(video, video).abs().max() == 0 and run(other, video).min() > 0
    parts = torch.cat([run(other[i : i + 1], video[i : i + 1]) for i in range(2)])
    assert torch.allclose(run(other, video), parts, atol=1e-6)
    assert run(video[..., :8], video[..., :8]).isnan().all()


@pytest.mark.published
def test_lpips_and_rfvd_are_there_by_default(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder that is the clips again, and of one with noise; no number depends on a batch."""
    copies, noisy = tmp_path / "copies", tmp_path / "noisy"
    rng = np.random.default_rng(0)
    for seed, name in enumerate("ab"):
        for folder, sigma in ((copies, 0), (noisy, 20)):
            frames = texture(seed, 9) + rng.normal(0, sigma, texture(seed, 9).shape)
            write_clip(folder / f"{name}.mkv", frames.clip(0, 255).astype(np.uint8))
    results = {}
    for folder in (copies, noisy):
        options = {"reconstruction": folder, "size": 0, "fvd_frames": 9}
        results = evaluate(EvaluateConfig(tmp_path / "out", (str(copies),), **options))
    same, other = (row["sets"]["copies"]["mean"] for row in results["rows"])
    assert same["lpips_alex"] == same["lpips_vgg"] == 0 and same["rfvd"] < 1e-6
    assert other["lpips_alex"] > 0.05 and other["lpips_vgg"] > 0.05 and other["rfvd"] > 1
    assert results["rows"][0]["sets"]["copies"]["rfvd_samples"] == 2
    assert all(title in (tmp_path / "out" / "report.html").read_text() for title in ("VGG", "rFVD"))
    monkeypatch.setattr("regen.evaluation.measure.FRAMES_AT_ONCE", 4)
    lpips = networks.load_networks(None, None, "", "cpu").lpips
    pieces = measure(*(read_prepared(folder / "a.mkv") for folder in (copies, noisy)), None, lpips)
    (whole,) = (clip for clip in results["rows"][1]["clips"] if clip["id"] == "copies/a.mkv")
    for name in lpips:
        assert pieces[name] == pytest.approx(whole[name], abs=1e-6)


def test_hues_are_rotated_about_grey(clips: Path, tmp_path: Path) -> None:
    frames = np.zeros((1, 1, 3, 3), np.uint8)
    frames[0, 0] = ((90, 90, 90), (200, 0, 0), (100, 120, 140))
    assert rotate_hue(frames, 120)[0, 0].tolist() == [[90, 90, 90], [0, 200, 0], [140, 100, 120]]
    half = rotate_hue(frames, 180)[0, 0].tolist()
    assert half == [[90, 90, 90], [0, 133, 133], [140, 120, 100]]
    back = rotate_hue(rotate_hue(frames, 90), -90).astype(int)
    assert np.abs(back - frames)[0, 0, [0, 2]].max() <= 1  # what was not clipped
    turned = EvaluateConfig(tmp_path, (str(clips),), hue_rotation=120, export=tmp_path / "x")
    plain = replace(turned, hue_rotation=0)
    clip = find_clips(turned)[0][0]
    assert np.abs(clip.read(turned).astype(int) - clip.read(plain)[..., [2, 0, 1]]).max() <= 1
