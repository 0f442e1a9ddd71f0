"""Properties of the text-to-video pipeline: results, what is given, bad requests."""

import json
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SOURCES, Run
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from PIL import Image
from small_generator import make_pipeline

from regen.t2v.config import Request
from regen.t2v.generation import generate_file
from regen.t2v.pipeline import RegenTextToVideoPipeline, load_pipeline
from regen.t2v.text_encoder import TextEncoder
from regen.video import open_video, read_frames, write_video

SEED = 3


@pytest.fixture(scope="module")
def pipeline() -> RegenTextToVideoPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def folder(pipeline: RegenTextToVideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(path)
    return path


def generate(pipeline: RegenTextToVideoPipeline, prompt: Any = "a red ball", **options: Any) -> Any:
    settings = {
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(SEED),
        "output_type": "pt",
    }
    return pipeline(prompt, **(settings | options)).frames


def test_the_usual_size_is_that_of_the_training(pipeline: RegenTextToVideoPipeline) -> None:
    assert generate(pipeline).shape == (1, 18, 3, 32, 40)


@pytest.mark.parametrize("num_frames", [1, 9, 10, 12])
def test_any_size_and_length(pipeline: RegenTextToVideoPipeline, num_frames: int) -> None:
    video = generate(pipeline, height=21, width=10, num_frames=num_frames)
    assert video.shape == (1, num_frames, 3, 21, 10)
    assert video.min() >= 0 and video.max() <= 1


def test_output_types(pipeline: RegenTextToVideoPipeline) -> None:
    video = generate(pipeline, num_frames=9)
    array = generate(pipeline, num_frames=9, output_type="np")
    np.testing.assert_array_equal(array, video.permute(0, 1, 3, 4, 2).numpy())
    pictures = generate(pipeline, num_frames=9, output_type="pil")
    assert len(pictures[0]) == 9 and pictures[0][0].size == (40, 32)
    latents = generate(pipeline, num_frames=9, output_type="latent")
    assert latents.shape == (1, 8, 2, 4, 5)
    assert torch.equal(generate(pipeline, num_frames=9, return_dict=True), video)


def test_same_seed_same_video_and_save_and_load(
    pipeline: RegenTextToVideoPipeline, folder: Path
) -> None:
    video = generate(pipeline, num_frames=9)
    assert torch.equal(generate(pipeline, num_frames=9), video)
    loaded = load_pipeline(str(folder))
    for module in ("transformer", "vae", "text_encoder"):
        before, after = (getattr(one, module).state_dict() for one in (pipeline, loaded))
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), module
    # What is mapped from a file lies at other addresses, and sums come in another order: 2e-6 here.
    assert torch.allclose(generate(loaded, num_frames=9), video, atol=1e-4)
    other = generate(pipeline, num_frames=9, generator=torch.Generator().manual_seed(SEED + 1))
    assert not torch.equal(other, video)


def test_the_statistics_of_the_data_act_around_the_transformer() -> None:
    """Latents come out on the embedder's scale; what is given goes in on the transformer's."""
    pipeline = make_pipeline()
    options = {"num_frames": 9, "output_type": "latent", "num_inference_steps": 1}
    mean = torch.arange(16.0).view(8, 2) / 10
    std = torch.linspace(0.2, 2, 16).view(8, 2)
    plain = generate(pipeline, **options)
    pipeline.transformer.set_latent_statistics(mean, std)
    scaled = generate(pipeline, **options)
    for frame in (0, 1):  # content, motion
        expected = plain[0, :, frame] * std[:, frame, None, None] + mean[:, frame, None, None]
        torch.testing.assert_close(scaled[0, :, frame], expected, atol=1e-4, rtol=1e-4)
    image = Image.new("RGB", (40, 32), (200, 30, 90))
    seen: list[torch.Tensor] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    given = generate(pipeline, image=image, **options)
    hook.remove()
    pixels = torch.tensor([200, 30, 90]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 32, 40) / 127.5 - 1
    with torch.no_grad():
        own = pipeline.vae.encode(pixels).latents
    torch.testing.assert_close(given[:, :, :1], own, atol=1e-4, rtol=1e-4)
    normalised = (own[:, :, 0] - mean[:, 0, None, None]) / std[:, 0, None, None]
    torch.testing.assert_close(seen[0][:1, :, 0], normalised, atol=1e-4, rtol=1e-4)


