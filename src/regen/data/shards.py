"""Shards: tar files in the layout of webdataset, read at random by ranges of bytes.

A sample is `KEY.mp4` (or another media file) and `KEY.json` (or a caption in `KEY.txt`). An index
beside the shard says where each member lies and what it is, so that training opens no tar and reads
no member that it does not want. A shard made elsewhere is scanned once for its index, by
webdataset's own rule: a key ends at the first dot of the file's name, and endings have no case.
What does not become an item is named.

webdataset itself is no dependency: it reads shards through from the start, and the position of such
a stream is what a run would have to save. Batches here are drawn by (seed, rank, step), which needs
members at random, and for that `tarfile` and the index do.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from regen.data import locations
from regen.data.captions import MAX_TEXT_BYTES, TEXT_ENDINGS, read_fields
from regen.data.items import MEDIA_SUFFIXES, PICTURE_SUFFIXES, Item, printable
from regen.files import write_text

INDEX_ENDING = ".index.json"
INDEX_FORMAT = "regen-shard-1"
SCAN_VERSION = 2  # of the rules by which a shard made elsewhere is read
NUM_READERS = 16  # indexes read side by side
_TEXTS = frozenset({"name", "source", "caption"})
_COUNTS = frozenset({"num_frames", "width", "height"})
_NEEDED = _TEXTS | {"start", "size"}


def index_location(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}{INDEX_ENDING}"


def read_shards(shards: Sequence[str], cache: Path) -> tuple[list[Item], list[str]]:
    """The items of all shards, in order, and a line for each member that is left out.

    `cache` keeps indexes of those that have none beside. Raises ValueError for a shard that is
    missing, compressed or no tar.
    """
    with ThreadPoolExecutor(NUM_READERS) as pool:
        parts = list(pool.map(_read_shard, shards, [cache] * len(shards)))
    items = [item for part, _ in parts for item in part]
    return items, [line for _, left in parts for line in left]


def _read_shard(shard: str, cache: Path) -> tuple[list[Item], list[str]]:
    try:
        size, mark = locations.stat(shard)
    except OSError as error:
        raise ValueError(f"{shard}: no such shard ({error})") from error
    key = os.fsencode(f"{SCAN_VERSION} {shard} {size} {mark}")
    own = cache / f"{hashlib.sha256(key).hexdigest()[:24]}.index.json"
    index = read_index(index_location(shard), size) or read_index(str(own), size)
    if index is None:
        members, left = _scan(shard)
        if not members:
            reason = "; ".join(left[:3]) or "it is empty"
            raise ValueError(f"{shard}: holds no clips or photos ({reason})")
        index = {"tar_bytes": size, "members": members, "left": left}
        write_index(own, index)
    return [Item(location=shard, mark=mark, **one) for one in index["members"]], index.get(
        "left", []
    )


def read_index(location: str, tar_bytes: int) -> dict[str, Any] | None:
    """The index of a shard of that size; None where there is none, or one of another shard."""
    try:
        index = json.loads(locations.read_all(location))
    except (OSError, ValueError):
        return None
    if not isinstance(index, dict) or index.get("format") != INDEX_FORMAT:
        return None
    is_whole = index.get("tar_bytes") == tar_bytes and isinstance(index.get("members"), list)
    return index if is_whole and all(map(_is_row, index["members"])) else None


def _is_row(row: Any) -> bool:
    """Whether that can be a row of an index."""
    if not isinstance(row, dict) or not _NEEDED <= row.keys() <= _NEEDED | _COUNTS:
        return False
    texts, numbers = (row[name] for name in _TEXTS), (row[name] for name in row.keys() - _TEXTS)
    return all(isinstance(one, str) for one in texts) and all(
        isinstance(one, int) and one >= 0 for one in numbers
    )


def write_index(path: Path, index: dict[str, Any]) -> None:
    """One member a line; `path` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"format": INDEX_FORMAT, **index}
    lists = {name: value for name, value in fields.items() if isinstance(value, list)}
    parts = [f"{json.dumps(name)}: {json.dumps(fields[name])}" for name in fields.keys() - lists]
    for name, rows in lists.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
        parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
    write_text(path, "{" + ",\n".join(sorted(parts)) + "}\n")


