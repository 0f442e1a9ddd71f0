"""Folders, shards and inputs as other people have them: all is taken, or counted and named."""

import io
import os
import re
import shutil
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_shards import write_clip

from regen.cli import main
from regen.data.captions import caption_of, read_fields
from regen.data.clips import prepare_clips
from regen.data.finding import find_items
from regen.data.locations import local_file, matching
from regen.data.shard_writer import write_shards
from regen.files import Draft, draft
from regen.video import VIDEO_SUFFIXES


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    write_clip(path, 0)
    return path


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


# --- shards ---


def captions(shard: Path, folder: Path) -> dict[str, str]:
    """Name without the shard -> caption."""
    items = find_items([shard], folder / "cache")
    return {item.name.partition("/")[2]: item.caption for item in items}


def test_keys_by_the_rule_of_webdataset(clip: Path, tmp_path: Path, capsys) -> None:
    data = clip.read_bytes()
    members = {
        "cam.2024.01.mp4": data,
        "cam.2024.02.mp4": data,
        "cam.2024.01.txt": b"one",
        "cam.2024.02.json": b'{"caption": "two"}',
        "stereo.left.mp4": data,
        "stereo.right.mp4": data,
        "stereo.json": b'"both"',
        "./A (v2.0, final).mp4": data,
        "./A (v2.0, final).txt": b"spaces",
        "dir.v1/a.b.MP4": data,
        "dir.v1/a.b.Txt": b"dotted",
        "dir.v1/a.cap.txt": b"of the only clip, but after a.b.txt",
        "c.txt": b"before",
        "c.mp4": data,
        "c.JPG": b"a thumbnail",
        "__meta__": b"{}",
        "d.video": data,
        "d.txt": b"no clip",
        "README": b"no ending",
    }
    shard = tar_of(tmp_path / "s.tar", members)
    expected = {
        "cam.2024.01.mp4": "one",
        "cam.2024.02.mp4": "two",
        "stereo.left.mp4": "both",
        "stereo.right.mp4": "both",
        "./A (v2.0, final).mp4": "spaces",
        "dir.v1/a.b.MP4": "dotted",
        "c.mp4": "before",
    }
    for _ in range(2):  # the second time from the index
        assert captions(shard, tmp_path) == expected
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "left out 4 of its files" in said
        for name in ("s/c.JPG: beside c.mp4", "s/d.video: no clip", "s/d.txt: of", "s/README: has"):
            assert name in said


