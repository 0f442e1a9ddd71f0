"""Pictures and folders of pictures -> uint8 [H, W, 3] in RGB as displayed."""

import re
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from regen.video.colour import over_white
from regen.video.media import (
    PICTURE_FRAME_RATE,
    PICTURE_SUFFIXES,
    VideoError,
    VideoInfo,
    one_line,
)

_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_EXIF_ORIENTATION = 0x0112
# MemoryError: damaged lengths ask for gigabytes.
_UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError)


def open_folder(path: Path) -> tuple[VideoInfo, list[Path]]:
    """What is known of a folder of pictures, and these in natural order. Raises VideoError."""
    files = sorted(
        (file for file in path.iterdir() if _is_picture_name(file)),
        key=lambda file: _natural(file.name),
    )
    if not files:
        expected = ", ".join(PICTURE_SUFFIXES)
        raise VideoError(f"{path}: the folder has no pictures; expected files ending in {expected}")
    first = picture_info(files[0])
    for file in files[1:]:
        info = picture_info(file)
        if (info.width, info.height) != (first.width, first.height):
            raise VideoError(
                f"{path}: {file.name} is {info.width}x{info.height}, but {files[0].name} is "
                f"{first.width}x{first.height}; all pictures of a folder must have one size"
            )
    read_picture(files[0])
    num_frames, seconds = len(files), float(len(files) / PICTURE_FRAME_RATE)
    fields = {**vars(first), "path": path, "num_frames": num_frames, "duration_s": seconds}
    return VideoInfo(**{**fields, "is_still": False}), files


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _is_picture_name(file: Path) -> bool:
    name = file.name
    return not name.startswith(".") and file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()


def _open_picture(path: Path | BinaryIO) -> Image.Image:
    try:
        return Image.open(path, formats=_PILLOW_FORMATS)
    except _UNREADABLE as error:
        raise VideoError(f"{path}: not a readable picture ({one_line(error)})") from error


def is_picture(path: Path) -> bool:
    """Whether a file is a single picture, by its content. Raises VideoError for a damaged one."""
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as image:
            _refuse_animated_webp(image, path)
            return not (image.format == "PNG" and getattr(image, "is_animated", False))
    except VideoError:
        raise
    except _UNREADABLE:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            _open_picture(path)  # raises with the reason
        return False


def picture_info(path: Path) -> VideoInfo:
    """From the header of a picture. Raises VideoError."""
    with _open_picture(path) as image:
        orientation = _exif_orientation(image)
        width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
        return VideoInfo(
            path=path,
            width=width,
            height=height,
            frame_rate=PICTURE_FRAME_RATE,
            time_base=1 / PICTURE_FRAME_RATE,
            num_frames=1,
            duration_s=float(1 / PICTURE_FRAME_RATE),
            codec=(image.format or "").lower(),
            pixel_format=image.mode,
            rotation={3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}.get(orientation, 0),
            sample_aspect_ratio=Fraction(1),
            has_audio=False,
            is_still=True,
        )


def _exif_orientation(image: Image.Image) -> int:
    """From the header alone: PngImageFile.getexif would decode the whole picture."""
    return int(Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1))


def read_picture(path: Path | BinaryIO) -> np.ndarray:
    """A picture file as uint8 [H, W, 3], turned as it says, transparent pixels on white."""
    with _open_picture(path) as image:
        _refuse_animated_webp(image, path)
        try:
            turned = _exif_orientation(image) != 1
            return _picture_pixels(ImageOps.exif_transpose(image) if turned else image, path)
        except VideoError:
            raise
        except _UNREADABLE as error:
            raise VideoError(f"{path}: the picture is damaged ({one_line(error)})") from error


def _refuse_animated_webp(image: Image.Image, path: Path | BinaryIO) -> None:
    if image.format == "WEBP" and getattr(image, "is_animated", False):
        raise VideoError(f"{path}: animated WebP cannot be read; convert it to GIF, APNG or MP4")


def _picture_pixels(image: Image.Image, path: Path | BinaryIO) -> np.ndarray:
    """uint8 [H, W, 3]: 16-bit grey rounded to 8 bits, transparent pixels over white."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise VideoError(f"{path}: picture samples of type {image.mode}; expected 8 or 16 bits")
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA"))
    return over_white(rgba[..., :3], rgba[..., 3:])
