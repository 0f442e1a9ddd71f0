"""The tables and figures of the paper, a function each: models, measurements, a table.

A comparison is of equal training time (`regen.reproduction.training`) and, at the small size, of
equal decoding cost, which `check_equal_cost` enforces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import torch

from regen.codec import decode_frames, encode_frames
from regen.evaluation.temporal import seam_ratio
from regen.models.autoencoder import AutoencoderREGEN
from regen.models.extension import decode_extended
from regen.models.loading import new_model
from regen.reproduction import paper
from regen.reproduction.config import Experiment, ReproduceConfig
from regen.reproduction.cost import decode_chunk, decode_flops_per_frame
from regen.reproduction.measuring import (
    Measured,
    check_clips,
    compare,
    over_clips,
    reconstruct,
    write_comparison,
)
from regen.reproduction.peers import PEERS
from regen.reproduction.tables import MISSING, Table, paper_cell, spread
from regen.reproduction.training import Trained, trained
from regen.video import frames_to_video, video_to_frames

EQUAL_COST = 1.1  # largest ratio of two small decoders' FLOPs
EQUAL_TIME = 1.25  # largest ratio of two trainings' wall minutes that no note is made of
FIGURE_RATIO = 8  # of the figures that the paper draws of one model
STEPS = (1, 2, 4, 8, 25)
SEAM_STEPS = (1, 4, 8)
CHUNK = FIGURE_RATIO + 1
LEAST_FRAMES: dict[Experiment, int] = {"figure9": 2 * CHUNK, "figure13": 2 * CHUNK - 1}


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


def check_equal_cost(presets: Sequence[str], size: int) -> dict[str, float]:
    """GFLOP to decode a frame of each. ValueError where two small decoders differ in cost."""
    costs = {name: decode_flops_per_frame(partial(new_model, name), size) / 1e9 for name in presets}
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


def reconstruction(config: ReproduceConfig, steps: int = 1, size: int | None = None) -> Any:
    """Of a trained model: PSNR and SSIM on the clips."""

    def measured(one: Trained) -> Measured:
        model = one.load()
        return over_clips(
            config,
            one.folder,
            f"steps{steps}",
            lambda frames: compare(frames, reconstruct(model, frames, steps)),
            size,
        )

    return measured


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
    table = Table(title, [*columns, "PSNR", "SSIM", *published_columns])
    every: list[Trained] = []
    costs = {ratio: check_equal_cost([row.preset for row in rows], config.eval_size)
             for ratio, rows in groups.items()}  # fmt: skip
    for ratio, rows in groups.items():
        for row in rows:
            models = [trained(config, row.preset, seed) for seed in config.seeds]
            results = [reconstruction(config)(one) for one in models]
            every += models
            table.rows.append([
                f"8 x 8 x {ratio}",
                row.method,
                row.preset,
                *geometry_cells(row.preset),
                f"{costs[ratio][row.preset]:.3g}",
                spread([one.steps for one in models], 0),
                spread([one.wall_minutes for one in models], 1),
                spread([one["psnr"] for one in results], 2),
                spread([one["ssim"] for one in results], 4),
                *published(ratio, row.method),
            ])  # fmt: skip
    table.notes = notes(config, every)
    return table


def notes(config: ReproduceConfig, models: Sequence[Trained]) -> list[str]:
    """What to know before comparing `models`."""
    number = f"the first {config.max_clips}" if config.max_clips else "all"
    lines = [
        f"Ours: {number} clips of {config.eval_data}, the first {config.eval_frames} frames at "
        f"{config.eval_size} x {config.eval_size}, one step; seeds {list(config.seeds)}. The "
        "paper's are of other clips, models of other size and other data (arXiv:2503.08665).",
        "The nominal ratio is not the real one: compare frames per latent frame.",
        "rFVD is not measured here: regen evaluate has it for the models in "
        f"{config.output / 'models'}.",
    ]
    if config.minutes:
        lines.append(
            f"Equal training time: {config.minutes:g} minutes for each model by the clock that the "
            "probe read (its plan.json)."
        )
    curves = [
        f"{one.preset}, seed {one.seed}: {', '.join(f'{psnr:.2f}' for psnr in one.curve)}"
        for one in models
    ]
    if curves:
        lines.append(
            "PSNR of clips held out of training, after each quarter of it (is the curve flat? in "
            f"the last one the learning rate falls): {'; '.join(curves)}."
        )
    minutes = [one.wall_minutes for one in models]
    if minutes and config.minutes and max(minutes) > EQUAL_TIME * min(minutes):
        lines.append(
            f"The wall clock says {min(minutes):.1f} to {max(minutes):.1f} minutes: other work "
            "shared the machine."
        )
    return lines


def _sets(numbers: dict[str, paper.Numbers] | None) -> list[str]:
    return [paper_cell((numbers or {}).get(name)) for name in ("MCL-JCV", "DAVIS")]


BOTH_SETS = ["paper, MCL-JCV: PSNR / SSIM / rFVD", "paper, DAVIS"]


def table1(config: ReproduceConfig) -> Table:
    """High compression: MAGVIT-v2 and REGEN at 8x, 16x, 32x."""
    groups = {ratio: [magvit(config, ratio), regen(config, ratio)] for ratio in (8, 16, 32)}
    return comparison(
        config,
        "Table 1: high temporal compression",
        groups,
        lambda ratio, method: _sets(paper.TABLE_1[ratio].get(method)),
        BOTH_SETS,
    )


def table2(config: ReproduceConfig) -> Table:
    """The base compression, 4x."""
    table = comparison(
        config,
        "Table 2: base temporal compression",
        {4: [magvit(config, 4), regen(config, 4)]},
        lambda _, method: _sets(paper.TABLE_2.get(method)),
        BOTH_SETS,
    )
    for name, numbers in paper.TABLE_2.items():
        if name not in ("MAGVIT-v2", "REGEN"):
            blank = [MISSING] * (len(table.columns) - 4)
            table.rows.append(["8 x 8 x 4", name, *blank, *_sets(numbers)])
    table.notes.append(
        "OmniTokenizer, WF-VAE and VidTok are not run: their weights are not here. With them, "
        "regen evaluate measures them on the same clips."
    )
    return table


def table3(config: ReproduceConfig) -> Table:
    """Conditioning: content-aware positions against fixed ones, at and beyond the training size."""
    family = "small_full_8x" if config.size == "small" else "regen_8x"
    presets = {
        "in-context, fixed PE": family.replace("full", "in_context")
        if config.size == "small"
        else "regen_in_context_8x",
        "content-aware PE": family,
    }
    sizes = (64, 128) if config.size == "small" else (256, 512)
    columns = ["conditioning", "preset", "decode, GFLOP/frame", "steps", "wall minutes"]
    for size in sizes:
        columns += [f"PSNR at {size}", f"SSIM at {size}"]
    table = Table("Table 3: conditioning", [*columns, "paper, 192 x 320", "paper, 384 x 640"])
    costs = {
        name: decode_flops_per_frame(partial(new_model, name), sizes[0]) / 1e9
        for name in presets.values()
    }
    every: list[Trained] = []
    for name, preset in presets.items():
        models = [trained(config, preset, seed) for seed in config.seeds]
        every += models
        cells = [name, preset, f"{costs[preset]:.3g}", spread([one.steps for one in models], 0)]
        cells.append(spread([one.wall_minutes for one in models], 1))
        for size in sizes:
            results = [reconstruction(config, size=size)(one) for one in models]
            cells += [spread([one["psnr"] for one in results], 2)]
            cells += [spread([one["ssim"] for one in results], 4)]
        table.rows.append([*cells, *map(paper_cell, paper.TABLE_3[name])])
    table.notes = notes(config, every)
    table.notes.append(
        f"Measured at {sizes[0]} x {sizes[0]} and at twice the side. Trained on "
        + (f"squares of {sizes[0]} pixels. " if config.size == "small" else "192 x 320. ")
        + "In-context conditioning has two more frames of tokens, which its cost shows."
    )
    of_first_seed = [one.load() for one in every if one.seed == config.seeds[0]]
    write_comparison(config.output / "table3.png", config, of_first_seed, sizes)
    table.notes.append(
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
    table = comparison(
        config,
        "Table 5: a wider convolutional decoder",
        groups,
        lambda ratio, method: [paper_cell(paper.TABLE_5[ratio].get(method))],
        ["paper, DAVIS at 256: PSNR / SSIM / rFVD"],
    )
    table.notes.append("The wide decoder costs more than the others: that is what it asks.")
    return table


def figure12(config: ReproduceConfig) -> Table:
    """Quality against the compression factor; peers by their factor alone."""
    table = Table(
        "Figure 12: quality and compression factor",
        [
            "method",
            "preset or class",
            "pixel values per latent value",
            "decode, GFLOP/frame",
            "PSNR",
            "SSIM",
        ],
    )
    every: list[Trained] = []
    groups = {ratio: (magvit(config, ratio), regen(config, ratio)) for ratio in (4, 8, 16, 32)}
    costs: dict[str, float] = {}
    for rows in groups.values():
        costs |= check_equal_cost([row.preset for row in rows], config.eval_size)
    for ratio, rows in groups.items():
        for row in rows:
            models = [trained(config, row.preset, seed) for seed in config.seeds]
            results = [reconstruction(config)(one) for one in models]
            every += models
            values = [spread([one["psnr"] for one in results], 2)]
            values.append(spread([one["ssim"] for one in results], 4))
            name = f"{row.method}, {ratio}x"
            cells = [name, row.preset, geometry_cells(row.preset)[1], f"{costs[row.preset]:.3g}"]
            table.rows.append([*cells, *values])
    for name, peer in PEERS.items():
        table.rows.append([name, peer.class_name, f"{peer.factor:.4g}", *[MISSING] * 3])
    table.notes = notes(config, every)
    table.notes.append(
        "The paper draws this figure and prints no numbers of it. The other embedders have their "
        "place on its axis, of a long video; measuring them takes their weights: regen evaluate "
        "--diffusers CLASS:FOLDER."
    )
    return table


# -- figures of one model -------------------------------------------------------------------------


def _one_model(config: ReproduceConfig) -> list[Trained]:
    return [trained(config, regen(config, FIGURE_RATIO).preset, seed) for seed in config.seeds]


def figure7(config: ReproduceConfig) -> Table:
    """The number of sampling steps."""
    models = _one_model(config)
    table = Table("Figure 7: sampling steps", ["steps", "PSNR", "SSIM"])
    for steps in STEPS:
        results = [reconstruction(config, steps)(one) for one in models]
        values = [spread([one["psnr"] for one in results], 2)]
        table.rows.append([str(steps), *values, spread([one["ssim"] for one in results], 4)])
    table.notes = notes(config, models)
    table.notes.append(
        "The paper draws it: with more steps PSNR falls slightly and rFVD improves (Sec. 5)."
    )
    return table


def _seam_ratio(frames: np.ndarray, length: int) -> float:
    return seam_ratio(frames_to_video(frames)[None], length).item()


def _seams(model: AutoencoderREGEN, frames: np.ndarray) -> Measured:
    """Seam ratios and PSNR of plain and extended decoding, at each of SEAM_STEPS."""
    length = model.geometry.chunk_length
    frames = frames[: len(frames) // length * length]
    chunks = [frames[start : start + length] for start in range(0, len(frames), length)]
    latents = torch.cat([encode_frames(model, chunk) for chunk in chunks], dim=2)
    values: Measured = {"source": _seam_ratio(frames, length)}
    for steps in SEAM_STEPS:
        generator = torch.Generator().manual_seed(0)
        height, width = frames.shape[1:3]
        plain = decode_frames(model, latents, len(frames), height, width, steps, generator)
        sample = decode_extended(model, latents, steps, torch.Generator().manual_seed(0))
        extended = video_to_frames(sample[0])
        for name, rebuilt in (("plain", plain), ("extended", extended)):
            values[f"{name}_{steps}"] = _seam_ratio(rebuilt, length)
            values[f"{name}_psnr_{steps}"] = compare(frames, rebuilt)["psnr"]
    return values


def figure9(config: ReproduceConfig) -> Table:
    """The seam between chunks, with and without latent extension."""
    models = _one_model(config)
    num_frames = max(2, config.eval_frames // CHUNK) * CHUNK
    results = []
    for one in models:
        model = one.load()
        assert isinstance(model, AutoencoderREGEN)
        measure = partial(_seams, model)
        results.append(over_clips(config, one.folder, "seams", measure, num_frames=num_frames))
    table = Table(
        "Figure 9: the seam between chunks",
        ["steps", "seam, plain", "seam, extended", "PSNR, plain", "PSNR, extended"],
    )
    for steps in SEAM_STEPS:
        names = [f"{name}_{steps}" for name in ("plain", "extended", "plain_psnr", "extended_psnr")]
        cells = [spread([one[name] for one in results], 3) for name in names]
        table.rows.append([str(steps), *cells])
    table.notes = [
        "Seam: mean absolute difference of frames across the seams over that within chunks, 1 = no "
        f"seam; of the source {spread([one['source'] for one in results[:1]], 3)}. The paper shows "
        "pictures and no number.",
        "With one step the extension shares noise alone (docs of regen.models.extension).",
        *notes(config, models),
    ]
    return table


def _interpolations(model: AutoencoderREGEN, frames: np.ndarray) -> Measured:
    """Frames between, of chunks that are every second frame of the clip."""
    length = model.geometry.chunk_length
    span = 2 * length - 1
    chunk, between = frames[0:span:2], frames[1:span:2]
    times = [index + 0.5 for index in range(length - 1)]
    latents, (height, width) = encode_frames(model, chunk), frames.shape[1:3]
    generator = torch.Generator().manual_seed(0)
    ours = decode_frames(model, latents, None, height, width, 1, generator, times)
    rebuilt = decode_frames(model, latents, length, height, width, 1, generator)
    values: Measured = {}
    for name, made in (
        ("average", _average(chunk)),
        ("rebuilt_average", _average(rebuilt)),
        ("ours", ours),
    ):
        values |= {f"{name}_{key}": value for key, value in compare(between, made).items()}
    return values


def _average(frames: np.ndarray) -> np.ndarray:
    video = frames_to_video(frames)
    return video_to_frames((video[:, 1:] + video[:, :-1]) / 2)


def figure13(config: ReproduceConfig) -> Table:
    """Interpolation: the decoder's frames between, against averages of neighbours."""
    models = _one_model(config)
    results = []
    for one in models:
        model = one.load()
        assert isinstance(model, AutoencoderREGEN)
        measure, num_frames = partial(_interpolations, model), 2 * FIGURE_RATIO + 1
        results.append(over_clips(config, one.folder, "between", measure, num_frames=num_frames))
    table = Table("Figure 13: interpolation", ["frames between", "sees", "PSNR", "SSIM"])
    for name, key, sees in (
        ("average of the source's neighbours", "average", "the source"),
        ("average of the reconstruction's neighbours", "rebuilt_average", "the latents"),
        ("the decoder at half times", "ours", "the latents"),
    ):
        psnr = spread([one[f"{key}_psnr"] for one in results], 2)
        ssim = spread([one[f"{key}_ssim"] for one in results], 4)
        table.rows.append([name, sees, psnr, ssim])
    table.rows.append(["EMA-VFI on the reconstruction", "the latents", MISSING, MISSING])
    table.notes = [
        "The source is every second frame. The paper's external interpolator, EMA-VFI, is not run: "
        "its weights are not here. The paper shows pictures and no number.",
        *notes(config, models),
    ]
    return table


