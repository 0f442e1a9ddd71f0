"""Properties of regen.data: what a batch holds, and what becomes of files that cannot be read."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from regen.data import clips as clips_module
from regen.data import colors
from regen.data.bad_clips import BadClips
from regen.data.batches import BatchConfig, TrainingBatches
from regen.data.buckets import image_shapes, nearest_shape, video_shapes
from regen.data.clips import Clip, exclude_sources, fair_probabilities, hold_out, prepare_clips
from regen.data.colors import augment_colors, hue_rotation
from regen.data.finding import find_items
from regen.data.items import Item
from regen.data.locations import check_outside, only_writer
from regen.data.processes import forking
from regen.video import VIDEO_SUFFIXES, write_video

RATIO = 8
CROP = 32


def grey_frames(num_frames: int, height: int = 64, width: int = 72) -> np.ndarray:
    """Frame i is of the constant grey value i, so that a pixel tells its time."""
    values = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (num_frames, height, width, 3)).copy()


def ramp_photo(height: int = 128, width: int = 250) -> np.ndarray:
    """One frame whose red is x and green is y, so that a pixel tells its place."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, np.zeros_like(x)], axis=-1)[None].astype(np.uint8)


def clip_of(folder: Path, name: str, frames: np.ndarray, source: str = "", photo=False) -> Clip:
    array_path = folder / f"{name}.npy"
    np.save(array_path, frames)
    return Clip(item_of(folder, name, source, photo), *frames.shape[:3], array_path)


def item_of(folder: Path, name: str, source: str = "", photo=False) -> Item:
    file = name + (".png" if photo else ".mkv")
    return Item(str(folder / file), file, source or name, "", 0)


def batch_config(**options) -> BatchConfig:
    sizes = {"crop": CROP, "video_batch_size": 4, "image_batch_size": 6}
    others = {"seed": 0, "num_steps": 100, "chunk_length": RATIO + 1, "color_augmentation": False}
    return BatchConfig(**others | sizes | options)


def write_clip(path: Path, num_frames: int = 12, height: int = 64, width: int = 72) -> None:
    write_video(path, grey_frames(num_frames, height, width), Fraction(24))


def write_photo(path: Path) -> None:
    Image.fromarray(ramp_photo()[0]).save(path)


# --- batches ---


@pytest.fixture
def mixed(tmp_path: Path) -> list[Clip]:
    return [
        clip_of(tmp_path, "a", grey_frames(30)),
        clip_of(tmp_path, "b", grey_frames(15)),
        clip_of(tmp_path, "c", ramp_photo(), photo=True),
    ]


def equal(one: dict, other: dict) -> bool:
    tensors = ("chunk", "target", "frame_times")
    return one["task"] == other["task"] and all(torch.equal(one[k], other[k]) for k in tensors)


def test_a_batch_is_a_function_of_seed_rank_and_step(mixed: list[Clip]) -> None:
    batches = TrainingBatches(mixed, batch_config())
    first = [batches[step] for step in range(12)]
    again = TrainingBatches(mixed, batch_config())
    for step in reversed(range(12)):  # in another order, by another object
        torch.rand(3), np.random.rand(3)  # the global generators have no say
        assert equal(first[step], again[step])
    assert not equal(first[3], first[4])
    other_seed = TrainingBatches(mixed, batch_config(seed=1))
    other_rank = TrainingBatches(mixed, batch_config(), rank=1)
    for other in (other_seed, other_rank):
        assert not any(equal(first[step], other[step]) for step in range(12))


