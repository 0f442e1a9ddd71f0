"""Properties of regen.t2v.transformer: any size and length; what each input changes."""

from pathlib import Path

import pytest
import torch
from small_generator import make_transformer

from regen.t2v.presets import GENERATOR_PRESETS
from regen.t2v.transformer import (
    RegenTransformer3DModel,
    rotary_embedding,
    rotate,
)


def inputs(num_frames: int = 4, height: int = 4, width: int = 5, batch: int = 2) -> tuple:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 8, num_frames, height, width, generator=generator)
    text = torch.randn(batch, 7, 24, generator=generator)
    return latents, text, torch.full((batch,), 0.5)


@torch.no_grad()
def run(model: RegenTransformer3DModel, *arguments: torch.Tensor | None) -> torch.Tensor:
    return model(*arguments).sample


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 1, 1), (3, 5, 3), (8, 3, 7)])
@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_any_size_and_length(shape: tuple[int, int, int], patch_size: int) -> None:
    model = make_transformer(patch_size=patch_size)
    latents, text, timestep = inputs(*shape)
    sample = run(model, latents, text, timestep)
    assert sample.shape == latents.shape and sample.isfinite().all()


def test_a_new_model_predicts_zero() -> None:
    latents, text, timestep = inputs()
    model = make_transformer()
    fresh = RegenTransformer3DModel.from_config(model.config)
    assert not run(fresh, latents, text, timestep).any()


def test_every_parameter_has_a_gradient() -> None:
    model = make_transformer()
    latents, text, timestep = inputs()
    model(latents, text, timestep).sample.square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_filling_of_texts_changes_nothing() -> None:
    model = make_transformer()
    latents, text, timestep = inputs()
    plain = run(model, latents, text, timestep)
    filled = torch.cat([text, torch.full((2, 5, 24), 9.0)], dim=1)
    mask = torch.arange(12) < torch.tensor([[7], [7]])
    torch.testing.assert_close(run(model, latents, filled, timestep, mask), plain)
    assert (run(model, latents, filled, timestep) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("what", ["text", "timestep", "kind", "row", "column", "chunk"])
def test_everything_counts(what: str) -> None:
    """Nothing that the model is told is lost on the way."""
    model = make_transformer()
    latents, text, timestep = inputs(num_frames=4, height=4, width=4)
    latents[:] = latents[:, :, :1, :1, :1]  # all places alike: only positions tell them apart
    sample = run(model, latents, text, timestep)
    if what == "text":
        other = run(model, latents, text.flip(1) * 1.5 + 0.3, timestep)
    elif what == "timestep":
        other = run(model, latents, text, timestep + 0.2)
    else:
        axis, by = {"kind": (2, 1), "chunk": (2, 2), "row": (3, 2), "column": (4, 2)}[what]
        other = sample.roll(by, dims=axis)
    assert (sample - other).abs().max() > 1e-4


def test_given_frames_have_a_timestep_of_their_own() -> None:
    model = make_transformer()
    latents, text, timestep = inputs()
    every = timestep[:, None].expand(-1, 4).clone()
    torch.testing.assert_close(
        run(model, latents, text, every), run(model, latents, text, timestep)
    )
    every[:, 0] = 0
    assert (run(model, latents, text, every) - run(model, latents, text, timestep)).abs().max() > 0


def test_rotations_depend_on_differences_of_places() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator)
    scores = []
    for place in ((0, 0, 1, 2), (3, 0, 5, 4)):
        positions = torch.tensor([place, [p + d for p, d in zip(place, (1, 0, 2, 1), strict=True)]])
        cos, sin = rotary_embedding(positions, (2, 2, 6, 6), 100.0)
        first = rotate(query, (cos[:1], sin[:1]))
        second = rotate(key, (cos[1:], sin[1:]))
        scores.append((first * second).sum())
    torch.testing.assert_close(scores[0], scores[1])


def test_gradient_checkpointing_changes_nothing() -> None:
    model = make_transformer()
    latents, text, timestep = inputs()
    gradients = []
    for enable in (False, True):
        if enable:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(latents, text, timestep).sample.square().sum().backward()
        gradients.append(model.patch_embed.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_save_and_load(tmp_path: Path) -> None:
    model = make_transformer()
    model.save_pretrained(tmp_path)
    again = RegenTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(run(again, *inputs()), run(model, *inputs()))


@pytest.mark.parametrize(
    ("preset", "text_dim", "millions"),
    [("t2v_nano", 384, 4), ("t2v_tiny", 384, 14), ("t2v_1b", 4096, 905), ("t2v_5b", 4096, 4960)],
)
def test_presets_have_the_size_they_say(preset: str, text_dim: int, millions: int) -> None:
    with torch.device("meta"):
        model = RegenTransformer3DModel(**GENERATOR_PRESETS[preset](), joint_attention_dim=text_dim)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": torch.zeros(2, 4, 4, 4, 5)}, r"latents are \[B, 8, n, h, w\], got"),
        ({"latents": torch.zeros(2, 8, 0, 4, 5)}, "latents are"),
        ({"text": torch.zeros(2, 7, 25)}, "text encoder that the model was trained with"),
        ({"text": torch.zeros(1, 7, 24)}, "text embeddings are"),
        ({"mask": torch.zeros(2, 7)}, "encoder_attention_mask is bool"),
        ({"timestep": torch.zeros(2, 3)}, "timestep is"),
    ],
)
def test_bad_inputs_are_one_line(change: dict, words: str) -> None:
    latents, text, timestep = inputs()
    given = {"latents": latents, "text": text, "timestep": timestep, "mask": None} | change
    with pytest.raises(ValueError, match=words) as caught:
        run(make_transformer(), *(given[n] for n in ("latents", "text", "timestep", "mask")))
    assert "\n" not in str(caught.value)


def test_rope_axes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="4 even numbers"):
        make_transformer(axes_dims_rope=(2, 2, 6, 8))
