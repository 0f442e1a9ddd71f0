"""The latent cache: every clip once, the same bytes again and again, nothing half-written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_data import written_by_another
from torch.utils.data import DataLoader

from regen.loading import new_model
from regen.model.autoencoder import AutoencoderREGEN
from regen.moving_shapes import make_scene, render, write_world
from regen.t2v.cache import building
from regen.t2v.cache.building import build_cache, recompute_statistics
from regen.t2v.cache.config import CacheConfig
from regen.t2v.cache.encoding import encode_clip
from regen.t2v.cache.latent_shards import LatentDataset, collate
from regen.t2v.cache.statistics import Moments
from regen.t2v.text_encoder import TextEncoder
from regen.video import frames_to_video, read_frames

NUM = 7


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "clips"
    write_world(folder, NUM, 11, 48, 64)
    return folder


@pytest.fixture(scope="module")
def options(small_model_folder: Path, small_text_folder: Path) -> CacheConfig:
    return CacheConfig(
        model=str(small_model_folder),
        text_encoder=str(small_text_folder),
        shard_clips=3,
        num_workers=0,
    )


@pytest.fixture(scope="module")
def cached(world: Path, options: CacheConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cache") / "latents"
    report = build_cache([str(world)], output, options)
    assert (report.num_clips, report.num_shards, report.num_kept, report.bad) == (NUM, 3, 0, [])
    return output


def contents(folder: Path) -> dict[str, bytes]:
    names = ("*.safetensors", "*.json")
    return {p.name: p.read_bytes() for name in names for p in folder.glob(name)}


def test_a_clip_is_what_the_encoders_say(
    world: Path, cached: Path, small_model: AutoencoderREGEN, small_text_folder: Path
) -> None:
    dataset = LatentDataset(cached)
    text = TextEncoder.from_pretrained(str(small_text_folder))
    assert len(dataset) == NUM and dataset.info["encoder_id"] == small_model.encoder_id()
    for index in (0, 4, -1):
        clip, caption = dataset[index], make_scene(0, index % NUM).caption
        assert clip["key"] == f"clip-{index % NUM:06d}.mp4" and clip["caption"] == caption
        assert (clip["num_frames"], clip["height"], clip["width"]) == (11, 48, 64)
        video = frames_to_video(read_frames(world / clip["key"]))[None]
        with torch.inference_mode():
            expected = small_model.encode(video).latents[0]
        # bfloat16 keeps 8 bits; and chunks side by side are summed in another order
        assert torch.allclose(clip["latents"], expected, rtol=2**-8, atol=1e-5)
        embeds, _ = text.encode([caption])
        assert torch.equal(clip["prompt_embeds"], embeds[0].bfloat16().float())
    with pytest.raises(IndexError):
        dataset[NUM]


def test_chunks_side_by_side_are_those_one_by_one(small_model: AutoencoderREGEN) -> None:
    frames = render(make_scene(0, 1), 9 * 3 + 1, 16, 16)
    with torch.inference_mode():
        expected = small_model.encode(frames_to_video(frames)[None]).latents[0]
    latents = encode_clip(small_model, frames)
    assert latents.shape == (8, 7, 2, 2)
    # The search for motion magnifies sums in another order, by a few hundredths at some places. A
    # chunk out of place would be off by 1 everywhere.
    assert (latents - expected).abs().mean() < 0.01


def test_workers_read_batches_with_masks(cached: Path) -> None:
    dataset = LatentDataset(cached)
    _ = dataset[0]  # an open shard must not cross to the worker
    # Not forked: a fork after the text encoder's threads have run hangs on some machines.
    loader = DataLoader(
        dataset, batch_size=4, collate_fn=collate, num_workers=1, multiprocessing_context="spawn"
    )
    batches = list(loader)
    assert [key for batch in batches for key in batch["key"]] == [
        f"clip-{index:06d}.mp4" for index in range(NUM)
    ]
    for batch in batches:
        mask = batch["prompt_embeds_mask"]
        assert batch["latents"].shape[1:] == (8, 4, 6, 8)
        assert batch["prompt_embeds"].shape[:2] == mask.shape and mask.any(1).all()
        assert not batch["prompt_embeds"][~mask].any()


def test_statistics_are_of_all_latents(cached: Path) -> None:
    dataset = LatentDataset(cached)
    latents = torch.stack([dataset[index]["latents"] for index in range(NUM)]).double()
    for kind in (0, 1):
        values = latents[:, :, kind::2].transpose(0, 1).flatten(1)
        assert torch.allclose(dataset.latents_mean[:, kind].double(), values.mean(1), atol=1e-6)
        std = values.std(1, correction=0)
        assert torch.allclose(dataset.latents_std[:, kind].double(), std, atol=1e-6)


def test_moments_do_not_cancel_and_images_have_no_motion() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 8, 2, 4, 4, generator=generator, dtype=torch.float64) + 1e6
    moments = Moments()
    for one in values:
        moments.add(one)
    expected = values.permute(1, 2, 0, 3, 4).flatten(2).std(2, correction=0)
    assert torch.allclose(moments.std, expected, rtol=1e-9)  # a sum of squares errs by 1e-4
    image = Moments()
    image.add(torch.randn(8, 1, 4, 4, generator=generator))
    assert image.count.tolist() == [16, 0] and (image.std[:, 1] == 1).all()


def test_stats_are_made_anew_and_other_encoders_refused(
    cached: Path, world: Path, options: CacheConfig, other_model_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in contents(cached).items():
        (copy / name).write_bytes(data)
    fields = json.loads((copy / "dataset.json").read_text())
    broken = fields | {"latents_mean": [[9.0, 9.0]] * 8, "shards": fields["shards"][:1]}
    (copy / "dataset.json").write_text(json.dumps(broken))
    recompute_statistics(copy)
    assert json.loads((copy / "dataset.json").read_text()) == fields
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "dataset.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="holds no latent shard"):
        recompute_statistics(empty)
    magvit = tmp_path / "magvit"
    new_model("magvit_small_8x").save_pretrained(magvit)
    with pytest.raises(ValueError, match="magvit is AutoencoderMAGVITv2"):
        build_cache([str(world)], tmp_path / "none", replace(options, model=str(magvit)))
    other = tmp_path / "other"
    build_cache([str(world)], other, replace(options, model=str(other_model_folder)))
    (copy / "shard-000009.safetensors").write_bytes(contents(other)["shard-000000.safetensors"])
    with pytest.raises(ValueError, match="another encoder"):
        recompute_statistics(copy)


def test_the_same_command_goes_on_to_the_same_bytes(
    world: Path,
    cached: Path,
    options: CacheConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "latents"
    count = 0

    class Dying(building.ClipEncoder):
        def __call__(self, row: building.Row) -> building.Row:
            nonlocal count
            count += 1
            if count == 5:  # in the middle of the second shard
                raise KeyboardInterrupt
            return super().__call__(row)

    with monkeypatch.context() as patch:
        patch.setattr(building, "ClipEncoder", Dying)
        with pytest.raises(KeyboardInterrupt):
            build_cache([str(world)], output, options)
    assert sorted(p.name for p in output.iterdir()) == [".lock", "shard-000000.safetensors"]
    with pytest.raises(ValueError, match="finished"):
        LatentDataset(output)
    (output / "shard-000001.safetensors").write_bytes(b"half a shard")
    report = build_cache([str(world)], output, options)
    assert report.num_kept == 1 and contents(output) == contents(cached)
    assert build_cache([str(world)], output, options).num_kept == 3
    for changed in (
        replace(options, storage="int8"),
        replace(options, shard_clips=2),
        replace(options, model=f"{options.model}@4"),  # the same encoder, other chunks
    ):
        with pytest.raises(ValueError, match="another folder"):
            build_cache([str(world)], output, changed)
    assert contents(output) == contents(cached)


def test_int8_is_half_the_size_and_close(
    world: Path, cached: Path, options: CacheConfig, tmp_path: Path
) -> None:
    build_cache([str(world)], tmp_path / "int8", replace(options, storage="int8"))
    exact, rounded = LatentDataset(cached)[2]["latents"], LatentDataset(tmp_path / "int8")[2]
    largest = exact.abs().amax(dim=(2, 3), keepdim=True)
    # half a step, and the rounding of bfloat16
    assert ((rounded["latents"] - exact).abs() <= largest * (0.5 / 127 + 2**-8)).all()


def test_bad_clips_are_named_and_too_many_stop(options: CacheConfig, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    write_world(clips, 3, 11, 48, 64)
    (clips / "broken.mp4").write_bytes(b"no video")
    output = tmp_path / "latents"
    with pytest.raises(ValueError, match="1 of 4 files cannot be read, above --max-bad-fraction"):
        build_cache([str(clips)], output, options)
    report = build_cache([str(clips)], output, replace(options, max_bad_fraction=0.5))
    assert report.num_clips == len(LatentDataset(output)) == 3
    assert "broken.mp4" in (output / "bad_clips.txt").read_text() and len(report.bad) == 1
    longer = replace(options, num_frames=12)
    with pytest.raises(ValueError, match="above --max-bad-fraction"):
        build_cache([str(clips)], tmp_path / "longer", longer)
    lines = (tmp_path / "longer" / "bad_clips.txt").read_text()
    assert "broken.mp4: not a video" in lines
    with pytest.raises(ValueError, match="no clip could be cached"):
        build_cache([str(clips)], tmp_path / "longer", replace(longer, max_bad_fraction=1))
    lines = (tmp_path / "longer" / "bad_clips.txt").read_text()
    assert lines.count("11 frames, fewer than --num-frames 12") == 3


def test_frames_and_size_are_those_asked(world: Path, options: CacheConfig, tmp_path: Path) -> None:
    options = replace(options, num_frames=9, height=24, width=40)
    build_cache([str(world)], tmp_path / "latents", options)
    clip = LatentDataset(tmp_path / "latents")[0]
    assert clip["latents"].shape == (8, 2, 3, 5)
    assert (clip["num_frames"], clip["height"], clip["width"]) == (9, 24, 40)
    assert clip["frame_rate"] == 24


def test_batches_are_of_one_shape(cached: Path) -> None:
    clip = LatentDataset(cached)[0]
    with pytest.raises(ValueError, match="one shape"):
        collate([clip, {**clip, "latents": clip["latents"][:, :2]}])  # type: ignore[typeddict-item]


@pytest.mark.slow
def test_ray_writes_the_same_bytes(
    world: Path, cached: Path, options: CacheConfig, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="the extra cache is not installed")
    build_cache([str(world)], tmp_path / "latents", replace(options, num_workers=1))
    assert contents(tmp_path / "latents") == contents(cached)


def test_without_ray_a_line_says_so(
    world: Path, options: CacheConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r"regen-video\[cache\].*--num-workers 0"):
        build_cache([str(world)], tmp_path / "latents", replace(options, num_workers=1))
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("address", "num_workers", "message"),
    [
        ("ray://127.0.0.1:10001", 1, "Ray Client.*--address auto"),
        ("127.0.0.1:1", 1, "no Ray cluster answers at --address 127.0.0.1:1"),
        ("127.0.0.1:port", 1, "no Ray cluster answers"),
        ("auto", 0, "leave --address out"),
    ],
)
def test_a_cluster_that_does_not_answer_is_one_line(
    world: Path, options: CacheConfig, tmp_path: Path, address: str, num_workers: int, message: str
) -> None:
    pytest.importorskip("ray", reason="the extra cache is not installed")
    options = replace(options, address=address, num_workers=num_workers)
    with pytest.raises(ValueError, match=message):
        build_cache([str(world)], tmp_path / "latents", options)


def test_two_caches_are_not_written_to_one_folder(
    world: Path, options: CacheConfig, tmp_path: Path
) -> None:
    with (
        written_by_another(tmp_path / "latents"),
        pytest.raises(ValueError, match="another process"),
    ):
        build_cache([str(world)], tmp_path / "latents", options)
