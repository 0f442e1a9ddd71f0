"""Hard kills at random moments: what is lost, and what is left behind.

    python benchmarks/kills.py [NUMBER] [SEED]

Each of NUMBER times (100) one of reconstruct, encode, decode, shard, cache and train is started on
tiny clips, killed (SIGKILL) somewhere between its start and its end, or two or three times in
succession, and then run to its end. It is right if what stands under the names of the outputs is
never half, if in the end there are the files of an undisturbed run, with the same content, and
nothing else (in the folder of temporary files either), and if no process lives on.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import pytest
import small_train
import torch
from conftest import make_small_model
from safetensors.torch import load_file
from small_generator import save_text_encoder
from test_training import config_of, write_data

from regen.cli import main
from regen.video import open_video

COMMANDS = ("reconstruct", "encode", "decode", "shard", "cache", "train")


def commands(data: Path, model: Path, text: Path, output: Path) -> dict[str, list[str]]:
    """The command lines that write into `output`."""
    clip = str(data / "0.mkv")
    train = config_of(data, output / "run", steps=6, checkpoint_every=1, num_workers=1)
    return {
        "reconstruct": ["reconstruct", clip, f"{output}/a.mp4", "--model", str(model), "--compare"],
        "encode": ["encode", clip, f"{output}/a.safetensors", "--model", str(model)],
        "decode": ["decode", f"{data}.safetensors", f"{output}/a.mkv", "--model", str(model)],
        "shard": ["shard", str(data), f"{output}/shards", "--num-workers", "2"],
        "cache": [
            "cache", f"{data}-shards", f"{output}/latents", "--model", str(model),
            "--text-encoder", str(text), "--num-workers", "0", "--shard-clips", "1",
        ],
        "train": small_train.arguments_of(train),
    }  # fmt: skip


class Server:
    """Starts processes, as forks of one that has done nothing but import: that takes seconds."""

    def __init__(self, scratch: Path) -> None:
        self.said = scratch.parent / "said.txt"
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve", str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, words: list[str]) -> int:
        """The process that runs `words`: the leader of a group of its own."""
        assert self.process.stdin is not None
        self.process.stdin.write(shlex.join(words) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The status of what was started last."""
        return self._answer()

    def run(self, words: list[str]) -> str:
        """What it said, if it failed."""
        self.start(words)
        return self.said.read_text() if self.wait() else ""

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def serve(scratch: Path) -> None:
    small_train.make_small(pytest.MonkeyPatch())
    small_train.save_slowly()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            said = os.open(scratch.parent / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(said, number)
            sys.argv = ["regen", *shlex.split(line)]
            status: Any = 0
            try:
                main()
            except SystemExit as stopped:
                status = stopped.code
            os._exit(int(bool(status)))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def has_children(group: int) -> bool:
    """Whether a process of that group lives, 10 s after its leader at most."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return True


def unfinished(folder: Path) -> list[str]:
    """Files under their last names that cannot be read."""
    found = []
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file() or ".tmp" in str(path):
            continue
        try:
            if path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix in (".mp4", ".mkv"):
                list(open_video(path))
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".tar":
                with tarfile.open(path) as tar:
                    tar.getmembers()
        except Exception as error:
            found.append(f"{path.name} ({type(error).__name__})")
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """What each file says, as far as it does not tell when, where and how fast it was written."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or "events.out" in path.name:
            continue
        value: Any = None
        if path.suffix in (".mp4", ".mkv"):
            with open_video(path) as reader:
                value = torch.from_numpy(np.stack([frame.pixels for frame in reader])) / 255
        elif path.suffix == ".safetensors":
            value = torch.cat([one.double().flatten() for one in load_file(path).values()])
        elif path.suffix == ".tar":
            value = torch.tensor(list(path.read_bytes()))
        elif path.name == "metrics.jsonl":
            value = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = value
    return found


def is_same(one: Any, other: Any) -> bool:
    """Sums are taken in another order wherever tensors lie elsewhere in memory."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and bool((one - other).abs().double().mean() < 0.01)
    return bool(one == other)


def kill(number: int, seed: int) -> None:
    root, rng = Path(tempfile.mkdtemp(prefix="kills-")), random.Random(seed)
    data, model, scratch = root / "data", root / "model", root / "scratch"
    scratch.mkdir()
    server = Server(scratch)
    write_data(data)
    make_small_model().save_pretrained(model)
    text = save_text_encoder(root / "text")
    for words in (
        ["encode", f"{data}/0.mkv", f"{data}.safetensors", "--model", str(model)],
        ["shard", str(data), f"{data}-shards"],
    ):
        assert not server.run(words)
    whole: dict[str, dict[str, Any]] = {}
    took: dict[str, float] = {}
    for name in COMMANDS:
        output = root / "whole" / name
        output.mkdir(parents=True)
        start = time.perf_counter()
        said = server.run(commands(data, model, text, output)[name])
        assert not said, said
        took[name] = time.perf_counter() - start
        whole[name] = outcome(output)
    print({name: f"{seconds:.1f} s" for name, seconds in took.items()}, flush=True)
    kills, faults = Counter[str](), 0
    for turn in count():
        if kills.total() >= number:
            break
        name = COMMANDS[turn % len(COMMANDS)]
        output = root / "killed" / name
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        words = commands(data, model, text, output)[name]
        problems: list[str] = []
        for _ in range(rng.choice((1, 2, 3))):
            pid = server.start(words)
            time.sleep(rng.uniform(0, took[name]))
            with suppress(ProcessLookupError):  # it was faster than the undisturbed run
                os.kill(pid, signal.SIGKILL)
            kills[name] += server.wait() == -signal.SIGKILL
            if has_children(pid):
                problems.append("a process lived on")
            problems += [f"{one} is not whole" for one in unfinished(output)]
        if said := server.run(words):
            problems.append(f"the next run fails: {said[-300:]}")
        now = outcome(output)
        problems += [f"{one} is missing" for one in whole[name].keys() - now.keys()]
        problems += [f"{one} is left" for one in now.keys() - whole[name].keys()]
        problems += [f"{one} differs" for one in now if not is_same(now[one], whole[name].get(one))]
        problems += [f"{path.name} is left among temporary files" for path in scratch.iterdir()]
        for path in scratch.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        faults += bool(problems)
        print(f"{kills.total()} kills", end="\r", file=sys.stderr, flush=True)
        for line in problems:
            print(f"{name}: {line}", flush=True)
    print(f"{kills.total()} kills {dict(kills)}, {faults} runs with faults", flush=True)
    server.process.kill()
    shutil.rmtree(root)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
    else:
        kill(*(int(word) for word in (sys.argv[1:] + ["100", "0"][len(sys.argv) - 1 :])))