def test_the_prompts_count(pipeline: RegenTextToVideoPipeline) -> None:
    latents = {"num_frames": 9, "output_type": "latent"}
    plain = generate(pipeline, **latents)
    assert not torch.equal(generate(pipeline, "a blue box", **latents), plain)
    assert not torch.equal(generate(pipeline, negative_prompt="a blue box", **latents), plain)
    unguided = generate(pipeline, guidance_scale=1, **latents)
    ignored = generate(pipeline, guidance_scale=1, negative_prompt="a blue box", **latents)
    assert torch.equal(unguided, ignored) and not torch.equal(unguided, plain)


def test_guidance_is_that_of_the_formula(pipeline: RegenTextToVideoPipeline) -> None:
    """One step: the latents are noise less the velocity, which guidance extrapolates."""
    noise = torch.randn(1, 8, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    options = {
        "latents": noise,
        "num_frames": 9,
        "num_inference_steps": 1,
        "output_type": "latent",
    }
    with_text = generate(pipeline, guidance_scale=1, **options)
    without = generate(pipeline, "", guidance_scale=1, **options)
    guided = generate(pipeline, guidance_scale=3.5, **options)
    torch.testing.assert_close(guided, without + 3.5 * (with_text - without), rtol=0, atol=1e-5)


def test_a_batch_is_its_videos(pipeline: RegenTextToVideoPipeline) -> None:
    prompts = ["a red ball rolls left", "a box"]
    generators = [torch.Generator().manual_seed(seed) for seed in (SEED, SEED + 1)]
    both = generate(pipeline, prompts, num_frames=9, generator=generators, output_type="latent")
    for index, prompt in enumerate(prompts):
        seed = torch.Generator().manual_seed(SEED + index)
        alone = generate(pipeline, prompt, num_frames=9, generator=seed, output_type="latent")
        torch.testing.assert_close(both[index], alone[0], rtol=0, atol=1e-4)
    several = generate(pipeline, num_frames=9, num_videos_per_prompt=2, output_type="latent")
    assert several.shape[0] == 2 and not torch.equal(several[0], several[1])


def test_embeddings_instead_of_prompts(pipeline: RegenTextToVideoPipeline) -> None:
    embeds, mask = pipeline.encode_prompt("a red ball")
    video = generate(pipeline, None, prompt_embeds=embeds, prompt_attention_mask=mask, num_frames=9)
    assert torch.equal(video, generate(pipeline, num_frames=9))


def test_image_to_video(pipeline: RegenTextToVideoPipeline) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    content = pipeline.vae.encode(pixels).latents
    options = {"num_frames": 9, "output_type": "latent"}
    latents = generate(pipeline, image=picture, **options)
    torch.testing.assert_close(latents[:, :, :1], content)
    assert torch.equal(generate(pipeline, image=Image.fromarray(picture), **options), latents)
    other = generate(pipeline, image=255 - picture, **options)
    assert not torch.equal(other[:, :, 1], latents[:, :, 1])  # the motion goes by the image
    assert generate(pipeline, image=picture, num_frames=1).shape == (1, 1, 3, 32, 40)


def test_going_on_from_a_video(pipeline: RegenTextToVideoPipeline) -> None:
    video = np.random.default_rng(0).random((12, 32, 40, 3), dtype=np.float32)
    after = generate(pipeline, video=video, num_frames=10)
    assert after.shape == (1, 10, 3, 32, 40)
    assert torch.equal(generate(pipeline, video=video[-9:], num_frames=10), after)  # the last chunk
    assert not torch.equal(generate(pipeline, video=video[:9], num_frames=10), after)


def test_pictures_are_scaled_to_cover_and_cropped(pipeline: RegenTextToVideoPipeline) -> None:
    wide = np.zeros((32, 80, 3), dtype=np.uint8)
    wide[:, 20:60] = 200
    plain = np.full((32, 40, 3), 200, dtype=np.uint8)
    options = {"num_frames": 1, "output_type": "latent"}
    assert torch.equal(
        generate(pipeline, image=wide, **options), generate(pipeline, image=plain, **options)
    )


def test_callback_sees_and_changes_latents(pipeline: RegenTextToVideoPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def callback(_: Any, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
        seen.append((index, float(timestep)))
        assert set(tensors) == {"latents"}
        return {"latents": torch.zeros_like(tensors["latents"])} if index == 2 else {}

    latents = generate(
        pipeline,
        num_inference_steps=3,
        callback_on_step_end=callback,
        num_frames=9,
        output_type="latent",
    )
    assert [index for index, _ in seen] == [0, 1, 2] and seen[0][1] == 1000
    assert not latents.any()


def test_a_callback_may_ask_for_what_is_not_there(pipeline: RegenTextToVideoPipeline) -> None:
    seen: list[set[str]] = []
    for guidance in (1, 2):
        generate(
            pipeline,
            num_frames=9,
            guidance_scale=guidance,
            callback_on_step_end=lambda *given: seen.append(set(given[-1])),
            callback_on_step_end_tensor_inputs=["latents", "negative_prompt_embeds"],
        )
    assert seen == [{"latents"}] * 2 + [{"latents", "negative_prompt_embeds"}] * 2


def test_one_negative_prompt_for_all(pipeline: RegenTextToVideoPipeline) -> None:
    options = {"num_frames": 9, "output_type": "latent", "prompt": ["a red ball", "a box"]}
    one = generate(pipeline, negative_prompt="blue", **options)
    assert torch.equal(generate(pipeline, negative_prompt=["blue"], **options), one)


def test_other_schedulers(pipeline: RegenTextToVideoPipeline) -> None:
    options = {"num_inference_steps": 40, "num_frames": 9, "output_type": "latent"}
    euler = generate(pipeline, **options)
    before = pipeline.scheduler
    try:
        for scheduler in (
            FlowMatchHeunDiscreteScheduler(),
            DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        ):
            pipeline.scheduler = scheduler
            other = generate(pipeline, **options)
            # The same equation, solved in other steps: 0.1 and 0.2 were measured.
            assert (other - euler).abs().max() < 0.5
        for wrong, words in (
            (DDIMScheduler(), "DDIMScheduler is no scheduler of flow matching"),
            (DPMSolverMultistepScheduler(use_flow_sigmas=True), "is no scheduler of flow"),
            (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "without a seed"),
        ):
            pipeline.scheduler = wrong
            with pytest.raises(ValueError, match=words):
                generate(pipeline)
        pipeline.scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            algorithm_type="sde-dpmsolver++",
        )  # it draws noise
        few = options | {"num_inference_steps": 4}
        assert torch.equal(generate(pipeline, **few), generate(pipeline, **few))
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        assert not torch.equal(generate(pipeline, **options), euler)
    finally:
        pipeline.scheduler = before


PICTURE = np.zeros((32, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": None}, "give prompt or prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, 2, 24)}, "one of the two"),
        ({"prompt": []}, "a text or a list of texts"),
        ({"prompt": 3}, "a text or a list of texts, got 3"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 2, 5)}, r"are \[B, L, 24\]"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"height": 0}, "height is a whole number"),
        ({"width": 8.5}, "width is a whole number"),
        ({"num_frames": -1}, "num_frames is a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps is"),
        ({"num_decoding_steps": 0}, "num_decoding_steps is"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt is"),
        ({"guidance_scale": -1}, "guidance_scale is a number, at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"output_type": "gif"}, "output_type is one of np, pt, pil, latent"),
        ({"latents": torch.zeros(1, 8, 2, 4, 4)}, r"latents are \[1, 8, 4, 4, 5\]"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 videos"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback tensors are latents"),
        ({"image": PICTURE, "video": [PICTURE] * 9}, "exclude each other"),
        ({"video": [PICTURE] * 8}, "has 9 frames or more"),
        ({"video": []}, "at least one picture"),
        ({"image": np.zeros((32, 40), dtype=np.uint8)}, "image: a picture is PIL"),
        ({"image": PICTURE.astype(np.float32) + 200}, r"in \[0, 1\], got up to 200"),
        ({"image": "picture.png"}, "image: a picture is PIL"),
        ({"video": 5}, "video is a list of pictures or an array, got int"),
        ({"guidance_scale": "5"}, "guidance_scale is a number, at least 0, got '5'"),
        ({"latents": [1]}, r"latents are a tensor \[1, 8, 4, 4, 5\], got list"),
        ({"prompt": None, "prompt_embeds": [1]}, r"are a tensor \[B, L, 24\], got list"),
        ({"generator": 5}, "generator is a torch.Generator or a list of them, got 5"),
        ({"callback_on_step_end": lambda *_: [1]}, "returns a dict of tensors or nothing"),
    ],
)
def test_bad_requests_are_one_line(
    pipeline: RegenTextToVideoPipeline, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        generate(pipeline, **({"prompt": "a red ball"} | options))
    assert "\n" not in str(caught.value)


def test_a_pipeline_without_a_text_encoder(pipeline: RegenTextToVideoPipeline) -> None:
    bare = RegenTextToVideoPipeline(
        pipeline.vae, None, None, pipeline.transformer, pipeline.scheduler
    )
    with pytest.raises(ValueError, match="no text encoder: give prompt_embeds"):
        generate(bare)


def test_a_pipeline_that_an_older_version_saved(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    index = tmp_path / "old" / "model_index.json"
    fields = json.loads(index.read_text())
    fields["vae"][0] = "regen.models.autoencoder"
    fields["transformer"][0] = "regen.models.transformer"
    index.write_text(json.dumps(fields))
    assert load_pipeline(str(tmp_path / "old")).vae.encoder_id()


def test_folders_that_are_no_pipeline(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text-to-video model"):
        load_pipeline(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="of a pipeline FluxPipeline"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_bytes((folder / "model_index.json").read_bytes())
    with pytest.raises(ValueError, match="is missing; get the model again") as caught:
        load_pipeline(str(tmp_path))
    assert "\n" not in str(caught.value)
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    shutil.rmtree(whole / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer is missing"):
        load_pipeline(str(whole))
    shutil.copytree(folder, tmp_path / "damaged")
    next((tmp_path / "damaged" / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="cannot load text-to-video model") as caught:
        load_pipeline(str(tmp_path / "damaged"))
    assert "\n" not in str(caught.value)


def test_generate_to_a_file(pipeline: RegenTextToVideoPipeline, tmp_path: Path) -> None:
    steps: list[int] = []
    request = Request("a red ball", num_frames=10, num_inference_steps=2, seed=1)
    output = tmp_path / "out.mkv"
    frames = generate_file(pipeline, request, output, lambda: steps.append(1))
    assert len(steps) == 2
    with open_video(output) as reader:
        assert reader.info.frame_rate == 24
    np.testing.assert_array_equal(read_frames(output), frames)


def test_command(folder: Path, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "source.mkv"
    grey = [np.full((32, 48, 3), 20 * number, dtype=np.uint8) for number in range(9)]
    write_video(source, grey, Fraction(30))
    few = ("--model", folder, "--frames", 10, "--num-inference-steps", 2)
    status, out, _ = run("generate", "a red ball", tmp_path / "a.mkv", *few)
    assert status == 0 and "10 frames of 40 x 32" in out
    assert run("generate", "a red ball", tmp_path / "b.mkv", *few, "--seed", 0)[0] == 0
    videos = [read_frames(tmp_path / name) for name in ("a.mkv", "b.mkv")]
    np.testing.assert_array_equal(*videos)
    for option in ("--image", "--video"):
        assert run("generate", "a", tmp_path / "c.mp4", *few, option, source)[0] == 0
    with open_video(tmp_path / "c.mp4") as reader:
        assert reader.info.frame_rate == 30 and reader.info.num_frames == 10
    before = source.read_bytes()
    assert run("generate", "a", source, *few, "--video", source)[0] == 1
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out.mp4", "--frames", "0"], "--frames is at least 1, got 0"),
        (["out.mp4", "--height", "0"], "--height is at least 1"),
        (["out.mp4", "--seed", "-1"], "--seed is at least 0"),
        (["out.avi"], "cannot write .avi"),
        (["out.png"], "a .png holds one frame; give --frames 1"),
        (["missing/out.mp4"], "missing"),
        (["out.mp4", "--image", "missing.png"], "no such file"),
        (["out.mp4", "--frame-rate", "0"], "--frame-rate is a positive number"),
        (["out.mp4", "--guidance-scale", "-2"], "--guidance-scale is at least 0, got -2"),
        (["out.mp4", "--device", "nothing"], "--device nothing cannot be used"),
        (["out.mp4", "--model", "missing"], "no text-to-video model missing"),
    ],
)
def test_bad_commands_are_one_line_and_leave_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in words else ["--model", folder]
    status, _, error = run("generate", "a ball", *words, *model)
    assert (status, error.count("\n")) == (1, 1)
    assert error.startswith("regen: ") and message in error
    assert list(tmp_path.iterdir()) == []


# -- the embedded model ----------------------------------------------------------------------------


def test_the_embedded_model_makes_a_video_and_says_what_it_has_not_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    short = ("--frames", 34, "--num-inference-steps", 4)
    status, _, error = run("generate", "a red ball rolls left", tmp_path / "a.mkv", *short)
    assert status == 0 and "not learned" not in error
    assert read_frames(tmp_path / "a.mkv").shape == (34, 64, 64, 3)
    status, _, error = run("generate", "A red dragon rolls", tmp_path / "b.mkv", *short)
    assert status == 0 and "shapes_t2v has not learned dragon:" in error
    monkeypatch.setattr(TextEncoder, "encoder_id", lambda self: "another")
    with pytest.raises(ValueError, match="was trained with text_encoder_id"):
        load_pipeline()


def test_content_latents_share_noise(folder: Path) -> None:
    """Also where the first latent frames are given; motion latents share none."""
    transformer = load_pipeline(str(folder)).transformer
    noise = torch.randn(1, 8, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    assert transformer.share_noise(noise) is noise
    transformer.register_to_config(shared_noise=0.5)
    for first in (0, 1, 2):
        shared = transformer.share_noise(noise, first)
        content = slice(first % 2, None, 2)
        other = slice(1 - first % 2, None, 2)
        assert torch.equal(shared[:, :, other], noise[:, :, other])
        frames = shared[:, :, content].transpose(1, 2).flatten(2)[0]
        assert torch.allclose(frames.std(dim=1), torch.ones(len(frames)), atol=0.05)
        assert torch.corrcoef(frames)[1:, 0] == pytest.approx(0.5**0.5, abs=0.05)
        assert torch.corrcoef(frames)[2, 1] == pytest.approx(0.5, abs=0.05)


def test_the_pipeline_shares_noise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the model learned it, also beside what is given."""
    pipeline, seen = load_pipeline(str(folder)), []
    pipeline.transformer.register_to_config(shared_noise=1.0)
    monkeypatch.setattr(
        pipeline, "_denoise", lambda given, latents, *rest: seen.append(latents) or latents
    )
    frames = 4 * pipeline.vae.geometry.chunk_length
    options = {"num_frames": frames, "output_type": "latent", "guidance_scale": 1.0}
    pipeline("a ball", **options)
    pipeline("a ball", image=np.zeros((16, 16, 3), np.uint8), **options)
    for latents, first in zip(seen, (0, 1), strict=True):
        content = latents[:, :, first % 2 :: 2]
        assert content.shape[2] == 4 - first
        assert torch.equal(content, content[:, :, :1].expand_as(content))


@pytest.mark.parametrize(
    "command", ["generate prompt out.mp4", "train-generator --data a --output b"]
)
def test_without_the_extra_one_line_says_what_to_install(command: str, tmp_path: Path) -> None:
    """diffusers leaves out its loaders where transformers is not installed."""
    code = (
        "import importlib.util, sys; real = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *rest: "
        "None if name in ('transformers', 'peft') else real(name, *rest); "
        "sys.modules['transformers'] = None; from regen.cli import main; "
        f"sys.argv = {['regen', *command.split()]}; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=SOURCES, capture_output=True, text=True
    )
    expected = "regen: text to video needs transformers: pip install 'regen-video[t2v]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    assert list(tmp_path.iterdir()) == []
