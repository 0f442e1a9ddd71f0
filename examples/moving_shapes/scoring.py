"""Does a video of the generated world show what was asked? Measured on pixels, nothing learned.

The backgrounds of the world are grey and its objects are not: pixels with colour, joined to
patches, are the objects. Their hue is the colour, their outline the shape, the way of their
centre through the clip the direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from regen.moving_shapes import COLORS, SHAPES, Scene, coverage

ATTRIBUTES = ("color", "shape", "direction", "count")
MAX_SAMPLES = 9  # frames that are looked at
MIN_CHROMA = 45  # of 255: largest less smallest of R, G, B
MIN_AREA = 0.006  # of an object, in squared short sides; the smallest star has 0.014
MIN_MOVE = 0.11  # short sides in a clip; slow objects move 0.2, zooms 0.06 what is still
BLURS = (0.0, 0.15, 0.3)  # of outlines that are known: deviation in radii
OUTLINE = 20  # pixels of an outline that is compared


@dataclass(frozen=True)
class Seen:
    """An object that a video shows; `presence` is the fraction of the frames that show it."""

    color: str
    shape: str
    direction: str
    presence: float


@dataclass
class _Patch:
    """Pixels of one object in one frame. `center` in short sides, `outline` in [0, 1]."""

    center: np.ndarray
    rgb: np.ndarray
    outline: np.ndarray


def see(frames: np.ndarray) -> list[Seen]:
    """The objects in a clip, uint8 `[T, H, W, 3]`, in the order of their size in frames seen."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames are uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    indices = np.unique(np.linspace(0, len(frames) - 1, MAX_SAMPLES).round().astype(int))
    found = [_patches(frames[index].astype(np.float32)) for index in indices]
    tracks: list[list[tuple[float, _Patch]]] = []
    for moment, patches in zip(indices / max(1, len(frames) - 1), found, strict=True):
        _extend(tracks, float(moment), patches)
    # What flickers is no object: at least half of the frames show one.
    kept = [track for track in tracks if 2 * len(track) >= len(indices)]
    kept.sort(key=len, reverse=True)
    return [_seen(track, len(indices)) for track in kept]


def score(frames: np.ndarray, scene: Scene) -> dict[str, bool]:
    """For each of `ATTRIBUTES`, whether the clip `[T, H, W, 3]`, uint8, shows what `scene` asks.

    Colour, shape and direction are right where they are so for every object asked, objects being
    matched as well as they can be; count, where there are as many as asked. Direction is across
    the picture, as the camera sees it.
    """
    wanted = [
        (one.color, one.shape, direction)
        for one, direction in zip(scene.objects, scene.seen_direction, strict=True)
    ]
    seen = [(one.color, one.shape, one.direction) for one in see(frames)]
    matches = [_compare(wanted, order) for order in permutations(seen[:4], len(wanted))]
    best = max(matches, key=sum, default=(False, False, False))
    return dict(zip(ATTRIBUTES, (*best, len(seen) == len(wanted)), strict=True))


def chance(scenes: Sequence[Scene]) -> dict[str, float]:
    """The share that is right where each scene is answered with another one of the list."""
    right = dict.fromkeys(ATTRIBUTES, 0)
    for index, scene in enumerate(scenes):
        other = scenes[index - 1]
        wanted, shown = (
            [
                (one.color, one.shape, direction)
                for one, direction in zip(each.objects, each.seen_direction, strict=True)
            ]
            for each in (scene, other)
        )
        matches = [_compare(wanted, order) for order in permutations(shown, len(wanted))]
        best = max(matches, key=sum, default=(False, False, False))
        for name, value in zip(ATTRIBUTES, (*best, len(shown) == len(wanted)), strict=True):
            right[name] += value
    return {name: count / len(scenes) for name, count in right.items()}


def _compare(
    wanted: Sequence[tuple[str, ...]], seen: Sequence[tuple[str, ...]]
) -> tuple[bool, bool, bool]:
    pairs = list(zip(wanted, seen, strict=True))
    color, shape, direction = (all(a[i] == b[i] for a, b in pairs) for i in range(3))
    return color, shape, direction


# --- frames to patches ---


def _patches(picture: np.ndarray) -> list[_Patch]:
    """Patches of colour in `[H, W, 3]`, 0 to 255."""
    chroma = picture.max(axis=2) - picture.min(axis=2)
    labels = _label(chroma > MIN_CHROMA)
    short = min(chroma.shape)
    found = []
    for label in np.unique(labels[labels > 0]):
        mask = labels == label
        area = mask.sum()
        if area < max(4, MIN_AREA * short * short):
            continue
        # The inside has the object's own colour, the edge part of it: that is how much it covers.
        full = np.quantile(chroma[mask], 0.75)
        covered = np.where(mask, chroma / full, 0).clip(0, 1)
        ys, xs = np.nonzero(mask)
        center = np.array([np.average(axis, weights=covered[mask]) for axis in (xs, ys)]) / short
        rgb = np.average(picture[mask], axis=0, weights=covered[mask] ** 4)
        outline = _outline(covered)
        if outline is not None:
            found.append(_Patch(center, rgb, outline))
    return found


