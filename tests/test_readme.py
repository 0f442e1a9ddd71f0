"""README.md says what is: its commands and its Python run, its outputs and its file tree are true.

Commands run on a small clip with a small model, in the order of the page; the two that CI runs as
they stand are checked word by word.
"""

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from small_generator import make_pipeline

import regen.reproduction.experiments as experiments
import regen.t2v.task as generator
import regen.training.embedder as start
import regen.training.plan as plan
from regen.cli import main, parse
from regen.loading import load_model
from regen.perceptual.weights import COMMAND
from regen.reproduction.config import Experiment, ReproduceConfig
from regen.reproduction.paper import Table
from regen.video import write_video

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text()


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["readme"] = module
    spec.loader.exec_module(module)
    return module


BLOCKS = load_benchmark().blocks(PAGE)
COMMANDS = [
    command.strip()
    for block in BLOCKS
    if block.language == "bash"
    for line in block.commands()
    for command in line.split("&&")
]


def write_sound(path: Path) -> Path:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes(bytes(2 * 48000))
    return path


@pytest.fixture(scope="module")
def desk(small_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands ask for: small clips, a trained model."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "assets").mkdir()
    sound = write_sound(folder / "sound.wav")
    pictures = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 3), np.uint8)
    clip = folder / "assets" / "bunny.mp4"
    write_video(clip, pictures, Fraction(25), audio_from=sound)
    shutil.copy(clip, folder / "clip.mp4")
    for name in ("clips", "photos", "held-out"):
        (folder / name).mkdir()
        shutil.copy(clip, folder / name / f"{name}.mp4")
    shutil.copytree(small_model_folder, folder / "runs" / "mine" / "model")
    make_pipeline().save_pretrained(folder / "runs" / "t2v" / "model")
    return folder


def check_reproduce(experiment: Experiment, config: ReproduceConfig) -> Table:
    config.check(experiment)
    return Table(experiment, ["nothing was run"])