def test_shapes_types_and_share_of_images(mixed: list[Clip]) -> None:
    num_steps = 400
    batches = TrainingBatches(
        mixed, batch_config(num_steps=num_steps, video_batch_size=1, image_batch_size=2)
    )
    num_images = 0
    for step in range(num_steps):
        batch = batches[step]
        image = batch["task"] == "image"
        num_images += image
        size, length, targets = (2, 1, 1) if image else (1, RATIO + 1, 3)
        assert batch["chunk"].shape == (size, 3, length, CROP, CROP)
        assert batch["target"].shape == (size, 3, targets, CROP, CROP)
        assert batch["chunk"].dtype == batch["target"].dtype == torch.uint8
        assert batch["frame_times"].shape == (size, targets)
        assert batch["frame_times"].dtype == torch.float32
        if image:
            assert torch.equal(batch["chunk"], batch["target"])
            assert (batch["frame_times"] == 0).all()
    # 20 % of 400: 80 with a deviation of 8; four deviations to either side.
    assert 48 <= num_images <= 112


def video_of(batches: TrainingBatches, seed: int, task: str) -> tuple:
    rng = np.random.default_rng(seed)
    return batches._video(rng, task, batches.video_bucket(rng))


def videos_of(clip: Clip, task: str, num_samples: int, **options) -> list[tuple]:
    """(values of the chunk's frames, of the targets, frame_times) of `num_samples` samples."""
    batches = TrainingBatches([clip], batch_config(photo_fraction=0.0, **options))
    samples = []
    for seed in range(num_samples):
        chunk, target, times = video_of(batches, seed, task)
        assert (chunk == chunk[:, :, :1, :1]).all() and (target == target[:, :, :1, :1]).all()
        samples.append(
            (
                chunk[0, :, 0, 0].numpy().astype(int),
                target[0, :, 0, 0].numpy().astype(int),
                times.numpy(),
            )
        )
    return samples


def test_pixels_are_the_frames_at_their_times(tmp_path: Path) -> None:
    """Grey values tell the times of a clip: chunk frame i is start + speed * i, target f is too."""
    clip = clip_of(tmp_path, "a", grey_frames(100))
    speeds, short, outside = set(), 0, 0
    for task in ("reconstruction", "interpolation", "extrapolation"):
        for chunk, target, times in videos_of(clip, task, 150):
            start, speed = chunk[0], chunk[1] - chunk[0]
            num_chunk = len(np.unique(chunk))
            speeds.add((task, int(speed)))
            short += num_chunk < RATIO + 1
            # Causal repeat: a short chunk goes on with its last frame.
            repeated = np.minimum(np.arange(RATIO + 1), num_chunk - 1)
            assert (chunk == start + speed * repeated).all()
            assert np.allclose(target, start + speed * times, atol=1e-4)
            inside = (times >= 0) & (times <= num_chunk - 1)
            whole = times == np.round(times)
            if task == "reconstruction":
                assert (inside & whole).all()
            elif task == "interpolation":
                assert inside.all()
                num_between = (num_chunk - 1) * (abs(speed) - 1)
                assert not whole.any() or num_between < len(times)  # filled up from the chunk
            else:
                assert whole.all()
                outside += (~inside).any()
    assert {abs(speed) for task, speed in speeds if task != "interpolation"} == {1, 2, 3}
    assert {abs(speed) for task, speed in speeds if task == "interpolation"} == {2, 3, 4}
    assert {np.sign(speed) for _, speed in speeds} == {-1, 1}  # also backwards in time
    # 15 % of 450: 67 with a deviation of 7.6; four deviations.
    assert 37 <= short <= 98
    # 15 of 16: with a single frame outside, the fill-up from the chunk takes its place in a quarter
    # of the cases. Of 150: 141 with a deviation of 3; four deviations.
    assert outside >= 129


def test_extrapolation_goes_both_ways_up_to_half_a_chunk(tmp_path: Path) -> None:
    clip = clip_of(tmp_path, "a", grey_frames(100))
    samples = videos_of(clip, "extrapolation", 200, short_fraction=0.0)
    times = np.concatenate([times for _, _, times in samples])
    outside = times[(times < 0) | (times > RATIO)]
    assert outside.min() == -4 and outside.max() == RATIO + 4
    assert len(outside) > 0.5 * len(times)


