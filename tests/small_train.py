"""`regen train` of a very small model (`--preset test`), for tests that launch it or kill it.

python tests/small_train.py train ARGUMENTS, or: python tests/small_train.py serve, or: python
tests/small_train.py all FILE
"""

import os
import shlex
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import SMALL

from regen.cli import main
from regen.model.presets import MAGVIT_PRESETS, PRESETS, magvit_small_8x, small_8x
from regen.t2v.presets import GENERATOR_PRESETS
from regen.training import checkpoint, embedder, loop, start
from regen.training.config import RunConfig, run_options

# The paper's method with 60,000 parameters: what is tested is the loop around them. A model of
# moving content, which trains from a store of chunks, is the preset `natural_test`.
TEST_PRESET = {
    **small_8x(),
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "encoder_block_out_channels": (8, 8, 8, 8),
    "siren_width": 8,
}

# The same of the baseline, as the preset `magvit_test`.
MAGVIT_TEST_PRESET = {
    **magvit_small_8x(),
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (16,) * 4,
}

# The same of the text-to-video transformer, also as the preset `test`.
SMALL_TRANSFORMER = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": (2, 2, 6, 6),
    "rope_theta": 100.0,
}


def arguments_of(config: RunConfig, command: str = "train") -> list[str]:
    """The command line of `config`."""
    defaults = {field.name: field.default for field in fields(config)}
    words = [command]
    for name, value in run_options(config).items():
        option = f"--{name.replace('_', '-')}"
        if name == "batches_per_step" or value in (None, []):
            continue
        if isinstance(value, bool):
            if value != defaults[name]:  # a flag: it has no other form than the one that changes
                words += [option if value else option.replace("--", "--no-", 1)]
        else:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    return words


def make_small(patch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    patch.setitem(PRESETS, "test", lambda: dict(TEST_PRESET))
    patch.setitem(PRESETS, "natural_test", lambda: dict(SMALL))
    patch.setitem(MAGVIT_PRESETS, "magvit_test", lambda: dict(MAGVIT_TEST_PRESET))
    patch.setitem(GENERATOR_PRESETS, "test", lambda: dict(SMALL_TRANSFORMER))
    patch.setattr(start, "NUM_LINEAR_BATCHES", 4)
    patch.setattr(embedder, "SHORT_RATIO", 4)
    patch.setattr(loop, "LOG_EVERY", 1)


def save_slowly() -> None:
    """Checkpoints that stand half written on the disk for a while."""
    save_file = checkpoint.save_file

    def slow(tensors: dict, path: Path, metadata: dict) -> None:
        save_file(tensors, path, metadata=metadata)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        time.sleep(0.3)
        path.write_bytes(content)

    checkpoint.save_file = slow


def serve() -> None:
    """For each line of arguments fork a process that runs them; prints its pid, then its status.

    So that a test can start and kill many: the imports take longer than the runs.
    """
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            sys.argv = ["regen", *shlex.split(line)]
            save_slowly()
            main()
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run_all(path: Path) -> None:
    """Run the command of each line of a file, in one group of processes."""
    destroy = PartialState.destroy_process_group
    PartialState.destroy_process_group = lambda self, group=None: None
    for line in path.read_text().splitlines():
        sys.argv = ["regen", *shlex.split(line)]
        main()
        AcceleratorState._reset_state()
    # As a run alone does at its end: threads of a group that is left can abort the exit.
    destroy(PartialState())


if __name__ == "__main__":
    make_small(pytest.MonkeyPatch())
    if sys.argv[1] == "all":
        run_all(Path(sys.argv[2]))
    elif sys.argv[1] == "serve":
        serve()
    else:
        main()