def _scan(shard: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of an index, from the tar's own headers, and lines on members left out."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    texts: dict[str, dict[str, str]] = {}  # by the name of the member
    left: list[str] = []
    try:
        with locations.open_stream(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                found = _KEY.match(member.name)
                if not member.isreg() or _META.match(member.name):
                    continue
                if found is None or member.sparse is not None:
                    reason = "a sparse file" if found else "has no ending"
                    left.append(f"{member.name}: {reason}")
                    continue
                key, ending = found[1], found[2].lower()
                if ending in samples.setdefault(key, {}):
                    left.append(f"{member.name}: there twice")
                    continue
                samples[key][ending] = member
                if ending.rpartition(".")[2] in TEXT_ENDINGS:
                    content = tar.extractfile(member)
                    assert content is not None
                    data = content.read(MAX_TEXT_BYTES + 1)
                    try:
                        texts[member.name] = read_fields(ending.rpartition(".")[2], data)
                    except ValueError as error:
                        left.append(f"{member.name}: {error}")
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise ValueError(f"{shard}: not an uncompressed tar file ({error})") from error
    stem = PurePosixPath(shard).stem
    rows = [
        {
            "name": printable(f"{stem}/{medium.name}"),
            "start": medium.offset_data,
            "size": medium.size,
            "caption": _first(fields, "caption"),
            "source": _first(fields, "source") or printable(f"{stem}/{medium.name}"),
        }
        for members in samples.values()
        for medium, fields in _pairs(members, texts, left)
    ]
    return rows, [printable(f"{stem}/{line}") for line in left]


# As webdataset splits names; what it skips.
_KEY = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)$", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


def _pairs(
    members: dict[str, tarfile.TarInfo], texts: dict[str, dict[str, str]], left: list[str]
) -> Iterator[tuple[tarfile.TarInfo, list[dict[str, str]]]]:
    """The media of a sample, each with the texts that are about it, the first ones first.

    Of a key with more dots, as in `cam.01.mp4` and `cam.02.mp4`, webdataset makes one sample. Text
    goes with the medium that has all but the last ending in common with it; `cam.json` with all
    that have none such, and any text with the only medium.
    """
    media: dict[str, tarfile.TarInfo] = {}
    spoken: dict[str, list[tuple[int, str]]] = {}  # stem -> (rank, name) of texts
    for ending, member in members.items():
        stem, _, last = ending.rpartition(".")
        if f".{last}" in MEDIA_SUFFIXES:
            other = media.get(stem)
            if other is None or (_is_picture(other) and not _is_picture(member)):
                media[stem], member = member, other or member
            if member is not media[stem]:
                left.append(f"{member.name}: beside {media[stem].name}")
        elif last not in TEXT_ENDINGS:
            left.append(f"{member.name}: no clip, photo or text by its ending")
        elif member.name in texts:
            spoken.setdefault(stem, []).append((TEXT_ENDINGS.index(last), member.name))
    own = {stem: sorted(spoken.pop(stem, [])) for stem in media}
    is_of_all = {stem: bool(media) and (len(media) == 1 or not stem) for stem in spoken}
    shared = sorted(one for stem, rest in spoken.items() if is_of_all[stem] for one in rest)
    for stem, medium in media.items():
        yield medium, [texts[name] for _, name in (*own[stem], *shared)]
    for stem, rest in spoken.items():
        if not is_of_all[stem]:
            left += [f"{name}: of no clip or photo" for _, name in rest]


def _is_picture(member: tarfile.TarInfo) -> bool:
    return PurePosixPath(member.name).suffix.lower() in PICTURE_SUFFIXES


def _first(fields: list[dict[str, str]], name: str) -> str:
    return next((one[name] for one in fields if one.get(name)), "")
