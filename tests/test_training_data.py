"""The stream of batches of a run: from shards or files, stopped and gone on, with bad clips."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from test_training import (
    assert_same,
    before_step,
    config_of,
    logged_steps,
    state_of,
)

from regen.data.batches import BatchConfig, TrainingBatches
from regen.data.clips import prepare_clips
from regen.data.shard_writer import write_shards
from regen.training import loop
from regen.training.embedder import load_clips, train
from regen.training.loop import TimedLoader

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict]]:
    """(step, batch) of all that the loop trains on."""
    batches: list[tuple[int, dict]] = []
    train_step = loop.train_step

    def watched(run, own):
        batches.extend((run.step, batch) for batch in own)
        return train_step(run, own)

    monkeypatch.setattr(loop, "train_step", watched)
    return batches


def assert_same_stream(one: list[tuple[int, dict]], other: list[tuple[int, dict]]) -> None:
    assert [step for step, _ in one] == [step for step, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert a["task"] == b["task"]
        assert all(torch.equal(a[name], b[name]) for name in ("chunk", "target", "frame_times"))


@pytest.mark.parametrize("shapes", ["square", "aspect"])
def test_shards_decoded_when_drawn_and_resumed_are_the_folder_undisturbed(
    data: Path, tmp_path: Path, monkeypatch, seen, shapes: str
) -> None:
    """Not one batch is repeated, skipped or other; the weights are the same bit for bit."""
    write_shards([str(data)], tmp_path / "shards", 20_000, num_workers=1)
    options = {"shapes": shapes, "image_size": 32, "video_size": (32, 64), "image_fraction": 0.4}
    whole = config_of(data, tmp_path / "whole", **options)
    train(whole)
    undisturbed, seen[:] = list(seen), []
    assert [step for step, _ in undisturbed] == [0, 1, 2, 3]

    def stop() -> None:
        raise KeyboardInterrupt  # also batches that were prepared ahead are lost

    pieces = config_of(data, tmp_path / "pieces", **options, num_workers=2)
    pieces = replace(pieces, data=(str(tmp_path / "shards"),), cache=Path("none"))
    before_step(monkeypatch, 2, stop)
    with pytest.raises(KeyboardInterrupt):
        train(pieces)
    train(pieces)
    assert_same_stream(seen, undisturbed)
    assert_same(state_of(whole.output, 4), state_of(pieces.output, 4))
    assert not list(pieces.output.glob("cache/*.npy")) and not Path("none").exists()
    assert logged_steps(pieces.output, "train/data_wait_fraction")


def test_a_clip_that_fails_on_the_way_is_named_and_replaced(
    data: Path, tmp_path: Path, seen, capfd
) -> None:
    """It passes at the start, where only its head is looked at."""
    write_shards([str(data)], tmp_path / "shards", 10**9, num_workers=1)
    shard = tmp_path / "shards" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    start = content.index((data / "0.mkv").read_bytes())
    content[start : start + 3000] = bytes(3000)
    shard.write_bytes(content)
    config = config_of(data, tmp_path / "run", num_workers=1, validation_sources=0)
    config = replace(config, data=(str(shard),), cache=Path("none"), max_bad_fraction=0.2)
    train(config)
    (line,) = (config.output / "bad_clips.txt").read_text().splitlines()
    assert line.startswith(f"{shard}/0.mkv: ")
    assert len(seen) == 4 and (config.output / "model").exists()
    strict = replace(config, output=tmp_path / "strict", max_bad_fraction=0.1)
    with pytest.raises(
        ValueError, match=r"1 of 5 files cannot be read, above --max-bad-fraction 0\.1"
    ):
        train(strict)
    again = list(seen[:4])
    seen.clear()
    train(replace(config, output=tmp_path / "again", num_workers=0))
    assert_same_stream(seen, again)


def test_all_bad_is_one_line_also_from_another_process(data: Path, tmp_path: Path) -> None:
    write_shards([str(data)], tmp_path / "shards", 10**9, num_workers=1)
    shard = tmp_path / "shards" / "shard-000000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    batches = TrainingBatches(
        prepare_clips([shard], tmp_path / "cache", decode_once=False).clips,
        BatchConfig(seed=0, num_steps=4, chunk_length=9),
    )
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match="100 clips in a row cannot be read") as caught:
            next(iter(TimedLoader(batches, range(4), num_workers)))
        assert "\n" not in str(caught.value)


def test_the_share_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that take 3 s each, used for 1 s: a clock that only they advance."""
    now = [0.0]

    class Slow:
        def __getitem__(self, step: int) -> dict:
            now[0] += 3
            return {"step": step}

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    loader = TimedLoader(Slow(), range(5, 9), 0)  # type: ignore[arg-type]
    steps = []
    for batch in loader:
        steps.append(batch["step"])
        now[0] += 1
    assert steps == [5, 6, 7, 8]
    assert loader.wait_fraction() == pytest.approx(0.75)
    assert loader.wait_fraction() == 0


def test_other_clips_than_at_the_start_are_told(data: Path, tmp_path: Path, capfd) -> None:
    write_shards([str(data)], tmp_path / "shards", 10**9, num_workers=1)
    config = config_of(data, tmp_path / "run")
    accelerator = Accelerator()
    for one, is_told in (
        (config, False),
        (replace(config, data=(str(tmp_path / "shards"),)), False),  # the same, packed
        (replace(config, validation_sources=2), True),
    ):
        capfd.readouterr()
        load_clips(one, accelerator)
        assert ("not those that the run started with" in capfd.readouterr().out) == is_told


def test_excluded_sources_do_not_train_or_validate(data: Path, tmp_path: Path, seen) -> None:
    """And the others do what they did."""
    excluded = ("0.mkv", "1.png")
    whole = config_of(data, tmp_path / "run", steps=1, validation_sources=1)
    accelerator = Accelerator()
    config = replace(whole, exclude_sources=excluded)
    found, others = (load_clips(config, accelerator)[:2] for config in (config, whole))
    for clips, all_clips in zip(found, others, strict=True):
        kept = [clip.source for clip in all_clips if clip.source not in excluded]
        assert [clip.source for clip in clips] == kept
    assert len(found[0]) < len(others[0])
    with pytest.raises(ValueError, match=r"no clip is of typo\.mkv"):
        load_clips(replace(config, exclude_sources=("typo.mkv",)), accelerator)
