"""The tables of the paper and Figure 12, a function each: models, measurements, a table.

A comparison is of equal training time (`regen.reproduction.training`) and, at the small size, of
equal decoding cost, which `check_equal_cost` enforces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from regen.loading import new_model
from regen.reproduction import figures, tables
from regen.reproduction.config import Experiment, ReproduceConfig
from regen.reproduction.cost import PEERS, decode_flops, measure_here
from regen.reproduction.measuring import (
    check_clips,
    draw,
    metric_cells,
    metric_columns,
    notes,
    reconstruct,
    reconstruction,
)
from regen.reproduction.tables import MISSING, Numbers, Table, paper_cell, spread
from regen.reproduction.training import Trained, trained

EQUAL_COST = 1.1  # largest ratio of two small decoders' FLOPs
MOST_ON_CPU = 2e12  # FLOPs of a decoder that table4 times on a CPU; --size paper times all


@dataclass(frozen=True)
class Row:
    """One model of a comparison: `method` for people, `preset` what is trained."""

    method: str
    preset: str


def magvit(config: ReproduceConfig, ratio: int, wide: bool = False) -> Row:
    name = f"magvit_{'small_' * (config.size == 'small')}{ratio}x{'_wide' * wide}"
    return Row(f"MAGVIT-v2{', wide' * wide}", name)


def regen(config: ReproduceConfig, ratio: int) -> Row:
    return Row("REGEN", f"{'small' if config.size == 'small' else 'regen'}_{ratio}x")


def gflops_per_frame(presets: Sequence[str], size: int) -> dict[str, float]:
    counted = {name: decode_flops(name, size) for name in presets}
    return {name: flops / length / 1e9 for name, (flops, length) in counted.items()}


def check_equal_cost(presets: Sequence[str], size: int) -> dict[str, float]:
    """GFLOP to decode a frame of each. ValueError where two small decoders differ in cost."""
    costs = gflops_per_frame(presets, size)
    compared = [cost for name, cost in costs.items() if "small" in name and "wide" not in name]
    if compared and max(compared) > EQUAL_COST * min(compared):
        raise ValueError(f"these decoders do not cost the same, GFLOP a frame: {costs}")
    return costs


def geometry_cells(preset: str) -> list[str]:
    """Frames per latent frame, and pixel values per latent value, of whole chunks."""
    with torch.device("meta"):
        model = new_model(preset)
    frames = model.geometry.chunk_length / model.geometry.latent_frames_per_chunk
    values = 3 * model.spatial_compression_ratio**2 * frames / model.config["latent_channels"]
    return [f"{frames:.4g}", f"{values:.4g}"]


# -- comparisons of trained models ----------------------------------------------------------------


def comparison(
    config: ReproduceConfig,
    title: str,
    groups: dict[int, list[Row]],
    published: Callable[[int, str], list[str]],
    published_columns: list[str],
) -> Table:
    """Rows by nominal ratio; those of one ratio have cost and time in common."""
    columns = ["compression", "method", "preset", "frames per latent frame"]
    columns += ["pixel values per latent value", "decode, GFLOP/frame", "steps", "wall minutes"]
    table = Table(title, [*columns, *metric_columns(), *published_columns])
    every: list[Trained] = []
    costs = {ratio: check_equal_cost([row.preset for row in rows], config.eval_size)
             for ratio, rows in groups.items()}  # fmt: skip
    for ratio, rows in groups.items():
        for row in rows:
            models = [trained(config, row.preset, seed) for seed in config.seeds]
            every += models
            table.rows.append([
                f"8 x 8 x {ratio}",
                row.method,
                row.preset,
                *geometry_cells(row.preset),
                f"{costs[ratio][row.preset]:.3g}",
                spread([one.steps for one in models], 0),
                spread([one.wall_minutes for one in models], 1),
                *metric_cells([reconstruction(config, one) for one in models]),
                *published(ratio, row.method),
            ])  # fmt: skip
    table.notes = notes(config, every)
    return table


SETS = ("MCL-JCV", "DAVIS")


def published_columns(size: int) -> list[str]:
    return [f"paper, {name} at {size}: PSNR / SSIM / rFVD" for name in SETS]


def published_cells(numbers: dict[str, Numbers] | None) -> list[str]:
    return [paper_cell((numbers or {}).get(name)) for name in SETS]


def table1(config: ReproduceConfig) -> Table:
    """High compression: MAGVIT-v2 and REGEN at 8x, 16x, 32x."""
    numbers = tables.TABLE_1.get(config.eval_size)
    table = comparison(
        config,
        "Table 1: high temporal compression",
        {ratio: [magvit(config, ratio), regen(config, ratio)] for ratio in (8, 16, 32)},
        lambda ratio, method: published_cells(numbers[ratio].get(method)) if numbers else [],
        published_columns(config.eval_size) if numbers else [],
    )
    table.notes.append(
        "The paper's two halves are of 256 x 256 and 512 x 512: --eval-size 256 and --eval-size "
        "512, of the same models."
    )
    return table


def table2(config: ReproduceConfig) -> Table:
    """The base compression, 4x."""
    is_its_size = config.eval_size == tables.TABLE_2_SIZE
    table = comparison(
        config,
        "Table 2: base temporal compression",
        {4: [magvit(config, 4), regen(config, 4)]},
        lambda _, method: published_cells(tables.TABLE_2.get(method)) if is_its_size else [],
        published_columns(config.eval_size) if is_its_size else [],
    )
    for method, numbers in tables.TABLE_2.items() if is_its_size else ():
        if method not in ("MAGVIT-v2", "REGEN"):
            blank = [MISSING] * (len(table.columns) - 4)
            table.rows.append(["8 x 8 x 4", method, *blank, *published_cells(numbers)])
    table.notes.append(
        "The paper does not say of what size its Table 2 is, a summary of it says 512 x 512: its "
        "numbers stand beside --eval-size 512. OmniTokenizer, WF-VAE and VidTok are not run: their "
        "weights are not here. With them, regen evaluate measures them on the same clips."
    )
    return table


def table3(config: ReproduceConfig) -> Table:
    """Conditioning: content-aware positions against fixed ones, at and beyond the training size."""
    is_small = config.size == "small"
    presets = {
        "in-context, fixed PE": "small_in_context_8x" if is_small else "regen_in_context_8x",
        "content-aware PE": "small_full_8x" if is_small else "regen_8x",
    }
    sizes = (64, 128) if is_small else (256, 512)
    columns = ["conditioning", "preset", "decode, GFLOP/frame", "steps", "wall minutes"]
    for size in sizes:
        columns += metric_columns(f" at {size}")
    columns += [f"paper, {size}: PSNR / SSIM / rFVD" for size in ("192 x 320", "384 x 640")]
    table = Table("Table 3: conditioning", columns)
    costs = gflops_per_frame(list(presets.values()), sizes[0])
    every: list[Trained] = []
    for name, preset in presets.items():
        models = [trained(config, preset, seed) for seed in config.seeds]
        every += models
        cells = [name, preset, f"{costs[preset]:.3g}", spread([one.steps for one in models], 0)]
        cells.append(spread([one.wall_minutes for one in models], 1))
        for size in sizes:
            cells += metric_cells([reconstruction(config, one, size=size) for one in models])
        table.rows.append([*cells, *map(paper_cell, tables.TABLE_3[name])])
    shown = [one.load() for one in every if one.seed == config.seeds[0]]

    def rows_of(frames: np.ndarray) -> list[list[np.ndarray]]:
        middle = len(frames) // 2
        return [[frames[middle], *(reconstruct(model, frames)[middle] for model in shown)]]

    draw(config, "table3", rows_of, figures.CHUNK, sizes)
    table.notes = notes(config, every)
    table.notes.append(
        f"Measured at {sizes[0]} x {sizes[0]} and at twice the side. Trained on "
        + (f"squares of {sizes[0]} pixels. " if is_small else "192 x 320. ")
        + "In-context conditioning has two more frames of tokens, which its cost shows. "
        f"table3.png: the source, then {', '.join(presets)}, seed {config.seeds[0]}; each clip at "
        "both sizes."
    )
    return table


def table5(config: ReproduceConfig) -> Table:
    """Scaling the convolutional decoder (App. E)."""
    groups = {
        ratio: [magvit(config, ratio), magvit(config, ratio, wide=True), regen(config, ratio)]
        for ratio in (16, 32)
    }
    is_its_size = config.eval_size == 256
    table = comparison(
        config,
        "Table 5: a wider convolutional decoder",
        groups,
        lambda ratio, method: (
            [paper_cell(tables.TABLE_5[ratio].get(method))] if is_its_size else []
        ),
        ["paper, DAVIS at 256: PSNR / SSIM / rFVD"] if is_its_size else [],
    )
    table.notes.append("The wide decoder costs more than the others: that is what it asks.")
    return table


def figure12(config: ReproduceConfig) -> Table:
    """Quality against the compression factor; peers by their factor alone."""
    columns = ["method", "preset or class", "pixel values per latent value", "decode, GFLOP/frame"]
    table = Table("Figure 12: quality and compression factor", [*columns, *metric_columns()])
    every: list[Trained] = []
    groups = {ratio: (magvit(config, ratio), regen(config, ratio)) for ratio in (4, 8, 16, 32)}
    costs: dict[str, float] = {}
    for rows in groups.values():
        costs |= check_equal_cost([row.preset for row in rows], config.eval_size)
    for ratio, rows in groups.items():
        for row in rows:
            models = [trained(config, row.preset, seed) for seed in config.seeds]
            every += models
            cells = [f"{row.method}, {ratio}x", row.preset, geometry_cells(row.preset)[1]]
            cells.append(f"{costs[row.preset]:.3g}")
            results = [reconstruction(config, one) for one in models]
            table.rows.append([*cells, *metric_cells(results)])
    blank = [MISSING] * (1 + len(metric_columns()))
    for name, peer in PEERS.items():
        table.rows.append([name, peer.class_name, f"{peer.factor:.4g}", *blank])
    table.notes = notes(config, every)
    table.notes.append(
        "The paper draws this figure and prints no numbers of it. Of the embedders in it Cosmos, "
        "LTX-Video and VidTok have their place on its axis here, as classes of diffusers, beside "
        "others; OmniTokenizer, Open-Sora, Open-Sora-Plan, WF-VAE and CV-VAE have none. "
        "Measuring any takes its weights: regen evaluate, docs/evaluation.md."
    )
    return table


# -- cost -----------------------------------------------------------------------------------------


def table4(config: ReproduceConfig) -> Table:
    """What decoding costs: FLOPs, and time and memory on this machine."""
    columns = ["decoder", "nominal ratio", "frames of a chunk", "GFLOP/frame", "TFLOP/chunk"]
    columns += ["ms here", "MiB here"]
    is_its_size, size = config.eval_size == 256, config.eval_size
    if is_its_size:
        columns += ["paper, ms on an A100", "TFLOP/s which that takes"]
    table = Table(f"Table 4: decoding at {size} x {size}", columns)
    kinds = ("magvit_small", "small", "magvit", "regen")
    names = {f"{kind}_{ratio}x": ratio for kind in kinds for ratio in tables.TABLE_4}
    for name, ratio in (names | {name: peer.temporal for name, peer in PEERS.items()}).items():
        flops, length = decode_flops(name, size)
        is_timed = torch.cuda.is_available() or config.size == "paper" or flops <= MOST_ON_CPU
        found = measure_here(name, size) if is_timed else None
        cells = [f"{name} ({PEERS[name].class_name})" if name in PEERS else name, str(ratio)]
        cells += [str(length), f"{flops / length / 1e9:,.4g}", f"{flops / 1e12:.3g}"]
        cells += [f"{value:,.0f}" for value in found] if found else [MISSING, MISSING]
        kind = name.partition("_")[0]
        if is_its_size and kind in ("magvit", "regen") and "small" not in name:
            ms = tables.TABLE_4[ratio][kind == "regen"]
            cells += [f"{ms:g}", f"{flops / ms / 1e9:,.0f}"]
        table.rows.append(cells + [MISSING] * (len(columns) - len(cells)))
    is_cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if is_cuda else f"CPU, {torch.get_num_threads()} threads"
    table.notes = [
        "FLOPs are two a multiply-add, of products, convolutions and attention, counted on fake "
        "tensors; weights are random. Those of diffusers have the defaults of their class.",
        f"Here: {device}, {'bfloat16' if is_cuda else 'float32'}, the median of 3 chunks; memory "
        "with the weights, at its most.",
        "An A100 has 312 TFLOP/s in bfloat16: where more is needed, the paper's model or "
        "measurement differs from ours in a way that its text does not tell.",
        "The paper does not say how many frames one measurement covers; a chunk is taken.",
    ]
    if not is_cuda and config.size != "paper":
        table.notes.append(
            f"Decoders of more than {MOST_ON_CPU / 1e12:g} TFLOP are not timed on a CPU; --size "
            "paper times them all, in minutes to an hour each."
        )
    return table


EXPERIMENTS: dict[str, Callable[[ReproduceConfig], Table]] = {
    one.__name__: one
    for one in (
        table1, table2, table3, table4, table5, figure12,
        figures.figure7, figures.figure9, figures.figure13, figures.figure14, figures.figure15,
    )
}  # fmt: skip
assert set(EXPERIMENTS) == set(get_args(Experiment))


def reproduce(experiment: Experiment, config: ReproduceConfig) -> Table:
    """Train, measure, write OUTPUT/EXPERIMENT.md and .json. Raises ValueError for bad options.

    At another size than 256 pixels the files are EXPERIMENT-SIZE.md and .json.
    """
    config.check(experiment)
    if experiment != "table4":
        check_clips(config, figures.LEAST_FRAMES.get(experiment, 1))
    table = EXPERIMENTS[experiment](config)
    size = "" if config.eval_size == 256 else f"-{config.eval_size}"
    table.write(config.output, f"{experiment}{size}")
    return table
