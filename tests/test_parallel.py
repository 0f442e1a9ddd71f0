"""Several processes are one: DDP, FSDP2, several machines; checkpoints go from any to any number.

One launch runs all that needs two processes: `accelerate launch` on two "machines", which are this
one, with gloo.
"""

import json
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_train
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file
from test_training import config_of, write_data

from regen.data.clips import prepare_clips
from regen.loading import load_model
from regen.training.checkpoint import latest_checkpoint
from regen.training.config import TrainConfig, check_run_config
from regen.training.embedder import train

pytestmark = pytest.mark.usefixtures("small_runs")
NUM_STEPS = 4


def launch_two(commands: list[list[str]], folder: Path) -> list[str]:
    """`accelerate launch` on machines 0 and 1 of 2, one process each; what each printed."""
    path = folder / "commands.txt"
    path.write_text("\n".join(shlex.join(command) for command in commands) + "\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank in (0, 1):
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        launch += ["--num_machines", "2", "--machine_rank", str(rank), "--mixed_precision", "no"]
        launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        launch += ["--dynamo_backend", "no", small_train.__file__, "all", str(path)]
        log = (folder / f"machine{rank}.log").open("w+")
        process = subprocess.Popen([sys.executable, *launch], stdout=log, stderr=log)
        machines.append((process, log))
    try:
        statuses = [process.wait(600) for process, _ in machines]
    finally:
        for process, _ in machines:
            process.terminate()  # the launcher ends its own
    logs = []
    for _, log in machines:
        log.seek(0)
        logs.append(log.read())
        log.close()
    assert statuses == [0, 0], "\n".join(logs)
    return logs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same run by one process, two with DDP, two with FSDP2; and on from one to two.

    And a model of moving content, which trains from a store of chunks, and the baseline, with its
    discriminator, each by one and by two with DDP.
    """
    folder = tmp_path_factory.mktemp("parallel")
    write_data(folder / "data")
    prepare_clips([folder / "data"], folder / "cache")

    def config(name: str, **options) -> TrainConfig:
        options = {"steps": NUM_STEPS, "validate_every": 2, "keep_last": 9} | options
        return config_of(folder / "data", folder / name, **options)

    moving = {"preset": "natural_test", "chunks": 5, "optimizer": "muon"}
    made = SimpleNamespace(
        one=config("one", gradient_accumulation_steps=2),
        ddp=config("ddp"),
        sharded=config("sharded", shard=True),
        resumed=config("resumed", shard=True, gradient_checkpointing=True),
        one_bf16=config("one_bf16", gradient_accumulation_steps=2, mixed_precision="bf16"),
        sharded_bf16=config("sharded_bf16", shard=True, mixed_precision="bf16"),
        moving=config("moving", **moving, gradient_accumulation_steps=2),
        moving_ddp=config("moving_ddp", **moving),
        baseline=config("baseline", preset="magvit_test", gradient_accumulation_steps=2),
        baseline_ddp=config("baseline_ddp", preset="magvit_test"),
    )
    with pytest.MonkeyPatch.context() as patch:
        small_train.make_small(patch)
        for one in (made.one, made.one_bf16, made.moving, made.baseline):
            train(one)
            AcceleratorState._reset_state(reset_partial_state=True)
    shutil.copytree(made.one.output, made.resumed.output)
    for path in (made.resumed.output / "checkpoints").glob("*4.safetensors"):
        path.unlink()
    shutil.rmtree(made.resumed.output / "model")
    pairs = (made.ddp, made.sharded, made.resumed, made.sharded_bf16)
    pairs += (made.moving_ddp, made.baseline_ddp)
    launch_two([small_train.arguments_of(one) for one in pairs], folder)
    return made


def losses(config: TrainConfig) -> torch.Tensor:
    lines = (config.output / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(1, NUM_STEPS + 1))
    return torch.tensor([record["loss"] for record in records])


def state(config: TrainConfig, step: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole."""
    folder = config.output / "checkpoints"
    if not (folder / f"step_{step:08d}").is_dir():
        return load_file(folder / f"step_{step:08d}.safetensors")
    whole: dict[str, torch.Tensor] = {}
    for path in sorted((folder / f"step_{step:08d}").iterdir()):
        with safe_open(path, framework="pt") as file:
            places = json.loads(file.metadata()["places"])
            for name in file.keys():  # noqa: SIM118
                piece = file.get_tensor(name)
                if name not in places:
                    whole[name] = piece
                    continue
                begin = places[name]["offset"][0]
                shape = places[name]["shape"]
                tensor = whole.setdefault(name, torch.full(shape, float("nan")))
                tensor[begin : begin + len(piece)] = piece
    return whole


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Within 1e-5 (measured: 0.0, as a sum of two terms has one order)."""
    assert one.keys() == other.keys()
    assert furthest(one, other) < 1e-5  # no NaN either: a piece that is missing is one


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("kind", ["ddp", "sharded", "resumed"])
def test_two_processes_are_one_of_two_batches(runs: SimpleNamespace, kind: str) -> None:
    """Losses, weights, averages, moments, what was measured, and the model."""
    other = getattr(runs, kind)
    assert torch.allclose(losses(runs.one), losses(other), rtol=1e-5, atol=0)
    assert_close(state(runs.one), state(other))
    assert furthest(state(runs.one), state(other, step=2)) > 1e-3  # that is what a step changes
    for config in (runs.one, other):
        records = (config.output / "validation.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in records] == [2, 4]
    one_psnr, other_psnr = (
        json.loads((config.output / "validation.jsonl").read_text().splitlines()[-1])
        for config in (runs.one, other)
    )
    assert one_psnr["validation/psnr"] == pytest.approx(other_psnr["validation/psnr"], abs=1e-3)
    one_model, other_model = (load_model(str(c.output / "model")) for c in (runs.one, other))
    for (name, tensor), again in zip(
        one_model.state_dict().items(), other_model.state_dict().values(), strict=True
    ):
        assert torch.allclose(tensor, again, rtol=2**-7, atol=1e-4), name  # rounded to bfloat16


def test_a_sharded_checkpoint_goes_on_in_one_process(runs: SimpleNamespace, tmp_path: Path) -> None:
    output = shutil.copytree(runs.sharded.output, tmp_path / "run")
    shutil.rmtree(output / "checkpoints" / "step_00000004")
    alone = replace(runs.sharded, output=output, shard=False, gradient_accumulation_steps=2)
    train(alone)
    assert torch.allclose(losses(runs.one), losses(alone), rtol=1e-5, atol=0)
    assert_close(state(runs.one), state(alone))


def test_each_process_writes_its_part(runs: SimpleNamespace) -> None:
    folder = runs.sharded.output / "checkpoints" / "step_00000004"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == {"rank_00000.safetensors", "rank_00001.safetensors"}
    whole = (runs.ddp.output / "checkpoints" / "step_00000004.safetensors").stat().st_size
    assert all(0.35 * whole < size < 0.7 * whole for size in sizes.values()), (sizes, whole)
    assert not list(folder.parent.glob(".*"))


def test_a_part_that_is_missing_or_cut_short_is_damage(
    runs: SimpleNamespace, tmp_path: Path
) -> None:
    for harm in (lambda path: path.unlink(), lambda path: path.write_bytes(b"short")):
        folder = tmp_path / "checkpoints"
        shutil.copytree(runs.sharded.output / "checkpoints", folder)
        harm(folder / "step_00000004" / "rank_00001.safetensors")
        damaged = [folder / "step_00000004.damaged"]
        assert latest_checkpoint(folder) == (folder / "step_00000002", damaged)
        assert latest_checkpoint(folder) == (folder / "step_00000002", [])
        shutil.rmtree(folder)


def test_bfloat16_sharded(runs: SimpleNamespace) -> None:
    """Blocks are gathered in bfloat16: as near as that type is (8 bits; measured: 2e-7)."""
    one, other = losses(runs.one_bf16), losses(runs.sharded_bf16)
    assert torch.allclose(one, other, rtol=1e-3, atol=0)
    assert furthest(state(runs.one_bf16), state(runs.sharded_bf16)) < 1e-3


def test_moving_content_and_its_store(runs: SimpleNamespace) -> None:
    """Both processes start from one linear codec and read the chunks that one of them made."""
    assert torch.allclose(losses(runs.moving), losses(runs.moving_ddp), rtol=1e-4, atol=0)
    assert furthest(state(runs.moving), state(runs.moving_ddp)) < 1e-3
    assert furthest(state(runs.moving, step=2), state(runs.moving)) > 1e-2
    for name in ("frames", "motion", "to_first"):
        one, other = (
            (config.output / "chunks" / "ratio_8" / f"{name}.bin").read_bytes()
            for config in (runs.moving, runs.moving_ddp)
        )
        assert one == other and any(one)


def test_the_baseline_and_its_discriminator(runs: SimpleNamespace) -> None:
    """All but LeCAM's running means, which are of the main process' batches."""
    assert torch.allclose(losses(runs.baseline), losses(runs.baseline_ddp), rtol=1e-5, atol=0)
    one, other = state(runs.baseline), state(runs.baseline_ddp)
    for name in ("discriminator.model.real_logit", "discriminator.model.fake_logit"):
        assert one.pop(name) != 0 and other.pop(name) != 0
    assert any(name.startswith("discriminator.optimizer.exp_avg.") for name in one)
    assert_close(one, other)
    assert furthest(state(runs.baseline, step=2), state(runs.baseline)) > 1e-3


def test_another_number_of_batches_does_not_go_on(runs: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="2 batches per iteration, now it is 1"):
        train(replace(runs.one, gradient_accumulation_steps=1))
    path = runs.ddp.output / "config.json"
    check_run_config(path, runs.ddp, num_processes=2)
    with pytest.raises(ValueError, match="now it is 6: processes x --gradient-accumulation-steps"):
        check_run_config(path, replace(runs.ddp, gradient_accumulation_steps=3), num_processes=2)


def test_launches_that_cannot_work(runs: SimpleNamespace, tmp_path: Path, monkeypatch) -> None:
    config = replace(runs.one, output=tmp_path / "run")
    with pytest.raises(ValueError, match="--shard takes several processes"):
        train(replace(config, shard=True))
    with pytest.raises(ValueError, match="with --shard, --compile-blocks"):
        train(replace(config, shard=True, compile=True))


def test_gradient_checkpointing_changes_nothing(runs: SimpleNamespace, tmp_path: Path) -> None:
    """Bit for bit: the same numbers are computed, some twice."""
    config = replace(runs.one, output=tmp_path / "run", gradient_checkpointing=True)
    train(config)
    assert torch.equal(losses(config), losses(runs.one))
    one, other = state(config), state(runs.one)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_blocks_are_compiled(runs: SimpleNamespace, tmp_path: Path, monkeypatch) -> None:
    """Only that they are: compiling takes a minute here."""
    from regen.model.dit import DiTBlock

    compiled = []
    monkeypatch.setattr(DiTBlock, "compile", lambda self, **options: compiled.append(options))
    train(replace(runs.one, output=tmp_path / "run", steps=1, compile_blocks=True))
    assert compiled == [{"dynamic": False}] * small_train.TEST_PRESET["num_layers"]
