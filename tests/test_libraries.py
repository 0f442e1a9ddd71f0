"""The models as users of diffusers, accelerate and peft expect them."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers.models import ModelMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from small_generator import make_pipeline
from test_models import build, random_video

from regen.model.autoencoder import AutoencoderREGEN

CPU = torch.device("cpu")


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def no_uninitialised_memory() -> Iterator[None]:
    """It holds NaN instead, which reaches every result."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def sequentially(model: ModelMixin, folder: Path) -> None:
    accelerate.cpu_offload(model, CPU, offload_buffers=True)


def dispatched(model: ModelMixin, folder: Path) -> None:
    own = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    names = [name for name, _ in [*model.named_children(), *own]]
    accelerate.dispatch_model(
        model, dict.fromkeys(names, "disk"), "cpu", offload_dir=folder, force_hooks=True
    )


def by_leaves(model: ModelMixin, folder: Path) -> None:
    model.enable_group_offload(CPU, offload_type="leaf_level", offload_to_disk_path=str(folder))


def by_blocks(model: ModelMixin, folder: Path) -> None:
    model.enable_group_offload(
        CPU, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(folder)
    )


WAYS = [sequentially, dispatched, by_leaves, by_blocks]


@pytest.mark.filterwarnings("ignore")  # of accelerate, about a device that is the same
@pytest.mark.parametrize("offload", WAYS)
@pytest.mark.parametrize("kind", ["moving content", "in context"])
@torch.no_grad()
def test_offloading_changes_nothing(
    small_model: AutoencoderREGEN,
    kind: str,
    offload: Callable[..., None],
    tmp_path: Path,
    no_uninitialised_memory: None,
) -> None:
    """Weights are at hand where they are read: elsewhere they are on "meta", or NaN."""
    moving = kind == "moving content"
    model = copy.deepcopy(small_model) if moving else build(conditioning_type="in_context")
    video = random_video(19, 12, 20)

    def results() -> list[torch.Tensor]:
        latents = model.encode(video).latents
        decoded = model.decode(latents, generator=seed(), num_inference_steps=2).sample
        return [latents, decoded, model(video, generator=seed()).sample]

    whole = results()
    offload(model, tmp_path)
    assert any(parameter.is_meta or parameter.isnan().any() for parameter in model.parameters())
    for one, other in zip(whole, results(), strict=True):
        # Weights read from a file lie elsewhere in memory: sums in another order, 3e-4 at most.
        assert torch.allclose(one, other, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("offload", WAYS)
def test_an_offloaded_pipeline(
    offload: Callable[..., None], tmp_path: Path, no_uninitialised_memory: None
) -> None:
    pipeline = make_pipeline()
    options = {"num_frames": 9, "num_inference_steps": 2, "output_type": "pt"}

    def result() -> torch.Tensor:
        image = torch.full((3, 32, 40), 0.5)
        return pipeline("a red ball", image=image, generator=seed(), **options).frames

    whole = result()
    for name in ("transformer", "vae"):
        offload(getattr(pipeline, name), tmp_path / name)
    assert torch.allclose(result(), whole, atol=1e-3)


@torch.no_grad()
def test_latents_as_a_distribution(small_model: AutoencoderREGEN) -> None:
    encoded = small_model.encode(random_video(9, 16, 16))
    dist = encoded.latent_dist
    assert torch.equal(dist.sample(seed()), encoded.latents)
    assert torch.equal(dist.mode(), encoded.latents) and not dist.std.any()
    assert dist.kl() == 0


def test_what_code_of_other_video_autoencoders_reads(
    small_model: AutoencoderREGEN, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    small_model.save_pretrained(tmp_path)
    loaded = AutoencoderREGEN.from_pretrained(tmp_path)
    config = loaded.config
    assert config.scaling_factor == 1
    # As Wan's pipeline does it: nothing is to be done to these latents.
    latents = torch.randn(1, 8, 2, 3, 4)
    mean, std = (
        torch.tensor(one).view(1, config.latent_channels, 1, 1, 1)
        for one in (config.latents_mean, config.latents_std)
    )
    assert torch.equal((latents - mean) / std, latents)
    assert torch.equal(loaded.latents_mean, small_model.latents_mean)  # of `encode`, not of it
    assert loaded.temporal_compression_ratio == 8 and loaded.spatial_compression_ratio == 8
    assert not recwarn.list


@pytest.mark.parametrize(
    ("storage", "compute", "limit"),
    [
        (torch.bfloat16, torch.bfloat16, 0.2),
        (torch.float16, torch.float16, 0.03),
        (torch.float8_e4m3fn, torch.float32, 0.3),
        (torch.float8_e4m3fn, torch.bfloat16, 0.4),
    ],
)
@pytest.mark.parametrize("kind", ["moving content", "paper", "in context"])
@torch.no_grad()
def test_low_precision(
    small_model: AutoencoderREGEN,
    kind: str,
    storage: torch.dtype,
    compute: torch.dtype,
    limit: float,
) -> None:
    options = {"in context": {"conditioning_type": "in_context"}}.get(kind, {})
    model = copy.deepcopy(small_model) if kind == "moving content" else build(**options)
    # Smooth, and still: what moves is another motion if pixels are rounded.
    video = torch.linspace(-0.8, 0.8, 24).expand(1, 3, 9, 16, 24).contiguous()
    exact = model.encode(video).latents
    frames = model.decode(exact, generator=seed()).sample
    model.to(compute)
    if storage != compute:
        model.enable_layerwise_casting(storage, compute)
    latents = model.encode(video.to(compute)).latents
    assert latents.dtype == torch.float32
    decoded = model.decode(exact.to(compute), generator=seed()).sample
    assert (latents - exact).abs().mean() < limit * exact.abs().mean()
    assert (decoded - frames).abs().mean() < limit * frames.std()
    assert not torch.equal(decoded, frames)


@torch.no_grad()
def test_lora_of_the_generator(tmp_path: Path) -> None:
    pipeline = make_pipeline()
    options: dict[str, Any] = {"num_frames": 9, "num_inference_steps": 2, "output_type": "latent"}

    def result() -> torch.Tensor:
        return pipeline("a red ball", generator=seed(), **options).frames

    plain = result()
    torch.manual_seed(0)
    config = LoraConfig(
        r=2,
        lora_alpha=2,
        target_modules=["to_qkv", "to_out", "add_kv_proj", "proj_in"],
        init_lora_weights=False,
    )
    pipeline.transformer.add_adapter(config, adapter_name="a")
    adapted = result()
    assert not torch.allclose(adapted, plain, atol=1e-2)
    pipeline.transformer.save_lora_adapter(tmp_path / "adapter", adapter_name="a")
    layers = get_peft_model_state_dict(pipeline.transformer, adapter_name="a")
    pipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers)
    pipeline.unload_lora_weights()
    assert torch.equal(result(), plain)
    pipeline.load_lora_weights(tmp_path / "lora", adapter_name="b")
    assert torch.allclose(result(), adapted, atol=1e-5)
    pipeline.set_adapters(["b"], [0.0])
    assert torch.allclose(result(), plain, atol=1e-5)
    pipeline.unload_lora_weights()
    saved = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    pipeline.transformer.load_lora_adapter(saved, prefix=None)
    assert torch.allclose(result(), adapted, atol=1e-5)
    pipeline.fuse_lora()
    assert torch.allclose(result(), adapted, atol=1e-4)
    # A pickle is not fallen back to.
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"")
    for load in (pipeline.load_lora_weights, pipeline.transformer.load_lora_adapter):
        with pytest.raises(OSError, match="safetensors"):
            load(tmp_path)
