"""A model with moving content: what each frame is made of, and what it does not depend on."""

from typing import Any

import pytest
import torch
from conftest import SMALL, make_small_model
from test_motion import constant_field, moved, smooth_picture

from regen.model import chunk_decoder
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.chunk_decoder import DETAIL_START, VISIBLE_STD, ChunkDecoder
from regen.model.extension import decode_extended
from regen.model.motion import MOTION_CHANNELS, displacement, from_latents, to_latents, warp
from regen.model.motion_estimation import estimate_motion
from regen.model.moving_content import move_content


@pytest.fixture(scope="module")
def latents(small_model: AutoencoderREGEN) -> torch.Tensor:
    """Of a video that moves, 22 frames of 32 x 48 in three chunks: `[1, 8, 6, 4, 6]`."""
    chunks = [moved(smooth_picture(48, seed), (3.0, -2.0), (1.0, 0.0)) for seed in range(3)]
    video = torch.cat([chunk[..., :32, :] for chunk in chunks], dim=2)[:, :, :22]
    with torch.no_grad():
        return small_model.encode(video).latents


@torch.no_grad()
def decode(model: AutoencoderREGEN, latents: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.decode(latents, generator=torch.Generator().manual_seed(0), **options).sample


@pytest.fixture(scope="module")
def fallback() -> AutoencoderREGEN:
    """The output of the transformer and what the encoder adds are 0, latents as they come."""
    model = make_small_model()
    with torch.no_grad():
        for layer in (model.dit.proj_out, model.encoder.conv_out):
            layer.weight.zero_()
            layer.bias.zero_()
        model.latents_mean.zero_()
        model.latents_std.fill_(1)
        # Any orthonormal components: what is compared is what they see.
        torch.nn.init.orthogonal_(model.linear.analysis.weight)
        model.linear.synthesis.weight.copy_(model.linear.analysis.weight.transpose(0, 1))
        for layer in (model.linear.analysis, model.linear.synthesis):
            layer.bias.zero_()
    return model


# -- frame 0 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_the_first_frame_is_of_content_alone(
    small_model: AutoencoderREGEN, latents: torch.Tensor, steps: int
) -> None:
    """The same in an image as in a video, whatever its motion latents and the next chunk are."""
    options = {"num_inference_steps": steps}
    image = decode(small_model, latents[:, :, :1], **options)[:, :, 0]
    video = decode(small_model, latents, **options)
    assert torch.equal(video[:, :, 0], image)
    other = latents.clone()
    other[:, :, 1:] = torch.randn(other[:, :, 1:].shape)
    assert torch.equal(decode(small_model, other, **options)[:, :, 0], image)
    other[:, :, 0] += 0.1
    assert not torch.equal(decode(small_model, other, **options)[:, :, 0], image)


def test_more_steps_begin_where_one_step_ends(
    small_model: AutoencoderREGEN, latents: torch.Tensor
) -> None:
    """Before noise and timestep are learned of, every step draws the picture of one step."""
    assert (
        decode(small_model, latents, num_inference_steps=4) != decode(small_model, latents)
    ).any()
    model = make_small_model()
    fresh = AutoencoderREGEN(**SMALL).dit
    with torch.no_grad():
        model.dit.patch_embed.weight[:, :192] = fresh.patch_embed.weight[:, :192]
        model.dit.time_embed[0].weight.copy_(fresh.time_embed[0].weight)
    more = decode(model, latents, num_inference_steps=4)
    assert torch.allclose(more, decode(model, latents), atol=1e-4)


def test_an_image_does_not_move(small_model: AutoencoderREGEN, latents: torch.Tensor) -> None:
    video = decode(small_model, latents[:, :, :1], frame_times=[-3.0, 0.0, 0.4, 12.0])
    assert torch.equal(video, video[:, :, 1:2].expand_as(video))


