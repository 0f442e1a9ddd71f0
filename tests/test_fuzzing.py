"""Mutated files: each gives a right result or one clear line, in bounded time and memory.

The suite tries a few. For longer, each input in a process of its own:
    python tests/test_fuzzing.py MINUTES [SEED]
"""

import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_containers import CODECS, STEADY, encode, remux
from test_latents import latent_video

from regen.data.finding import find_items
from regen.latent_file import read_latents, write_latents
from regen.video import VideoError, count_frames, open_video, read_frames_at, write_video

MAX_S, MAX_BYTES = 20, 3 << 30  # for one input
Mutation = tuple[str, float, bytes]  # what, where in [0, 1], with what


@cache
def corpus() -> dict[str, bytes]:
    """Small whole files, by the name under which they are read."""
    folder = Path(tempfile.mkdtemp())
    files: dict[str, bytes] = {}
    for kind, endings in {
        "h264, B-frames": ("mp4", "mkv", "ts", "avi", "flv"),
        "hevc, open groups": ("mp4",),
        "mpeg4, B-frames": ("avi",),
        "mpeg2, B-frames": ("mpg", "mxf"),
        "vp9": ("webm",),
        "ffv1": ("mkv",),
        "mjpeg": ("mov",),
        "wmv2": ("wmv",),
    }.items():
        source = encode(folder / kind, kind, STEADY[:9])
        for ending in endings:
            path = remux(source, folder / f"{CODECS[kind][0]}.{ending}")
            files[path.name] = path.read_bytes()
    grey = [np.full((48, 64, 3), 60 * index, np.uint8) for index in range(3)]
    write_video(folder / "sound.mp4", grey, Fraction(25))
    pictures = [Image.new("RGB", (33, 21), (70 * index, 90, 30)) for index in range(3)]
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"):
        pictures[1].save(folder / name)
    for name in ("b.gif", "b.apng", "b.webp"):
        form = {"apng": "PNG"}.get(name[2:])
        pictures[0].save(folder / name, form, save_all=True, append_images=pictures[1:])
    for storage in ("float32", "int8"):
        write_latents(folder / f"{storage}.safetensors", latent_video(10, storage))
    for name in ("sound.mp4", "a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "b.gif", "b.apng",
                 "b.webp", "float32.safetensors", "int8.safetensors"):  # fmt: skip
        files[name] = (folder / name).read_bytes()
    with tarfile.open(folder / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        texts = {"0.json": b'{"caption": ["a"], "source": 3}', "1.x.txt": b"words", "é.txt": b"d"}
        media = {"0.mp4": files["sound.mp4"], "1.x.png": files["a.png"]}
        for name, data in (media | texts).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    files["s.tar"] = (folder / "s.tar").read_bytes()
    row = {"name": "s/0.mp4", "source": "", "caption": "c", "start": 512, "size": 900}
    index = {"format": "regen-shard-1", "tar_bytes": len(files["s.tar"]), "members": [row]}
    files["s.index.json"] = json.dumps(index).encode()
    files["m.jsonl"] = b'{"file": "a.mp4", "caption": ["x"], "source": null}\n{"file": "b.png"}\n'
    table = io.StringIO()
    csv.writer(table).writerows([["file", "source", "caption"], ["a.mp4", "s", 'two "words",']])
    files["m.csv"] = table.getvalue().encode()
    shutil.rmtree(folder)
    return files


def mutated(data: bytes, mutations: list[Mutation]) -> bytes:
    for what, where, content in mutations:
        at = int(where * len(data))
        if what == "write":
            data = data[:at] + content + data[at + len(content) :]
        elif what == "insert":
            data = data[:at] + content + data[at:]
        elif what == "drop":
            data = data[:at] + data[at + len(content) :]
        else:
            data = data[:at]
    return data


def use(path: Path, folder: Path) -> str:
    """Read a file as its ending says, in all ways; what came of it."""
    name = path.name
    if name.endswith(".safetensors"):
        video = read_latents(path)
        assert torch.isfinite(video.latents).all() and len(video.times) == video.num_frames
    elif name == "s.index.json":
        (folder / "s.tar").write_bytes(corpus()["s.tar"])
        assert all(item.size >= 0 for item in find_items([folder / "s.tar"], folder / "cache"))
    elif path.suffix in (".tar", ".csv", ".jsonl"):
        for item in find_items([path], folder / "cache"):
            assert isinstance(item.caption, str) and isinstance(item.source, str)
    else:
        with open_video(path) as reader:
            size = (reader.info.height, reader.info.width, 3)
            read = [frame.pixels for frame in reader]
        assert read and all(pixels.shape == size for pixels in read)
        if not reader.info.is_still and path.suffix not in (".png", ".webp"):
            try:
                count = count_frames(path)[0]
                found = read_frames_at(path, [0, count - 1], count)
            except VideoError:
                return "read, not by number"
            assert all(pixels.shape == size for pixels in found.values())
            if count == len(read):
                assert np.array_equal(found[0], read[0])
    return "read"


def outcome(name: str, mutations: list[Mutation]) -> str:
    """Raises where the file gives neither a result nor one clear line."""
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / name
        path.write_bytes(mutated(corpus()[name], mutations))
        return use(path, folder)
    except ValueError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1 and len(lines[0]) < 2000, error
        assert name.partition(".")[0] in lines[0], error
        return "refused"
    finally:
        shutil.rmtree(folder)


def too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {MAX_S} s")


MUTATION = st.tuples(
    st.sampled_from(["write", "write", "write", "insert", "drop", "cut"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 4, b"\0" * 8, b"\x7f\xff"]),
)


@pytest.mark.parametrize("name", sorted(corpus()))
@settings(max_examples=12, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(mutations=st.lists(MUTATION, min_size=1, max_size=4))
@example(mutations=[("cut", 0.0, b"0")])
def test_mutated_files(name: str, mutations: list[Mutation]) -> None:
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(MAX_S)
    try:
        outcome(name, mutations)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def random_mutations(rng: random.Random) -> list[Mutation]:
    kinds = ("write", "write", "write", "insert", "drop", "cut")
    sizes = (1, 1, 2, 4, 8, 64, 600)
    return [
        (rng.choice(kinds), rng.random() ** rng.choice((1, 3)), rng.choice((
            rng.randbytes(rng.choice(sizes)), b"\xff" * rng.choice((1, 4, 8)), b"\0" * 8)))
        for _ in range(rng.choice((1, 1, 2, 3, 8)))
    ]  # fmt: skip


def in_a_process(name: str, mutations: list[Mutation]) -> str:
    """`outcome`, or what ended the process that it ran in."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        signal.alarm(MAX_S)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            said = outcome(name, mutations)
        except BaseException:
            said = "FAULT " + traceback.format_exc()
        os.write(writing, said.encode()[-60_000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said if status == 0 else f"FAULT ended with {status}"


def main(minutes: float, seed: int) -> None:
    rng, counts, end = random.Random(seed), Counter[str](), time.monotonic() + 60 * minutes
    torch.set_num_threads(1)
    while time.monotonic() < end:
        name, mutations = rng.choice(sorted(corpus())), random_mutations(rng)
        said = in_a_process(name, mutations)
        counts[said.partition(" ")[0] if said.startswith("FAULT") else said] += 1
        if said.startswith("FAULT"):
            print(f"{name} {mutations!r}\n{said}", flush=True)
    print(f"{counts.total()} inputs: {dict(counts)}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
