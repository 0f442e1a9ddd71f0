"""Clips that cannot be read: counted, named in a file, and a stop where they are too many."""

import re
from pathlib import Path


class BadClips:
    """Bad ones of `num_clips`, a line each in `path`, also of other processes of the run.

    A line is `name: reason`. Raises ValueError, once there are more than `max_share` of all.
    """

    def __init__(self, path: Path, num_clips: int, max_share: float) -> None:
        self.path, self.num_clips, self.max_share = path, num_clips, max_share

    def start(self, lines: list[str]) -> None:
        """Forget what an earlier start of the run found: files may have been repaired since."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.add(lines)

    def add(self, lines: list[str]) -> None:
        """Those that are not there yet."""
        known = self._lines()
        new: dict[str, str] = {}
        for line in lines:
            if _name(line) not in known:
                new.setdefault(_name(line), line)
        if new:
            with self.path.open("a") as file:
                file.write("".join(f"{line}\n" for line in new.values()))
            known |= new
        if len(known) > self.max_share * self.num_clips:
            first = next(iter(known.values()))
            raise ValueError(
                f"{len(known)} of {self.num_clips} files cannot be read, above --max-bad-fraction "
                f"{self.max_share:g}; listed in {self.path}, the first: {first}"
            )

    def _lines(self) -> dict[str, str]:
        """Name -> line."""
        if not self.path.exists():
            return {}
        return {_name(line): line for line in self.path.read_text().splitlines()}


def _name(line: str) -> str:
    """What is before the reason: up to the first ending of a file, as names may have colons."""
    found = re.match(r".*?\.\w+(?=: )", line)
    return found[0] if found else line.partition(": ")[0]