# -- cost -----------------------------------------------------------------------------------------


def table4(config: ReproduceConfig) -> Table:
    """What decoding costs at the paper's size, in FLOPs, and in time where a GPU is."""
    columns = ["decoder", "nominal ratio", "frames of a chunk", "GFLOP/frame", "TFLOP/chunk"]
    columns += ["paper, ms on an A100", "TFLOP/s which that takes", "ms here"]
    table = Table(f"Table 4: decoding at {config.eval_size} x {config.eval_size}", columns)
    for index, kind in enumerate(("magvit", "regen")):
        for ratio, published in paper.TABLE_4.items():
            name = f"{kind}_{ratio}x"
            with torch.device("meta"):
                length = new_model(name).geometry.chunk_length
            build = partial(new_model, name)
            flops = decode_flops_per_frame(build, config.eval_size)
            chunk = flops * length
            ms = published[index]
            is_256 = config.eval_size == 256
            table.rows.append([
                name, str(ratio), str(length), f"{flops / 1e9:,.0f}", f"{chunk / 1e12:.1f}",
                f"{ms:g}" if is_256 else MISSING,
                f"{chunk / ms / 1e9:,.0f}" if is_256 else MISSING,
                _time_ms(build, lambda model: decode_chunk(model, config.eval_size)),
            ])  # fmt: skip
    for name, peer in PEERS.items():
        flops = peer.flops_per_frame(config.eval_size)
        time = _time_ms(peer.build, partial(peer.decode, size=config.eval_size, num_frames=25))
        table.rows.append([
            f"{name} ({peer.class_name})", str(peer.temporal), "25", f"{flops / 1e9:,.0f}",
            f"{25 * flops / 1e12:.1f}", MISSING, MISSING, time,
        ])  # fmt: skip
    table.notes = [
        "FLOPs are two a multiply-add, of products, convolutions and attention, counted on fake "
        "tensors; weights are random. Those of diffusers have the defaults of their class.",
        "An A100 has 312 TFLOP/s in bfloat16: where more is needed, the paper's model or "
        "measurement differs from ours in a way that its text does not tell.",
        "The paper does not say how many frames one measurement covers; a chunk is taken.",
    ]
    if not torch.cuda.is_available():
        table.notes.append("No GPU is here: times are not measured.")
    return table