def test_content_latents_are_of_the_first_frame(small_model: AutoencoderREGEN) -> None:
    chunk = moved(smooth_picture(48), (4.0, 0.0), (0.0, 0.0))
    other = torch.cat([chunk[:, :, :1], -chunk[:, :, 1:]], dim=2)
    with torch.no_grad():
        one, two, image = (small_model.encode_chunk(c) for c in (chunk, other, chunk[:, :, :1]))
    assert torch.equal(one[:, :, 0], two[:, :, 0])
    assert torch.allclose(one[:, :, 0], image[:, :, 0], atol=1e-5)
    assert not torch.allclose(one[:, MOTION_CHANNELS:, 1], two[:, MOTION_CHANNELS:, 1])


# -- later frames ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_a_frame_does_not_depend_on_which_others_are_asked_for(
    small_model: AutoencoderREGEN, latents: torch.Tensor, steps: int
) -> None:
    """Nor on their order, nor on whether their chunks are decoded at all."""
    options = {"num_inference_steps": steps}
    whole = decode(small_model, latents, num_frames=22, **options)
    for times in ([5], [8, 9], [12, 20, 3], [21]):
        some = decode(small_model, latents, frame_times=[float(time) for time in times], **options)
        assert torch.allclose(some, whole[:, :, times], atol=1e-5), times


def test_a_chunk_sees_the_next_one_and_no_other(
    small_model: AutoencoderREGEN, latents: torch.Tensor
) -> None:
    video = decode(small_model, latents, num_frames=22)
    alone = decode(small_model, latents[:, :, :2])
    pair = decode(small_model, latents[:, :, :3], num_frames=10)
    assert torch.equal(alone[:, :, 0], video[:, :, 0])
    assert (alone[:, :, 8] - video[:, :, 8]).abs().max() > 1e-3
    assert torch.allclose(pair[:, :, :9], video[:, :, :9], atol=1e-5)
    changed = latents.clone()
    changed[:, :, :2] += 1  # the past
    assert torch.equal(decode(small_model, changed, num_frames=22)[:, :, 9:], video[:, :, 9:])


def test_without_the_transformer_it_is_linear_coding_and_motion(
    fallback: AutoencoderREGEN,
) -> None:
    chunk = moved(smooth_picture(64), (6.0, -3.0), (1.0, 0.0))  # two windows: nothing is padded
    times = torch.arange(9.0)[None]
    with torch.no_grad():
        latents = fallback.encode(chunk).latents
        first = fallback.linear.decode(latents[:, :, 0])
        video = decode(fallback, latents)
    assert torch.equal(latents[:, :, 0], fallback.linear.encode(chunk[:, :, 0]))
    motion = estimate_motion(chunk)
    assert torch.equal(latents[:, :MOTION_CHANNELS, 1], to_latents(motion, (8, 8)))
    field = displacement(from_latents(latents[:, :MOTION_CHANNELS, 1]), times, 8)
    assert torch.allclose(video, warp(first.clamp(-1, 1), field).clamp(-1, 1), atol=1e-5)


def test_the_second_source_is_the_next_first_frame_moved_back(
    small_model: AutoencoderREGEN,
) -> None:
    """Of one picture that moves on and on: both sources show the frame."""
    picture = smooth_picture(96)
    long = moved(picture, (10.0, -5.0), (0.0, 0.0), length=11)[:, :, :10]
    chunk, following = long[:, :, :9], long[:, :, 9]
    latents = torch.zeros(1, 8, 2, 12, 12)
    latents[:, :MOTION_CHANNELS, 1] = to_latents(estimate_motion(chunk), (12, 12))
    times = torch.tensor([[2.0, 7.0]])
    warped, reference = move_content(small_model, picture, following, latents, times)
    middle = (..., slice(24, -24), slice(24, -24))
    for source in (warped, reference):
        assert (source - chunk[:, :, [2, 7]])[middle].abs().mean() < 0.02
    _, alone = move_content(small_model, picture, None, latents, times)
    assert torch.equal(alone, picture[:, :, None].expand_as(alone))


