"""A PyAV frame -> uint8 RGB as displayed: HDR tone-mapped to SDR, transparency on white, turned.

HDR is BT.2100: PQ, or HLG on a display of 1000 cd/m2. Its reference white, 203 cd/m2 (BT.2408),
is about where white is in SDR; what is brighter is compressed into the rest (the EETF of BT.2390),
and beyond 1000 cd/m2 is white. FFmpeg's own tone mapping needs zscale, which PyAV's FFmpeg has not.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from av.video.reformatter import ColorTrc

_KINDS = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
_PEAK, _WHITE = 1000.0, 203.0  # cd/m2
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
_ROWS = 64  # tone-mapped together: bounds the memory


def hdr_kind(frame: Any) -> str:
    """ "PQ", "HLG", or nothing: SDR."""
    return _KINDS.get(int(frame.color_trc), "")


def has_alpha(frame: Any) -> bool:
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


def frame_pixels(frame: Any, quarter_turns: int, mirrored: bool) -> np.ndarray:
    """A PyAV frame as uint8 [H, W, 3]: plain `to_ndarray("rgb24")`, over white, turned."""
    if kind := hdr_kind(frame):
        deep = frame.to_ndarray(format="rgb48le")
        strips = [_to_sdr(deep[top : top + _ROWS], kind) for top in range(0, len(deep), _ROWS)]
        pixels = np.concatenate(strips)
    else:
        pixels = frame.to_ndarray(format="rgb24")
    if has_alpha(frame):
        pixels = over_white(pixels, frame.to_ndarray(format="rgba")[..., 3:])
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, quarter_turns))


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if alpha.min() == 255:
        return np.ascontiguousarray(colour)
    weight = alpha.astype(np.uint16)
    return ((colour * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def frame_orientation(frame: Any) -> tuple[int, bool]:
    """Quarter turns counter-clockwise, and whether the picture is mirrored (left, right) before."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = (int(value) for value in np.frombuffer(data, np.int32)[:5])
            mirrored = a * d < b * c
            a, b = (-a, -b) if mirrored else (a, b)
            return round(-math.atan2(b, a) / (math.pi / 2)) % 4, mirrored
    return 0, False


def _to_sdr(coded: np.ndarray, kind: str) -> np.ndarray:
    """uint16 RGB of BT.2100 -> uint8 RGB of BT.709."""
    light = _light_of(kind)[coded]
    if kind == "HLG":  # from light of the scene to light of the display
        light *= _PEAK * (light @ _BT2020_LUMINANCE)[..., None] ** 0.2
    light = (light @ _BT2020_TO_BT709.T).clip(0)
    brightest = light.max(-1)
    steps, gains = _gains()
    light *= np.interp(brightest, steps, gains, right=0).astype(np.float32)[..., None]
    light[brightest > _PEAK] = 1
    return (255 * light.clip(0, 1) ** (1 / 2.4) + 0.5).astype(np.uint8)


@cache
def _light_of(kind: str) -> np.ndarray:
    """Of each 16-bit code: cd/m2 (PQ), or light of the scene in [0, 1] (HLG)."""
    code = np.arange(65536) / 65535
    if kind == "PQ":
        return _pq_to_light(code).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


def _pq_to_light(code: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, in cd/m2."""
    root = code ** (1 / 78.84375)
    return 10_000 * ((root - 0.8359375).clip(0) / (18.8515625 - 18.6875 * root)) ** (
        1 / 0.1593017578125
    )


def _light_to_pq(light: float) -> float:
    power = (light / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


@cache
def _gains() -> tuple[np.ndarray, np.ndarray]:
    """(cd/m2 up to the peak, factors that take them to SDR with white at 1): BT.2390-10, 5.4.1."""
    peak = _light_to_pq(_PEAK)
    largest = _light_to_pq(_WHITE) / peak
    knee = 1.5 * largest - 0.5
    code = np.linspace(0, 1, 4096)
    t = ((code - knee) / (1 - knee)).clip(0)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * largest
    )
    before = _pq_to_light(code * peak)
    after = _pq_to_light(np.where(code < knee, code, spline) * peak) / _WHITE
    return before, after / before.clip(1e-6)