def test_interpolation_times_are_never_on_the_chunk(tmp_path: Path) -> None:
    clip = clip_of(tmp_path, "a", grey_frames(100))
    for _, _, times in videos_of(clip, "interpolation", 100, short_fraction=0.0):
        assert (times != np.round(times)).all() and (times > 0).all() and (times < RATIO).all()


def test_other_tasks_grow_from_none(tmp_path: Path) -> None:
    clip = clip_of(tmp_path, "a", grey_frames(40))
    options = {"num_steps": 1000, "video_batch_size": 1, "image_fraction": 0.0, "other_tasks": 0.6}
    early = TrainingBatches([clip], batch_config(**options))
    assert all(early[0]["task"] == "reconstruction" for _ in range(3))
    seeds = [TrainingBatches([clip], batch_config(**options | {"seed": s})) for s in range(300)]
    assert {batches[0]["task"] for batches in seeds} == {"reconstruction"}
    late = [batches[999]["task"] for batches in seeds]
    # 30 % of 300 each: 90 with a deviation of 8; four deviations.
    assert 58 <= late.count("interpolation") <= 122
    assert 58 <= late.count("extrapolation") <= 122


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 9, 10, 16])
def test_clips_shorter_than_the_task(tmp_path: Path, num_frames: int) -> None:
    """Nothing is invented: a short clip makes a short chunk, and targets are frames it has."""
    clip = clip_of(tmp_path, "a", grey_frames(num_frames))
    for task in ("reconstruction", "interpolation", "extrapolation"):
        for chunk, target, times in videos_of(clip, task, 40):
            speed = chunk[1] - chunk[0]
            assert speed != 0 or num_frames == 1
            last = len(np.unique(chunk)) - 1
            assert (chunk == chunk[0] + speed * np.minimum(np.arange(RATIO + 1), last)).all()
            assert np.allclose(target, chunk[0] + speed * times, atol=1e-4)
            assert chunk.max() < num_frames and target.max() < num_frames


def test_photos_alone_and_videos_alone(tmp_path: Path) -> None:
    photo = clip_of(tmp_path, "p", ramp_photo(), photo=True)
    video = clip_of(tmp_path, "v", grey_frames(20))
    for clips in ([photo], [video]):
        batches = TrainingBatches(clips, batch_config())
        tasks = {batches[step]["task"] for step in range(100)}
        assert {"image", "reconstruction"} <= tasks
    with pytest.raises(ValueError, match="no clip or photo is left"):
        TrainingBatches([], batch_config())


def test_a_photo_under_a_moving_crop_moves(tmp_path: Path) -> None:
    photo = clip_of(tmp_path, "p", ramp_photo(), photo=True)
    batches = TrainingBatches([photo], batch_config(short_fraction=0.0))
    moved = 0
    for seed in range(50):
        chunk, target, times = video_of(batches, seed, "reconstruction")
        place = chunk[:2, :, 0, 0].int()  # x and y of the crop's corner
        steps = place.diff(dim=1)
        moved += bool((place[:, 0] != place[:, -1]).any())
        # One straight drift: steps of one sign, equal but for rounding and the photo's edge.
        assert not ((steps > 0).any(1) & (steps < 0).any(1)).any()
        at_times = chunk[:, times.long()]
        assert torch.equal(at_times, target)
    assert moved >= 40
    # The clip's own frames do not drift: a video sample is of one region throughout.
    still = clip_of(tmp_path, "s", np.repeat(ramp_photo(), 12, axis=0))
    chunk, _, _ = video_of(TrainingBatches([still], batch_config()), 0, "x")
    assert (chunk == chunk[:, :1]).all()


def test_crops_stay_inside_and_scale_down(tmp_path: Path) -> None:
    photo = clip_of(tmp_path, "p", ramp_photo(), photo=True)
    batches = TrainingBatches([photo], batch_config(image_fraction=1.0, image_batch_size=300))
    pictures = batches[0]["chunk"][:, :, 0].int()
    widths = (pictures[:, 0, 0, -1] - pictures[:, 0, 0, 0]).abs() + 1
    assert widths.min() == CROP and widths.max() > 3 * CROP  # of 4, in the photo's pixels
    smaller = clip_of(tmp_path, "t", grey_frames(3, 20, 24))  # a clip smaller than the crop grows
    assert TrainingBatches([smaller], batch_config())[0]["chunk"].shape[-1] == CROP