def test_our_keys_are_those_of_webdataset(clip: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    clips = ["a.mp4", "x/b.MP4", "x.y/c.mp4", "d.e.mp4", ".f.mp4"]
    members = dict.fromkeys(clips, clip.read_bytes()) | {"x/b.JSON": b"1", "x.y/c.en.txt": b"1"}
    shard = tar_of(tmp_path / "s.tar", dict(sorted(members.items())))
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    theirs = {f"{s['__key__']}.{end}".lower() for s in samples for end in s if end.endswith("mp4")}
    assert {name.lower() for name in captions(shard, tmp_path)} == theirs
    assert captions(shard, tmp_path)["x/b.MP4"] == captions(shard, tmp_path)["x.y/c.mp4"] == "1"


@pytest.mark.parametrize(
    ("ending", "data", "caption"),
    [
        ("txt", "a dog".encode("utf-8-sig"), "a dog"),
        ("txt", "ein Hündchen".encode("latin-1"), "ein Hündchen"),
        ("txt", "ein Hündchen\n".encode("utf-16"), "ein Hündchen"),
        ("cls", b"7\n", "7"),
        ("json", b'{"caption": ["a dog", "a cat"]}', "a dog"),
        ("json", b'{"captions": [{"text": ""}, {"text": "a dog"}]}', "a dog"),
        ("json", b'{"text": {"caption": "a dog"}, "fps": 25}', "a dog"),
        ("json", b'"a dog"', "a dog"),
        ("json", b'["a dog"]', "a dog"),
        ("json", b"3", "3"),
        ("json", b'{"fps": 25}', ""),
        ("json", b'{"caption": null}', ""),
    ],
)
def test_shapes_of_captions(ending: str, data: bytes, caption: str) -> None:
    assert read_fields(ending, data)["caption"] == caption


def test_captions_that_cannot_be_read_are_named(clip: Path, tmp_path: Path, capsys) -> None:
    texts = {"a.json": b"{no", "b.json": b"[" * 100_000, "c.txt": b"x" * 2_000_000}
    clips = dict.fromkeys(("a.mp4", "b.mp4", "c.mp4"), clip.read_bytes())
    shard = tar_of(tmp_path / "s.tar", clips | texts)
    assert captions(shard, tmp_path) == dict.fromkeys(clips, "")
    said = capsys.readouterr().err
    assert "out 3 of its files: s/a.json: not JSON, s/b.json: not JSON, s/c.txt: longer" in said
    assert caption_of({"caption": "  two\n lines "}) == "two lines"


def test_brace_patterns(clip: Path, tmp_path: Path) -> None:
    for number in range(3):
        tar_of(tmp_path / f"s-{number:03d}.tar", {"a.mp4": clip.read_bytes()})
    patterns = {"s-{000..002}.tar": 3, "s-{001,000}.tar": 2, "s-{00*,002}.tar": 3}
    for pattern, count in patterns.items():
        assert len(find_items([str(tmp_path / pattern)], tmp_path / "cache")) == count, pattern
    assert matching("https://host/{b,a}-{8..10}.tar")[:3] == [
        f"https://host/b-{number}.tar" for number in (8, 9, 10)
    ]
    with pytest.raises(ValueError, match=r"s-003\.tar: no such shard"):
        find_items([str(tmp_path / "s-{000..003}.tar")], tmp_path / "cache")


# --- folders ---


def test_every_ending_of_ffmpeg_is_a_video(clip: Path, tmp_path: Path, capsys) -> None:
    taken = [".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".MP4", ".mpeg", ".mpg",
             ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"]  # fmt: skip
    assert {ending.lower() for ending in taken} <= VIDEO_SUFFIXES
    assert not {".mp3", ".m4a", ".wav", ".txt", ".png", ".srt", ".wma", ".heic"} & VIDEO_SUFFIXES
    folder = tmp_path / "data"
    folder.mkdir()
    for ending in [*taken, ".mp3", ".doc"]:
        shutil.copy(clip, folder / f"a{ending}")
    (folder / "manifest.csv").write_text("file,caption\na.wmv,words\n")
    (folder / ".hidden").touch()
    items = find_items([folder], tmp_path / "cache")
    assert sorted(item.name for item in items) == sorted(f"a{ending}" for ending in taken)
    assert {item.caption for item in items if item.name == "a.wmv"} == {"words"}
    assert capsys.readouterr().err == f"{folder}: left out 2 of its files: a.doc, a.mp3\n"


def test_a_single_file_is_data(clip: Path, tmp_path: Path) -> None:
    assert [item.name for item in find_items([clip], tmp_path)] == ["a.mp4"]
    with pytest.raises(ValueError, match=r"b\.mp4: no such file"):
        find_items([tmp_path / "b.mp4"], tmp_path)


def test_names_that_are_not_utf_8(clip: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    folder = tmp_path / "data"
    (folder / os.fsdecode(b"f\xe9")).mkdir(parents=True)
    name = os.fsdecode(b"latin1-\xe9.mp4")
    shutil.copy(clip, folder / name)
    shutil.copy(clip, folder / os.fsdecode(b"f\xe9") / "b.mp4")
    (folder / os.fsdecode(b"bad-\xe9.mp4")).write_bytes(b"no video")
    report = write_shards([str(folder)], tmp_path / "shards", 10**6, 0.5, 1)
    assert report.num_videos == 2 and "bad-\\xe9.mp4" in report.bad[0]
    names = [item.name for item in find_items([tmp_path / "shards"], tmp_path / "cache")]
    assert names == ["f\\xe9/b.mp4", "latin1-\\xe9.mp4"]
    for decode_once in (True, False):
        found = prepare_clips([folder], tmp_path / "cache", decode_once)
        assert len(found.clips) == 2 and found.clips[1].frames().shape[0] == 14
        assert [line.isprintable() for line in found.skipped] == [True]
    monkeypatch.setattr(sys, "argv", ["regen", "info", str(folder / name)])
    main()
    assert "latin1-\\udce9.mp4" in capfd.readouterr().out


def test_names_do_not_depend_on_the_order_of_the_folder(clip, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "data"
    (folder / "real").mkdir(parents=True)
    shutil.copy(clip, folder / "real" / "a.mp4")
    (folder / "also").symlink_to(folder / "real", target_is_directory=True)
    (folder / "within").symlink_to(folder / "real", target_is_directory=True)
    walk = os.walk
    for is_reversed in (False, True):

        def listed(top, followlinks, is_reversed=is_reversed):
            for root, folders, names in walk(top, followlinks=followlinks):
                folders.sort(reverse=is_reversed)
                yield root, folders, names

        monkeypatch.setattr(os, "walk", listed)
        assert [item.name for item in find_items([folder], tmp_path)] == ["real/a.mp4"]


# --- inputs ---


@pytest.fixture
def server(clip: Path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=str(clip.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_input_at_a_url(server: str, clip: Path, tmp_path: Path) -> None:
    with local_file(f"{server}/a.mp4?token=1") as path:
        assert path.read_bytes() == clip.read_bytes() and path.suffix == ".mp4"
        with (
            pytest.raises(ValueError, match=rf"^{server}/a\.mp4: wrong$"),
            local_file(f"{server}/a.mp4") as other,
        ):
            raise ValueError(f"{other}: wrong")
    assert not path.exists()
    missing = f"{server}/none.mp4"
    with pytest.raises(ValueError, match=f"{missing}: cannot be read"), local_file(missing):
        pass


def test_standard_input(clip: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["regen", "info", "-"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(clip.read_bytes())))
    main()
    assert re.match(r"video +- \([\d,]+ bytes\)\n", capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text\n" * 9)))
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said.startswith("regen: -: not a video") and said.count("\n") == 1


# --- what is left ---


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    target = tmp_path / "a[1].mp4"
    living = Draft(target)
    dead = target.with_name(f".{target.stem}.01234567.part{target.suffix}")
    dead.touch()
    other = tmp_path / ".a[1].01234567.part.mkv"
    other.touch()
    with draft(target) as path:
        path.write_text("new")
        assert living.path.exists() and not dead.exists() and other.exists()
    living.discard()
    assert sorted(os.listdir(tmp_path)) == sorted([target.name, other.name])
    with pytest.raises(RuntimeError), draft(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "new" and not path.exists()


def test_what_is_being_begun_is_no_leftover(tmp_path: Path) -> None:
    """Several write the same file at once, as scratch copies of shards have one name."""

    def write(_: int) -> None:
        for _ in range(50):
            with draft(tmp_path / "copy.png") as path:
                path.write_text("x")
                assert path.exists()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert os.listdir(tmp_path) == ["copy.png"]
