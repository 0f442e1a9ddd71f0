"""Shards: tar files in the layout of webdataset, read at random by ranges of bytes.

A sample is `KEY.mp4` (or another media file) and `KEY.json` (or a caption in `KEY.txt`). An index
beside the shard says where each member lies and what it is, so that training opens no tar and reads
no member that it does not want. A shard made elsewhere is scanned once for its index.

webdataset itself is no dependency: it reads shards through from the start, and the position of such
a stream is what a run would have to save. Batches here are drawn by (seed, rank, step), which needs
members at random, and for that `tarfile` and the index do.
"""

import hashlib
import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from regen.data import places
from regen.data.items import MEDIA_SUFFIXES, Item

INDEX_FORMAT = "regen-shard-1"
NUM_READERS = 16  # indexes read side by side


def index_place(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.index.json"


def read_shards(shards: Sequence[str], cache: Path) -> list[Item]:
    """The items of all shards, in order; `cache` keeps indexes of those that have none beside.

    Raises ValueError for a shard that is missing, compressed or no tar.
    """
    with ThreadPoolExecutor(NUM_READERS) as pool:
        parts = pool.map(_read_shard, shards, [cache] * len(shards))
        return [item for part in parts for item in part]


def _read_shard(shard: str, cache: Path) -> list[Item]:
    try:
        size, mark = places.stat(shard)
    except OSError as error:
        raise ValueError(f"{shard}: no such shard ({error})") from error
    own = cache / f"{hashlib.sha256(f'{shard} {size} {mark}'.encode()).hexdigest()[:24]}.index.json"
    index = read_index(index_place(shard), size) or read_index(str(own), size)
    if index is None:
        index = {"tar_bytes": size, "members": _scan(shard)}
        write_index(own, index)
    return [Item(place=shard, mark=mark, **member) for member in index["members"]]


def read_index(place: str, tar_bytes: int) -> dict[str, Any] | None:
    """The index of a shard of that size; None where there is none, or one of another shard."""
    try:
        index = json.loads(places.read_all(place))
    except (OSError, ValueError):
        return None
    if not isinstance(index, dict) or index.get("format") != INDEX_FORMAT:
        return None
    return index if index["tar_bytes"] == tar_bytes else None


def write_index(path: Path, index: dict[str, Any]) -> None:
    """One member a line; `path` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"format": INDEX_FORMAT, **index}
    lists = {name: value for name, value in fields.items() if isinstance(value, list)}
    parts = [f"{json.dumps(name)}: {json.dumps(fields[name])}" for name in fields.keys() - lists]
    for name, rows in lists.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
        parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("{" + ",\n".join(sorted(parts)) + "}\n")
    temporary.replace(path)


def _scan(shard: str) -> list[dict[str, Any]]:
    """The rows of an index, from the tar's own headers."""
    samples: dict[str, dict[str, Any]] = {}
    texts: dict[str, dict[str, Any]] = {}
    stem = PurePosixPath(shard).stem
    try:
        with places.open_stream(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                key, _, ending = base.partition(".")
                key = f"{folder}/{key}"
                suffix = PurePosixPath(base).suffix.lower()
                if not member.isfile() or not ending:
                    continue
                if suffix in MEDIA_SUFFIXES and key not in samples:
                    samples[key] = {
                        "name": f"{stem}/{member.name}",
                        "start": member.offset_data,
                        "size": member.size,
                    }
                elif ending in ("json", "txt"):
                    content = tar.extractfile(member)
                    assert content is not None
                    texts.setdefault(key, {}).update(_text_fields(content, ending))
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: not an uncompressed tar file ({error})") from error
    if not samples:
        raise ValueError(f"{shard}: holds no clips or photos")
    rows = []
    for key, sample in samples.items():
        text = texts.get(key, {})
        source, caption = (str(text.get(field) or "") for field in ("source", "caption"))
        rows.append({**sample, "source": source or sample["name"], "caption": caption})
    return rows


def _text_fields(content: BinaryIO | Any, ending: str) -> dict[str, Any]:
    """What a sample's .json or .txt says of it; nothing where it is no object, or no text."""
    data = content.read()
    if ending == "txt":
        return {"caption": data.decode("utf-8", errors="replace").strip()}
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
