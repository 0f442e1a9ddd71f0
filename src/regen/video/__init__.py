"""Video files to frames and back: the one room that opens or writes video.

Reading gives frames uint8 [H, W, 3] in RGB with exact times; `frames_to_video` turns them into the
float video [3, T, H, W] in [-1, 1] that the model takes, `video_to_frames` turns it back,
`VideoWriter` writes the file, with the sound of another one if asked. Pictures and folders of
pictures count as videos. All streams: memory does not grow with the length. PyAV carries FFmpeg; no
program is called.
"""

from regen.video.containers import has_sound, is_streamed
from regen.video.media import (
    PICTURE_FRAME_RATE,
    PICTURE_SUFFIXES,
    PIPE,
    VIDEO_SUFFIXES,
    Frame,
    VideoError,
    VideoInfo,
)
from regen.video.pictures import read_picture
from regen.video.preparing import RAW_SUFFIX, interpolate_frames, read_prepared
from regen.video.reader import (
    VideoReader,
    frames_to_video,
    open_video,
    read_frames,
    video_to_frames,
)
from regen.video.seeking import count_frames, read_frames_at
from regen.video.writer import Rehearsed, VideoWriter, check_output, write_video

__all__ = [
    "PICTURE_FRAME_RATE",
    "PICTURE_SUFFIXES",
    "PIPE",
    "RAW_SUFFIX",
    "VIDEO_SUFFIXES",
    "Frame",
    "Rehearsed",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "check_output",
    "count_frames",
    "frames_to_video",
    "has_sound",
    "interpolate_frames",
    "is_streamed",
    "open_video",
    "read_frames",
    "read_frames_at",
    "read_picture",
    "read_prepared",
    "video_to_frames",
    "write_video",
]
