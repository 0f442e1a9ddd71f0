"""results.json -> report.html: one file, nothing beside it, nothing from the network.

Tables by set and by clip, plots as inline SVG, the worst clips of each row with their pictures and
time slices, and the record by which all was measured.
"""

import base64
import json
import math
import re
from html import escape
from pathlib import Path
from typing import Any

from regen.evaluation.plots import Series, plot
from regen.evaluation.protocols import METRICS, NETWORK_METRICS, absent_line
from regen.files import write_text

NUM_WORST = 3
DIGITS = {
    "psnr": 2, "psnr_pooled": 2, "ssim": 4, "ssim_gaussian": 4, "lpips_alex": 4,
    "lpips_vgg": 4, "rfvd": 2,
    "flicker": 2, "colour_error": 2, "seam_ratio": 2, "seam_ratio_source": 2,
}  # fmt: skip

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
  color: #222; background: #fff }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2em; border-bottom: 1px solid #ccc }
.clip { display: flex; flex-wrap: wrap; gap: 1em }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #e4e4e4 }
th { border-bottom: 1px solid #888; vertical-align: bottom } th:first-child, td:first-child
  { text-align: left } .wide { overflow-x: auto } .spread { color: #777 }
figure { margin: 1em 0 } figcaption { color: #555; font-size: 13px } img { max-width: 100% }
.plots { display: flex; flex-wrap: wrap; gap: 1em } svg { max-width: 100%; height: auto }
pre { background: #f5f5f5; padding: .7em; overflow-x: auto; font-size: 12px }
"""


def write_report(results: dict[str, Any], output: Path) -> Path:
    """`output`/report.html of what `evaluate` returned; the pictures lie below `output`."""
    rows, protocol = results["rows"], results["protocol"]
    title = "Evaluation on " + ", ".join(protocol["sets"])
    parts = [
        f"<h1>{escape(title)}</h1>",
        _protocol(protocol),
        *(_set_table(rows, name, note) for name, note in protocol["sets"].items()),
        _legend(rows),
        _cost_table(rows),
        _plots(rows),
        *(_worst(row, output) for row in rows),
        _clip_table(rows),
        _record(rows, protocol),
    ]
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    page = f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"
    write_text(output / "report.html", page)
    return output / "report.html"


# -- tables ---------------------------------------------------------------------------------------


def _protocol(protocol: dict[str, Any]) -> str:
    size, frames = protocol["size"], protocol["num_frames"]
    lines = [
        f"{len(protocol['clips'])} clips; size {size}, {protocol['crop']}, filter: "
        f"{protocol['filter']}; frames of a clip: {frames}.",
        f"{protocol['values']}. Means: {protocol['means']}.",
        *(
            f"{about['metric']}: {about['file']}, SHA-256 {about['sha256'][:16]}…"
            for name in NETWORK_METRICS
            if (about := protocol[name])
        ),
    ]
    if line := absent_line(protocol):
        lines.append(": ".join(line))
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _set_table(rows: list[dict[str, Any]], name: str, note: dict[str, Any]) -> str:
    shown = [one for one in METRICS if any(one in row["sets"][name]["mean"] for row in rows)]
    about = f"{note['num_clips']} clips" + (f"; {note['part']}" if "part" in note else "")
    seams = {row["sets"][name].get("seam_clips") for row in rows} - {None, 0}
    if seams - {note["num_clips"]}:
        counts = ", ".join(map(str, sorted(seams)))
        about += f"; seam ratios of the {counts} that move and have a seam"
    samples = {row["sets"][name].get("rfvd_samples") for row in rows} - {None}
    if samples:
        about += f"; rFVD of {', '.join(map(str, sorted(samples)))} pieces"
    head = ["system", *(METRICS[one][0] for one in shown)]
    body = []
    for row in rows:
        summary = row["sets"][name]
        cells = [escape(row["name"])]
        for one in shown:
            spread = summary["spread"].get(one)
            text = _number(summary["mean"].get(one), DIGITS[one])
            if spread is not None:
                text += f" <span class='spread'>± {spread:.{DIGITS[one]}f}</span>"
            cells.append(text)
        body.append(cells)
    return f"<h2>{escape(name)}</h2><p>{escape(about)}</p>{_table(head, body)}"


def _legend(rows: list[dict[str, Any]]) -> str:
    items = [f"<li><b>{escape(title)}</b>: {escape(text)}</li>" for title, text in METRICS.values()]
    note = ""
    if any(len(row["seeds"]) > 1 for row in rows):
        note = "<p>± is the standard deviation over the seeds.</p>"
    return (
        f"<details><summary>What the numbers are</summary><ul>{''.join(items)}</ul></details>"
        + note
    )


def _cost_table(rows: list[dict[str, Any]]) -> str:
    head = [
        "system", "nominal", "channels", "frames per latent frame",
        "pixel values per latent value", "compression factor", "bits per pixel",
        "decoder parameters", "decoder GFLOPs a frame", "latency, ms a frame",
        "decoding in this run, ms a frame",
    ]  # fmt: skip
    body = []
    for row in rows:
        known, cost = row["compression"], row["cost"] or {}
        frames = cost.get("frames", 1)
        flops, latency = cost.get("decoder_flops"), cost.get("decoder_latency_s")
        parameters = cost.get("decoder_parameters")
        body.append(
            [
                escape(row["name"]),
                known.get("nominal", ""),
                str(known.get("latent_channels", "")),
                _number(known.get("frames_per_latent_frame"), 2),
                _number(known.get("values_ratio"), 1),
                _number(known.get("factor"), 1),
                _number(known.get("bits_per_pixel"), 4),
                f"{parameters:,}" if parameters else "",
                _number(flops / frames / 1e9 if flops else None, 2),
                _number(1000 * latency / frames if latency else None, 1),
                _number(row["timing"].get("decode_ms_per_frame"), 1),
            ]
        )
    notes = [
        f"{row['name']}: {row['cost']['frames']} frames of {row['cost']['width']} x "
        f"{row['cost']['height']} on {row['machine']['device']} ({row['machine']['cpu']}), "
        f"{row['machine']['threads']} threads"
        for row in rows
        if row["cost"]
    ]
    text = (
        "The compression factor is LTX-Video's, 3 s² k / channels of the nominal ratios; frames "
        "per latent frame and the ratio of values are counted on these clips. FLOPs count a "
        "multiplication and an addition as two. FLOPs and latency are of the decoder alone."
    )
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h2>Compression and cost</h2><p>{text}</p>{_table(head, body)}<ul>{listed}</ul>"


def _clip_table(rows: list[dict[str, Any]]) -> str:
    head = ["clip", "frames"]
    for row in rows:
        head += [f"{escape(row['name'])}: PSNR", "SSIM"]
        head += [METRICS[name][0] for name in _lpips_of(row)]
    body = []
    for index, first in enumerate(rows[0]["clips"]):
        cells = [escape(first["id"]), str(first["size"][0])]
        for row in rows:
            clip = row["clips"][index]
            cells += [_number(clip["psnr"], 2), _number(clip["ssim"], 4)]
            cells += [_number(clip[name], 4) for name in _lpips_of(row)]
        body.append(cells)
    return f"<h2>Clips</h2>{_table(head, body)}"


def _lpips_of(row: dict[str, Any]) -> list[str]:
    return [name for name in ("lpips_alex", "lpips_vgg") if name in row["clips"][0]]


def _record(rows: list[dict[str, Any]], protocol: dict[str, Any]) -> str:
    parts = ["<h2>Record</h2>"]
    for row in rows:
        kept = {
            name: row[name]
            for name in ("about", "seeds", "command", "processes", "machine", "versions")
        }
        parts.append(f"<details><summary>{escape(row['name'])}</summary>{_json(kept)}</details>")
    parts.append(
        f"<details><summary>protocol, SHA-256 of the clips</summary>{_json(protocol)}</details>"
    )
    return "".join(parts)


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=1))}</pre>"


def _table(head: list[str], body: list[list[str]]) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in body)
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<div class='wide'><table><tr>{titles}</tr>{rows}</table></div>"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


# -- plots ----------------------------------------------------------------------------------------


def _plots(rows: list[dict[str, Any]]) -> str:
    name = next(iter(rows[0]["sets"]))  # plots are of the first set
    plots = [
        _compression_plot(rows, name, "values_ratio", "pixel values per latent value"),
        _compression_plot(rows, name, "bits_per_pixel", "bits per pixel"),
        *_step_plots(rows, name),
        _position_plot(rows, name),
    ]
    shown = "".join(plot for plot in plots if plot)
    return f"<h2>Plots, {escape(name)}</h2><div class='plots'>{shown}</div>"


def _compression_plot(rows: list[dict[str, Any]], name: str, measure: str, label: str) -> str:
    points = [
        Series(row["name"], [row["compression"][measure]], [row["sets"][name]["mean"]["psnr"]])
        for row in rows
        if measure in row["compression"]
    ]
    if len({one.x[0] for one in points}) < 2:
        return ""
    return plot(f"PSNR by {label}", label, "PSNR, dB", points)


def _step_plots(rows: list[dict[str, Any]], name: str) -> list[str]:
    """Distortion and realism over the number of steps, of systems that have several."""
    plots = []
    for metric in ("psnr", "ssim", *NETWORK_METRICS):
        series = []
        by_system: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if "steps" in row["about"]:
                about = {name: one for name, one in row["about"].items() if name != "steps"}
                by_system.setdefault(json.dumps(about, sort_keys=True), []).append(row)
        for those in by_system.values():
            system = re.sub(r", \d+ steps?", "", those[0]["name"])
            points = sorted(
                (row["about"]["steps"], row["sets"][name]["mean"][metric])
                for row in those
                if metric in row["sets"][name]["mean"]
            )
            if len(points) > 1:
                series.append(Series(system, [p[0] for p in points], [p[1] for p in points]))
        if series:
            title = METRICS[metric][0]
            plots.append(plot(f"{title} by steps", "steps", title, series))
    return plots


def _position_plot(rows: list[dict[str, Any]], name: str) -> str:
    series = [
        Series(row["name"], list(range(len(values))), values)
        for row in rows
        if len(values := row["sets"][name]["psnr_by_position"]) > 1
    ]
    if not series:
        return ""
    title = "PSNR by position in the chunk, or the clip"
    return plot(title, "frame", "PSNR, dB", series, with_dots=False)


# -- pictures -------------------------------------------------------------------------------------


def _worst(row: dict[str, Any], output: Path) -> str:
    """The clips of lowest PSNR, with their sheets and time slices."""
    worst = sorted(row["clips"], key=lambda clip: clip["psnr"])[:NUM_WORST]
    parts = [f"<h2>Worst clips of {escape(row['name'])}</h2>"]
    for clip in worst:
        folder = output / "rows" / row["folder"] / "pictures"
        sheet, slices = (
            _image(folder / f"{clip['picture']}{ending}") for ending in (".jpg", ".png")
        )
        ratios = [_number(clip[one], 2) for one in ("seam_ratio", "seam_ratio_source")]
        seams = f"; seam ratio {ratios[0]}, of the source {ratios[1]}" if all(ratios) else ""
        parts.append(
            f"<h3>{escape(clip['id'])}: {clip['psnr']:.2f} dB</h3>"
            f"<div class='clip'><figure>{sheet}<figcaption>"
            "First, middle and last frame: source, reconstruction, 4 × error. (JPEG, for this page "
            "alone.)</figcaption></figure>"
            f"<figure>{slices}<figcaption>The middle column in time, source above, reconstruction "
            f"below; marks at the seams of chunks{seams}.</figcaption></figure></div>"
        )
    return "".join(parts)


def _image(path: Path) -> str:
    if not path.is_file():
        return "<p>(its picture is gone)</p>"
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img src='data:image/{kind};base64,{data}' alt=''>"
