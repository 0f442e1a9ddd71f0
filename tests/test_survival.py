"""A run survives: killed at any moment it goes on to the same losses; failures are said plainly."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import small_train
import torch
from conftest import Run
from safetensors.torch import load_file
from test_training import before_step, config_of

from regen.training import checkpoint, loop
from regen.training.config import TrainConfig
from regen.training.embedder import train

pytestmark = pytest.mark.usefixtures("small_runs")


def losses(output: Path) -> list[str]:
    path = output / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def saved(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


# --- kill -9 ---


def wait_until(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_kill_9_at_any_moment(data: Path, tmp_path: Path) -> None:
    """Killed while a checkpoint is half written, and between; the losses are those of one run."""
    options = {"steps": 8, "checkpoint_every": 2, "validate_every": 100, "num_workers": 1}
    whole, killed = (config_of(data, tmp_path / name, **options) for name in ("whole", "killed"))
    train(whole)
    folder, chance = killed.output / "checkpoints", random.Random(0)
    found = []
    script = [sys.executable, small_train.__file__, "serve"]
    with subprocess.Popen(script, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        answers = iter(line.strip() for line in server.stdout if line.strip().lstrip("-").isdigit())

        def start_process() -> int:
            server.stdin.write(shlex.join(small_train.arguments_of(killed)) + "\n")
            server.stdin.flush()
            return int(next(answers))

        for is_saving in (True, False, True):
            before = len(losses(killed.output))
            pid = start_process()
            if is_saving:
                wait_until(lambda: list(folder.glob(".step_*.tmp")))
                time.sleep(chance.uniform(0, 0.2))
            else:  # `before` may lie beyond the step that the run resumes from
                wait_until(lambda: len(losses(killed.output)) not in (0, before))  # noqa: B023
                time.sleep(chance.uniform(0, 0.5))
            os.kill(pid, signal.SIGKILL)
            assert int(next(answers)) == -signal.SIGKILL
            found += saved(killed.output)
        assert any(name.endswith(".tmp") for name in found)
        start_process()
        assert int(next(answers)) == 0
    assert losses(killed.output) == losses(whole.output)
    assert [json.loads(line)["step"] for line in losses(whole.output)] == list(range(1, 9))
    assert saved(killed.output) == saved(whole.output)
    one, other = (
        load_file(run.output / "checkpoints" / "step_00000008.safetensors")
        for run in (whole, killed)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- a full disk, a dead process, a clip that is gone ---


def fail_of(config: TrainConfig, run: Run) -> str:
    """What `regen train` says when it fails: one line, exit status 1."""
    status, _, said = run(*small_train.arguments_of(config))
    lines = [line for line in said.splitlines() if line.startswith("regen: ")]
    assert status == 1 and len(lines) == 1
    return lines[0]


def goes_on_to_the_same(config: TrainConfig, data: Path, tmp_path: Path) -> None:
    undisturbed = config_of(data, tmp_path / "whole", **{"steps": config.steps})
    train(config)
    train(undisturbed)
    assert losses(config.output) == losses(undisturbed.output)


def test_a_full_disk(data: Path, tmp_path: Path, monkeypatch, run: Run) -> None:
    """No file may grow beyond 200 KB after the first checkpoint, which is larger."""
    config = config_of(data, tmp_path / "run", steps=5)
    before_step(
        monkeypatch,
        3,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY)),
    )
    try:
        said = fail_of(config, run)
    finally:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "step_00000004.safetensors cannot be written" in said and "too large" in said
    assert "make room and run the same command again" in said
    assert saved(config.output) == ["step_00000002.safetensors"]
    goes_on_to_the_same(config, data, tmp_path)


@pytest.mark.parametrize("place", ["checkpoint", "losses"])
def test_no_space_left(data: Path, tmp_path: Path, monkeypatch, run: Run, place: str) -> None:
    config = config_of(data, tmp_path / "run", steps=4, checkpoint_every=1)

    def fill() -> None:
        def full(*_, **__) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        module, name = {"checkpoint": (checkpoint, "save_file"), "losses": (loop, "append_record")}[
            place
        ]
        monkeypatch.setattr(module, name, full)

    before_step(monkeypatch, 2, fill)
    said = fail_of(config, run)
    assert "No space left on device" in said and "intact" in said
    assert saved(config.output) == ["step_00000001.safetensors", "step_00000002.safetensors"]


def test_a_dead_worker(data: Path, tmp_path: Path, monkeypatch, run: Run) -> None:
    config = config_of(data, tmp_path / "run", steps=6, num_workers=1)

    def kill() -> None:
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()

    before_step(monkeypatch, 2, kill)
    said = fail_of(config, run)
    assert "a process that prepares batches died" in said and "resumes from the last" in said
    assert saved(config.output)[0] == "step_00000002.safetensors"
    goes_on_to_the_same(config, data, tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_clip_that_vanished(
    data: Path, tmp_path: Path, monkeypatch, run: Run, num_workers: int
) -> None:
    cache = shutil.copytree(data.parent / "cache", tmp_path / "cache")
    options = {"num_workers": num_workers, "cache": cache, "validate_every": 100}
    config = config_of(data, tmp_path / "run", steps=6, **options)

    def remove() -> None:
        for path in cache.glob("*.npy"):
            path.unlink()

    before_step(monkeypatch, 2, remove)
    said = fail_of(config, run)
    assert "can no longer be read" in said and "No such file" in said
    assert "Traceback" not in said and "the same command decodes them again" in said
    assert saved(config.output)[0] == "step_00000002.safetensors"
    goes_on_to_the_same(config, data, tmp_path)  # decoded again


# --- what is kept ---


def test_checkpoints_that_are_kept(data: Path, tmp_path: Path) -> None:
    options = {"checkpoint_every": 1, "keep_last": 1, "keep_every": 3}
    config = config_of(data, tmp_path / "run", steps=7, validate_every=100, **options)
    train(config)
    assert saved(config.output) == [f"step_0000000{step}.safetensors" for step in (3, 6, 7)]
