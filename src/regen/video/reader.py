"""Video files, pictures, folders of pictures -> frames uint8 [H, W, 3] in RGB with exact times."""

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Self

import av
import numpy as np
import torch
from PIL import Image, ImageOps

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".gif", ".avi", ".mpg", ".ts"})
PICTURE_FRAME_RATE = Fraction(24)  # of pictures and folders, and where a container is silent
_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_EXIF_ORIENTATION = 0x0112
_TEXT_ART_FORMATS = ("tty", "bin", "xbin", "adf", "idf")  # FFmpeg renders text files as video

# A function, so that reading can be repeated: (pixels, time), None where the file gives no time.
_Pictures = Callable[[], Iterator[tuple[np.ndarray, Fraction | None]]]


class VideoError(ValueError):
    """A media file that cannot be read or written; the message is one line for the user."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video before it is read through."""

    path: Path
    width: int  # pixels as displayed, after rotation
    height: int
    frame_rate: Fraction  # average, frames per second
    time_base: Fraction  # s, unit of the time stamps
    num_frames: int | None  # as the container declares it; exact for pictures and folders
    duration_s: float | None  # as the container declares it
    codec: str
    pixel_format: str
    rotation: int  # degrees counter-clockwise applied to the decoded picture: 0, 90, 180 or 270
    sample_aspect_ratio: Fraction  # of the displayed picture; 1 where unknown
    has_audio: bool
    is_still: bool  # a single picture file


@dataclass(frozen=True)
class Frame:
    """Pixels uint8 [H, W, 3] in RGB as displayed, and time in seconds from the first, exact."""

    pixels: np.ndarray
    time: Fraction


class VideoReader:
    """Iterable over the frames of a video file, picture or folder of pictures; see `open_video`.

    Each `for` starts from the first frame again. `close`, or leaving the `with` block, ends a pass.
    """

    info: VideoInfo

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.exists():
            raise VideoError(
                f"{path}: no such file; give a video, a picture or a folder of pictures"
            )
        self.info, self._pictures = _open_folder(path) if path.is_dir() else _open_file(path)
        self._passes: list[Iterator[Frame]] = []

    def __iter__(self) -> Iterator[Frame]:
        self.close()
        self._passes.append(self._frames())
        return self._passes[-1]

    def _frames(self) -> Iterator[Frame]:
        time = None
        for pixels, stated in self._pictures():
            if time is None:
                time = Fraction(0)
            elif stated is not None and stated > time:
                time = stated
            else:  # no time, or one that does not advance
                time += 1 / self.info.frame_rate
            yield Frame(pixels, time)

    def close(self) -> None:
        """End a pass under way and release its file."""
        while self._passes:
            self._passes.pop().close()  # type: ignore[attr-defined]  # generators have it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_video(path: str | Path) -> VideoReader:
    """Open a video for reading: a file FFmpeg knows, a picture, or a folder of pictures.

    Pictures of a folder come in natural order. The first frame is decoded at once. Frames are
    turned as the file says; transparent pixels lie on white. Raises VideoError at once if nothing
    can be read, and on the way where a file ends early.
    """
    return VideoReader(path)


def read_frames(
    path: str | Path, start: int = 0, num_frames: int | None = None, stride: int = 1
) -> np.ndarray:
    """Frames start, start + stride, ... as uint8 [T, H, W, 3]; `num_frames` None: all there are.

    Holds all of them in memory. Raises VideoError as `open_video` does, and where no frame is left.
    """
    if start < 0 or stride < 1 or (num_frames is not None and num_frames < 1):
        raise ValueError(
            f"got start={start}, num_frames={num_frames}, stride={stride}; "
            "expected start >= 0, num_frames >= 1 or None, stride >= 1"
        )
    frames: list[np.ndarray] = []
    with open_video(path) as reader:
        for index, frame in enumerate(reader):
            if index >= start and (index - start) % stride == 0:
                frames.append(frame.pixels)
                if len(frames) == num_frames:
                    break
    if not frames:
        raise VideoError(f"{path}: has {index + 1} frames, none from frame {start}; lower start")
    return np.stack(frames)


