"""Captions in the shapes in which people write them: text of any encoding, JSON, lists, classes."""

import codecs
import json
from typing import Any

# Endings as webdataset decodes them; in this order one sample's captions count.
JSON_ENDINGS = ("json", "jsn")
TEXT_ENDINGS = (*JSON_ENDINGS, "txt", "text", "transcript", "caption", "cls", "class")
CAPTION_KEYS = ("caption", "text", "captions", "texts", "prompt", "description", "title")
MAX_TEXT_BYTES = 1 << 20


def text_of(data: bytes) -> str:
    """Text in UTF-8, in UTF-16 where a mark says so, else in Windows' Latin-1."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace").strip()
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace").strip()


def caption_of(value: Any) -> str:
    """The caption in what JSON holds: a text, a number, a list (the first), an object (its caption,
    text, ...); empty where there is none."""
    if isinstance(value, list):
        return next((one for one in map(caption_of, value) if one), "")
    if isinstance(value, dict):
        return next((one for key in CAPTION_KEYS if (one := caption_of(value.get(key)))), "")
    if value is None or isinstance(value, bool):
        return ""
    return " ".join(str(value).split())


def read_fields(ending: str, data: bytes) -> dict[str, str]:
    """`caption`, and `source` where it is given, of a file with this ending.

    Raises ValueError for one that cannot be read.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"longer than {MAX_TEXT_BYTES:,} bytes")
    if ending not in JSON_ENDINGS:
        return {"caption": caption_of(text_of(data))}
    try:
        value = json.loads(text_of(data))
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    source = value.get("source") if isinstance(value, dict) else None
    return {"caption": caption_of(value), "source": caption_of(source)}
