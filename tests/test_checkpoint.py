"""Properties of regen.training.checkpoint: all of the state comes back, and damage is noticed."""

from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from regen.training.checkpoint import (
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    step_of,
)

State = tuple[nn.Module, EMAModel, torch.optim.Optimizer]


def make_state(seed: int, width: int = 3) -> State:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    model.register_parameter("unused", nn.Parameter(torch.randn(2)))  # no gradient, so no moments
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.95))
    return model, EMAModel(model.parameters(), decay=0.9, use_ema_warmup=True), optimizer


def advance(state: State, num_steps: int, seed: int) -> None:
    model, ema, optimizer = state
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        model(torch.randn(4, 2, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())


def tensors_of(state: State) -> list[torch.Tensor]:
    model, ema, optimizer = state
    moments = [
        optimizer.state[parameter][key]
        for parameter in model.parameters()
        if parameter in optimizer.state
        for key in sorted(optimizer.state[parameter])
    ]
    return [*model.state_dict().values(), *ema.shadow_params, *moments]


def equal(one: State, other: State) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_everything_comes_back(tmp_path: Path) -> None:
    before, after = make_state(0), make_state(1)
    advance(before, 3, seed=0)
    path = save_checkpoint(tmp_path, 3, *before, elapsed_s=12.5)
    assert path.name == "step_00000003.safetensors"
    assert load_checkpoint(path, *after) == (3, 12.5)
    assert equal(before, after) and after[1].optimization_step == 3
    advance(before, 3, seed=1)
    advance(after, 3, seed=1)
    assert equal(before, after)  # also what follows from it
    unused = before[0].unused
    assert unused not in before[2].state and after[0].unused not in after[2].state


def test_a_checkpoint_without_times_counts_from_zero(tmp_path: Path) -> None:
    """What the first version wrote has no elapsed_s."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    state = make_state(0)
    path = save_checkpoint(tmp_path, 7, *state)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"step": "7", "ema_steps": "7"})
    assert load_checkpoint(path, *make_state(1)) == (7, 0.0)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    state = make_state(0)
    (tmp_path / ".step_00000001.safetensors.tmp").write_bytes(b"half")  # of a killed run
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, *state, keep_last=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00000002.safetensors", "step_00000010.safetensors"]


def test_every_so_many_steps_one_stays(tmp_path: Path) -> None:
    state = make_state(0)
    for step in range(1, 8):
        save_checkpoint(tmp_path, step, *state, keep_last=1, keep_every=3)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [3, 6, 7]


def test_what_one_process_cannot_write_is_no_checkpoint(tmp_path: Path) -> None:
    state = make_state(0)
    old = save_checkpoint(tmp_path, 1, *state)
    with pytest.raises(ValueError, match="another process said why"):
        save_checkpoint(tmp_path, 2, *state, keep_last=1, all_agree=lambda agrees: False)
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_damaged_newest_one_is_put_aside(tmp_path: Path, size: int) -> None:
    state = make_state(0)
    old, new = (save_checkpoint(tmp_path, step, *state) for step in (1, 2))
    (tmp_path / ".step_00000003.safetensors.tmp").write_bytes(b"half")
    new.write_bytes(new.read_bytes()[:size])
    assert latest_checkpoint(tmp_path) == (old, [tmp_path / f"{new.name}.damaged"])
    assert latest_checkpoint(tmp_path) == (old, [])  # said once
    old.write_bytes(b"")
    assert latest_checkpoint(tmp_path)[0] is None


def test_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) == (None, [])
    assert latest_checkpoint(tmp_path / "gone") == (None, [])


def test_of_another_model(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *make_state(0))
    with pytest.raises(ValueError, match=r"of another model: it differs in 0\.bias"):
        load_checkpoint(path, *make_state(0, width=4))
    model, ema, optimizer = make_state(0)
    model.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="of another model"):
        load_checkpoint(path, model, ema, optimizer)
