"""What FFmpeg does not do in Matroska and WebM: the shape of pixels of a stream made by PyAV."""

import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

_SEGMENT, _TRACKS, _ENTRY, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
_WIDTH, _HEIGHT, _UNIT, _LACING, _VOID = 0x54B0, 0x54BA, 0x54B2, 0x9C, 0xEC


def read_number(data: bytes, at: int, is_id: bool = False) -> tuple[int | None, int]:
    """(number, where it ends) in EBML; None: an unknown size. IDs keep their marker bit."""
    num_bytes = 9 - data[at].bit_length()
    number = int.from_bytes(data[at : at + num_bytes], "big")
    mask = (1 << 7 * num_bytes) - 1
    size = None if number & mask == mask else number & mask
    return number if is_id else size, at + num_bytes


def set_pixel_shape(path: Path, width: int, height: int, aspect: Fraction) -> None:
    """Say in the first track of a file that FFmpeg wrote how its picture is displayed.

    The ratio of the sizes is exact where such sizes are near the picture's own. The entry keeps its
    length: elements that say nothing and the padding of its own size make room for two more.
    """
    ratio = width * aspect / height
    factor = max(1, round(height / ratio.denominator))
    shown = (factor * ratio.numerator, factor * ratio.denominator)
    if shown[1] > 2 * height:
        shown = (round(width * aspect), height)
    with path.open("r+b") as file:
        data = file.read(4096)
        start, end = 0, len(data)
        for wanted in (_SEGMENT, _TRACKS, _ENTRY):
            tracks_end = end
            first, start, end = next(
                one[1:] for one in _elements(data, start, end) if one[0] == wanted
            )
        content = b""
        for number, _, at, stop in _elements(data, start, end):
            if number == _VIDEO:
                content += _element(number, _with_size(data[at:stop], *shown))
            elif number not in (_LACING, _VOID):
                content += _element(number, data[at:stop])
        room = end - first - 1 - len(content)  # for the size of the entry
        if room > 8:
            content += _element(_VOID, bytes(room - 6))
            room = 4
        entry = b"\xae" + _size(len(content), room) + content
        checksum = zlib.crc32(entry + data[end:tracks_end]).to_bytes(4, "little")
        if data[first - 6 : first - 4] == b"\xbf\x84":  # of all elements after it
            entry, first = checksum + entry, first - 4
        file.seek(first)
        file.write(entry)


def _with_size(video: bytes, width: int, height: int) -> bytes:
    kept = b"".join(
        _element(number, video[start:end])
        for number, _, start, end in _elements(video, 0, len(video))
        if number not in (_WIDTH, _HEIGHT, _UNIT)
    )
    shown = ((_WIDTH, width), (_HEIGHT, height))
    return kept + b"".join(
        _element(number, side.to_bytes((side.bit_length() + 7) // 8, "big"))
        for number, side in shown
    )


def _elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(ID, where it starts, where its content starts and ends) of each."""
    while start < end:
        number, at = read_number(data, start, is_id=True)
        size, at = read_number(data, at)
        assert number is not None
        stop = end if size is None else min(end, at + size)
        yield number, start, at, stop
        start = stop


def _element(number: int, content: bytes) -> bytes:
    id_bytes = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return id_bytes + _size(len(content), 1 if len(content) < 127 else 2) + content


def _size(size: int, num_bytes: int) -> bytes:
    assert size < (1 << 7 * num_bytes) - 1
    return (size | 1 << 7 * num_bytes).to_bytes(num_bytes, "big")