def frames_to_video(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Frames uint8 [T, H, W, 3] to video float32 [3, T, H, W] in [-1, 1]."""
    frames = torch.as_tensor(frames)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"got {frames.dtype} {list(frames.shape)}; expected uint8 [T, H, W, 3]")
    return frames.permute(3, 0, 1, 2).contiguous().float() / 127.5 - 1


def video_to_frames(video: torch.Tensor) -> np.ndarray:
    """Video float [3, T, H, W] in [-1, 1] to frames uint8 [T, H, W, 3], clamped and rounded."""
    if not video.is_floating_point() or video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"got {video.dtype} {list(video.shape)}; expected float [3, T, H, W]")
    levels = ((video.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


# --- reading: pictures ---


def _open_folder(path: Path) -> tuple[VideoInfo, _Pictures]:
    files = sorted(
        (file for file in path.iterdir() if _is_picture_name(file)),
        key=lambda file: (
            [int(s) if s.isdigit() else s for s in _DIGITS.split(file.name)],
            file.name,
        ),
    )
    if not files:
        expected = ", ".join(PICTURE_SUFFIXES)
        raise VideoError(f"{path}: the folder has no pictures; expected files ending in {expected}")
    first = _picture_info(files[0])
    for file in files[1:]:
        info = _picture_info(file)
        if (info.width, info.height) != (first.width, first.height):
            raise VideoError(
                f"{path}: {file.name} is {info.width}x{info.height}, but {files[0].name} is "
                f"{first.width}x{first.height}; all pictures of a folder must have one size"
            )

    def pictures() -> Iterator[tuple[np.ndarray, Fraction | None]]:
        for index, file in enumerate(files):
            yield read_picture(file), index / PICTURE_FRAME_RATE

    next(pictures())
    num_frames, seconds = len(files), float(len(files) / PICTURE_FRAME_RATE)
    fields = {**vars(first), "path": path, "num_frames": num_frames, "duration_s": seconds}
    return VideoInfo(**{**fields, "is_still": False}), pictures


_DIGITS = re.compile(r"(\d+)")


def _is_picture_name(file: Path) -> bool:
    name = file.name
    return not name.startswith(".") and file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()


def _open_picture(path: Path | BinaryIO) -> Image.Image:
    try:
        return Image.open(path, formats=_PILLOW_FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: not a readable picture ({one_line(error)})") from error


def _picture_info(path: Path) -> VideoInfo:
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
        if image.format == "WEBP" and getattr(image, "is_animated", False):
            raise _animated_webp(path)
        try:
            turned = _exif_orientation(image) != 1
            return _picture_pixels(ImageOps.exif_transpose(image) if turned else image, path)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(f"{path}: the picture is damaged ({one_line(error)})") from error


def _animated_webp(path: Path | BinaryIO) -> VideoError:
    return VideoError(f"{path}: animated WebP cannot be read; convert it to GIF, APNG or MP4")


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
    return _over_white(rgba[..., :3], rgba[..., 3:])


def _over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if alpha.min() == 255:
        return np.ascontiguousarray(colour)
    weight = alpha.astype(np.uint16)
    return ((colour * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


# --- reading: containers ---


def _open_file(path: Path) -> tuple[VideoInfo, _Pictures]:
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); expected a video or a picture")
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as image:
            kind = image.format
            animated = kind in ("PNG", "WEBP") and getattr(image, "is_animated", False)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            _open_picture(path)  # raises with the reason
        kind, animated = None, False
    if kind is not None and not animated:
        info = _picture_info(path)
        read_picture(path)
        return info, lambda: iter([(read_picture(path), Fraction(0))])
    if kind == "WEBP":
        raise _animated_webp(path)
    return _container_info(path), lambda: _container_pictures(path)


def open_container(path: Path | BinaryIO) -> Any:
    """PyAV's container for a local file; "file:" lest a colon in the name makes it an address.

    Also for bytes that read and seek; `str` of them is their name in messages.
    """
    source = f"file:{path}" if isinstance(path, Path) else path
    if not isinstance(path, Path):
        path.seek(0)
    try:
        container = av.open(source, options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as error:
        if _first_bytes(path)[4:] in (b"ftyp", b"mdat", b"wide", b"moov"):
            raise VideoError(
                f"{path}: the file is cut short or damaged: its index is missing"
            ) from error
        raise VideoError(
            f"{path}: not a video that FFmpeg can read ({one_line(error)}); expected e.g. MP4, "
            "MOV, MKV, WebM, GIF, a picture or a folder of pictures"
        ) from error
    if container.format.name in _TEXT_ART_FORMATS:
        container.close()
        raise VideoError(
            f"{path}: a text file, not a video; expected e.g. MP4, MOV, MKV, WebM, GIF"
        )
    return container


def _first_bytes(path: Path | BinaryIO) -> bytes:
    if isinstance(path, Path):
        with path.open("rb") as file:
            return file.read(8)
    path.seek(0)
    return path.read(8)


def has_sound(path: Path) -> bool:
    """Whether a media file has a sound track. Raises VideoError where FFmpeg cannot read it."""
    with open_container(path) as container:
        return bool(container.streams.audio)


def video_stream(container: Any) -> Any | None:
    """The first video stream that is not an attached picture (cover art)."""
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & cover), None)


def need_video_stream(container: Any, path: Path | BinaryIO) -> Any:
    """`video_stream`; VideoError where there is none."""
    stream = video_stream(container)
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise VideoError(f"{path}: no video stream in the file, only {kinds}; expected a video")
    return stream


def num_listed(container: Any, stream: Any) -> int:
    """Packets that an MP4 lists in front, edit lists applied; 0 where nothing is listed."""
    is_listed = "mp4" in container.format.name and stream.frames  # a fragmented one: frames = 0
    return len(stream.index_entries) if is_listed else 0


def decode_container(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """(container, stream, PyAV frame) of each frame; VideoError where the file is damaged."""
    with open_container(path) as container:
        stream = need_video_stream(container, path)
        stream.thread_type = "AUTO"
        name = container.format.name
        listed = num_listed(container, stream)
        num_packets, count, cut, size = 0, 0, False, None
        try:
            for packet in container.demux(stream):
                num_packets += packet.size > 0
                cut = packet.is_corrupt and name != "mpegts"  # broadcast recordings often are
                for frame in stream.codec_context.decode(None if cut else packet):
                    size = size or (frame.width, frame.height)
                    if (frame.width, frame.height) != size:
                        raise VideoError(
                            f"{path}: the picture changes from {size[0]}x{size[1]} to "
                            f"{frame.width}x{frame.height} after frame {count}; expected one size: "
                            "split the file"
                        )
                    count += 1
                    yield container, stream, frame
                if cut:
                    break
        except (av.FFmpegError, OSError) as error:
            raise _damaged(path, count, error) from error
        if cut or num_packets < listed or (not listed and _is_cut_short(path, name)):
            raise _damaged(path, count, "the file is cut short")
        if count == 0:
            raise VideoError(
                f"{path}: no frame can be decoded; the file is damaged or has no picture"
            )


def _damaged(path: Path, count: int, reason: object) -> VideoError:
    return VideoError(
        f"{path}: reading stops after frame {count} ({one_line(reason)}); get the file again in "
        "full, or cut it to its readable part"
    )


def one_line(error: object) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _is_cut_short(path: Path, format_name: str) -> bool:
    """Whether the sizes or the end mark that the container states lie past the end of the file."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        if "matroska" in format_name:
            file.seek(4)
            file.seek(_ebml_size(file) or 0, os.SEEK_CUR)
            is_segment = file.read(4) == b"\x18\x53\x80\x67"
            length = _ebml_size(file) if is_segment else None  # None: live, of unknown length
            return length is not None and file.tell() + length > num_bytes
        if "mp4" in format_name:
            start = 0
            while start + 16 <= num_bytes:
                file.seek(start)
                header = file.read(16)
                length = int.from_bytes(header[:4], "big")
                length = int.from_bytes(header[8:], "big") if length == 1 else length
                if length < 8:  # 0: to the end
                    return False
                start += length
            return start > num_bytes and header[4:8] in (b"moof", b"mdat")
        mark = {"gif": b";", "apng": b"IEND\xaeB`\x82"}.get(format_name, b"")
        file.seek(max(0, num_bytes - 64))
        return not file.read().rstrip(b"\0").endswith(mark)


def _ebml_size(file: BinaryIO) -> int | None:
    """A Matroska element's size field, None where it says unknown."""
    first = file.read(1)[0]
    num_bytes = 9 - first.bit_length()
    bits = int.from_bytes(bytes([first]) + file.read(num_bytes - 1), "big")
    mask = (1 << 7 * num_bytes) - 1
    return None if bits & mask == mask else bits & mask


def _container_info(path: Path) -> VideoInfo:
    frames = decode_container(path)
    container, stream, frame = next(frames)
    quarter_turns, _ = frame_orientation(frame)
    turned = quarter_turns % 2 == 1
    lasting = frame.duration * stream.time_base if frame.duration else 0
    rate = stream.average_rate or (1 / lasting if lasting else None) or PICTURE_FRAME_RATE
    duration = stream.duration * stream.time_base if stream.duration else None
    if duration is None and container.duration:
        duration = Fraction(container.duration, av.time_base)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    info = VideoInfo(
        path=path,
        width=frame.height if turned else frame.width,
        height=frame.width if turned else frame.height,
        frame_rate=Fraction(rate),
        time_base=stream.time_base,
        num_frames=stream.frames or None,
        duration_s=None if duration is None else float(duration),
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=frame.format.name,
        rotation=90 * quarter_turns,
        sample_aspect_ratio=1 / aspect if turned else aspect,
        has_audio=bool(container.streams.audio),
        is_still=False,
    )
    frames.close()  # type: ignore[attr-defined]  # a generator
    return info


def _container_pictures(path: Path) -> Iterator[tuple[np.ndarray, Fraction | None]]:
    origin = orientation = None
    for _, stream, frame in decode_container(path):
        # Of the first frame: reading side data ties a frame into a cycle, and is costly in memory.
        orientation = orientation or frame_orientation(frame)
        time = None if frame.pts is None else frame.pts * stream.time_base
        origin = time if origin is None else origin
        yield frame_pixels(frame, *orientation), None if time is None else time - origin


def frame_pixels(frame: Any, quarter_turns: int, mirrored: bool) -> np.ndarray:
    """A PyAV frame as uint8 [H, W, 3]: plain `to_ndarray("rgb24")`, over white, turned."""
    pixels = frame.to_ndarray(format="rgb24")
    if frame.format.has_palette or any(part.is_alpha for part in frame.format.components):
        pixels = _over_white(pixels, frame.to_ndarray(format="rgba")[..., 3:])
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, quarter_turns))


def frame_orientation(frame: Any) -> tuple[int, bool]:
    """Quarter turns counter-clockwise, and whether the picture is mirrored (left, right) before."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = (int(value) for value in np.frombuffer(data, np.int32)[:5])
            mirrored = a * d < b * c
            a, b = (-a, -b) if mirrored else (a, b)
            return round(-math.atan2(b, a) / (math.pi / 2)) % 4, mirrored
    return 0, False
