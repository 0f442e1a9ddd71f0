"""What --data names -> items: folders, manifests and shards, in any mix."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from regen.data import locations
from regen.data.items import MEDIA_SUFFIXES, Item, file_item, printable
from regen.data.manifests import MANIFEST_SUFFIXES, csv_rows, read_manifest
from regen.data.shards import INDEX_ENDING, index_location, read_shards

NUM_SHOWN = 5  # of the files that are left out


def find_items(data: Sequence[str | Path], cache: Path) -> list[Item]:
    """All items of folders, manifests and shards, each once, in a fixed order.

    `cache` keeps indexes of shards that have none. Raises ValueError for what is none of these, is
    missing or empty.
    """
    found: dict[tuple[str, int], Item] = {}
    for one in data:
        items, left = _items_of(str(one), cache)
        say_left_out(str(one), left)
        for item in items:
            is_local_file = item.start < 0 and not locations.is_url(item.location)
            location = str(Path(item.location).resolve()) if is_local_file else item.location
            found.setdefault((location, item.start), item)
    return list(found.values())


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; linked folders too, each folder once, under its own name
    rather than a link's."""
    found: list[Path] = []
    entered: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort(key=lambda name: (os.path.islink(os.path.join(root, name)), name))
        if os.path.realpath(root) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(root))
        found += [Path(root, name) for name in names]
    return sorted(found)


def _shards_in(folder: str) -> list[str]:
    """All shards in a folder or URL; ValueError where one is missing whose index is there."""
    shards = locations.listed(folder, ".tar")
    known = {index_location(shard) for shard in shards}
    for index in locations.listed(folder, INDEX_ENDING):
        if index not in known:
            raise ValueError(
                f"{folder} has {PurePosixPath(index).name} and not its shard (.tar): bring the "
                "shard back, or delete the index too"
            )
    return shards


def say_left_out(data: str, lines: Sequence[str]) -> None:
    """Say on standard error how many files of `data` are no items, and name the first."""
    if lines:
        shown = ", ".join(lines[:NUM_SHOWN]) + (", ..." if len(lines) > NUM_SHOWN else "")
        print(f"{printable(data)}: left out {len(lines)} of its files: {shown}", file=sys.stderr)


def _items_of(data: str, cache: Path) -> tuple[list[Item], list[str]]:
    """The items, and lines on files that are none."""
    suffix = PurePosixPath(data).suffix.lower()
    if suffix in MANIFEST_SUFFIXES:
        return read_manifest(data), []
    is_pattern = any(sign in data for sign in "*{") and not locations.exists(data)
    if suffix == ".tar" or is_pattern:
        shards = locations.matching(data) if is_pattern else [data]
        if not shards:
            raise ValueError(f"{data}: no such shard")
        return read_shards(shards, cache)
    if suffix in MEDIA_SUFFIXES and not Path(data).is_dir():
        if not locations.exists(data):
            raise ValueError(f"{data}: no such file")
        return [file_item(data, PurePosixPath(data).name, "", "")], []
    if locations.is_url(data):
        shards = _shards_in(data.rstrip("/"))
        if not shards:
            raise ValueError(f"{data}: no shard (.tar) there; of URLs take shards and manifests")
        return read_shards(shards, cache)
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; expected folders of clips and photos, manifests "
            f"({', '.join(MANIFEST_SUFFIXES)}) and shards (.tar)"
        )
    shards = _shards_in(str(folder))
    items, left = find_media(folder)
    if not shards and not items:
        endings = ", ".join(sorted(MEDIA_SUFFIXES))
        raise ValueError(f"{folder} holds no clips or photos ({endings}), and no shards (.tar)")
    sharded, left_in_shards = read_shards(shards, cache)
    return [*sharded, *items], [*left_in_shards, *left]


def find_media(folder: Path) -> tuple[list[Item], list[str]]:
    """All clips and photos below a folder, sorted, with what `manifest.csv` says of them; and lines
    on the files that are none by FFmpeg's endings."""
    rows = read_sources(folder)
    items, left = [], []
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in MEDIA_SUFFIXES:
            source, caption = rows.get(str(path.resolve()), ("", ""))
            items.append(file_item(str(path), name, source, caption))
        elif not (path.parent == folder and _is_known(path)):
            left.append(printable(name))
    return items, left


def _is_known(path: Path) -> bool:
    """Whether it is a manifest, or a shard or its index."""
    return path.suffix.lower() in (".tar", *MANIFEST_SUFFIXES) or path.name.endswith(INDEX_ENDING)


def read_sources(folder: Path) -> dict[str, tuple[str, str]]:
    """Absolute path -> (source, caption), from `manifest.csv` in or beside a folder.

    Raises ValueError for one without the column `file`, as no row would find its clip.
    """
    rows: dict[str, tuple[str, str]] = {}
    for manifest in (folder / "manifest.csv", folder.parent / "manifest.csv"):
        if manifest.is_file():
            for row in csv_rows(manifest.read_bytes(), str(manifest)):
                if "file" not in row:
                    raise ValueError(
                        f"{manifest} has no column file; expected file, source, caption"
                    )
                if row["file"]:
                    path = str((manifest.parent / row["file"]).resolve())
                    rows[path] = (row.get("source") or "", row.get("caption") or "")
            break
    return rows