def _time_ms(build: Callable[[], Any], call: Callable[[Any], Any], repeats: int = 5) -> str:
    """Median milliseconds on this GPU in bfloat16, after a warm-up."""
    if not torch.cuda.is_available():
        return MISSING
    with torch.device("cuda"):
        model = build().to(torch.bfloat16).eval()
    times = []
    try:
        with torch.inference_mode():
            for _ in range(repeats + 1):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call(model)
                end.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(end))
    except torch.OutOfMemoryError:
        return "out of memory"
    return f"{float(np.median(times[1:])):.1f}"


EXPERIMENTS: dict[str, Callable[[ReproduceConfig], Table]] = {
    one.__name__: one
    for one in (
        table1, table2, table3, table4, table5, figure7, figure9, figure12, figure13,
    )
}  # fmt: skip
assert set(EXPERIMENTS) == set(get_args(Experiment))


def reproduce(experiment: Experiment, config: ReproduceConfig) -> Table:
    """Train, measure, write OUTPUT/EXPERIMENT.md and .json. Raises ValueError for bad options."""
    config.check(experiment)
    if experiment != "table4":
        check_clips(config, LEAST_FRAMES.get(experiment, 1))
    table = EXPERIMENTS[experiment](config)
    table.write(config.output, experiment)
    return table
