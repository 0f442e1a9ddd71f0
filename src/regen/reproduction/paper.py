"""What the paper reports (arXiv:2503.08665), and tables as Markdown and JSON to put ours beside it.

Numbers are PSNR in dB, SSIM, rFVD.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from regen.files import write_json, write_text

MISSING = "-"
Numbers = tuple[float, float, float]

ByMethod = dict[str, dict[str, Numbers]]  # method -> set -> numbers

# Tab. 1: side in pixels -> ratio -> method. MAGVIT-v2 of 32x has none at 512.
TABLE_1: dict[int, dict[int, ByMethod]] = {
    256: {
        8: {
            "MAGVIT-v2": {"MCL-JCV": (26.61, 0.718, 105.72), "DAVIS": (22.82, 0.602, 183.52)},
            "REGEN": {"MCL-JCV": (28.82, 0.785, 85.37), "DAVIS": (26.00, 0.711, 152.46)},
        },
        16: {
            "MAGVIT-v2": {"MCL-JCV": (25.06, 0.672, 205.75), "DAVIS": (20.62, 0.527, 441.24)},
            "REGEN": {"MCL-JCV": (27.27, 0.736, 174.29), "DAVIS": (23.85, 0.635, 328.83)},
        },
        32: {
            "MAGVIT-v2": {"MCL-JCV": (22.97, 0.573, 536.01), "DAVIS": (18.23, 0.419, 1080.15)},
            "REGEN": {"MCL-JCV": (26.05, 0.695, 265.96), "DAVIS": (22.20, 0.575, 488.89)},
        },
    },
    512: {
        8: {
            "MAGVIT-v2": {"MCL-JCV": (29.14, 0.771, 72.07), "DAVIS": (24.75, 0.660, 125.03)},
            "REGEN": {"MCL-JCV": (32.74, 0.846, 29.88), "DAVIS": (29.34, 0.778, 89.98)},
        },
        16: {
            "MAGVIT-v2": {"MCL-JCV": (26.62, 0.717, 185.69), "DAVIS": (21.21, 0.572, 417.43)},
            "REGEN": {"MCL-JCV": (30.41, 0.798, 92.48), "DAVIS": (26.27, 0.699, 235.13)},
        },
        32: {"REGEN": {"MCL-JCV": (28.71, 0.758, 224.56), "DAVIS": (23.49, 0.625, 522.20)}},
    },
}

# Tab. 2, 8 x 8 x 4. The text of the paper does not give the size; a summary of it says 512 x 512.
TABLE_2: ByMethod = {
    "OmniTokenizer": {"MCL-JCV": (24.63, 0.710, 93.35), "DAVIS": (23.39, 0.628, 152.01)},
    "WF-VAE": {"MCL-JCV": (31.00, 0.804, 55.01), "DAVIS": (27.95, 0.737, 107.67)},
    "VidTok": {"MCL-JCV": (32.06, 0.836, 38.85), "DAVIS": (28.67, 0.760, 67.24)},
    "MAGVIT-v2": {"MCL-JCV": (31.49, 0.829, 28.63), "DAVIS": (28.16, 0.758, 56.46)},
    "REGEN": {"MCL-JCV": (32.94, 0.857, 22.40), "DAVIS": (30.25, 0.801, 48.38)},
}

# Tab. 3: conditioning -> at the training size (192 x 320), at twice that (384 x 640).
TABLE_3: dict[str, tuple[Numbers, Numbers]] = {
    "in-context, fixed PE": ((25.71, 0.709, 135.89), (23.39, 0.587, 441.98)),
    "content-aware PE": ((26.04, 0.720, 128.80), (29.41, 0.785, 57.01)),
}

# Tab. 4: ms to decode at 256 x 256 on an A100, one step: ratio -> (MAGVIT-v2, REGEN).
TABLE_4: dict[int, tuple[float, float]] = {
    4: (88, 89),
    8: (317, 159),
    16: (343, 295),
    32: (153, 548),
}

# Tab. 5 is of DAVIS at 256 x 256; its numbers of MAGVIT-v2 and REGEN are those of Tab. 1.
WIDE = {16: (20.83, 0.508, 486.48), 32: (18.98, 0.437, 1020.80)}
TABLE_5: dict[int, ByMethod] = {
    ratio: {
        "MAGVIT-v2": {"DAVIS": TABLE_1[256][ratio]["MAGVIT-v2"]["DAVIS"]},
        "MAGVIT-v2, wide": {"DAVIS": wide},
        "REGEN": {"DAVIS": TABLE_1[256][ratio]["REGEN"]["DAVIS"]},
    }
    for ratio, wide in WIDE.items()
}

# Experiment -> side in pixels -> ratio -> method -> set -> numbers
PUBLISHED: dict[str, dict[int, dict[int, ByMethod]]] = {
    "table1": TABLE_1,
    "table2": {512: {4: TABLE_2}},
    "table5": {256: TABLE_5},
}


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
        write_text(folder / f"{name}.md", self.markdown())
        write_json(folder / f"{name}.json", asdict(self))


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and of several seeds the range; `MISSING` where one is not defined."""
    if any(math.isnan(value) for value in values):
        return MISSING
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