def run_command(command: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run one command of the page as far as a test can; what it prints. An unknown one is a fault.

    Its program, whatever its folder: regen runs (train, plan, reproduce as far as options go),
    benchmarks run, installations are checked against pyproject.toml.
    """
    program, *words = shlex.split(command)
    program = Path(program).name
    if program == "regen":
        if words[0] in ("reconstruct", "encode", "decode") and "--model" not in words:
            words += ["--model", str(model)]
        fewer = {
            "generate": ["--num-inference-steps", "1"],
            "world": ["--clips", "2"],
            "cache": ["--num-workers", "0", "--model", str(model)],
            "evaluate": ["--size", "32"],  # of the small clip
        }
        words += fewer.get(words[0], [])
        monkeypatch.setattr(start, "train", lambda config: config.check())
        monkeypatch.setattr(generator, "train_generator", lambda config: config.check())
        monkeypatch.setattr(plan, "plan", lambda config: config.check() or [("preset", "")])
        monkeypatch.setattr(experiments, "reproduce", check_reproduce)
        monkeypatch.setattr(sys, "argv", ["regen", *words])
        main()
    elif program.startswith("python") and words[0].startswith("benchmarks/"):
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        if "--no-deps" in words:
            assert ["pip", *words] == COMMAND.split()
            return ""
        target = re.fullmatch(r"\.(?:\[(\w+)\])?", words[-1])
        assert words[0] == "install" and target is not None
        assert target[1] is None or target[1] in project["optional-dependencies"]
    elif program == "tensorboard":
        assert importlib.util.find_spec("tensorboard") and words == ["--logdir", "runs/mine/logs"]
    else:
        known = (["-m", "venv", ".venv"], ["-m", "pytest"])
        assert program in ("python", "python3.11") and words in known, f"unknown: {command}"
    return ""


def labels(output: str) -> list[str]:
    """The first column of printed tables, and the commands between them."""
    return [re.split(r" {2,}", line.strip())[0] for line in output.splitlines() if line.strip()]


def test_commands_run_and_print_what_the_page_shows(
    desk: Path, small_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(desk)
    last: list[str] = []
    shown = 0
    for block in BLOCKS:
        if block.is_output():
            assert labels(block.text) == last, block.follows.text
            shown += 1
        last = []
        commands = block.commands() if block.language == "bash" else []
        for line in commands:
            for command in line.split("&&"):
                capsys.readouterr()
                run_command(command, small_model_folder, monkeypatch)
                last += [f"$ {command}"] * (len(commands) > 1) + labels(capsys.readouterr().out)
    assert shown >= 2
    assert {"out.mp4", "out.compare.mp4", "again.mp4"} <= {path.name for path in desk.iterdir()}


def test_a_wrong_command_is_an_error(desk, small_model_folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(desk)
    for command in (
        "regen reconstruct assets/bunny.mp4 wrong.mp4 --compared",
        "regen encode missing.mp4 wrong.safetensors",
        "regen train --data clips --output runs/other --crop 33",
        "regen evaluate",
        "pip install .[tests]",
        "make",
    ):
        with pytest.raises((SystemExit, AssertionError, ValueError)) as error:
            run_command(command, small_model_folder, monkeypatch)
        assert getattr(error.value, "code", 1) != 0


def test_every_command_is_on_the_page() -> None:
    cli = (ROOT / "src/regen/cli/__init__.py").read_text()
    commands = set(re.findall(r'tyro\.conf\.subcommand\("([\w-]+)"\)', cli))
    assert len(commands) >= 5
    shown = {shlex.split(command)[1] for command in COMMANDS if command.startswith("regen ")}
    assert shown == commands


@pytest.mark.parametrize("page", sorted({*ROOT.glob("docs/*.md")} - {ROOT / "docs" / "log.md"}))
def test_commands_of_the_docs_have_these_options(page: Path, monkeypatch) -> None:
    """They parse; what they do is tested elsewhere. The log has options of their time."""
    for block in load_benchmark().blocks(page.read_text()):
        for line in block.commands() if block.language == "bash" else []:
            words = shlex.split(line, comments=True)
            words = words[words.index("-m") + 1 :] if words[0] == "accelerate" else words
            if words[0] == "regen":
                monkeypatch.setattr(sys, "argv", words)
                assert parse() is not None


def test_the_commands_of_ci_are_marked() -> None:
    marked = dict(re.findall(r"^<!-- ci: (\w+) -->\n```bash\n(.*?)\n```$", PAGE, re.MULTILINE))
    assert set(marked) == {"main", "test"}
    assert marked["main"].endswith("regen reconstruct assets/bunny.mp4 out.mp4 --compare")
    assert marked["test"].endswith("python -m pytest")


def test_python_runs() -> None:
    """With the embedded model; the blocks go on from one another."""
    python = [block.text for block in BLOCKS if block.language == "python"]
    assert python and "\n" in python[0]
    names: dict[str, object] = {}
    for text in python:
        exec(text, names)
    assert names["again"].shape == names["video"].shape  # type: ignore[attr-defined]


def test_outputs_are_of_the_embedded_model() -> None:
    """After new weights: python benchmarks/readme.py."""
    shown = re.findall(r"^encoder id +(\w+)$", PAGE, re.MULTILINE)
    assert shown and set(shown) == {load_model().encoder_id()}


def files_of_the_tree(text: str) -> tuple[set[str], set[str]]:
    """(files, folders of which nothing is listed) of an indented tree, two spaces a level."""
    paths: list[str] = []
    parents: list[str] = []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = re.split(r" {2,}", line.strip())[0]
        parents = parents[:depth]
        paths.append("".join(parents) + name)
        parents.append(name)
    assert len(paths) == len(set(paths))
    folders = {path for path in paths if path.endswith("/")}
    closed = {one for one in folders if not any(p != one and p.startswith(one) for p in paths)}
    return {path for path in paths if not path.endswith("/")}, closed


def test_the_file_tree_is_the_repository() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    real = {path for path in done.stdout.splitlines() if (ROOT / path).exists()}
    page = (ROOT / "ARCHITECTURE.md").read_text()
    (tree,) = (block for block in load_benchmark().blocks(page) if block.language == "text")
    files, closed = files_of_the_tree(tree.text)
    assert files <= real, f"not there: {files - real}"
    assert all(any(path.startswith(folder) for path in real) for folder in closed)
    packages = {path for path in real if path.endswith("/__init__.py")}
    left = {path for path in real - files - packages if not path.startswith(tuple(closed))}
    assert not left, f"not in the tree of ARCHITECTURE.md: {left}"


def test_the_tree_is_read_as_it_is_meant() -> None:
    text = "src/a/\n  b.py       words\n  c/         words\n    d.py\n  e/\n.ci/run    words\n"
    files, closed = files_of_the_tree(text)
    assert files == {"src/a/b.py", "src/a/c/d.py", ".ci/run"} and closed == {"src/a/e/"}


def test_links_lead_somewhere() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("src/regen/weights/*/*.md"),
    ]
    for page in pages:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            assert path.exists(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
            anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
            assert not anchor or anchor in anchors, f"{page.name}: {target}"
