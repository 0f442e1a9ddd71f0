"""The generated world: exact, repeatable, with a split that never trains; and its scorer."""

import sys
from pathlib import Path

import numpy as np
import pytest

from regen.data.finding import find_items
from regen.moving_shapes import (
    COLORS,
    DIRECTIONS,
    SHAPES,
    Scene,
    is_held_out,
    make_scene,
    render,
    write_world,
)
from regen.video import read_frames

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "moving_shapes"))
from scoring import ATTRIBUTES, score, see

NUM = 40


def kinds(scene: Scene) -> set[tuple[str, str, str]]:
    return {(one.color, one.shape, one.direction) for one in scene.objects}


def test_the_same_index_is_the_same_clip_and_another_is_another() -> None:
    one, again, other = make_scene(3, 5), make_scene(3, 5), make_scene(3, 6)
    assert one == again != other and make_scene(4, 5) != one
    assert np.array_equal(render(one, 3, 32, 48), render(again, 3, 32, 48))
    assert Scene.from_json(one.to_json()) == one


def test_splits_share_no_combination_and_every_pair_trains() -> None:
    scenes = [make_scene(0, index) for index in range(300)]
    assert not any(is_held_out(*kind) for scene in scenes for kind in kinds(scene))
    held = [make_scene(0, index, "held_out") for index in range(100)]
    assert all(is_held_out(*kind) for scene in held for kind in kinds(scene))
    pairs = {
        pair
        for color in COLORS
        for shape in SHAPES
        for direction in DIRECTIONS
        if not is_held_out(color, shape, direction)
        for pair in ((color, shape), (color, direction), (shape, direction))
    }
    num = len(COLORS) * len(SHAPES) + (len(COLORS) + len(SHAPES)) * len(DIRECTIONS)
    assert len(pairs) == num


def test_captions_name_what_is_there() -> None:
    texts = set()
    for index in range(300):
        scene = make_scene(0, index)
        text = scene.caption.lower()
        texts.add(text)
        for one in scene.objects:
            assert one.color in text and any(noun in text for noun in SHAPES[one.shape])
        alike = len(kinds(scene)) == 1
        assert ("two" in text.split()) == (len(scene.objects) == 2 and alike)
        assert ("camera" in text) == (scene.camera != "fixed")
        opposite = {"left": "right", "right": "left"}
        directions = {one.direction for one in scene.objects}
        if scene.camera == "fixed" and directions <= {"left", "right"} and len(directions) == 1:
            words = text.rstrip(".").replace(f"from {opposite[min(directions)]} to ", "").split()
            assert not any(word.startswith(opposite[min(directions)]) for word in words), text
    assert len(texts) > 290


@pytest.mark.parametrize(("num_frames", "height", "width"), [(17, 64, 64), (5, 48, 80)])
def test_the_scorer_reads_what_was_drawn(num_frames: int, height: int, width: int) -> None:
    """Right for all, also with noise, as a model's pictures are never clean."""
    rng = np.random.default_rng(0)
    for index in range(NUM):
        scene = make_scene(1, index, "held_out" if index % 2 else "train")
        frames = render(scene, num_frames, height, width)
        noisy = frames + rng.normal(0, 6, frames.shape)
        noisy = noisy.clip(0, 255).astype(np.uint8)
        assert all(score(frames, scene).values()), (index, scene.caption, see(frames))
        assert all(score(noisy, scene).values()), (index, scene.caption, see(noisy))


def test_other_captions_are_near_chance() -> None:
    scenes = [make_scene(2, index) for index in range(NUM)]
    right = dict.fromkeys(ATTRIBUTES, 0)
    for index, scene in enumerate(scenes):
        frames = render(scene, 5, 48, 48)
        for name, value in score(frames, scenes[index - 1]).items():
            right[name] += value
    share = {name: count / NUM for name, count in right.items()}
    assert share["color"] < 0.4 and share["shape"] < 0.5 and share["direction"] < 0.45
    assert 0.2 < share["count"] < 0.8


@pytest.mark.parametrize("frames", ["black", "noise", "frozen"])
def test_videos_that_show_nothing_score_nothing(frames: str) -> None:
    scene = next(s for s in (make_scene(0, i) for i in range(99)) if s.objects[0].speed)
    clip = render(scene, 5, 48, 48)
    if frames == "black":
        assert see(np.zeros_like(clip)) == []
        assert not any(score(np.zeros_like(clip), scene).values())
    elif frames == "noise":
        noise = np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8)
        assert not score(noise, scene)["direction"]
    else:
        assert not score(np.repeat(clip[:1], 5, axis=0), scene)["direction"]


def test_frames_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        see(np.zeros((2, 8, 8, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="at least 1"):
        render(make_scene(0, 0), 0, 64, 64)


def test_files_are_read_by_every_command_and_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    assert write_world(folder, 2, 5, 48, 64) == 0
    before = (folder / "clip-000000.mp4").read_bytes()
    assert write_world(folder, 3, 5, 48, 64) == 2
    assert (folder / "clip-000000.mp4").read_bytes() == before
    items = find_items([folder], tmp_path)
    assert [item.caption for item in items] == [make_scene(0, i).caption for i in range(3)]
    frames = read_frames(folder / "clip-000001.mp4")
    assert all(score(frames, make_scene(0, 1)).values())
    assert write_world(folder, 1, 5, 48, 64) == 1  # fewer: the others keep their captions
    items = find_items([folder], tmp_path)
    assert [item.caption for item in items] == [make_scene(0, i).caption for i in range(3)]
    with pytest.raises(ValueError, match="another world"):
        write_world(folder, 3, 6, 48, 64)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="not empty"):
        write_world(tmp_path / "other", 1, 5, 48, 64)
