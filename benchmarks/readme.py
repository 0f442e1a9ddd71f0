"""Runs the commands of README.md that an output follows, and writes their outputs there.

For new weights, or a change of what commands print. They run in an empty folder with a copy of
assets; with several commands in a block, each output has its command in front.

    python benchmarks/readme.py [--threads N]
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Block:
    """A fenced block: `text` stands at [start, end) of the file, without its fences."""

    language: str
    text: str
    start: int
    end: int
    follows: "Block | None"  # the block before, where nothing stands between

    def commands(self) -> list[str]:
        """One a line; lines that end in a backslash go on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    def is_output(self) -> bool:
        """Whether it shows what the commands of the block before printed."""
        return self.language == "text" and self.follows is not None


def blocks(page: str) -> list[Block]:
    found: list[Block] = []
    last_end = 0
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        follows = found[-1] if found and not page[last_end : match.start()].strip() else None
        found.append(Block(match[1], match[2], match.start(2), match.end(2), follows))
        last_end = match.end()
    return found


def run(command: str, folder: Path, threads: int) -> str:
    """Standard output of `regen ...`, run in `folder` with the code of this checkout."""
    program, *arguments = shlex.split(command)
    if program != "regen":
        raise ValueError(f"only regen's outputs are shown, got: {command}")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": str(threads),
    }
    done = subprocess.run(
        [sys.executable, "-m", "regen", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    path = ROOT / "README.md"
    page = path.read_text()
    outputs: list[tuple[Block, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "assets", Path(folder) / "assets")
        for block in blocks(page):
            if block.is_output() and block.follows is not None:
                before = block.follows.follows  # what makes the files that are shown
                for command in before.commands() if before and not before.is_output() else []:
                    print(command, flush=True)
                    run(command, Path(folder), options.threads)
                commands = block.follows.commands()
                shown = []
                for command in commands:
                    print(command, flush=True)
                    output = run(command, Path(folder), options.threads)
                    shown.append(f"$ {command}\n{output}" if len(commands) > 1 else output)
                outputs.append((block, "\n".join(shown)))
    for block, text in reversed(outputs):
        page = page[: block.start] + text + page[block.end :]
    path.write_text(page)


if __name__ == "__main__":
    main()
