"""Chunks on disk: filled in pieces, mirrored with their motion; what learns from them."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_small_model
from test_motion import constant_field, smooth_picture

from regen.chunking import to_float
from regen.model import moving_objective
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.motion import NEXT_CELL, displacement, interpolate, warp
from regen.model.moving_content import draft_first, move_content, predict_detail
from regen.model.moving_objective import (
    DETAIL_WEIGHT,
    ERROR_FLOOR,
    OPEN_FLOOR,
    PERCEPTION_OF_STEPS,
    SPREAD_WEIGHT,
    MovingObjective,
)
from regen.model.objective import ObjectiveConfig
from regen.training import chunk_store
from regen.training.chunk_store import NUM_EXTRAS, ChunkStore

SIDE, COUNT = 64, 5


@pytest.fixture(autouse=True)
def colors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_store, "augment_colors", lambda video, rng: video)
    monkeypatch.setattr(chunk_store, "SAVE_EVERY", 2)


def draw(rng: np.random.Generator, ratio: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture that moves by up to 2 pixels a frame, and the four extra frames."""
    speed = torch.from_numpy(rng.uniform(-2, 2, 2)).float()
    times = torch.tensor([ratio + 1, ratio + 2.0, 0.5, 1.5])
    every = torch.cat([torch.arange(ratio + 1.0), times])
    picture = smooth_picture(SIDE, int(rng.integers(100)))
    video = warp(picture, constant_field(every[:, None] * speed, SIDE))
    return (127.5 * (video[0] + 1)).round().to(torch.uint8), times


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ChunkStore:
    store = ChunkStore(tmp_path_factory.mktemp("store") / "ratio_4", 4, COUNT, SIDE)
    store.fill(draw, seed=0)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stopped_filling_goes_on_to_the_same_bytes(store: ChunkStore, tmp_path: Path) -> None:
    pieces = ChunkStore(tmp_path / "ratio_4", 4, COUNT, SIDE)

    def interrupted(indices: range) -> Iterator[int]:
        for index in indices:
            if index == 3:
                raise KeyboardInterrupt
            yield index

    with pytest.raises(KeyboardInterrupt):
        pieces.fill(draw, 0, interrupted)
    assert pieces.done == 2
    filled: list[int] = []
    pieces.fill(draw, 0, lambda indices: (filled.append(index) or index for index in indices))
    assert filled == [2, 3, 4] and pieces.done == COUNT
    assert contents(pieces.folder) == contents(store.folder)
    pieces.fill(lambda *_: pytest.fail("nothing is missing"), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"side": 32}, "side 64, now 32"), ({"ratio": 2}, "ratio 4, now 2"), ({"seed": 1}, "seed 0")],
)
def test_a_store_of_other_chunks_is_refused(
    store: ChunkStore, change: dict[str, int], message: str
) -> None:
    """Not read as if its bytes were those of others."""
    options = {"ratio": 4, "side": SIDE, "seed": 0} | change
    before = contents(store.folder)
    other = ChunkStore(store.folder, options["ratio"], COUNT, options["side"])
    with pytest.raises(ValueError, match=f"holds other chunks .*{message}.* --chunk-cache$"):
        other.fill(draw, options["seed"])
    assert contents(store.folder) == before


def test_a_store_grows_and_gives_a_part(store: ChunkStore, tmp_path: Path) -> None:
    folder = shutil.copytree(store.folder, tmp_path / "ratio_4")
    smaller, larger = (ChunkStore(folder, 4, count, SIDE) for count in (2, COUNT + 1))
    smaller.fill(draw, 0)
    assert smaller.done == 2 and contents(folder) == contents(store.folder)
    larger.fill(draw, 0)
    assert larger.done == COUNT + 1
    for name in store.shapes:
        assert np.array_equal(larger.array(name)[:COUNT], store.array(name))
        assert larger.array(name)[COUNT].any()


