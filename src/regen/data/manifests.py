"""Manifests: tables of files with source and caption, as CSV, JSON lines or Parquet -> items.

Column `file` is a path relative to the manifest, an absolute one, or a URL; `source` and `caption`
may be missing or empty; other columns are left alone.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from regen.data import locations
from regen.data.captions import caption_of
from regen.data.items import MEDIA_SUFFIXES, Item, file_item


def read_manifest(location: str) -> list[Item]:
    """The items of a manifest, a path or a URL, in its order.

    A file that is not there is found out, and counted, when it is read. Raises ValueError for a
    manifest that is missing, empty or without the column `file`, and for rows that name no media.
    """
    try:
        data = locations.read_all(location)
    except OSError as error:
        raise ValueError(f"{location}: cannot be read ({error})") from error
    read_rows = _READERS[PurePosixPath(location).suffix.lower()]
    items = []
    for number, row in enumerate(read_rows(data, location), start=1):
        name = row.get("file")
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"{location}: row {number} has no file; expected the columns file, and if known "
                "source and caption"
            )
        if PurePosixPath(name).suffix.lower() not in MEDIA_SUFFIXES:
            endings = ", ".join(sorted(MEDIA_SUFFIXES))
            raise ValueError(f"{location}: row {number}, {name}, is no clip or photo ({endings})")
        texts = (caption_of(row.get(column)) for column in ("source", "caption"))
        items.append(file_item(_beside(location, name), name, *texts))
    if not items:
        raise ValueError(f"{location} has no rows; expected one for each clip or photo")
    return items


def _beside(manifest: str, name: str) -> str:
    if locations.is_url(name) or Path(name).is_absolute():
        return name
    if locations.is_url(manifest):
        return f"{manifest.rpartition('/')[0]}/{name}"
    return str(Path(manifest).parent / name)


def csv_rows(data: bytes, location: str) -> Iterator[dict[str, Any]]:
    yield from csv.DictReader(io.StringIO(_text(data, location), newline=""))


def _json_rows(data: bytes, location: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text(data, location).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{location}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{location}: line {number} is not an object {{...}}")
        yield row


def _parquet_rows(data: bytes, location: str) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, BufferReader
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(
            f"{location}: reading Parquet needs pyarrow; pip install 'regen-video[parquet]', or "
            "give the manifest as .csv or .jsonl"
        ) from None
    try:
        table = ParquetFile(BufferReader(data))
        columns = [one for one in ("file", "source", "caption") if one in table.schema_arrow.names]
        for batch in table.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{location}: not a Parquet file that can be read ({error})") from error


def _text(data: bytes, location: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{location}: not UTF-8 text ({error})") from error


_READERS = {".csv": csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
MANIFEST_SUFFIXES = tuple(_READERS)
