"""What --data names -> items: folders, manifests and shards, in any mix."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from regen.data import places
from regen.data.items import MEDIA_SUFFIXES, Item, file_item
from regen.data.manifests import MANIFEST_SUFFIXES, csv_rows, read_manifest
from regen.data.shards import index_place, read_shards


def find_items(data: Sequence[str | Path], cache: Path) -> list[Item]:
    """All items of folders, manifests and shards, each once, in a fixed order.

    `cache` keeps indexes of shards that have none. Raises ValueError for what is none of these, is
    missing or empty.
    """
    found: dict[tuple[str, int], Item] = {}
    for one in data:
        for item in _items_of(str(one), cache):
            is_local_file = item.start < 0 and not places.is_url(item.place)
            place = str(Path(item.place).resolve()) if is_local_file else item.place
            found.setdefault((place, item.start), item)
    return list(found.values())


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; linked folders too, each folder once."""
    found: list[Path] = []
    entered: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(root))
        found += [Path(root, name) for name in names]
    return sorted(found)


def _shards_in(folder: str) -> list[str]:
    """All shards in a folder or URL; ValueError where one is missing whose index is there."""
    shards = places.matching(f"{folder}/*.tar")
    known = {index_place(shard) for shard in shards}
    for index in places.matching(index_place(f"{folder}/*.tar")):
        if index not in known:
            raise ValueError(
                f"{folder} has {PurePosixPath(index).name} and not its shard (.tar): bring the "
                "shard back, or delete the index too"
            )
    return shards


def _items_of(data: str, cache: Path) -> list[Item]:
    suffix = PurePosixPath(data).suffix.lower()
    if suffix in MANIFEST_SUFFIXES:
        return read_manifest(data)
    if suffix == ".tar" or "*" in data:
        shards = places.matching(data) if "*" in data else [data]
        if not shards:
            raise ValueError(f"{data}: no such shard")
        return read_shards(shards, cache)
    if places.is_url(data):
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
    items = find_media(folder)
    if not shards and not items:
        endings = ", ".join(sorted(MEDIA_SUFFIXES))
        raise ValueError(f"{folder} holds no clips or photos ({endings}), and no shards (.tar)")
    return [*read_shards(shards, cache), *items]


def find_media(folder: Path) -> list[Item]:
    """All clips and photos below a folder, sorted, with what `manifest.csv` says of them."""
    rows = read_sources(folder)
    items = []
    for path in files_below(folder):
        if path.suffix.lower() in MEDIA_SUFFIXES and not path.name.startswith("."):
            name = path.relative_to(folder).as_posix()
            source, caption = rows.get(str(path.resolve()), ("", ""))
            items.append(file_item(str(path), name, source, caption))
    return items


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