def test_mirrored_samples_have_mirrored_motion(store: ChunkStore) -> None:
    """The warp by it is as near as that of the sample as it was, and so is the next frame's."""
    seen = set()
    pictures = to_float(torch.from_numpy(np.array(store.array("frames"))))
    for seed in range(16):
        sample = store.read(np.random.default_rng(seed), 3)
        first = to_float(sample["chunk"])[:, 0]
        flips = {
            axes
            for axes in ((), (-1,), (-2,), (-1, -2))
            if any(torch.equal(first.flip(axes), stored[0]) for stored in pictures)
        }
        seen |= flips
        times = torch.cat([torch.arange(5.0), sample["frame_times"]])
        frames = torch.cat([sample["chunk"], sample["target"]], dim=1)
        warped = warp(first[None], displacement(sample["motion"][None], times[None], 4))[0]
        to_first = interpolate(sample["to_first"][None], NEXT_CELL)
        # `to_first` leads from the next chunk's first frame back to this one's.
        after = warp(first[None], to_first[:, :, None])[0, :, 0]
        middle = (..., slice(16, -16), slice(16, -16))
        for one, other in ((warped, to_float(frames)), (after, to_float(sample["following"]))):
            assert (one - other)[middle].abs().mean() < 0.03, (seed, flips)
    assert seen == {(), (-1,), (-2,), (-1, -2)}


def test_targets_are_the_frames_at_their_times(store: ChunkStore) -> None:
    """Any of the chunk but frame 0, and the extra ones; not the next chunk's first frame."""
    frames = torch.from_numpy(np.array(store.array("frames"))).transpose(1, 2)  # [5, 3, 9, S, S]
    times = store.array("times")
    asked = set()
    for seed in range(40):
        sample = store.read(np.random.default_rng(seed), 3)
        ((index, flip),) = [
            (index, flip)
            for index in range(COUNT)
            for flip in ((), (-1,), (-2,), (-1, -2))
            if torch.equal(frames[index, :, :5].flip(flip), sample["chunk"])
        ]
        stored, order = frames[index].flip(flip), [0, 1, 2, 3, 4, *times[index].tolist()]
        places = [order.index(time) for time in sample["frame_times"].tolist()]
        assert torch.equal(stored[:, places], sample["target"])
        assert torch.equal(stored[:, 5], sample["following"])
        assert len(set(places)) == 3
        asked |= set(places)
    assert asked == {1, 2, 3, 4, *range(6, 5 + NUM_EXTRAS)}


# -- the objective ---------------------------------------------------------------------------------