# --- colours ---


def test_a_third_of_a_turn_exchanges_the_primaries() -> None:
    """Red becomes green, green blue, blue red."""
    turned = hue_rotation(120)
    assert torch.allclose(turned, torch.eye(3).roll(1, 0), atol=1e-6)
    assert torch.allclose(hue_rotation(50) @ hue_rotation(70), turned, atol=1e-6)


def test_grey_stays() -> None:
    for degrees in (13.0, 77.0, -150.0):
        for saturation in (0.0, 0.6, 1.4):
            matrix = hue_rotation(degrees, saturation)
            assert torch.allclose(matrix @ torch.full((3,), 0.7), torch.full((3,), 0.7), atol=1e-6)
            assert torch.allclose(matrix.sum(dim=0), torch.ones(3), atol=1e-6)  # and brightness
    assert torch.allclose(hue_rotation(0, 0), torch.full((3, 3), 1 / 3), atol=1e-6)


def test_half_of_the_videos_change_and_all_frames_alike() -> None:
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8))
    video = picture.expand(-1, 4, -1, -1).contiguous()
    rng, changed = np.random.default_rng(1), 0
    for _ in range(200):
        other = augment_colors(video, rng)
        assert other.dtype == torch.uint8 and other.shape == video.shape
        assert (other == other[:, :1]).all()
        changed += not torch.equal(other, video)
    # 200 draws of a half: standard deviation 3.5 %; four of them.
    assert abs(changed / 200 - colors.PROBABILITY) < 0.14


def test_black_and_white_stay(monkeypatch) -> None:
    """Also under gamma."""
    monkeypatch.setattr(colors, "PROBABILITY", 1.0)
    ends = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 2)
    for seed in range(5):
        assert torch.equal(augment_colors(ends, np.random.default_rng(seed)), ends)


# --- shapes ---


def test_shapes_keep_the_area_and_cover_the_ratios() -> None:
    shapes = image_shapes(256)
    assert (256, 256) in shapes and len(set(shapes)) == len(shapes)
    for height, width in shapes:
        assert height % 32 == width % 32 == 0 and (width, height) in shapes
        assert 0.9 < height * width / 256**2 < 1.1
    assert video_shapes((192, 320)) == [(192, 320), (320, 192)]
    assert video_shapes((64, 64)) == [(64, 64)]
    for sides, expected in (
        ((256, 256), (256, 256)),
        ((1080, 1920), (192, 352)),
        ((640, 480), (288, 224)),
        ((100, 3000), (128, 512)),
    ):
        assert shapes[nearest_shape(*sides, shapes)] == expected


def test_a_batch_of_aspect_has_one_shape_and_one_length(tmp_path: Path) -> None:
    clips = [
        clip_of(tmp_path, "wide", grey_frames(30, 64, 112)),
        clip_of(tmp_path, "high", grey_frames(30, 112, 64)),
        clip_of(tmp_path, "brief", grey_frames(4, 64, 112)),
        clip_of(tmp_path, "photo", ramp_photo(128, 128), photo=True),
    ]
    config = batch_config(
        shapes="aspect", image_size=96, video_size=(32, 64), short_fraction=0.5, photo_fraction=0.0
    )
    batches = TrainingBatches(clips, config)
    seen, brief_in_long = set(), 0
    for step in range(80):
        batch = batches[step]
        values = batch["chunk"][:, 0, :, 0, 0].int()
        is_image = batch["task"] == "image"
        lengths = {len(torch.unique(row)) for row in values}
        seen.add((is_image, tuple(batch["chunk"].shape[3:]), len(lengths) == 1 and max(lengths)))
        if not is_image and max(lengths) == RATIO + 1:
            brief_in_long += min(lengths) < RATIO + 1
    images = {shape for is_image, shape, _ in seen if is_image}
    videos = {shape for is_image, shape, _ in seen if not is_image}
    assert images == set(image_shapes(96)) == {(64, 128), (96, 96), (128, 64)}
    assert videos == {(32, 64), (64, 32)}
    assert {length for is_image, _, length in seen if not is_image} >= {2, 3, 5, 8, RATIO + 1}
    assert brief_in_long == 0  # a clip of 4 frames makes no chunk of 9


