"""`regen shard`: folders and manifests -> shards in the layout of `regen.data.shards`.

What goes into which shard follows from the inputs alone, and nothing in a shard tells the time or
the machine, so the same inputs give the same bytes. A shard that is finished is kept: the same
command again resumes.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tqdm import tqdm

from regen.data import locations
from regen.data.bad_clips import BadClips
from regen.data.finding import find_items
from regen.data.items import Item, line_about
from regen.data.processes import map_in_order, process_pool
from regen.data.shards import index_location, read_index, write_index
from regen.files import draft
from regen.video import open_video

MEMBER_OVERHEAD_BYTES = 2048  # two headers, the text, the filling up to whole blocks
BAD_LIST = "bad_clips.txt"


@dataclass(frozen=True)
class ShardReport:
    """What stands in the folder of shards; `num_kept` of them were finished before."""

    num_shards: int
    num_kept: int
    num_videos: int
    num_photos: int
    num_bytes: int
    bad: list[str]  # name and reason of what cannot be read


def write_shards(
    data: Sequence[str],
    output: str | Path,
    max_shard_bytes: int,
    max_bad_fraction: float = 0.05,
    num_workers: int | None = None,
) -> ShardReport:
    """Write what `data` names into `output` as shard-000000.tar, ... of about `max_shard_bytes`.

    Every file is decoded to its end first, in `num_workers` processes (None: one a core); what
    cannot be is left out and named in bad_clips.txt. Raises ValueError where that is more than
    `max_bad_fraction`, for inputs that are none, and where `output` holds shards of something else,
    or another process writes to it.
    """
    if locations.is_url(str(output)):
        raise ValueError(f"{output}: shards are written to a local folder; copy them from there")
    output = Path(output)
    if output.suffix == ".tar" or output.is_file():
        raise ValueError(f"{output} is to be a folder for the shards")
    items = find_items(data, output)
    for item in items:
        if item.start >= 0:
            raise ValueError(f"{item.location} is a shard already; give folders and manifests")
    with locations.only_writer(output):
        return _write_shards(items, output, max_shard_bytes, max_bad_fraction, num_workers)


def _write_shards(
    items: list[Item],
    output: Path,
    max_shard_bytes: int,
    max_bad_fraction: float,
    num_workers: int | None,
) -> ShardReport:
    groups = list(_groups(items, max_shard_bytes))
    _check_output(output, len(groups))
    indexes = [_finished(output, number, group) for number, group in enumerate(groups)]
    bad_clips = BadClips(output / BAD_LIST, len(items), max_bad_fraction)
    bad_clips.start([line for index in indexes if index is not None for line in index["bad"]])
    num_kept = len(groups) - indexes.count(None)
    num_done = sum(len(g) for g, one in zip(groups, indexes, strict=True) if one is not None)
    with (
        process_pool(num_workers) as pool,
        tqdm(total=len(items), initial=num_done, unit="file", desc="sharding") as bar,
    ):
        first_key = 0
        for number, group in enumerate(groups):
            if indexes[number] is None:
                found = []
                for one in map_in_order(pool, _inspect, [(item,) for item in group]):
                    found.append(one)
                    bar.update()
                indexes[number] = _write_shard(output, number, first_key, group, found)
                bad_clips.add([one for one in found if isinstance(one, str)])
            first_key += len(group)
    whole = [index for index in indexes if index is not None]
    names = [PurePosixPath(row["name"]) for index in whole for row in index["members"]]
    num_photos = sum(Item("", str(n), "", "", 0).is_photo for n in names)
    return ShardReport(
        num_shards=len(groups),
        num_kept=num_kept,
        num_videos=len(names) - num_photos,
        num_photos=num_photos,
        num_bytes=sum(index["tar_bytes"] for index in whole),
        bad=[line for index in whole for line in index["bad"]],
    )


def _shard_path(output: Path, number: int) -> Path:
    return output / f"shard-{number:06d}.tar"


def _groups(items: list[Item], max_bytes: int) -> Iterator[list[Item]]:
    """Items shard by shard, in order; one that is larger than a shard has one of its own."""
    group: list[Item] = []
    num_bytes = 0
    for item in items:
        size = max(0, item.size) + MEMBER_OVERHEAD_BYTES
        if group and num_bytes + size > max_bytes:
            yield group
            group, num_bytes = [], 0
        group.append(item)
        num_bytes += size
    yield group


def _check_output(output: Path, num_shards: int) -> None:
    ours = {_shard_path(output, number).name for number in range(num_shards)}
    for path in output.glob("*.tar"):
        if path.name not in ours:
            raise _other_inputs(path)


def _other_inputs(path: Path) -> ValueError:
    return ValueError(
        f"{path} is of other inputs, or of another --max-shard-mb: give the same to resume, or "
        "another folder"
    )


def _fingerprint(group: list[Item]) -> str:
    rows = [[item.name, item.source, item.caption, item.size, item.mark] for item in group]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _finished(output: Path, number: int, group: list[Item]) -> dict[str, Any] | None:
    """The index of a shard that is whole, None where it is still to be made."""
    path = _shard_path(output, number)
    if not path.exists():
        return None
    index = read_index(index_location(str(path)), path.stat().st_size)
    if index is not None and index.get("inputs") != _fingerprint(group):
        raise _other_inputs(path)
    return index


def _inspect(item: Item) -> tuple[int, int, int] | str:
    """(number of frames, width, height) of an item that decodes to its end, else why not."""
    try:
        with item.as_file() as path:
            try:
                with open_video(path) as reader:
                    num_frames = 1 if item.is_photo else sum(1 for _ in reader)
                    return num_frames, reader.info.width, reader.info.height
            except ValueError as error:
                return line_about(item, error, path)
    except OSError as error:
        return f"{item}: cannot be read ({error})"


def _write_shard(
    output: Path,
    number: int,
    first_key: int,
    group: list[Item],
    found: list[tuple[int, int, int] | str],
) -> dict[str, Any]:
    """Write a shard and its index beside, then rename: the tar first, so that an index tells that
    both are whole."""
    path = _shard_path(output, number)
    members = []
    try:
        with (
            draft(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for key, (item, facts) in enumerate(zip(group, found, strict=True), start=first_key):
                if isinstance(facts, str):
                    continue
                num_frames, width, height = facts
                fields: dict[str, Any] = {
                    "name": item.name,
                    "source": item.source,
                    "caption": item.caption,
                    "num_frames": num_frames,
                    "width": width,
                    "height": height,
                }
                name = f"{key:09d}{PurePosixPath(item.name).suffix.lower()}"
                start = _add_item(tar, name, item)
                text = json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()
                _add(tar, f"{key:09d}.json", len(text), io.BytesIO(text))
                members.append({**fields, "start": start, "size": item.size})
        tar_bytes = path.stat().st_size
    except OSError as error:
        raise ValueError(
            f"{path} cannot be made ({error}); the same command resumes after the shards that are "
            "whole"
        ) from error
    index = {
        "inputs": _fingerprint(group),
        "tar_bytes": tar_bytes,
        "bad": [one for one in found if isinstance(one, str)],
        "members": members,
    }
    write_index(Path(index_location(str(path))), index)
    return index


def _add_item(tar: tarfile.TarFile, name: str, item: Item) -> int:
    opened = item.open()
    with opened.open("rb") if isinstance(opened, Path) else opened as file:
        return _add(tar, name, item.size, cast(Any, file))


def _add(tar: tarfile.TarFile, name: str, size: int, file: Any) -> int:
    """Append a member; where its bytes start. OSError where there are less than `size`."""
    member = tarfile.TarInfo(name)
    member.size = size
    start = tar.offset + tarfile.BLOCKSIZE  # after a USTAR header
    tar.addfile(member, file)
    return start