def batch_of(store: ChunkStore, is_image: bool = False) -> dict[str, torch.Tensor]:
    samples = [store.read(np.random.default_rng(seed), 2) for seed in range(2)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    if is_image:
        first = batch["chunk"][:, :, :1]
        return {"chunk": first, "target": first, "frame_times": torch.zeros(2, 1)}
    return batch


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("is_image", [True, False])
def test_the_loss_of_one_batch_falls(store: ChunkStore, is_image: bool, share: float) -> None:
    """And every parameter has a part in it, as processes that sum their gradients expect."""
    model = make_small_model().train()
    objective = MovingObjective(model, ObjectiveConfig(noise_only_fraction=share))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        inputs = objective.prepare(batch_of(store, is_image), torch.Generator().manual_seed(0))
        loss = objective(**inputs).mean()
        loss.backward()
        assert [name for name, one in model.named_parameters() if one.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2, losses
    terms = {"first"} if is_image else {"first", "later"}
    assert set(objective.terms) == (terms if share else terms | {"detail"})


def test_one_step_is_weighed_by_its_logarithm(store: ChunkStore) -> None:
    """At t = 1; its spread as a Gaussian's; below, the error is over what is open."""
    model = make_small_model()
    objective = MovingObjective(model, ObjectiveConfig())
    picture = to_float(batch_of(store, is_image=True)["target"])
    noise, none = torch.randn(picture.shape), torch.zeros(2, 8, 2, 8, 8)
    ones, t = torch.ones(2), 0.4
    with torch.no_grad():
        draft = draft_first(model, model.encode_chunk(picture)[:, :, 0])
        one_step = objective(picture, picture, torch.zeros(2, 1), noise, none)
        more = objective(picture, picture, torch.zeros(2, 1), noise, none, t * ones)
        spread = draft.spread()
        detail = (picture - draft.mean) / spread
        answer = predict_detail(model, draft, (1 - t) * detail + t * noise, t * ones)
    squares, variance = (draft.mean - picture).square() + ERROR_FLOOR, spread.square()
    likelihood = (variance.log() + squares / variance).mean(dim=(1, 2, 3, 4))
    expected = squares.mean(dim=(1, 2, 3, 4)).log() + SPREAD_WEIGHT * likelihood
    assert torch.allclose(one_step, expected, rtol=1e-3)
    # A Gaussian of deviation 1 under noise t: its variance, less what x_t tells.
    left_open = 1 / (1 + (1 - t) ** 2 / t**2)
    expected = (answer - detail).square().mean(dim=(1, 2, 3, 4)) / (left_open + OPEN_FLOOR)
    assert torch.allclose(more - one_step, DETAIL_WEIGHT * expected, rtol=1e-3)


def test_the_spread_learns_how_wrong_one_step_is(store: ChunkStore) -> None:
    """By the bias of its head alone it becomes the error of the picture, in the mean."""
    model = make_small_model()
    picture = 0.3 * to_float(batch_of(store, is_image=True)["target"])
    head = model.dit.proj_spread
    assert head is not None
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam([head.bias], lr=0.05)
    objective = MovingObjective(model, ObjectiveConfig())
    for _ in range(200):
        draft = draft_first(model, model.encode_chunk(picture)[:, :, 0].detach())
        objective._losses(draft, picture).mean().backward()
        optimizer.step()
        model.zero_grad()
    error = (draft.mean - picture).square().mean().sqrt().item()
    assert draft.spread().square().mean().sqrt().item() == pytest.approx(error, rel=0.1)


def test_draws_of_the_objective(store: ChunkStore) -> None:
    """One step only as often as asked; the next frame at times unknown."""
    objective = MovingObjective(make_small_model(), ObjectiveConfig(noise_only_fraction=0.4))
    batch, times, without = batch_of(store), [], 0
    for seed in range(300):
        inputs = objective.prepare(batch, torch.Generator().manual_seed(seed))
        times.append(inputs.get("timestep"))
        without += "to_first" not in inputs
    is_one_step = torch.tensor([one is None for one in times])
    # 300 draws: standard deviations of 3 %; four of them.
    assert abs(is_one_step.float().mean() - 0.4) < 0.11 and abs(without / 300 - 0.35) < 0.11
    rest = torch.cat([one for one in times if one is not None])
    assert rest.min() > 0.04 and rest.max() < 0.85 and 0.5 < rest.median() < 0.7


@pytest.mark.parametrize("is_image", [True, False])
def test_lpips_weighs_more_below_one_step(store: ChunkStore, is_image: bool) -> None:
    """Of squares of 64 pixels of one frame a sample: here a network that sees 1 in each."""
    model, sizes = make_small_model(), []

    def network(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        sizes.append((one.shape, other.shape))
        return torch.ones(len(one))

    network.to = lambda device: network
    for fraction, expected in ((1.0, 0.5), (0.0, 0.5 * (1 + PERCEPTION_OF_STEPS))):
        objective = MovingObjective(
            model, ObjectiveConfig(noise_only_fraction=fraction, perceptual_weight=0.0)
        )
        inputs = objective.prepare(batch_of(store, is_image), torch.Generator().manual_seed(0))
        with torch.no_grad():
            without = objective(**inputs)
            objective._perceptual = (network,)
            objective.config = replace(objective.config, perceptual_weight=0.5)
            more = objective(**inputs) - without
        assert torch.allclose(more, torch.full((2,), expected), atol=1e-4)
    assert set(sizes) == {((2, 3, 64, 64),) * 2} and len(sizes) == 3


def test_chunks_may_know_more_of_their_first_frames(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of what one step leaves open: 0 to 1, and none where one step is learned."""
    model, seen = make_small_model(), []

    def spy(model: AutoencoderREGEN, first: torch.Tensor, *rest: Any) -> Any:
        seen.append(first)
        return move_content(model, first, *rest)

    monkeypatch.setattr(moving_objective, "move_content", spy)
    objective = MovingObjective(model, ObjectiveConfig(noise_only_fraction=0.0))
    inputs = objective.prepare(batch_of(store), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for known in (0.0, 0.25, 1.0):
            objective(**inputs | {"known": torch.full((2,), known)})
    none, some, all_of_it = seen
    assert torch.allclose(all_of_it, inputs["chunk"][:, :, 0], atol=1e-5)
    assert torch.allclose(some, 0.75 * none + 0.25 * all_of_it, atol=1e-5)
    known = [
        objective.prepare(batch_of(store), torch.Generator().manual_seed(seed))["known"]
        for seed in range(100)
    ]
    drawn = torch.cat(known)
    assert drawn.min() == 0 and 0.8 < drawn.max() <= 1 and 0.35 < (drawn == 0).float().mean() < 0.65
    objective = MovingObjective(model, ObjectiveConfig(noise_only_fraction=1.0))
    assert "known" not in objective.prepare(batch_of(store), torch.Generator().manual_seed(0))
