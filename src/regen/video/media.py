"""What a video is: its endings, what is known of it, its frames, the error of one that is not."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

PIPE = Path("-")  # standard input or output
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
PICTURE_FRAME_RATE = Fraction(24)  # of pictures and folders, and where a container is silent

# FFmpeg's names of formats that hold video; their endings are FFmpeg's, but for those of sound,
# subtitles and stills.
_VIDEO_FORMATS = """
apng asf avi dv f4v flv gif gxf h261 h263 h264 hevc ipod ivf m4v matroska,webm mjpeg
mov,mp4,m4a,3gp,3g2,mj2 mpeg mpeg1video mpeg2video mpegts mxf nut obu ogv rm swf vc1 vob vvc wtv
yuv4mpegpipe
"""
_NO_VIDEO = "avif heic heif ism isma m4a m4b mka mks mpo ra wma"
VIDEO_SUFFIXES = frozenset(
    f".{ending}"
    for name in set(_VIDEO_FORMATS.split()) & av.formats_available
    for ending in av.ContainerFormat(name).extensions - set(_NO_VIDEO.split())
)


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
    num_frames: int | None  # as declared; None: unknown; exact for pictures and folders
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


def one_line(error: object) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
