"""A generated world: clips of coloured shapes that move, with captions that are exactly true.

For text-to-video on a small machine: any number of clips at any size, made on demand, the same for
the same (seed, index), and with combinations of colour, shape and direction that never train, so
that one can ask for what the model has not seen. examples/moving_shapes/scoring.py says without
learned weights whether a video shows what its caption asks for.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from regen.files import draft, write_text
from regen.video import write_video

Split = Literal["train", "held_out"]

# RGB. All hues differ by 40 degrees or more, and the backgrounds have none.
COLORS = {
    "red": (215, 40, 45),
    "yellow": (235, 205, 45),
    "green": (45, 170, 65),
    "cyan": (55, 200, 215),
    "blue": (45, 80, 215),
    "purple": (165, 60, 205),
}
# Names in captions; the first is the attribute.
SHAPES = {
    "ball": ("ball", "circle"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus sign"),
}
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "still": (0.0, 0.0),
}
BACKGROUNDS = ("black", "grey", "white", "checkered", "striped")
# How the picture's content moves while the camera does; zooms are scales about the centre.
CAMERAS: dict[str, tuple[float, float]] = {
    "fixed": (0.0, 0.0),
    "pans left": (1.0, 0.0),
    "pans right": (-1.0, 0.0),
    "zooms in": (0.0, 0.0),
    "zooms out": (0.0, 0.0),
}
ZOOM = 1.2
SPEEDS = {"slowly": (0.2, 0.28), "quickly": (0.4, 0.48)}  # short sides in a clip
PAN = (0.22, 0.3)
LANE = 0.24  # of two objects, from the centre
RADIUS = {1: (0.18, 0.22), 2: (0.16, 0.18)}  # by the number of objects


@dataclass(frozen=True)
class WorldObject:
    """One object. Places are of its centre, at the start and the end of the clip, in short sides
    of the picture from its centre, x to the right, y down; `radius` in short sides."""

    color: str
    shape: str
    direction: str  # within the world; a camera that pans moves what is still across the picture
    speed: str  # "slowly", "quickly"; "" for what is still
    start: tuple[float, float]
    end: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Scene:
    """All that a clip shows. `shift`, in [-1, 1], is where the objects stand along the longer side
    of the picture: they keep within a square of it."""

    objects: tuple[WorldObject, ...]
    background: str
    camera: str
    pan: float  # short sides in the clip
    shift: float
    caption: str

    @property
    def seen_direction(self) -> tuple[str, ...]:
        """How each object moves across the picture, which a panning camera changes."""
        if self.camera == "pans left":
            return ("right",) * len(self.objects)
        if self.camera == "pans right":
            return ("left",) * len(self.objects)
        return tuple(one.direction for one in self.objects)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        fields = json.loads(text)
        objects = []
        for one in fields.pop("objects"):
            start, end = tuple(one.pop("start")), tuple(one.pop("end"))
            objects.append(WorldObject(**one, start=start, end=end))
        return cls(objects=tuple(objects), **fields)


def is_held_out(color: str, shape: str, direction: str) -> bool:
    """Whether the combination never trains.

    Of each colour and shape one direction of five is held out, so that every pair of attributes
    trains.
    """
    indices = [
        list(table).index(name)
        for table, name in ((COLORS, color), (SHAPES, shape), (DIRECTIONS, direction))
    ]
    return sum(indices) % len(DIRECTIONS) == 0


def make_scene(seed: int, index: int, split: Split = "train") -> Scene:
    """Scene `index` of a split of world `seed`; scenes of the two splits share no combination."""
    rng = np.random.default_rng([seed, index, split == "held_out"])
    camera = "fixed" if rng.random() < 0.8 else str(rng.choice(list(CAMERAS)[1:]))
    count = 1 if rng.random() < 0.6 else 2
    alike = rng.random() < 0.5
    kinds: list[tuple[str, str, str]] = []
    while len(kinds) < count:
        direction = "still" if camera != "fixed" else str(rng.choice(list(DIRECTIONS)))
        kind = (str(rng.choice(list(COLORS))), str(rng.choice(list(SHAPES))), direction)
        if kinds and alike:
            kind = kinds[0]
        if is_held_out(*kind) == (split == "held_out") and (not kinds or _can_meet(kinds[0], kind)):
            kinds.append(kind)
    upright = any(direction in ("up", "down") for _, _, direction in kinds)
    sides = rng.permutation([-1.0, 1.0])
    objects = tuple(
        _place(rng, kind, count, side if count == 2 else 0.0, upright)
        for kind, side in zip(kinds, sides[:count], strict=True)
    )
    background = str(rng.choice(BACKGROUNDS))
    if camera != "fixed":  # of a plain background nobody sees a camera move
        background = str(rng.choice(BACKGROUNDS[3:]))
    pan = float(rng.uniform(*PAN)) if camera.startswith("pans") else 0.0
    scene = Scene(objects, background, camera, pan, float(rng.uniform(-1, 1)), "")
    return Scene(**{**_fields(scene), "caption": _caption(rng, scene)})


def _fields(scene: Scene) -> dict[str, Any]:
    return {name: getattr(scene, name) for name in Scene.__dataclass_fields__}


def _can_meet(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    """Two objects keep to lanes side by side, so their ways must not cross."""
    axes = {"left": "x", "right": "x", "up": "y", "down": "y"}
    found = {axes[direction] for _, _, direction in (one, other) if direction in axes}
    return len(found) < 2


def _place(
    rng: np.random.Generator,
    kind: tuple[str, str, str],
    count: int,
    lane: float,
    upright: bool,
) -> WorldObject:
    color, shape, direction = kind
    radius = float(rng.uniform(*RADIUS[count]))
    speed = str(rng.choice(list(SPEEDS))) if direction != "still" else ""
    distance = float(rng.uniform(*SPEEDS[speed])) if speed else 0.0
    way = np.array(DIRECTIONS[direction]) * distance
    room = 0.49 - radius - np.abs(way) / 2  # of the middle of the way, about the centre
    if not speed:
        room = np.minimum(room, 0.15)  # stays in the picture while the camera moves
    middle = rng.uniform(-room, room)
    if lane:
        middle[0 if upright else 1] = lane * LANE
    start, end = middle - way / 2, middle + way / 2
    points = [(float(x), float(y)) for x, y in (start, end)]
    return WorldObject(color, shape, direction, speed, points[0], points[1], radius)


# --- captions ---

VERBS = {"ball": ("rolls", "moves", "glides", "travels")}
OTHER_VERBS = ("moves", "slides", "glides", "travels")
WAYS = {
    "left": ("left", "to the left", "leftwards", "towards the left", "from right to left"),
    "right": ("right", "to the right", "rightwards", "towards the right", "from left to right"),
    "up": ("up", "upwards", "towards the top", "from bottom to top"),
    "down": ("down", "downwards", "towards the bottom", "from top to bottom"),
}
VERTICAL_VERBS = {"up": ("rises", "moves", "climbs"), "down": ("falls", "moves", "sinks")}
STILL = ("stays still", "does not move", "rests", "stands still", "stays where it is")
ADVERBS = {"slowly": ("slowly", "at a low speed"), "quickly": ("quickly", "fast", "at high speed")}
SETTINGS = {
    "black": ("on a black background", "in front of a black wall", "against black"),
    "grey": ("on a grey background", "in front of a grey wall", "against grey"),
    "white": ("on a white background", "in front of a white wall", "against white"),
    "checkered": ("on a checkered background", "on a checkerboard", "in front of checkered tiles"),
    "striped": ("on a striped background", "in front of a striped wall", "against stripes"),
}
CAMERA_MOVES = {
    "pans left": ("the camera pans left", "the camera pans to the left"),
    "pans right": ("the camera pans right", "the camera pans to the right"),
    "zooms in": ("the camera zooms in", "the camera moves closer"),
    "zooms out": ("the camera zooms out", "the camera moves away"),
}
PLURALS = {"plus sign": "plus signs", "cross": "crosses", "box": "boxes"}


def _caption(rng: np.random.Generator, scene: Scene) -> str:
    """A sentence: what, how many, which way; how fast and where often, the camera if it moves."""

    def one_of(names: Sequence[str]) -> str:
        return str(rng.choice(list(names)))

    alike = len({(one.color, one.shape, one.direction) for one in scene.objects}) == 1
    if len(scene.objects) == 2 and alike:
        same_speed = scene.objects[0].speed == scene.objects[1].speed
        noun = one_of(SHAPES[scene.objects[0].shape])
        subject = f"two {scene.objects[0].color} {PLURALS.get(noun, f'{noun}s')}"
        text = _clause(rng, subject, scene.objects[0], True, same_speed)
    else:
        clauses = []
        for one in scene.objects:
            subject = f"a {one.color} {one_of(SHAPES[one.shape])}"
            clauses.append(_clause(rng, subject, one, False, True))
        text = one_of((" and ", ", ", " while ")).join(clauses)
    if rng.random() < 0.75:
        text = f"{text} {one_of(SETTINGS[scene.background])}"
    if scene.camera != "fixed":
        move = one_of(CAMERA_MOVES[scene.camera])
        text = one_of((f"{text} while {move}", f"{text}, {move}", f"{move}: {text}"))
    if rng.random() < 0.5:
        text = f"{text[0].upper()}{text[1:]}."
    return text


def _clause(
    rng: np.random.Generator, subject: str, one: WorldObject, plural: bool, with_speed: bool
) -> str:
    def one_of(names: Sequence[str]) -> str:
        return str(rng.choice(list(names)))

    participle = rng.random() < 0.3
    if one.direction == "still":
        words = one_of(STILL).split(" ")
        if participle and words[0] != "does":
            return f"{subject} {_ing(words[0])} {' '.join(words[1:])}".rstrip().replace(
                "where it is", "in place"
            )
        if plural:
            words[0] = {"does": "do", "stays": "stay", "rests": "rest", "stands": "stand"}[words[0]]
        text = f"{subject} {' '.join(words)}"
        return text.replace("where it is", "where they are") if plural else text
    vertical = one.direction in VERTICAL_VERBS
    verbs = VERTICAL_VERBS[one.direction] if vertical else VERBS.get(one.shape, OTHER_VERBS)
    verb = one_of(verbs)
    way = one_of(WAYS[one.direction])
    if verb in ("rises", "falls", "sinks") and way in ("up", "upwards", "down", "downwards"):
        way = ""
    adverb = one_of(ADVERBS[one.speed]) if with_speed and rng.random() < 0.7 else ""
    verb = _ing(verb) if participle else verb.removesuffix("s") if plural else verb
    return " ".join(word for word in (subject, verb, way, adverb) if word)


def _ing(verb: str) -> str:
    """rolls -> rolling, slides -> sliding."""
    return f"{verb.removesuffix('s').removesuffix('e')}ing"


# --- drawing ---


def render(scene: Scene, num_frames: int, height: int, width: int) -> np.ndarray:
    """The clip, uint8 `[T, H, W, 3]`, with smooth edges; the way is the same at any length."""
    if num_frames < 1 or min(height, width) < 16:
        raise ValueError(
            f"got {num_frames} frames of {height}x{width}; expected at least 1 of 16x16"
        )
    short = min(height, width)
    ys = (np.arange(height) + 0.5 - height / 2) / short
    xs = (np.arange(width) + 0.5 - width / 2) / short
    shift = np.array([(width / short - 1) / 2, (height / short - 1) / 2]) * scene.shift
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    for number in range(num_frames):
        fraction = number / max(1, num_frames - 1)
        zoom = {"zooms in": ZOOM**fraction, "zooms out": ZOOM ** (1 - fraction)}.get(
            scene.camera, 1.0
        )
        moved = np.array(CAMERAS[scene.camera]) * scene.pan * (fraction - 0.5)
        picture = np.repeat(
            _background(scene.background, xs / zoom - moved[0], ys / zoom, zoom * short)[
                :, :, None
            ],
            3,
            axis=2,
        )
        for one in scene.objects:
            place = np.array(one.start) * (1 - fraction) + np.array(one.end) * fraction
            center = zoom * (place + moved) + shift
            _draw(picture, one, center, zoom * one.radius, xs, ys, short)
        frames[number] = (picture + 0.5).clip(0, 255)
    return frames


def _background(name: str, xs: np.ndarray, ys: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """Grey values `[H, W]`."""
    plain = {"black": 20.0, "grey": 125.0, "white": 232.0}
    if name in plain:
        return np.full((len(ys), len(xs)), plain[name])
    cell = 0.3 if name == "checkered" else 0.2
    sharpness = cell / math.pi * pixels_per_unit  # an edge is a pixel wide
    wave_x = (np.sin(math.pi * xs / cell) * sharpness).clip(-0.5, 0.5)[None, :]
    if name == "striped":
        return np.broadcast_to(110 + 35 * (wave_x + 0.5), (len(ys), len(xs)))
    wave_y = (np.sin(math.pi * ys / cell) * sharpness).clip(-0.5, 0.5)[:, None]
    return 110 + 35 * (2 * wave_x * wave_y + 0.5)


def _draw(
    picture: np.ndarray,
    one: WorldObject,
    center: np.ndarray,
    radius: float,
    xs: np.ndarray,
    ys: np.ndarray,
    pixels_per_unit: float,
) -> None:
    """Paint over `picture`, float `[H, W, 3]`, where the object covers it."""
    reach = radius + 2 / pixels_per_unit
    columns = slice(*np.searchsorted(xs, [center[0] - reach, center[0] + reach]))
    rows = slice(*np.searchsorted(ys, [center[1] - reach, center[1] + reach]))
    dx, dy = np.meshgrid(xs[columns] - center[0], ys[rows] - center[1])
    covered = coverage(one.shape, dx / radius, dy / radius, radius * pixels_per_unit)[:, :, None]
    part = picture[rows, columns]
    part += covered * (np.array(COLORS[one.color]) - part)


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """How much of each pixel a shape of radius 1 covers, in [0, 1]; `dx`, `dy` from its centre."""
    if shape == "ball":
        signed = np.hypot(dx, dy) - 0.95
    else:
        signed = _polygon_distance(POLYGONS[shape], dx, dy)
    return (0.5 - signed * pixels_per_unit).clip(0, 1)


def _polygon_distance(corners: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Distance to the edge of a polygon `[n, 2]`, negative inside."""
    nearest = np.full(dx.shape, np.inf)
    inside = np.zeros(dx.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, dx - ax, dy - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clip(0, 1)
        nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
        if ay != by:
            crosses = (ay > dy) != (by > dy)
            inside ^= crosses & (dx < ax + (dy - ay) / ey * ex)
    return np.where(inside, -nearest, nearest)


_ARM = 0.34
POLYGONS = {
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.78,
    "triangle": np.array([(-0.95, 0.7), (0.95, 0.7), (0, -0.95)]),
    "cross": np.array(
        [
            *((-_ARM, -0.95), (_ARM, -0.95), (_ARM, -_ARM), (0.95, -_ARM)),
            *((0.95, _ARM), (_ARM, _ARM), (_ARM, 0.95), (-_ARM, 0.95)),
            *((-_ARM, _ARM), (-0.95, _ARM), (-0.95, -_ARM), (-_ARM, -_ARM)),
        ]
    ),
}


# --- files ---


def write_world(
    folder: str | Path,
    num_clips: int,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: int = 24,
    seed: int = 0,
    split: Split = "train",
) -> int:
    """Clips as MP4 files and `manifest.csv`, which all commands read; how many were there before.

    The manifest's columns are `file`, `source`, `caption`, `scene` (`Scene.from_json`), `seed`,
    `index`, `split`. The same call again resumes. Raises ValueError for numbers out of range, and
    for a folder that holds something else.
    """
    if num_clips < 1 or frame_rate < 1:
        raise ValueError(f"got {num_clips} clips at {frame_rate}/s; expected at least 1 of each")
    folder = Path(folder)
    described = {"num_frames": num_frames, "height": height, "width": width}
    described |= {"frame_rate": frame_rate, "seed": seed}
    note = folder / "world.json"
    text = json.dumps({"format": "regen-world-1", **described, "split": split}, sort_keys=True)
    if note.exists() and note.read_text() != text:
        raise ValueError(f"{folder} holds clips of another world: give another folder")
    if not note.exists() and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder")
    render(make_scene(seed, 0, split), 1, height, width)  # ValueError before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, text)
    # First the captions, also of clips that an earlier, longer call drew: none is without one.
    drawn = {path.name for path in folder.glob("clip-*.mp4")}
    total = max([num_clips, *(int(name[5:11]) + 1 for name in drawn)])
    names = [f"clip-{index:06d}.mp4" for index in range(total)]
    rows = []
    for index, name in enumerate(names):
        if index < num_clips or name in drawn:
            scene = make_scene(seed, index, split)
            rows.append([name, name, scene.caption, scene.to_json(), seed, index, split])
    manifest = folder / "manifest.csv"
    with draft(manifest) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "source", "caption", "scene", "seed", "index", "split"])
        table.writerows(rows)
    num_kept = 0
    for index, name in enumerate(tqdm(names[:num_clips], "drawing", unit="clip")):
        if name in drawn:
            num_kept += 1
            continue
        frames = render(make_scene(seed, index, split), num_frames, height, width)
        write_video(folder / name, frames, Fraction(frame_rate))
    return num_kept
