"""Tables of docs/results.md from the `results.json` of one or more runs of `regen evaluate`.

    python benchmarks/results_table.py runs/*/results.json
    python benchmarks/results_table.py runs/evaluation/results.json --clips psnr ssim

Without --clips a line for each system and file: the means, and how the hues were rotated. With it a
line for each clip, of these numbers.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from regen.evaluation.protocols import METRICS
from regen.evaluation.report import DIGITS

SHOWN = ("psnr", "ssim", "lpips_alex", "lpips_vgg", "rfvd", "seam_ratio", "seam_ratio_source")


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def cell(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return "" if value is None else f"{value:.{DIGITS[name]}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--clips", nargs="+", choices=SHOWN)
    options = parser.parse_args()
    rows: list[list[str]] = []
    columns: dict[str, list[str]] = {}
    for path in options.results:
        results = json.loads(path.read_text())
        protocol = results["protocol"]
        for row in results["rows"]:
            for name in options.clips or ():
                title = f"{row['name']}: {METRICS[name][0]}"
                columns[title] = [cell(clip, name) for clip in row["clips"]]
            columns = {"clip": [Path(clip["id"]).stem for clip in row["clips"]]} | columns
            for values in row["sets"].values():
                hue = protocol["hue_rotation"].split()[0]
                cells = [cell(values["mean"], name) for name in SHOWN]
                rows.append([row["name"], str(protocol["num_frames"]), hue, *cells])
    if options.clips:
        print(table(list(columns), [list(one) for one in zip(*columns.values(), strict=True)]))
    else:
        print(table(["system", "frames", "hue", *(METRICS[name][0] for name in SHOWN)], rows))


if __name__ == "__main__":
    main()
