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
import shutil
import signal
import sys
import tarfile
import tempfile
import time
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


def start(words: list[str], scratch: Path) -> int:
    """The process that runs `words`: the leader of a group of its own."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number in (1, 2):
            os.dup2(os.open(scratch.parent / "said.txt", os.O_WRONLY | os.O_CREAT), number)
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
        sys.argv = ["regen", *words]
        small_train.save_slowly()
        status: Any = 0
        try:
            main()
        except SystemExit as stopped:
            status = stopped.code
        os._exit(status if isinstance(status, int) else 1)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


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


def run(number: int, seed: int) -> None:
    small_train.make_small(pytest.MonkeyPatch())
    root, rng = Path(tempfile.mkdtemp(prefix="kills-")), random.Random(seed)
    data, model, scratch = root / "data", root / "model", root / "scratch"
    write_data(data)
    make_small_model().save_pretrained(model)
    text = save_text_encoder(root / "text")
    scratch.mkdir()
    ready = {
        f"{data}.safetensors": ["encode", str(data / "0.mkv"), f"{data}.safetensors", "--model",
                                str(model)],
        f"{data}-shards": ["shard", str(data), f"{data}-shards"],
    }  # fmt: skip
    for words in ready.values():
        assert wait(start(words, scratch)) == 0, (root / "said.txt").read_text()
    whole: dict[str, dict[str, Any]] = {}
    took: dict[str, float] = {}
    for name in COMMANDS:
        output = root / "whole" / name
        output.mkdir(parents=True)
        before = time.perf_counter()
        assert wait(start(commands(data, model, text, output)[name], scratch)) == 0, (
            root / "said.txt"
        ).read_text()
        took[name] = time.perf_counter() - before
        whole[name] = outcome(output)
    print({name: f"{seconds:.1f} s" for name, seconds in took.items()}, flush=True)
    kills, faults = 0, 0
    while kills < number:
        name = COMMANDS[kills % len(COMMANDS)]
        output = root / "killed" / name
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        words = commands(data, model, text, output)[name]
        said: list[str] = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            pid = start(words, scratch)
            time.sleep(rng.uniform(0, took[name]))
            os.kill(pid, signal.SIGKILL)
            killed = wait(pid) == -signal.SIGKILL
            kills += killed
            if has_children(pid):
                said.append("a process lived on")
            said += [f"{one} is not whole" for one in unfinished(output)]
        if wait(start(words, scratch)) != 0:
            said.append("the next run fails: " + (root / "said.txt").read_text()[-300:])
        now = outcome(output)
        said += [f"{one} is missing" for one in whole[name].keys() - now.keys()]
        said += [f"{one} is left" for one in now.keys() - whole[name].keys()]
        said += [f"{one} differs" for one in now if not is_same(now[one], whole[name].get(one))]
        left = [path.name for path in scratch.iterdir()]
        said += [f"{one} is left among temporary files" for one in left]
        for path in scratch.iterdir():
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        faults += bool(said)
        for line in said:
            print(f"{name}: {line}", flush=True)
    print(f"{kills} kills, {faults} runs with faults", flush=True)
    shutil.rmtree(root)


if __name__ == "__main__":
    run(*(int(word) for word in (sys.argv[1:] + ["100", "0"][len(sys.argv) - 1 :])))