@pytest.mark.parametrize("ratio", [2, 5])
def test_shorter_chunks_move_at_their_own_times(fallback: AutoencoderREGEN, ratio: int) -> None:
    """Times of a chunk of r + 1 frames are stretched to the 9 that the networks know."""
    model = make_small_model()
    model.load_state_dict(fallback.state_dict())
    model.set_chunk_ratio(ratio)
    shift = torch.arange(float(ratio + 1))[:, None] * torch.tensor([[2.0, -1.0]])
    picture = smooth_picture(96)
    chunk = warp(picture, constant_field(shift, 96))
    with torch.no_grad():
        latents = model.encode(chunk).latents
        video = decode(model, latents)
    assert latents.shape[2] == 2 and video.shape == chunk.shape
    expected = warp(video[:, :, 0], constant_field(shift, 96))
    middle = (..., slice(24, -24), slice(24, -24))
    assert (video - expected)[middle].abs().mean() < 0.02
    assert (video - video[:, :, :1])[:, :, -1:][middle].abs().mean() > 0.08


def test_under_autocast_only_the_networks_are_rounded(fallback: AutoencoderREGEN) -> None:
    """Where they add nothing, what is estimated, warped and coded is the same to the bit."""
    video = torch.cat([moved(smooth_picture(48), (5.0, -3.0), (0.0, 0.0))] * 2, dim=2)
    with torch.no_grad():
        latents = fallback.encode(video).latents
        again = decode(fallback, latents)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fallback.encode(video).latents, latents)
            assert torch.equal(decode(fallback, latents), again)


def test_a_model_in_bfloat16_is_nearly_the_same(latents: torch.Tensor) -> None:
    model = make_small_model()
    exact = decode(model, latents, num_frames=22)
    rounded = decode(model.bfloat16(), latents, num_frames=22)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.02 * exact.std()


def test_chunks_that_meet_need_no_extension(
    small_model: AutoencoderREGEN, latents: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="without moving_content: use decode"):
        decode_extended(small_model, latents, 4)


def test_one_step_embeds_no_timestep(small_model: AutoencoderREGEN, latents: torch.Tensor) -> None:
    """So what it learns serves all timesteps."""
    model = make_small_model()
    with torch.no_grad():
        model.dit.time_embed[0].weight.mul_(3)
    assert torch.equal(decode(model, latents), decode(small_model, latents))
    more = {"num_inference_steps": 3}
    assert not torch.equal(decode(model, latents, **more), decode(small_model, latents, **more))


def test_noise_is_weak_where_little_is_open(latents: torch.Tensor) -> None:
    """Of patches that are almost known it hardly changes anything."""
    model = make_small_model()
    changes = []
    for log_spread in (-2.9, 2.9):  # about the typical, 0.05: 0.003, and 0.9
        with torch.no_grad():
            model.dit.proj_spread.weight.zero_()
            model.dit.proj_spread.bias.fill_(log_spread)
        decoder = ChunkDecoder(model, 2, torch.Generator().manual_seed(0))
        seen: list[torch.Tensor] = []

        def denoise(_: Any, draft: Any, noisy: torch.Tensor, timestep: Any) -> torch.Tensor:
            seen.append(noisy)  # noqa: B023
            return noisy

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(chunk_decoder, "predict_detail", denoise)
            decoder.decode(0, latents[:, :, :1], None, torch.zeros(1))
        spread = float((-3 + 3 * torch.tanh(torch.tensor(log_spread) / 3)).exp())
        expected = DETAIL_START * spread / (spread + VISIBLE_STD)
        assert seen[0].std().item() == pytest.approx(expected, rel=0.1)
        changes.append(expected)
    assert changes[0] < 0.3 * changes[1]


def test_only_first_frames_have_noise(latents: torch.Tensor) -> None:
    """The same in each; the detail of the others begins at 0."""
    model, seen = make_small_model(), []

    def denoise(_: Any, draft: Any, noisy: torch.Tensor, timestep: Any) -> torch.Tensor:
        seen.append(noisy / draft.spread())
        return 0 * noisy

    with torch.no_grad():  # as much is open everywhere
        model.dit.proj_spread.weight.zero_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_decoder, "predict_detail", denoise)
        decode(model, latents[:, :, :4], num_frames=18, num_inference_steps=2)
    first, following, *others = seen
    assert first.std() > 0.1 and torch.equal(first, following)
    assert [one.shape[2] for one in others] == [8, 8] and not any(one.any() for one in others)
