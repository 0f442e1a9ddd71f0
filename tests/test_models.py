"""Properties of the networks: causality, any size, no hidden position, real-valued time, counts.

`model` is the paper's method, `either` also a model with moving content.
"""

from typing import Any

import pytest
import torch

from regen.model.autoencoder import AutoencoderREGEN
from regen.model.presets import PRESETS

SMALL = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "encoder_block_out_channels": (8, 8, 8, 8),
    "siren_width": 16,
}
STRIDES = {
    4: ((2, 1), (2, 1), (1, 1)),
    8: ((2, 1), (2, 1), (2, 1)),
    16: ((2, 1),) * 4,
    32: ((2, 1),) * 5,
}


def build(**changes: Any) -> AutoencoderREGEN:
    """A small model of random weights, also of gates and outputs, which start at zero."""
    torch.manual_seed(0)
    model = AutoencoderREGEN(**(PRESETS["small_8x"]() | SMALL | changes))
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():  # gates, outputs, biases
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def build_ratio(ratio: int, **changes: Any) -> AutoencoderREGEN:
    strides = STRIDES[ratio]
    return build(
        temporal_compression_ratio=ratio,
        encoder_strides=strides,
        encoder_block_out_channels=(8,) * len(strides),
        **changes,
    )


def random_video(*shape: int) -> torch.Tensor:
    return torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def model() -> AutoencoderREGEN:
    return build()


@pytest.fixture(params=["paper", "moving content"])
def either(
    request: pytest.FixtureRequest, model: AutoencoderREGEN, small_model: AutoencoderREGEN
) -> AutoencoderREGEN:
    return model if request.param == "paper" else small_model


