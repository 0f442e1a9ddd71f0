"""The command line: what it prints, and an error in one line that leaves nothing behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SOURCES, Run
from PIL import Image
from safetensors.torch import load_file, save_file

import regen.codec as codec
import regen.loading as loading
from regen.model.presets import PRESETS
from regen.video import open_video, read_frames, write_video


def write_clip(path: Path, num_frames: int = 12, height: int = 16, width: int = 24) -> Path:
    pictures = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    return write_video(path, pictures, Fraction(25))


@pytest.fixture(scope="session")
def made(small_model, tmp_path_factory) -> Path:
    """A folder with a clip, its latents, and much that is wrong; tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    clip = write_clip(folder / "clip.mkv")
    codec.encode_file(small_model, clip, folder / "clip.safetensors", "float32")
    data = clip.read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) * 3 // 4])
    (folder / "text.mp4").write_text("no video at all\n" * 9)
    Image.fromarray(np.zeros((9, 11, 3), np.uint8)).save(folder / "picture.png")
    latents = (folder / "clip.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(latents[:-9])
    (folder / "flipped.safetensors").write_bytes(latents[:-9] + b"\x55" + latents[-8:])
    (folder / "old.mkv").write_text("old")
    (folder / "old.safetensors").write_text("old")
    (folder / "full").mkdir()
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of `made`, in which the test stands."""
    shutil.copytree(made, tmp_path / "place")
    (tmp_path / "place" / "link.mkv").symlink_to("clip.mkv")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def contents(folder: Path) -> dict[str, bytes]:
    """Every path below, with its bytes."""
    files = sorted(folder.rglob("*"))
    return {str(file): file.read_bytes() if file.is_file() else b"folder" for file in files}


def expect_error(run: Run, place: Path, arguments: str | list[str], words: str) -> str:
    before = contents(place)
    status, out, err = run(*(arguments.split() if isinstance(arguments, str) else arguments))
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert err.startswith("regen: ") and "Traceback" not in err
    assert re.search(words, err), err
    assert contents(place) == before
    return err


# -- errors that are found before the model is loaded ---------------------------------------------

FILES = [
    ("reconstruct missing.mp4 out.mkv", "missing.mp4: no such file"),
    ("reconstruct text.mp4 out.mkv", "text.mp4: .*not a video"),
    ("reconstruct clip.mkv nowhere/out.mkv", "nowhere/out.mkv: cannot write there"),
    ("reconstruct clip.mkv /proc/out.mkv", "/proc/out.mkv: cannot write there"),
    ("reconstruct clip.mkv clip.safetensors", "cannot write .safetensors; the output must end in"),
    ("reconstruct clip.mkv out.png", "out.png: a .png holds one frame"),
    ("reconstruct clip.mkv clip.mkv", "clip.mkv: is the input itself"),
    ("reconstruct clip.mkv link.mkv", "link.mkv: is the input itself"),
    ("reconstruct clip.mkv ./full/../clip.mkv", "is the input itself"),
    ("reconstruct clip.mkv old.mkv --device nowhere", "--device nowhere cannot be used here"),
    ("encode missing.mp4 out.safetensors", "missing.mp4: no such file"),
    ("encode clip.mkv nowhere/out.safetensors", "out.safetensors: cannot write there"),
    ("encode clip.mkv out.mkv", "out.mkv: latents go into a file that ends in .safetensors"),
    ("encode clip.mkv clip.mkv", "clip.mkv: is the input itself"),
    ("decode missing.safetensors out.mkv", "missing.safetensors: no such file"),
    ("decode flipped.safetensors out.mkv", "flipped.safetensors: damaged"),
    ("decode clip.mkv out.mkv", "clip.mkv: not a latent file"),
    ("decode clip.safetensors nowhere/out.mkv", "nowhere/out.mkv: cannot write there"),
    ("decode clip.safetensors out.avi", "cannot write .avi; the output must end in"),
    ("decode clip.safetensors out.png", "out.png: a .png holds one frame"),
    ("decode clip.safetensors clip.safetensors", "clip.safetensors: is the input itself"),
    ("decode clip.safetensors clip.mkv --audio clip.mkv", "clip.mkv: is the input itself"),
    ("decode clip.safetensors out.mkv --audio missing.mp4", "missing.mp4: no such file"),
    ("decode clip.safetensors out.mkv --audio clip.mkv", "clip.mkv: has no sound"),
    ("decode clip.safetensors out.mkv --audio text.mp4", "text.mp4: .*not a video|text.mp4"),
    ("info missing.mp4", "missing.mp4 is no file, and no model or preset"),
    ("info text.mp4", "text.mp4: .*not a video"),
    ("info cut.safetensors", "cut.safetensors: .*damaged"),
]


@pytest.fixture
def no_loading(monkeypatch) -> None:
    def load_model(*_: object) -> None:
        raise AssertionError("the model is loaded before the error is found")

    monkeypatch.setattr(loading, "load_model", load_model)


@pytest.mark.parametrize(("arguments", "words"), FILES)
def test_bad_files(run, place, no_loading, arguments, words, small_model_folder):
    model = [] if arguments.startswith("info") else ["--model", str(small_model_folder)]
    expect_error(run, place, [*arguments.split(), *model], words)


NUMBERS = [
    (f"{command} {option} {value}", option)
    for command, options in {
        "reconstruct clip.mkv old.mkv": ("--num-inference-steps", "--short-side"),
        "encode clip.mkv old.safetensors": ("--short-side",),
        "decode clip.safetensors old.mkv": (
            "--num-inference-steps",
            "--every",
            "--frame-rate-multiplier",
        ),
    }.items()
    for option in options
    for value in (0, -1)
]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *NUMBERS,
        ("reconstruct clip.mkv old.mkv --seed -1", "--seed is at least 0"),
        ("decode clip.safetensors old.mkv --seed -1", "--seed is at least 0"),
        (f"reconstruct clip.mkv old.mkv --seed {2**64}", "--seed is at least 0 and below"),
        (
            "decode clip.safetensors old.mkv --every 2 --frame-rate-multiplier 2",
            "every, a multiplier .* exclude each other: give one of them",
        ),
        ("decode clip.safetensors old.mkv --frames-before -1", "frames_before is at least 0"),
        ("decode clip.safetensors old.mkv --fps 0", "frame rate and slow motion are above 0"),
        ("decode clip.safetensors old.mkv --fps 24/0", "--frame-rate is a number above 0 or"),
        ("decode clip.safetensors old.mkv --slow-motion -2", "slow motion are above 0"),
    ],
)
def test_bad_numbers(run, place, no_loading, arguments, words):
    expect_error(run, place, arguments, words)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "unknown",
        "reconstruct",
        "reconstruct clip.mkv",
        "reconstruct clip.mkv out.mkv --num-inference-steps many",
        "reconstruct clip.mkv out.mkv --storage int4",
        "decode clip.safetensors out.mkv --every 1.5",
        "encode clip.mkv out.safetensors --unknown",
    ],
)
def test_bad_usage(run, place, no_loading, arguments):
    before = contents(place)
    status, _, err = run(*arguments.split())
    assert status != 0 and err and "Traceback" not in err
    assert contents(place) == before


def test_one_of_the_input_pictures_is_no_output(run, place, small_model_folder):
    (place / "one").mkdir()
    (place / "picture.png").rename(place / "one" / "a.png")
    arguments = ["reconstruct", "one", "one/a.png", "--model", str(small_model_folder)]
    expect_error(run, place, arguments, "is one of the input's pictures")


def test_comparison_must_not_replace_the_input(run, place, small_model_folder):
    (place / "clip.mkv").rename(place / "out.compare.mkv")
    arguments = "reconstruct out.compare.mkv out.mkv --compare --model"
    expect_error(run, place, [*arguments.split(), str(small_model_folder)], "is the input itself")


# -- errors of models, and on the way -------------------------------------------------------------


def damage(folder: Path, change: str) -> None:
    """Damage a model folder in the named way."""
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    tensors, options = load_file(weights), json.loads(config.read_text())
    name = "dit.proj_out.weight"
    if change == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change == "empty":
        weights.write_bytes(b"")
    elif change == "no weights":
        weights.unlink()
    elif change == "pointer":  # what a clone without git-lfs holds
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif change == "missing key":
        save_file({key: value for key, value in tensors.items() if key != name}, weights)
    elif change == "unexpected key":
        save_file(tensors | {"extra": torch.zeros(1)}, weights)
    elif change == "wrong shape":
        save_file(tensors | {name: torch.zeros(2, 2)}, weights)
    elif change == "not a number":
        tensors[name][0, 0] = float("nan")
        save_file(tensors, weights)
    elif change == "config cut":
        config.write_text(config.read_text()[:-20])
    elif change == "config of another kind":
        config.write_text(json.dumps(options | {"_class_name": "AutoencoderKL"}))
    elif change == "config out of range":
        config.write_text(json.dumps(options | {"prediction_type": "guess"}))
    elif change == "config of wrong type":
        config.write_text(json.dumps(options | {"encoder_strides": 3}))
    elif change == "no config":
        config.unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("truncated", "cannot load model"),
        ("empty", "cannot load model"),
        ("no weights", "cannot load model"),
        ("pointer", "cannot load model"),
        ("missing key", "missing keys: dit.proj_out.weight"),
        ("unexpected key", "unexpected keys: extra"),
        ("wrong shape", "cannot load model"),
        ("not a number", "damaged, dit.proj_out.weight holds non-finite"),
        ("config cut", "config.json is damaged"),
        (
            "config of another kind",
            "is of a model AutoencoderKL, expected AutoencoderREGEN or",
        ),
        ("config out of range", "prediction_type"),
        ("config of wrong type", "cannot load model"),
        ("no config", "holds no config.json"),
    ],
)
def test_damaged_model(run, place, small_model_folder, change, words):
    shutil.copytree(small_model_folder, place / "model")
    damage(place / "model", change)
    expect_error(run, place, "reconstruct clip.mkv old.mkv --compare --model model", words)
    if change != "no config":
        expect_error(run, place, "info model", words)


@pytest.mark.parametrize("model", ["nonsense", "./nowhere", "/nowhere/model", "a/b/c", "weights/"])
def test_missing_model(run, place, no_loading, model):
    expect_error(run, place, f"reconstruct clip.mkv old.mkv --model {model}", f"no model {model}")


def test_hub_model_without_network(run, place, monkeypatch):
    monkeypatch.setattr(loading.AutoencoderREGEN, "load_config", unreachable)
    words = "cannot load model owner/name: .*cannot reach"
    expect_error(run, place, "reconstruct clip.mkv old.mkv --model owner/name", words)


def unreachable(*_: object) -> None:
    raise OSError("cannot reach the hub\nlong explanation")


def test_latents_of_another_model(run, place, other_model_folder):
    arguments = ["decode", "clip.safetensors", "old.mkv", "--model", str(other_model_folder)]
    expect_error(run, place, arguments, "made by encoder [0-9a-f]{16}, this model's is")


def test_out_of_memory(run, place, small_model_folder, monkeypatch):
    def reconstruct_file(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9999 bytes")

    monkeypatch.setattr(codec, "reconstruct_file", reconstruct_file)
    arguments = ["reconstruct", "clip.mkv", "old.mkv", "--model", str(small_model_folder)]
    expect_error(run, place, arguments, "out of memory .*--short-side")


def test_a_fault_of_ours_is_not_hidden(run, place, small_model_folder, monkeypatch):
    monkeypatch.setattr(codec, "reconstruct_file", lambda *_, **__: {}["fault"])
    with pytest.raises(KeyError, match="fault"):
        run("reconstruct", "clip.mkv", "old.mkv", "--model", small_model_folder)


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGHUP, 129, "terminated")],
)
@pytest.mark.parametrize("command", ["reconstruct clip.mkv old.mkv", "decode clip.safetensors new"])
def test_interrupt_in_process(
    run, place, small_model_folder, monkeypatch, number, status, word, command
):
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(codec.StreamDecoder, "push", interrupted)
    before = contents(place)
    # As from a terminal: `nohup` and background jobs have them ignored.
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    handlers |= {signal.SIGINT: signal.default_int_handler}
    kept = {one: signal.signal(one, handler) for one, handler in handlers.items()}
    try:
        done = run(*command.split(), "--model", small_model_folder)
    finally:
        for one, handler in kept.items():
            signal.signal(one, handler)
    assert done == (status, "", f"regen: {word}\n")
    assert contents(place) == before


def test_the_end_of_a_terminal_is_ignored_where_it_was(run, place, monkeypatch):
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run("info", "clip.mkv")
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_leaves_nothing(tmp_path, small_model_folder):
    """A true process, interrupted while it decodes its first chunk in very many steps."""
    write_clip(tmp_path / "clip.mkv", num_frames=9)
    command = [sys.executable, "-m", "regen", "reconstruct", "clip.mkv", "out.mkv", "--compare"]
    command += ["--model", str(small_model_folder), "--num-inference-steps", "1000000"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=SOURCES,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        since, deadline = None, time.monotonic() + 120
        while since is None or time.monotonic() < since + 1:  # longer than the check lasts
            assert time.monotonic() < deadline and process.poll() is None
            writing = len(list(tmp_path.glob(".out*"))) == 2
            since = (since or time.monotonic()) if writing else None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (143, "", "regen: terminated\n")
    assert os.listdir(tmp_path) == ["clip.mkv"]


# -- what works -----------------------------------------------------------------------------------


def rows(out: str) -> dict[str, str]:
    """The printed table."""
    return dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in out.splitlines())


def test_reconstruct_prints_its_numbers(run, place, small_model_folder):
    arguments = ["clip.mkv", "old.mkv", "--compare", "--storage", "int8"]
    status, out, err = run("reconstruct", *arguments, "--model", small_model_folder)
    assert status == 0 and err == ""
    table, size = rows(out), (place / "old.mkv").stat().st_size
    assert re.fullmatch(r"\d+\.\d\d dB", table["PSNR, mean over frames"])
    assert re.fullmatch(r"0\.\d{4}|-0\.\d{4}", table["SSIM, mean over frames"])
    assert table["video"] == "12 frames of 24 x 16"
    assert table["latents"] == "4 latent frames, 192 values, 192 bytes as int8"
    assert table["nominal compression"] == "8 x 8 x 8"
    assert table["frames per latent frame"] == "3.00"
    assert table["pixel values per latent value"] == "72.0"
    assert table["source"] == f"clip.mkv ({(place / 'clip.mkv').stat().st_size:,} bytes)"
    assert table["written"] == f"old.mkv ({size:,} bytes)"
    assert re.match(r"\d+\.\d\d frames/s", table["speed"])
    assert table["side by side"] == "old.compare.mkv"
    assert read_frames(place / "old.mkv").shape == (12, 16, 24, 3)
    assert read_frames(place / "old.compare.mkv").shape == (12, 16, 72, 3)


def test_decode_says_the_ratio_of_the_latents(run, place, small_model_folder):
    encoded = run("encode", "clip.mkv", "a.safetensors", "--model", f"{small_model_folder}@3")
    decoded = run("decode", "a.safetensors", "two.mkv", "--model", small_model_folder)
    for status, out, _ in (encoded, decoded):
        assert status == 0 and rows(out)["nominal compression"] == "8 x 8 x 3"


def test_names_with_an_at(run, place):
    shutil.copy(place / "clip.mkv", place / "clip@home.mkv")
    assert run("info", "clip@home.mkv")[0] == 0


def times_of(path: Path) -> list[Fraction]:
    with open_video(path) as reader:
        return [frame.time for frame in reader]


def test_preview_and_frames_between(run, place, small_model_folder):
    model = ["--model", small_model_folder]
    status, out, _ = run("decode", "clip.safetensors", "few.mkv", *model, "--every", 5)
    assert status == 0 and rows(out)["generated"] == "3 frames"
    assert times_of(place / "few.mkv") == [0, Fraction(5, 25), Fraction(10, 25)]
    option = ["--frame-rate-multiplier", 2]
    status, out, _ = run("decode", "clip.safetensors", "many.mkv", *model, *option)
    assert status == 0 and rows(out)["generated"] == "23 frames"
    assert times_of(place / "many.mkv") == [Fraction(index, 50) for index in range(23)]
    status, out, _ = run("decode", "clip.safetensors", "smooth.mkv", *model, "--fps", "60")
    assert status == 0 and rows(out)["generated"] == "29 frames"
    assert times_of(place / "smooth.mkv")[:3] == [0, Fraction(17, 1000), Fraction(33, 1000)]
    option = ["--slow-motion", "1.5", "--frames-before", 2, "--frames-after", 3]
    status, out, _ = run("decode", "clip.safetensors", "slow.mkv", *model, *option)
    assert status == 0 and rows(out)["generated"] == "26 frames"  # 17 frames, 1.5 times as long
    run("decode", "clip.safetensors", "still.png", *model, "--every", 12)
    assert read_frames(place / "still.png").shape == (1, 16, 24, 3)


def test_names_that_look_like_markup(run, place, small_model_folder):
    shutil.copy(place / "clip.mkv", place / "a [red] :smile: b.mkv")
    status, out, _ = run("info", "a [red] :smile: b.mkv")
    assert status == 0 and "a [red] :smile: b.mkv" in out


def test_info_of_media(run, place):
    table = rows(run("info", "clip.mkv")[1])
    assert table["size"] == "24 x 16, rotated by 0 degrees" and table["sound"] == "no"
    assert table["frame rate"] == "25.000 frames/s (25)" and "ffv1" in table["codec"]
    table = rows(run("info", "picture.png")[1])
    assert table["picture"].startswith("picture.png (") and table["frames"] == "1"
    (place / "frames").mkdir()
    (place / "picture.png").rename(place / "frames" / "1.png")
    table = rows(run("info", "frames")[1])
    assert table["folder of pictures"].startswith("frames (") and table["frames"] == "1"


def test_info_of_latents(run, place, small_model):
    table = rows(run("info", "clip.safetensors")[1])
    assert table["video"] == "12 frames of 24 x 16" and table["stored as"] == "float32"
    assert table["frame rate"] == "25.000 frames/s (25)" and table["duration"] == "0.48 s"
    assert table["latents"] == "8 channels x 4 x 2 x 3"
    assert table["nominal compression"] == "8 x 8 x 8"
    assert table["encoder id"] == small_model.encoder_id()
    assert (
        len(table["mean, content"].split()) == len(table["standard deviation, motion"].split()) == 8
    )


def test_info_of_models(run, small_model, small_model_folder, monkeypatch):
    monkeypatch.setattr(loading, "embedded_models", lambda: {"given": small_model_folder})
    for what in ("given", str(small_model_folder), "given@3"):
        table = rows(run("info", what)[1])
        assert table["encoder id"] == small_model.encoder_id()
        assert table["parameters"] == f"{sum(p.numel() for p in small_model.parameters()):,}"
        ratio = 3 if what.endswith("@3") else 8
        assert table["nominal compression"] == f"8 x 8 x {ratio}, 8 channels"


def test_info_of_presets(run):
    for preset in PRESETS:
        status, out, _ = run("info", preset)
        assert status == 0 and rows(out)["preset"] == preset
        assert int(rows(out)["parameters"].replace(",", "")) > 1_000_000


@pytest.mark.parametrize("command", ["", "reconstruct", "encode", "decode", "info", "train"])
def test_help_teaches_and_is_quick(command):
    """In a process of its own, without torch (whose import alone takes seconds)."""
    arguments = ["-X", "importtime", "-m", "regen", *command.split(), "--help"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=SOURCES, capture_output=True, text=True)
    elapsed_s = time.perf_counter() - start
    assert done.returncode == 0 and "xample: regen" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "regen.cli" in imported and not imported & {"torch", "diffusers", "av", "numpy"}
    assert elapsed_s < 2


def test_old_names_of_options_are_taken_and_told(run, place):
    options = ["--image-share=2", "--max-bad-share", "0"]
    arguments = ["train", "--data", "missing", "--output", "run", *options]
    status, _, err = run(*arguments)
    assert status == 1 and err.splitlines() == [
        "regen: --image-share is now --image-fraction",
        "regen: --max-bad-share is now --max-bad-fraction",
        "regen: --image-fraction is from 0 to 1, got 2.0",
    ]