def test_aspect_shows_whole_pictures(tmp_path: Path) -> None:
    photo = clip_of(tmp_path, "p", ramp_photo(128, 192), photo=True)
    config = batch_config(shapes="aspect", image_size=64, image_fraction=1.0, image_batch_size=50)
    pictures = TrainingBatches([photo], config)[0]["chunk"][:, :, 0].int()
    assert pictures.shape[2:] == (64, 64)  # nearest to 2 : 3 of those there are
    rows = pictures[:, 1, -1, 0] - pictures[:, 1, 0, 0]
    assert (rows > 120).all()  # from the top to the bottom, always
    left = pictures[:, 0, 0].min(dim=1).values
    assert (
        left.min() < 10 and left.max() > 50
    )  # what the shape leaves over is cut at random positions


def test_every_clip_is_drawn_by_its_share_whatever_the_shapes(tmp_path: Path) -> None:
    """The first pixel tells the clip."""
    clips = []
    for index, (height, width) in enumerate(((64, 112), (64, 96), (112, 64), (64, 64))):
        frames = np.full((12, height, width, 3), 50 * index, np.uint8)
        source = "both" if index < 2 else ""
        clips.append(clip_of(tmp_path, str(index), frames, source))
    options = {"video_batch_size": 1, "image_fraction": 0.0, "video_size": (32, 64)}
    batches = TrainingBatches(clips, batch_config(shapes="aspect", **options))
    drawn = [int(batches[step]["chunk"][0, 0, 0, 0, 0]) // 50 for step in range(600)]
    for index, share in enumerate(fair_probabilities(clips)):
        deviation = (600 * share * (1 - share)) ** 0.5
        assert abs(drawn.count(index) - 600 * share) < 4 * deviation


# --- clips that turn out bad ---


def damaged(folder: Path, name: str) -> Clip:
    clip = clip_of(folder, name, grey_frames(20))
    assert clip.array_path is not None
    clip.array_path.write_bytes(clip.array_path.read_bytes()[:5000])
    return clip


def test_a_bad_clip_is_replaced_named_and_the_rest_is_as_before(
    mixed: list[Clip], tmp_path: Path
) -> None:
    clips = [*mixed, damaged(tmp_path, "bad")]
    batches = TrainingBatches(clips, batch_config())
    first = [batches[step] for step in range(30)]
    names = {line.partition(": ")[0] for batch in first for line in batch["bad_clips"]}
    assert names == {str(tmp_path / "bad.mkv")}
    assert all("\n" not in line for batch in first for line in batch["bad_clips"])
    assert any(not batch["bad_clips"] for batch in first)
    again = TrainingBatches(clips, batch_config())
    for step in (29, 7, 8, 0):  # another order, as after a resumption
        assert equal(first[step], again[step])
        assert first[step]["bad_clips"] == again[step]["bad_clips"]


def test_nothing_but_bad_clips_is_an_error(tmp_path: Path) -> None:
    batches = TrainingBatches([damaged(tmp_path, "bad")], batch_config())
    with pytest.raises(ValueError, match="100 clips in a row cannot be read") as caught:
        batches[0]
    assert "\n" not in str(caught.value)


def test_bad_clips_are_counted_once_and_stop_above_the_share(tmp_path: Path) -> None:
    bad = BadClips(tmp_path / "run" / "bad_clips.txt", 10, 0.2)
    bad.start(["a.mp4: cut"])
    other_process = BadClips(bad.path, 10, 0.2)
    other_process.add(["b.mp4: frame 3: cut", "b.mp4: frame 7: cut"])
    bad.add(["a.mp4: cut", "b.mp4: no file"])
    bad.add([])
    assert bad.path.read_text() == "a.mp4: cut\nb.mp4: frame 3: cut\n"
    with pytest.raises(ValueError, match=r"3 of 10 .*--max-bad-fraction 0\.2; listed in .*a\.mp4"):
        bad.add(["c.mp4: cut"])
    bad.start(["na: me.mp4: cut", "na: you.mp4: cut"])
    assert bad.path.read_text().count("\n") == 2
    bad.start([])
    assert not bad.path.exists()


# --- shares and held-out sources ---


def test_held_out_sources_never_train(tmp_path: Path) -> None:
    frame = grey_frames(1)
    clips = [clip_of(tmp_path, f"{s}{i}", frame, f"s{s}") for s in range(6) for i in range(3)]
    clips += [clip_of(tmp_path, f"big{i}", frame, "big") for i in range(4)]
    clips += [clip_of(tmp_path, f"photo{i}", frame, photo=True) for i in range(5)]
    training, validation = hold_out(clips, 4)
    assert len(validation) == 4
    held = {clip.source for clip in validation}
    assert not held & {clip.source for clip in training}
    assert len(held) == 4 and "big" not in held and not any(clip.is_photo for clip in validation)
    assert len(training) == len(clips) - 4 * 3
    assert hold_out(clips[::-1], 4)[0] == training[::-1]  # whatever the order
    for num_sources, num_left in ((0, 7), (100, 1)):  # videos are left to train on
        training, validation = hold_out(clips, num_sources)
        assert len({clip.source for clip in training if not clip.is_photo}) == num_left
        assert len(validation) == 7 - num_left
    only_photos = [clip for clip in clips if clip.is_photo]
    assert hold_out(only_photos, 4) == (only_photos, [])
    one = clips[:1]
    assert hold_out(one, 4) == (one, [])


def test_photos_are_lost_only_where_they_must_be(tmp_path: Path) -> None:
    """Sources without photos are held out first; a held-out source trains with nothing."""
    clips = [clip_of(tmp_path, f"{i}", grey_frames(1), f"s{i}") for i in range(8)]
    photos = [clip_of(tmp_path, f"p{i}", grey_frames(1), f"s{i}", photo=True) for i in range(4)]
    training, validation = hold_out(clips + photos, 4)
    assert {clip.source for clip in validation} == {"s4", "s5", "s6", "s7"}
    assert all(photo in training for photo in photos)
    training, validation = hold_out(clips + photos, 6)
    assert sum(photo in training for photo in photos) == 2
    assert not {clip.source for clip in validation} & {clip.source for clip in training}


def test_excluded_sources_are_nowhere(tmp_path: Path) -> None:
    clips = [clip_of(tmp_path, f"{i}", grey_frames(1), f"s{i % 3}") for i in range(6)]
    clips.append(clip_of(tmp_path, "photo", grey_frames(1), "s1", photo=True))
    left = exclude_sources(clips, ["s1"])
    assert [clip.source for clip in left] == ["s0", "s2", "s0", "s2"]
    assert exclude_sources(clips, []) == clips
    with pytest.raises(ValueError, match="no clip is of s9"):
        exclude_sources(clips, ["s1", "s9"])


# --- files ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    write_clip(data / "a.mkv")
    write_clip(data / "deep" / "b.mkv")
    write_photo(data / "c.png")
    return data


def test_prepare_keeps_frames_and_reads_the_manifest(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    (folder / "manifest.csv").write_text("file,source\na.mkv,film\nc.png,\n")
    prepared = prepare_clips([folder], tmp_path / "cache")
    assert [clip.item.name for clip in prepared.clips] == ["a.mkv", "c.png", "deep/b.mkv"]
    assert [clip.source for clip in prepared.clips] == ["film", "c.png", "deep/b.mkv"]
    assert [clip.is_photo for clip in prepared.clips] == [False, True, False]
    assert not prepared.skipped
    assert np.array_equal(prepared.clips[0].frames(), grey_frames(12))  # FFV1 is lossless
    assert np.array_equal(prepared.clips[1].frames(), ramp_photo())
    monkeypatch.setattr(clips_module, "MAX_SHORT_SIDE", 32)
    monkeypatch.setattr(clips_module, "MIN_SIDE", 32)
    monkeypatch.setattr(clips_module, "MAX_FRAMES", 5)
    small = prepare_clips([folder], tmp_path / "small")
    drawn = prepare_clips([folder], tmp_path / "small", decode_once=False)
    for prepared in (small, drawn):
        assert prepared.clips[0].frames().shape == (5, 32, 36, 3)
        assert prepared.clips[1].frames().shape == (1, 64, 125, 3)
    for one, other in zip(small.clips, drawn.clips, strict=True):
        assert np.array_equal(one.frames(), other.frames())
    items = find_items([folder, folder / "deep"], tmp_path)  # b.mkv is below both: once
    assert len(items) == 3


def test_manifests_beside_clips(folder: Path, tmp_path: Path) -> None:
    """With the mark that Excel writes, through links and .. in paths."""
    (folder / "manifest.csv").write_text("\ufefffile,source,caption\n../data/a.mkv,film,a\n")
    os.symlink(folder / "a.mkv", folder / "link.mkv")
    found = {item.name: (item.source, item.caption) for item in find_items([folder], tmp_path)}
    assert found["a.mkv"] == ("film", "a")
    links = tmp_path / "links"
    links.mkdir()
    os.symlink(folder / "deep" / "b.mkv", links / "b.mkv")
    (links / "manifest.csv").write_text("file,source,caption\nb.mkv,tale,b\n")
    (item,) = find_items([links], tmp_path)
    assert (item.source, item.caption) == ("tale", "b")
    (links / "manifest.csv").write_text("path,source\nb.mkv,tale\n")
    with pytest.raises(ValueError, match="has no column file"):
        find_items([links], tmp_path)


def test_decoding_when_drawn_gives_the_same_batches(folder: Path, tmp_path: Path) -> None:
    cached = prepare_clips([folder], tmp_path / "cache")
    for _ in range(2):  # the second time with the counts of the first
        drawn = prepare_clips([folder], tmp_path / "drawn", decode_once=False)
        assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["counts.json"]
        for shapes in ("square", "aspect"):
            config = batch_config(shapes=shapes, image_size=64, video_size=(32, 64))
            one = TrainingBatches(cached.clips, config)
            other = TrainingBatches(drawn.clips, config)
            assert all(equal(one[step], other[step]) for step in range(8))


def test_unreadable_files_are_skipped_and_named(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "a.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("this is not a video\n" * 100)
    (folder / "empty.mp4").touch()
    (folder / "bad.png").write_bytes((folder / "c.png").read_bytes()[:300])
    write_clip(folder / "little.mkv", 3, 48, 200)
    (folder / ".hidden.mp4").touch()
    (folder / "notes.txt").touch()
    for _ in range(2):  # the second time from the cache
        prepared = prepare_clips([folder], tmp_path / "cache")
        names = {Path(clip.item.name).name for clip in prepared.clips}
        assert names == {"a.mkv", "b.mkv", "c.png"}
        named = sorted(line.split(":")[0] for line in prepared.skipped)
        bad = ["bad.png", "cut.mkv", "empty.mp4", "little.mkv", "text.mp4"]
        assert named == [str(folder / name) for name in bad]
        assert all("\n" not in line for line in prepared.skipped)
        drawn = prepare_clips([folder], tmp_path / "drawn", decode_once=False)
        found = {line.split(":")[0] for line in drawn.skipped}
        assert found == {str(folder / name) for name in bad} - {str(folder / "cut.mkv")}
    assert "200x48" in next(line for line in prepared.skipped if "little" in line)


class Holder:
    """Something that only the garbage collector ends."""


def test_decoders_left_here_are_not_freed_elsewhere(folder: Path) -> None:
    """Freed in a fork, as garbage, a decoder with threads waits for ever or is a crash."""
    video = next(path for path in folder.rglob("*") if path.suffix in VIDEO_SUFFIXES)
    gc.disable()
    try:
        for _ in range(4):
            holder = Holder()
            holder.container = av.open(str(video))
            holder.container.streams.video[0].thread_type = "AUTO"
            holder.frames = holder.container.decode(video=0)
            next(holder.frames)
            holder.itself = holder
            del holder
        with forking():
            child = os.fork()
            if child == 0:
                gc.collect()
                os._exit(0)
    finally:
        gc.enable()
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done and status == 0


def test_damaged_arrays_are_decoded_again(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    clips = prepare_clips([folder], cache).clips
    whole = [np.array(clip.frames()) for clip in clips]
    untouched = clips[2].array_path.stat().st_mtime_ns
    data = clips[0].array_path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-1], data[:20], b""):
        clips[0].array_path.write_bytes(damaged)
        np.save(clips[1].array_path, np.zeros(3))  # an array, but of something else
        again = prepare_clips([folder], cache)
        assert again.clips == clips and not again.skipped
        assert all(np.array_equal(c.frames(), w) for c, w in zip(again.clips, whole, strict=True))
    assert clips[2].array_path.stat().st_mtime_ns == untouched  # what is whole is kept
    # Damaged, and its source too by now: skipped, not used.
    clips[0].array_path.write_bytes(data[:100])
    path = Path(clips[0].item.location)
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = prepare_clips([folder], cache)
    assert again.clips == clips[1:] and "a.mkv" in again.skipped[0]


def _prepare(folder: Path, cache: Path, start, results) -> None:
    start.wait()
    prepared = prepare_clips([folder], cache)
    results.put([int(clip.frames().sum()) for clip in prepared.clips])


def test_two_processes_prepare_one_cache(folder: Path, tmp_path: Path) -> None:
    for index in range(6):
        write_clip(folder / f"more{index}.mkv", 20)
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    arguments = (folder, tmp_path / "cache", start, results)
    processes = [context.Process(target=_prepare, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sums[0] == sums[1] and len(sums[0]) == 9
    expected = [
        int(clip.frames().sum()) for clip in prepare_clips([folder], tmp_path / "own").clips
    ]
    assert sums[0] == expected
    assert not list((tmp_path / "cache").glob(".*.part*"))


# --- who writes to a folder ---


@contextmanager
def written_by_another(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process holds `folder`, which has forked a third; the other's handle, its child."""
    script = (
        "import os, sys, time; from pathlib import Path\n"
        "from regen.data.locations import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        try:
            yield other, child
        finally:
            other.kill()
            os.kill(child, signal.SIGKILL)


def test_a_folder_has_one_writer_even_where_forked_ones_outlive_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with written_by_another(folder) as (other, child):
        with pytest.raises(ValueError, match="another process writes to"), only_writer(folder):
            pass
        other.kill()
        other.wait()
        with only_writer(folder):
            os.kill(child, 0)  # it lives


def test_a_folder_that_nothing_was_written_to_is_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), only_writer(tmp_path / "new"):
        raise ValueError("no")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with only_writer(tmp_path / "old"):
        pass
    assert list((tmp_path / "old").iterdir()) == []
    with only_writer(tmp_path / "old"):
        (tmp_path / "old" / "file").touch()
    assert len(list((tmp_path / "old").iterdir())) == 2


def test_what_is_written_is_outside_of_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for folder in (tmp_path / "data", tmp_path / "data" / "run"):
        with pytest.raises(ValueError, match=f"--output {folder} is inside"):
            check_outside("--output", folder, tmp_path / "data")
    for data in (tmp_path / "data", tmp_path / "missing", "s3://bucket/data"):
        check_outside("--output", tmp_path / "datas", data)