def _label(mask: np.ndarray) -> np.ndarray:
    """Patches of neighbours (of 4) have one positive number each, the rest 0."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        neighbors = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        largest = np.where(mask, np.maximum.reduce([labels, *neighbors]), 0)
        # Along runs at once, so that few rounds do: each pixel takes the label its label has.
        flat = np.concatenate([[0], largest.ravel()])
        largest = np.where(mask, np.maximum(largest, flat[largest]), 0)
        if np.array_equal(largest, labels):
            return labels
        labels = largest


def _outline(covered: np.ndarray) -> np.ndarray | None:
    """The box around what is covered by half, sampled at OUTLINE x OUTLINE places; None: no box.

    Width and height keep their ratio: the box is a square about the middle.
    """
    ranges = []
    for axis in (0, 1):
        profile = covered.max(axis=axis)  # along x, then along y
        inside = np.nonzero(profile >= 0.5)[0]
        if not len(inside):
            return None
        low, high = inside[0], inside[-1]
        ranges.append(
            (low - _part(profile, low - 1, low), high + 1 + _part(profile, high + 1, high))
        )
    (x0, x1), (y0, y1) = ranges
    side = max(x1 - x0, y1 - y0)
    places = (np.arange(OUTLINE) + 0.5) / OUTLINE - 0.5
    xs, ys = ((low + high) / 2 + places * side - 0.5 for low, high in ranges)
    return _bilinear(covered, xs, ys)


def _part(profile: np.ndarray, outside: int, inside: int) -> float:
    """How far the edge reaches into the pixel outside of the last one that is half covered."""
    if not 0 <= outside < len(profile):
        return 0.0
    return float(profile[outside]) - max(0.0, 1 - float(profile[inside]))


def _bilinear(values: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    padded = np.pad(values, 1)
    grids = []
    for places, size in ((ys, values.shape[0]), (xs, values.shape[1])):
        inside = (places + 1).clip(0, size + 0.999)
        low = inside.astype(int).clip(0, size)
        grids.append((low, inside - low))
    (y, fy), (x, fx) = grids
    top = padded[np.ix_(y, x)] * (1 - fx) + padded[np.ix_(y, x + 1)] * fx
    bottom = padded[np.ix_(y + 1, x)] * (1 - fx) + padded[np.ix_(y + 1, x + 1)] * fx
    return top * (1 - fy)[:, None] + bottom * fy[:, None]


# --- patches to objects ---


def _extend(tracks: list[list[tuple[float, _Patch]]], moment: float, patches: list[_Patch]) -> None:
    """Give each patch to the track that ended nearest to it, in place and hue; else a new one."""
    pairs = []
    for number, track in enumerate(tracks):
        last = track[-1][1]
        for index, patch in enumerate(patches):
            far = float(np.hypot(*(patch.center - last.center)))
            far += 0.5 * float(np.abs(_hue_vector(patch.rgb) - _hue_vector(last.rgb)).sum())
            if far < 0.35:
                pairs.append((far, number, index))
    used_tracks, used_patches = set(), set()
    for _, number, index in sorted(pairs):
        if number not in used_tracks and index not in used_patches:
            tracks[number].append((moment, patches[index]))
            used_tracks.add(number)
            used_patches.add(index)
    for index, patch in enumerate(patches):
        if index not in used_patches:
            tracks.append([(moment, patch)])


def _seen(track: list[tuple[float, _Patch]], num_samples: int) -> Seen:
    patches = [patch for _, patch in track]
    rgb = np.mean([patch.rgb for patch in patches], axis=0)
    colors = {name: _hue_vector(np.array(value)) for name, value in COLORS.items()}
    color = max(colors, key=lambda name: float(colors[name] @ _hue_vector(rgb)))
    outline = np.mean([patch.outline for patch in patches], axis=0)
    shape = max(_shape_outlines(), key=lambda known: _overlap(known[1], outline))[0]
    return Seen(color, shape, _direction(track), len(track) / num_samples)


def _hue_vector(rgb: np.ndarray) -> np.ndarray:
    """Unit vector of the hue: the plane of colours across the grey axis."""
    red, green, blue = rgb
    vector = np.array([red - (green + blue) / 2, (green - blue) * np.sqrt(0.75)])
    return vector / max(1e-6, float(np.hypot(*vector)))


@cache
def _shape_outlines() -> list[tuple[str, np.ndarray]]:
    """Outlines of each shape, sharp and blurred, drawn and measured as in a clip."""
    size, radius = 64, 14
    places = (np.arange(size) + 0.5 - size / 2) / radius
    dx, dy = np.meshgrid(places, places)
    outlines = []
    for shape in SHAPES:
        for blur in BLURS:
            covered = _blurred(coverage(shape, dx, dy, radius), blur * radius)
            outline = _outline(covered / covered.max())
            assert outline is not None
            outlines.append((shape, outline))
    return outlines


def _blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian along both axes; `deviation` in pixels."""
    if not deviation:
        return values
    offsets = np.arange(len(values))
    kernel = np.exp(-(((offsets[:, None] - offsets) / deviation) ** 2) / 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return kernel @ values @ kernel.T


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of soft masks."""
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


def _direction(track: list[tuple[float, _Patch]]) -> str:
    """Of the straight line through the centres."""
    if len(track) < 2:
        return "still"
    moments = np.array([moment for moment, _ in track])
    centers = np.stack([patch.center for _, patch in track])
    x, y = np.polyfit(moments, centers, 1)[0]  # short sides in the clip
    if np.hypot(x, y) < MIN_MOVE:
        return "still"
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"