@torch.no_grad()
def decode(model: AutoencoderREGEN, latents: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.decode(latents, generator=torch.Generator().manual_seed(0), **options).sample


# -- encoder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_size", [1, 8])
@torch.no_grad()
def test_encoder_is_causal_bit_for_bit(patch_size: int) -> None:
    """Changing frame j changes no activation before it; the first latent sees frame 0 only."""
    strides = (
        ((1, 2), (2, 2), (2, 2), (2, 1)) if patch_size == 1 else ((2, 1), (2, 1), (2, 1), (1, 1))
    )
    model = build(encoder_patch_size=patch_size, encoder_strides=strides)
    video = random_video(9, 16, 24)
    before = model.encode_chunk(video)
    for frame in range(9):
        changed = video.clone()
        changed[:, :, frame] += 0.5
        after = model.encode_chunk(changed)
        assert torch.equal(after[:, :, 0], before[:, :, 0]) == (frame > 0)
        assert not torch.equal(after[:, :, 1], before[:, :, 1])
    # inside the encoder too: block by block, position i of a stage of stride s sees frames up to
    # i * s
    hidden, changed_hidden, stride = [], [], [1]
    changed = video.clone()
    changed[:, :, 5:] += 0.5
    for source, kept in ((video, hidden), (changed, changed_hidden)):
        hooks = [
            block.register_forward_hook(lambda module, args, output, kept=kept: kept.append(output))
            for block in model.encoder.blocks
        ]
        model.encoder(source)
        for hook in hooks:
            hook.remove()
    for one, other in zip(hidden, changed_hidden, strict=True):
        stride = 8 // (one.shape[2] - 1)
        untouched = 4 // stride + 1
        assert torch.equal(one[:, :, :untouched], other[:, :, :untouched])
        assert not torch.equal(one, other)


@pytest.mark.parametrize("ratio", [4, 8, 16, 32])
@torch.no_grad()
def test_every_ratio_gives_exactly_two_latent_frames(ratio: int) -> None:
    model = build_ratio(ratio)
    assert model.encode(random_video(ratio + 1, 8, 8)).latents.shape == (1, 8, 2, 1, 1)
    assert model.encode(random_video(1, 8, 8)).latents.shape == (1, 8, 1, 1, 1)
    assert model.spatial_compression_ratio == 8 and model.temporal_compression_ratio == ratio


# -- any video in, the same video out --------------------------------------------------------------


@torch.no_grad()
def test_every_length_comes_back(either: AutoencoderREGEN) -> None:
    for num_frames in (1, 2, 8, 9, 10, 11, 18, 19, 27):
        video = random_video(num_frames, 8, 16)
        assert either(video).sample.shape == video.shape


@torch.no_grad()
def test_every_size_comes_back(either: AutoencoderREGEN) -> None:
    for height in range(8, 131, 17):
        width = 138 - height
        video = random_video(2, height, width)
        assert either(video).sample.shape == video.shape
    for height, width in ((1, 1), (5, 130), (130, 8), (128, 64)):
        assert either(random_video(1, height, width)).sample.shape == (1, 3, 1, height, width)


@torch.no_grad()
def test_a_video_is_its_chunks(model: AutoencoderREGEN) -> None:
    """Encoding and decoding whole is doing it chunk by chunk with one generator, bit for bit.

    With moving content a chunk also sees the next one; see test_moving_content.py.
    """
    video = random_video(21, 16, 16)
    latents = model.encode(video).latents
    parts = [model.encode(video[:, :, start : start + 9]).latents for start in (0, 9, 18)]
    assert torch.equal(latents, torch.cat(parts, dim=2))
    whole = decode(model, latents, num_frames=21)
    generator = torch.Generator().manual_seed(0)
    chunks = [
        model.decode(part, num_frames=n, generator=generator).sample
        for part, n in zip(parts, (9, 9, 3), strict=True)
    ]
    assert torch.equal(whole, torch.cat(chunks, dim=2))


@torch.no_grad()
def test_padding_repeats_the_edge(either: AutoencoderREGEN) -> None:
    video = random_video(5, 12, 16)
    padded = torch.cat([video, video[:, :, -1:].expand(-1, -1, 4, -1, -1)], dim=2)
    padded = torch.cat([padded, padded[..., -1:, :].expand(-1, -1, -1, 4, -1)], dim=3)
    assert torch.equal(either.encode(video).latents, either.encode(padded).latents)


# -- time and place --------------------------------------------------------------------------------


@torch.no_grad()
def test_frame_times_choose_frames(either: AutoencoderREGEN) -> None:
    latents = either.encode(random_video(18, 16, 16)).latents
    whole = decode(either, latents)
    sparse = decode(either, latents, frame_times=[0.0, 9.0, 17.0])
    assert sparse.shape[2] == 3 and whole.shape[2] == 18
    times = [-2.0, -0.25, 3.5, 8.5, 8.6, 20.0]
    other = decode(either, latents, frame_times=times)
    assert other.shape[2] == len(times) and torch.isfinite(other).all()
    assert len({float(frame.mean()) for frame in other[0].unbind(1)}) == len(times)
    # order of the request does not matter to which chunk answers it
    chunk, _ = either.geometry.locate(torch.tensor(times), latents.shape[2])
    assert (
        chunk.tolist() == [0, 0, 0, 1, 1, 1]
        and decode(either, latents, frame_times=[17, 0]).shape[2] == 2
    )


@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_decoder_has_no_position_of_its_own(window: int | None) -> None:
    """Moving latents and noise by a window moves the interior of the picture, no more."""
    model = build(attention_window=window, mlp_conv=False)
    latents, noise = torch.randn(1, 8, 2, 8, 8), torch.randn(1, 3, 2, 64, 64)
    times, timestep = torch.tensor([[0.0, 4.0]]), torch.ones(1)
    here, _ = model.dit(noise, timestep, model.conditioning(latents, times))
    moved, _ = model.dit(
        noise.roll((32, 32), (3, 4)),
        timestep,
        model.conditioning(latents.roll((4, 4), (3, 4)), times),
    )
    assert torch.allclose(
        moved, here.roll((32, 32), (3, 4)), atol=1e-5
    )  # float32 sums in another order


@torch.no_grad()
def test_depthwise_convolution_tells_left_from_right() -> None:
    """Without it mirrored latents and noise give the mirrored picture; with it they do not."""
    times, timestep = torch.tensor([[0.0]]), torch.ones(1)
    latents, noise = torch.randn(1, 8, 2, 4, 4), torch.zeros(1, 3, 1, 32, 32)
    for conv in (False, True):
        model = build(mlp_conv=conv)
        for module in model.modules():
            if hasattr(module, "conv") and module.conv is not None:
                torch.nn.init.normal_(module.conv.weight, std=0.3)
        straight, _ = model.dit(noise, timestep, model.conditioning(latents, times))
        mirrored, _ = model.dit(noise, timestep, model.conditioning(latents.flip(-1), times))
        tokens, mirrored_tokens = (x.unfold(4, 8, 8).unfold(3, 8, 8) for x in (straight, mirrored))
        assert torch.allclose(tokens, mirrored_tokens.flip(4), atol=1e-5) is (not conv)


# -- sampling, configuration, the diffusers side ---------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "epsilon"])
@pytest.mark.parametrize("num_steps", [1, 3])
@torch.no_grad()
def test_every_prediction_type_samples(prediction_type: str, num_steps: int) -> None:
    model = build(prediction_type=prediction_type)
    latents = torch.randn(1, 8, 2, 2, 2)
    video = decode(model, latents, num_inference_steps=num_steps)
    assert (
        video.shape == (1, 3, 9, 16, 16) and torch.isfinite(video).all() and video.abs().max() <= 1
    )


@torch.no_grad()
def test_seed_decides_the_bytes(either: AutoencoderREGEN) -> None:
    latents = torch.randn(1, 8, 2, 2, 2)
    for steps in (1, 2):
        one, same = (decode(either, latents, num_inference_steps=steps) for _ in range(2))
        other = either.decode(
            latents, num_inference_steps=steps, generator=torch.Generator().manual_seed(1)
        ).sample
        assert torch.equal(one, same)
        assert torch.equal(one, other) == (
            steps == 1
        )  # one step of a preconditioned model sees no noise


@torch.no_grad()
def test_latent_statistics_act_in_encode_and_decode_only(model: AutoencoderREGEN) -> None:
    video = random_video(10, 16, 16)
    raw, plain = (
        model.encode(video).latents,
        model(video, generator=torch.Generator().manual_seed(0)).sample,
    )
    scaled = build()
    scaled.latents_mean.copy_(torch.randn(8, 2))
    scaled.latents_std.copy_(torch.rand(8, 2) + 0.5)
    latents = scaled.encode(video).latents
    kind = torch.tensor([0, 1, 0])
    expected = (raw - scaled.latents_mean[:, kind][None, :, :, None, None]) / scaled.latents_std[
        :, kind
    ][None, :, :, None, None]
    assert torch.allclose(latents, expected, atol=1e-5)
    again = scaled(video, generator=torch.Generator().manual_seed(0)).sample
    assert torch.allclose(
        again, plain, atol=1e-4
    )  # float32 rounding of the scaling, through the decoder
    assert scaled.encoder_id() != model.encoder_id()


def test_save_and_load_are_the_same_model(either: AutoencoderREGEN, tmp_path: Any) -> None:
    either.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = AutoencoderREGEN.from_pretrained(tmp_path)
    video = random_video(9, 16, 16)
    with torch.no_grad():
        one, other = (
            m(video, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
            for m in (either, loaded)
        )
    # The loaded weights lie elsewhere in memory, so sums may be taken in another order: 5e-7.
    assert torch.allclose(one, other, atol=1e-5) and loaded.encoder_id() == either.encoder_id()


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    gradients = []
    for enabled in (False, True):
        model = build()
        if enabled:
            model.enable_gradient_checkpointing()
        latents = model.encode_chunk(random_video(9, 32, 32))
        times = torch.tensor([[0.0, 3.0]])
        output = model.predict(random_video(2, 32, 32), torch.ones(1), latents, times)
        output.square().mean().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert torch.equal(*gradients)


@torch.no_grad()
def test_attention_back_ends_agree(model: AutoencoderREGEN) -> None:
    latents = torch.randn(1, 8, 2, 4, 4)
    plain = decode(model, latents)
    native = build()
    native.set_attention_backend("native")
    assert torch.allclose(decode(native, latents), plain, atol=1e-5)  # same sums, other order
    full = build(attention_window=None)
    assert not torch.allclose(
        decode(full, torch.randn(1, 8, 2, 8, 8)), decode(model, torch.randn(1, 8, 2, 8, 8))
    )
    with pytest.raises(ValueError, match="backend"):
        native.set_attention_backend("no such back end")


@pytest.mark.parametrize(
    ("preset", "encoder", "dit"),
    [
        ("regen_4x", 100_871_944, 1_826_586_816),
        ("regen_8x", 166_349_320, 1_826_586_816),
        ("regen_16x", 166_644_232, 1_826_586_816),
        ("regen_32x", 168_414_472, 1_826_586_816),
    ],
)
def test_paper_presets_have_their_size(preset: str, encoder: int, dit: int) -> None:
    """24 blocks of 12 D^2 + 6 D^2 (modulation) at D = 2048 are 1.81 B (Sec. 4.1, B.3)."""
    with torch.device("meta"):
        model = AutoencoderREGEN(**PRESETS[preset]())
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.dit.parameters()) == dit
    blocks = sum(p.numel() for p in model.dit.blocks.parameters())
    assert abs(blocks / (24 * 18 * 2048**2) - 1) < 0.01
    assert f"{model.config.temporal_compression_ratio}x" in preset


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "x0"}, "prediction_type is one of"),
        ({"conditioning_type": "x"}, "conditioning_type is one of"),
        ({"moving_content": True}, "moving_content takes prediction_type sample"),
        ({"temporal_compression_ratio": 16}, "change 8x in time"),
        ({"encoder_patch_size": 4}, "4x in space"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderREGEN(**(PRESETS["small_8x"]() | SMALL | changes))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 3, 16, 16), r"\[B, 3, T, H, W\]"),
        (torch.zeros(1, 1, 9, 16, 16), r"\[B, 3, T, H, W\]"),
        (torch.zeros(1, 3, 0, 16, 16), "at least 1"),
        (torch.zeros(1, 3, 9, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 9, 16, 16), 200.0), "0-255"),
        (torch.full((1, 3, 9, 16, 16), float("nan")), r"in \[-1, 1\]"),
    ],
)
def test_encode_refuses_what_is_no_video(
    model: AutoencoderREGEN, video: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(video)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "at least 1 frame"),
        ({"num_frames": 30}, "latent frames"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"frame_times": [0.0, float("nan")]}, "finite"),
        ({"frame_times": [float("inf")]}, "finite"),
        ({"frame_times": []}, "at least one time"),
        ({"frame_times": [1.0], "num_frames": 9}, "not both"),
        ({"height": 40}, "up to 16 x 16"),
    ],
)
def test_decode_refuses_what_it_cannot_do(
    model: AutoencoderREGEN, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.decode(torch.randn(1, 8, 2, 2, 2), **options)


def test_decode_refuses_damaged_latents(model: AutoencoderREGEN) -> None:
    with pytest.raises(ValueError, match="not finite"):
        model.decode(torch.full((1, 8, 2, 2, 2), float("nan")))
    with pytest.raises(ValueError, match="latents are"):
        model.decode(torch.randn(1, 16, 2, 2, 2))
