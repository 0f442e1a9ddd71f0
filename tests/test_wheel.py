"""The wheel holds the package with its weights, nothing else, and works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Standard output of a command; an error with all that it said where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*build, "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*install, "--target", folder, wheel, cwd=folder)
    return folder


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "regen = regen.cli:main" in archive.read(entry_points).decode()
    package = ROOT / "src"
    expected = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - info == expected
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in info}


def test_every_embedded_model_is_whole(wheel: Path) -> None:
    folders = {path.parent for path in (ROOT / "src/regen/weights").glob("*/config.json")}
    assert folders
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in folders:
        for file in ("config.json", "diffusion_pytorch_model.safetensors", "README.md"):
            assert f"regen/weights/{folder.name}/{file}" in names


def test_the_command_line_starts_elsewhere(installed: Path, tmp_path: Path) -> None:
    out = run(sys.executable, "-m", "regen", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "regen reconstruct" in out
    assert (installed / "bin" / "regen").is_file()


def test_the_embedded_model_loads_elsewhere(installed: Path, tmp_path: Path) -> None:
    """The package of the wheel, not of the checkout; and the weights make a picture."""
    script = (
        "import regen, torch\n"
        "print(regen.__file__)\n"
        "video = regen.load_model()(torch.zeros(1, 3, 1, 8, 8)).sample\n"
        "print(list(video.shape), bool(video.isfinite().all()))\n"
    )
    out = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(installed))
    assert out.splitlines() == [str(installed / "regen/__init__.py"), "[1, 3, 1, 8, 8] True"]
