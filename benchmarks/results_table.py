"""Per-clip table of docs/results.md from the `results.json` of `regen evaluate`.

    python benchmarks/results_table.py runs/evaluation/results.json "tiny-8x8x8, 1 step" ... \
        --linear linear.txt

A PSNR and an SSIM column for each named row; `--linear` is what the linear codec's script printed
(a clip and its PSNR a line), for a first column. Then each row's PSNR by position.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--linear", type=Path)
    options = parser.parse_args()
    found = {row["name"]: row for row in json.loads(options.results.read_text())["rows"]}
    for name in options.rows:
        if name not in found:
            parser.error(f"no row {name!r} in {options.results}: it has {', '.join(found)}")
    rows = [found[name] for name in options.rows]
    linear = {}
    if options.linear:
        pairs = [line.split()[:2] for line in options.linear.read_text().splitlines()]
        linear = {Path(clip).stem: float(value) for clip, value in pairs}
    heads = ["linear codec, PSNR"] * bool(linear)
    heads += [f"{what}{row['name']}" for row in rows for what in ("PSNR, ", "SSIM, ")]
    print("| clip |" + "".join(f" {head} |" for head in heads))
    print("| --- |" + " --- |" * len(heads))
    names = [Path(clip["id"]).stem for clip in rows[0]["clips"]]
    columns: list[list[str]] = [[f"{linear[name]:.2f}" for name in names]] if linear else []
    means = [f"{sum(linear[name] for name in names) / len(names):.2f}"] if linear else []
    for row in rows:
        for key, form in (("psnr", ".2f"), ("ssim", ".4f")):
            values = [clip[key] for clip in row["clips"]]
            columns.append([format(value, form) for value in values])
            means.append(format(sum(values) / len(values), form))
    for name, *cells in zip(names, *columns, strict=True):
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"| **mean of {len(names)}** | " + " | ".join(f"**{mean}**" for mean in means) + " |")
    for row in rows:
        for name, measured in row["sets"].items():
            places = ", ".join(f"{value:.2f}" for value in measured["psnr_by_position"])
            print(f"\n{row['name']} on {name}, PSNR by position in the chunk: {places}.")


if __name__ == "__main__":
    main()
