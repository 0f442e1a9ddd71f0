"""Tables as Markdown and JSON: ours beside the paper's, with what makes them comparable."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

MISSING = "-"


@dataclass
class Table:
    """`notes` stand below the rows."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [f"# {self.title}", "", "| " + " | ".join(self.columns) + " |"]
        lines.append("| --- " * len(self.columns) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path, name: str) -> None:
        """`name`.md and `name`.json, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (folder / f"{name}.md", self.markdown()),
            (folder / f"{name}.json", json.dumps(asdict(self), indent=1) + "\n"),
        ):
            temporary = path.with_suffix(f"{path.suffix}.tmp")
            temporary.write_text(text)
            temporary.replace(path)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and of several seeds the range."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def paper_cell(numbers: Sequence[float] | None) -> str:
    """PSNR / SSIM / rFVD."""
    if numbers is None:
        return MISSING
    psnr, ssim, rfvd = numbers
    return f"{psnr:.2f} / {ssim:.3f} / {rfvd:.2f}"
