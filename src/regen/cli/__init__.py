"""The command line, one module a command: reads options, calls the public functions, prints.

No logic of its own. torch is imported only when a command runs, so that `--help` is quick.
"""

import io
import os
import signal
import sys
import warnings
from typing import Annotated, Any

import tyro

from regen.cli.cache import Cache
from regen.cli.decode import Decode
from regen.cli.encode import Encode
from regen.cli.evaluate import Evaluate
from regen.cli.generate import Generate
from regen.cli.info import Info
from regen.cli.plan import Plan
from regen.cli.reconstruct import Reconstruct
from regen.cli.reproduce import Reproduce
from regen.cli.shard import Shard
from regen.cli.stats import Stats
from regen.cli.train import Train, defaults_of, run_stages
from regen.cli.train_generator import TrainGenerator
from regen.cli.world import World
from regen.training.config import RENAMED

Command = (
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[TrainGenerator, tyro.conf.subcommand("train-generator")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Shard, tyro.conf.subcommand("shard")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[World, tyro.conf.subcommand("world")]
    | Annotated[Cache, tyro.conf.subcommand("cache")]
    | Annotated[Stats, tyro.conf.subcommand("stats")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)


DESCRIPTION = """REGEN video embedder: compress videos to compact latents, re-generate them.

Start with: regen reconstruct clip.mp4 again.mp4 --compare

Each command explains itself: regen reconstruct --help
"""


def main() -> None:
    """Entry point of `regen`. Bad input: one line on standard error, exit status 1; Ctrl-C: 130."""
    warnings.filterwarnings("ignore", category=UserWarning)
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup has the terminal's end ignored
        signal.signal(signal.SIGHUP, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _rename_options()
        command = parse()
        if isinstance(command, Train) and command.recipe is not None:
            defaults = defaults_of(command.recipe)
            run_stages({name: parse(default) for name, default in defaults.items()})
        else:
            command.run()
    except BrokenPipeError:  # who reads what we write has ended; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _fail(1, "standard output was closed")
    except (ValueError, OSError) as error:
        _fail(1, str(error))
    except ImportError as error:
        if error.name != "transformers":  # an extra that is not installed
            raise
        _fail(1, str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        _fail(1, f"out of memory ({error}); try a smaller picture: --short-side")
    except Terminated as error:
        _fail(128 + error.number, "terminated")
    except KeyboardInterrupt:
        _fail(130, "interrupted")


class Terminated(KeyboardInterrupt):
    """SIGTERM, SIGHUP: end a command as Ctrl-C does, so that nothing half-written stays."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _rename_options() -> None:
    """Old names of options become the new ones, and a line says so."""
    renamed = {f"--{old}": f"--{new}" for old, new in RENAMED.items()}
    renamed = {old.replace("_", "-"): new.replace("_", "-") for old, new in renamed.items()}
    for index, word in enumerate(sys.argv):
        option, equals, value = word.partition("=")
        if option in renamed:
            print(f"regen: {option} is now {renamed[option]}", file=sys.stderr)
            sys.argv[index] = f"{renamed[option]}{equals}{value}"


def _terminate(number: int, _: object) -> None:
    for one in (signal.SIGTERM, signal.SIGHUP):  # another one does not disturb the clearing up
        signal.signal(one, signal.SIG_IGN)
    raise Terminated(number)


def parse(default: Any = tyro.MISSING) -> Any:
    """The command of the line; `default`: one whose options stand where the line has none."""
    return tyro.cli(
        Command,
        prog="regen",
        description=DESCRIPTION,
        default=default,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _fail(status: int, message: str) -> None:
    print(f"regen: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
