"""Manifests and shards: the same items by any way give the same batches, shards are webdataset."""

import csv
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from fractions import Fraction
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
import torch
from conftest import Run
from PIL import Image
from test_data import written_by_another

from regen.data import locations, shard_writer
from regen.data.batches import BatchConfig, TrainingBatches
from regen.data.clips import prepare_clips
from regen.data.finding import find_items
from regen.data.shard_writer import ShardReport, write_shards
from regen.video import write_video

ROOT = Path(__file__).parents[1]
SHARD_BYTES = 30_000  # two or three of the files below
BATCH = {"seed": 0, "num_steps": 40, "chunk_length": 9, "crop": 32}
SIZES = {"video_batch_size": 3, "image_batch_size": 4, "image_size": 64, "video_size": (32, 64)}


def write_clip(path: Path, seed: int, num_frames: int = 14) -> None:
    rng = np.random.default_rng(seed)
    height, width = (64, 80) if seed % 2 else (96, 66)
    base = rng.integers(0, 200, (height // 8, width // 6 + 1, 3), np.uint8)
    picture = np.kron(base, np.ones((8, 6, 1), np.uint8))[:height, :width]
    frames = [np.roll(picture, 2 * index, axis=1) for index in range(num_frames)]
    write_video(path, frames, Fraction(24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips and three photos, with a manifest.csv in three columns."""
    folder = tmp_path_factory.mktemp("shards") / "data"
    (folder / "deep").mkdir(parents=True)
    rows = []
    for index in range(8):
        name = f"{'deep/' if index % 3 == 0 else ''}clip {index}.{'mp4' if index % 2 else 'mkv'}"
        write_clip(folder / name, index)
        rows.append((name, f"film {index // 2}", f'a "striped" band, number {index} — ünï'))
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (70, 90 + index, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{index}.PNG")
    rows.append(("photo0.PNG", "", "noise"))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "source", "caption"), *rows])
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("packed") / "shards"
    report = write_shards([str(folder)], output, SHARD_BYTES, num_workers=1)
    assert report.num_shards >= 3
    assert (report.num_videos, report.num_photos, report.bad) == (8, 3, [])
    return output


def rows_of(folder: Path) -> list[dict[str, str]]:
    """What the folder's items are, in their order."""
    items = find_items([folder], folder)
    return [{"file": i.name, "source": i.source, "caption": i.caption} for i in items]


def batches_of(data: Path | str, cache: Path, decode_once: bool, **options) -> TrainingBatches:
    prepared = prepare_clips([data], cache, decode_once)
    assert not prepared.skipped
    return TrainingBatches(prepared.clips, BatchConfig(**BATCH | SIZES | options))


def assert_same(one: TrainingBatches, other: TrainingBatches, num_steps: int = 6) -> None:
    for step in range(num_steps):
        a, b = one[step], other[step]
        assert a.keys() == b.keys() and not a["bad_clips"] and a["task"] == b["task"]
        for name in ("chunk", "target", "frame_times"):
            assert torch.equal(a[name], b[name]), (step, name)


# --- the same batches, bit for bit ---


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module", params=["square", "aspect"])
def from_folder(request, folder: Path, tmp_path_factory) -> TrainingBatches:
    cache = tmp_path_factory.mktemp("cache")
    return batches_of(folder, cache, True, shapes=request.param, other_tasks=0.6)


@pytest.mark.parametrize("decode_once", [True, False])
@pytest.mark.parametrize("way", ["folder", "shards", "glob", "url", ".csv", ".jsonl", ".parquet"])
def test_every_way_gives_the_same_batches(
    way: str, decode_once: bool, folder: Path, shards: Path, from_folder, tmp_path: Path
) -> None:
    data: Path | str = {
        "folder": folder,
        "shards": shards,
        "glob": f"{shards}/*.tar",
        "url": f"file://{shards}",
    }.get(way, "")
    if not data:
        data = write_manifest(folder.parent / f"rows{way}", [
            row | {"file": f"data/{row['file']}"} for row in rows_of(folder)
        ])  # fmt: skip
    config = from_folder.config
    other = batches_of(data, tmp_path, decode_once, shapes=config.shapes, other_tasks=0.6)
    assert_same(from_folder, other)
    if way in ("shards", "url") and not decode_once:
        assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob("*.index.json"))


def test_parts_are_joined_and_shards_keep_what_is_known(
    folder: Path, shards: Path, tmp_path: Path
) -> None:
    parts = sorted(str(path) for path in shards.glob("*.tar"))
    items = find_items([*parts, str(shards)], tmp_path)  # each once
    rows = [{"file": i.name, "source": i.source, "caption": i.caption} for i in items]
    assert rows == rows_of(folder)
    assert {(item.num_frames, item.width, item.height) for item in items} >= {
        (14, 66, 96),
        (14, 80, 64),
        (1, 90, 70),
    }
    mixed = find_items([folder, shards], tmp_path)
    assert len(mixed) == 22  # files and members are not the same things


# --- shards are ordinary webdataset ---


def test_a_plain_tar_reader_finds_samples(folder: Path, shards: Path) -> None:
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                samples.setdefault(key, {})[ending] = content.read()
    rows = rows_of(folder)
    assert [key for key in samples] == [f"{i:09d}" for i in range(len(rows))]
    for row, sample in zip(rows, samples.values(), strict=True):
        described = json.loads(sample.pop("json"))
        ending = row["file"].rpartition(".")[2].lower()
        assert sample == {ending: (folder / row["file"]).read_bytes()}
        assert described["caption"] == row["caption"] and described["source"] == row["source"]
        assert described["name"] == row["file"] and described["num_frames"] in (1, 14)


def foreign_shard(path: Path, folder: Path) -> Path:
    """As other tools write them: no index, captions as text, other members between."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for index, name in enumerate(("clip 1.mp4", "clip 2.mkv", "photo1.PNG")):
            data = (folder / name).read_bytes()
            ending = name.rpartition(".")[2].lower()
            for suffix, content in (
                ("txt", f"caption {index}\n".encode()),
                (ending, data),
                ("json", b'{"source": "film"}' if index == 1 else b"not json"),
                ("cls", b"3"),
            ):
                member = tarfile.TarInfo(f"part/00{index}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_shards_made_elsewhere_are_scanned_once(folder: Path, tmp_path: Path, monkeypatch) -> None:
    shard = foreign_shard(tmp_path / "other.tar", folder)
    cache = tmp_path / "cache"
    items = find_items([shard], cache)
    assert [item.caption for item in items] == ["caption 0", "caption 1", "caption 2"]
    names = ["other/part/000.mp4", "other/part/001.mkv", "other/part/002.png"]
    assert [item.name for item in items] == names
    assert [item.source for item in items] == [names[0], "film", names[2]]
    clips = prepare_clips([shard], cache, decode_once=False).clips
    expected = prepare_clips([folder], tmp_path / "whole").clips
    frames = {clip.item.name: clip.frames() for clip in expected}
    for clip, name in zip(clips, ("clip 1.mp4", "clip 2.mkv", "photo1.PNG"), strict=True):
        assert np.array_equal(clip.frames(), frames[name])
    monkeypatch.setattr(tarfile, "open", None)  # from now on only the index is read
    assert find_items([shard], cache) == items
    monkeypatch.undo()
    shutil.copy(shard, tmp_path / "copy.tar")
    (tmp_path / "copy.index.json").write_text('{"format": "regen-shard-1", "tar_bytes": 3}')
    assert len(find_items([tmp_path / "copy.tar"], cache)) == 3  # an index of something else


def test_shards_at_a_url(folder: Path, shards: Path, tmp_path: Path, monkeypatch) -> None:
    """Members are fetched by their ranges; a reading that fails is tried again."""
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/bucket/shards/{path.name}", path.read_bytes())
    memory.pipe("/bucket/rows.jsonl", b'{"file": "films/a.mp4", "caption": "hello"}\n')
    memory.pipe("/bucket/films/a.mp4", (folder / "clip 1.mp4").read_bytes())
    fetched: list[int] = []
    failures = [True, True]
    cat_file = type(memory).cat_file

    def counted(self, path, start=None, end=None, **options):
        if failures and start is not None:
            failures.pop()
            raise OSError("the network is away")
        data = cat_file(self, path, start=start, end=end, **options)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(type(memory), "cat_file", counted)
    monkeypatch.setattr(locations, "PAUSE_S", 0.0)
    local = batches_of(folder, tmp_path / "a", False)
    away = batches_of("memory://bucket/shards", tmp_path / "b", False)
    fetched.clear()
    assert_same(local, away, 3)
    whole = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert not failures and fetched and max(fetched) < whole / 3
    (clip,) = prepare_clips(["memory://bucket/rows.jsonl"], tmp_path / "c", False).clips
    assert clip.item.caption == "hello" and clip.num_frames == 14
    (again,) = prepare_clips(["memory://bucket/rows.jsonl"], tmp_path / "c").clips
    assert np.array_equal(clip.frames(), again.frames())


# --- what cannot work ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "path,caption\na.mp4,x\n", "row 1 has no file; expected the columns file"),
        ("a.csv", "file,caption\na.doc,x\n", r"row 1, a\.doc, is no clip or photo"),
        ("a.csv", "file\n", "has no rows"),
        ("a.jsonl", '{"file": "a.mp4"}\n{file\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not an object"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("a.parquet", "no table", "Parquet"),
        ("a.tar", "no tar" * 1000, "not an uncompressed tar"),
        ("b.tar", None, r"b\.tar: no such shard"),
        ("b.csv", None, "cannot be read"),
        ("*.tar", None, "no such shard"),
        ("a.doc", "text", "is not a folder; expected folders of clips and photos, manifests"),
    ],
)
def test_bad_data_is_one_line(tmp_path: Path, name: str, content, message: str) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        find_items([tmp_path / name], tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_shard_that_vanished_is_no_smaller_data_set(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    path = min(folder.glob("*.tar"))
    path.unlink()
    for data in (folder, f"file://{folder}"):
        with pytest.raises(ValueError, match=f"has {path.stem}.index.json and not its shard"):
            find_items([data], tmp_path / "cache")


def test_linked_folders_are_searched_once_each(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(folder, target_is_directory=True)
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data", target_is_directory=True)
    items = find_items([tmp_path / "data"], tmp_path / "cache")
    assert len(items) == len(find_items([folder], tmp_path / "cache"))
    assert all(item.name.startswith("link/") for item in items)


def test_a_compressed_tar_and_one_without_media(folder: Path, tmp_path: Path) -> None:
    for mode, name, message in (("w:gz", "a.tar", "uncompressed"), ("w", "b.tar", "no clips")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(folder / "manifest.csv", "manifest.csv")
        with pytest.raises(ValueError, match=message):
            find_items([tmp_path / name], tmp_path)


def test_unknown_protocols_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nosuch"):
        find_items(["nosuch://bucket/a.tar"], tmp_path)
    with pytest.raises(ValueError, match="no shard"):
        find_items(["memory://nowhere"], tmp_path)


def test_missing_files_of_a_manifest_are_bad_clips(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "rows.csv"
    manifest.write_text(f"file\n{folder / 'clip 1.mp4'}\ngone.mp4\ngone.png\n")
    for decode_once in (True, False):
        prepared = prepare_clips([manifest], tmp_path / "cache", decode_once)
        assert len(prepared.clips) == 1 and len(prepared.skipped) == 2
        assert all("gone" in line and "\n" not in line for line in prepared.skipped)


# --- regen shard ---


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_inputs_give_the_same_bytes(folder: Path, shards: Path, tmp_path: Path) -> None:
    again = write_shards([str(folder)], tmp_path / "again", SHARD_BYTES, num_workers=2)
    assert contents(tmp_path / "again") == contents(shards)
    assert again.num_kept == 0 and not list(tmp_path.glob("**/.*.part*"))
    one = write_shards([str(folder)], tmp_path / "one", 10**9, num_workers=1)
    assert one.num_shards == 1 and one.num_videos == 8


def interrupted(folder: Path, output: Path, after: int, monkeypatch) -> None:
    write = shard_writer._write_shard
    numbers = []

    def stopped(*arguments):
        if len(numbers) == after:
            raise KeyboardInterrupt
        numbers.append(arguments[1])
        return write(*arguments)

    monkeypatch.setattr(shard_writer, "_write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_shards([str(folder)], output, SHARD_BYTES, num_workers=1)
    monkeypatch.undo()


def test_an_interrupted_command_goes_on(folder: Path, shards: Path, tmp_path, monkeypatch) -> None:
    output = tmp_path / "out"
    interrupted(folder, output, 2, monkeypatch)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert sum(name.endswith(".tar") for name in before) == 2
    (output / "shard-000002.tar").write_bytes(b"half")  # killed between tar and index
    (output / "shard-000001.tar").write_bytes(b"cut by a full disk")
    report = write_shards([str(folder)], output, SHARD_BYTES, num_workers=1)
    assert report.num_kept == 1 and contents(output) == contents(shards)
    after = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert after["shard-000000.tar"] == before["shard-000000.tar"]
    done = write_shards([str(folder)], output, SHARD_BYTES, num_workers=1)
    assert done == ShardReport(**vars(report) | {"num_kept": report.num_shards})


def test_other_inputs_are_refused(folder: Path, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    for data, size in ((folder, 10**9), (folder / "deep", SHARD_BYTES)):
        with pytest.raises(ValueError, match="is of other inputs, or of another --max-shard-mb"):
            write_shards([str(data)], copy, size)
    assert contents(copy) == contents(shards)
    with pytest.raises(ValueError, match="is a shard already"):
        write_shards([str(shards)], tmp_path / "out", SHARD_BYTES)
    with pytest.raises(ValueError, match="local folder"):
        write_shards([str(folder)], "s3://bucket/out", SHARD_BYTES)


def test_bad_inputs_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    whole = (data / "clip 5.mp4").read_bytes()
    (data / "clip 5.mp4").write_bytes(whole[: len(whole) // 2])
    (data / "empty.png").touch()
    output = tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"of 12 files cannot be read, above --max-bad-fraction 0\.1"
    ):
        write_shards([str(data)], output, SHARD_BYTES, 0.1, num_workers=1)
    for _ in range(2):
        report = write_shards([str(data)], output, SHARD_BYTES, 0.2, num_workers=1)
        lines = (output / "bad_clips.txt").read_text().splitlines()
        assert [line.split(":")[0] for line in lines] == [
            str(data / "clip 5.mp4"),
            str(data / "empty.png"),
        ]
        assert report.bad == lines and (report.num_videos, report.num_photos) == (7, 3)
    prepared = prepare_clips([output], tmp_path / "cache", decode_once=False)
    assert len(prepared.clips) == 10 and not prepared.skipped


def test_the_command(folder: Path, tmp_path: Path, run: Run) -> None:
    manifest = write_manifest(tmp_path / "more.csv", [{"file": str(folder / "photo0.PNG")}])
    output = tmp_path / "out"
    words = ("shard", folder, manifest, output, "--num-workers", 1)
    printed = run(*words)[1]
    assert "clips            8\n" in printed and "photos           3\n" in printed
    assert "finished before  1" in run(*words)[1]
    for bad in (
        ("shard", folder),
        (*words, "--max-shard-mb", 0),
        (*words, "--max-bad-fraction", 2),
    ):
        status, _, said = run(*bad)
        assert status == 1 and said.count("\n") == 1


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stop_ends_the_worker_processes(tmp_path: Path, number: signal.Signals) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_clip(data / "a.mp4", 0, 200)
    for index in range(400):
        (data / f"{index}.mp4").hardlink_to(data / "a.mp4")
    process = subprocess.Popen(
        [sys.executable, "-m", "regen", "shard", str(data), str(tmp_path / "out"),
         "--num-workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    workers: list[psutil.Process] = []
    limit = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.05)
        workers = psutil.Process(process.pid).children()
    assert len(workers) == 2, process.stderr and process.stderr.read()
    time.sleep(0.3)
    # Ctrl-C reaches all processes of the terminal, the others one alone.
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    limit = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert process.returncode == statuses[number]
    if number != signal.SIGKILL:
        said = {130: "regen: interrupted", 143: "regen: terminated"}
        assert errors.splitlines()[-1] == said[process.returncode] and "Traceback" not in errors
    assert not multiprocessing.active_children()


def test_two_commands_do_not_write_to_one_folder(folder: Path, tmp_path: Path) -> None:
    with written_by_another(tmp_path / "out"), pytest.raises(ValueError, match="another process"):
        write_shards([str(folder)], tmp_path / "out", 10**6)
