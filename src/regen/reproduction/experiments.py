"""The tables and figures of the paper, a function each: models, measurements, a table, a picture.

A comparison is of equal training time (`regen.reproduction.models`) and, at the small size, of
equal decoding cost, which `check_equal_cost` enforces.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from regen.evaluation.metrics import psnr
from regen.evaluation.protocols import media_in
from regen.evaluation.report import DIGITS
from regen.evaluation.sheets import time_slices
from regen.evaluation.temporal import seam_ratio
from regen.loading import Autoencoder, new_model
from regen.model.extension import decode_extended
from regen.reproduction.config import Experiment, ReproduceConfig
from regen.reproduction.cost import PEERS, decode_flops, measure_here
from regen.reproduction.measuring import (
    Measured,
    Record,
    check_clips,
    compare,
    decode_frames,
    draw,
    find_clips,
    means,
    metric_cells,
    metric_columns,
    notes,
    over_clips,
    reconstruct,
    reconstruction,
)
from regen.reproduction.models import Trained, trained
from regen.reproduction.paper import MISSING, PUBLISHED, TABLE_3, TABLE_4, Table, paper_cell, spread
from regen.streaming import encode_frames
from regen.video import (
    frames_to_video,
    interpolate_frames,
    read_prepared,
    video_to_frames,
    write_video,
)

EQUAL_COST = 1.1  # largest ratio of two small decoders' FLOPs
MOST_ON_CPU = 2e12  # FLOPs of a decoder that table4 times on a CPU; --size paper times all
FIGURE_RATIO = 8
CHUNK = FIGURE_RATIO + 1
STEPS = (1, 2, 4, 8, 25)
SEAM_STEPS = (1, 4, 8)
OFFSETS = (1, 2, 4, 8)  # frames beyond the chunk
LEAST_FRAMES: dict[Experiment, int] = {
    "figure9": 2 * CHUNK,
    "figure13": 2 * CHUNK - 1,
    "figure14": CHUNK + OFFSETS[-1],
    "figure15": CHUNK + OFFSETS[-1],
}


def reproduce(experiment: Experiment, config: ReproduceConfig) -> Table:
    """Train, measure, write OUTPUT/EXPERIMENT.md and .json. Raises ValueError for bad options.

    At another size than 256 pixels the files are EXPERIMENT-SIZE.md and .json.
    """
    config.check(experiment)
    if experiment != "table4":
        check_clips(config, LEAST_FRAMES.get(experiment, 1))
    table = EXPERIMENTS[experiment](config)
    size = "" if config.eval_size == 256 else f"-{config.eval_size}"
    table.write(config.output, f"{experiment}{size}")
    return table


def preset_of(config: ReproduceConfig, method: str, ratio: int) -> str:
    """`method`: REGEN, MAGVIT-v2, or MAGVIT-v2, wide."""
    is_small = config.size == "small"
    if method == "REGEN":
        return f"{'small' if is_small else 'regen'}_{ratio}x"
    return f"magvit_{'small_' * is_small}{ratio}x{'_wide' * ('wide' in method)}"


def all_seeds(config: ReproduceConfig, preset: str) -> list[Trained]:
    return [trained(config, preset, seed) for seed in config.seeds]


def gflops_per_frame(presets: Iterable[str], size: int) -> dict[str, float]:
    counted = {name: decode_flops(name, size) for name in presets}
    return {name: flops / length / 1e9 for name, (flops, length) in counted.items()}


def check_equal_cost(presets: Iterable[str], size: int) -> dict[str, float]:
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


# -- comparisons of embedders ----------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """`methods` at each of `ratios`; those of one ratio have cost and time in common."""

    title: str
    ratios: tuple[int, ...]
    note: str
    methods: tuple[str, ...] = ("MAGVIT-v2", "REGEN")


COMPARISONS: dict[Experiment, Comparison] = {
    "table1": Comparison(
        "Table 1: high temporal compression",
        (8, 16, 32),
        "The paper's two halves are of 256 x 256 and 512 x 512: --eval-size 256 and --eval-size "
        "512, of the same models.",
    ),
    "table2": Comparison(
        "Table 2: base temporal compression",
        (4,),
        "The paper does not say of what size its Table 2 is, a summary of it says 512 x 512: its "
        "numbers stand beside --eval-size 512. OmniTokenizer, WF-VAE and VidTok are not run: their "
        "weights are not here. With them, regen evaluate measures them on the same clips.",
    ),
    "table5": Comparison(
        "Table 5: a wider convolutional decoder",
        (16, 32),
        "The wide decoder costs more than the others: that is what it asks.",
        ("MAGVIT-v2", "MAGVIT-v2, wide", "REGEN"),
    ),
    "figure12": Comparison(
        "Figure 12: quality and compression factor",
        (4, 8, 16, 32),
        "The paper draws this figure and prints no numbers of it. Of the embedders in it Cosmos, "
        "LTX-Video and VidTok have their place on its axis here, as classes of diffusers, beside "
        "others; OmniTokenizer, Open-Sora, Open-Sora-Plan, WF-VAE and CV-VAE have none. "
        "Measuring any takes its weights: regen evaluate, docs/evaluation.md.",
    ),
}


def comparison(experiment: Experiment, config: ReproduceConfig) -> Table:
    """One of `COMPARISONS`, with the paper's numbers where they are of this size."""
    one, size = COMPARISONS[experiment], config.eval_size
    paper = PUBLISHED.get(experiment, {}).get(size, {})
    sets = list(dict.fromkeys(s for ms in paper.values() for m in ms.values() for s in m))
    columns = ["compression", "method", "preset", "frames per latent frame"]
    columns += ["pixel values per latent value", "decode, GFLOP/frame", "steps", "wall minutes"]
    columns += [*metric_columns(), *(f"paper, {s} at {size}: PSNR / SSIM / rFVD" for s in sets)]
    table, every = Table(one.title, columns), list[Trained]()
    presets = {r: {m: preset_of(config, m, r) for m in one.methods} for r in one.ratios}
    costs = {ratio: check_equal_cost(names.values(), size) for ratio, names in presets.items()}
    for ratio, names in presets.items():
        published = paper.get(ratio, {})
        for method in dict.fromkeys([*names, *published]):
            cells = [f"8 x 8 x {ratio}", method]
            if preset := names.get(method):
                models = all_seeds(config, preset)
                every += models
                cells += [preset, *geometry_cells(preset), f"{costs[ratio][preset]:.3g}"]
                cells.append(spread([model.steps for model in models], 0))
                cells.append(spread([model.wall_minutes for model in models], 1))
                cells += metric_cells([reconstruction(config, model) for model in models])
            else:
                cells += [MISSING] * (len(columns) - len(sets) - 2)
            table.rows.append(cells + [paper_cell(published.get(method, {}).get(s)) for s in sets])
    if experiment == "figure12":
        for name, peer in PEERS.items():
            cells = [f"8 x 8 x {peer.temporal}", name, peer.class_name, MISSING]
            cells.append(f"{peer.factor:.4g}")
            table.rows.append(cells + [MISSING] * (len(columns) - len(cells)))
    table.notes = [*notes(config, every), one.note]
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
    costs = gflops_per_frame(presets.values(), sizes[0])
    every: list[Trained] = []
    for name, preset in presets.items():
        models = all_seeds(config, preset)
        every += models
        cells = [name, preset, f"{costs[preset]:.3g}", spread([one.steps for one in models], 0)]
        cells.append(spread([one.wall_minutes for one in models], 1))
        for size in sizes:
            cells += metric_cells([reconstruction(config, one, size=size) for one in models])
        table.rows.append([*cells, *map(paper_cell, TABLE_3[name])])
    shown = [one.load() for one in every if one.seed == config.seeds[0]]

    def rows_of(frames: np.ndarray) -> list[list[np.ndarray]]:
        middle = len(frames) // 2
        return [[frames[middle], *(reconstruct(model, frames)[middle] for model in shown)]]

    draw(config, "table3", rows_of, CHUNK, sizes)
    table.notes = notes(config, every)
    table.notes.append(
        f"Measured at {sizes[0]} x {sizes[0]} and at twice the side. Trained on "
        + (f"squares of {sizes[0]} pixels. " if is_small else "192 x 320. ")
        + "In-context conditioning has two more frames of tokens, which its cost shows. "
        f"table3.png: the source, then {', '.join(presets)}, seed {config.seeds[0]}; each clip at "
        "both sizes."
    )
    return table


def table4(config: ReproduceConfig) -> Table:
    """What decoding costs: FLOPs, and time and memory on this machine."""
    columns = ["decoder", "nominal ratio", "frames of a chunk", "GFLOP/frame", "TFLOP/chunk"]
    columns += ["ms here", "MiB here"]
    is_its_size, size = config.eval_size == 256, config.eval_size
    if is_its_size:
        columns += ["paper, ms on an A100", "TFLOP/s which that takes"]
    table = Table(f"Table 4: decoding at {size} x {size}", columns)
    kinds = ("magvit_small", "small", "magvit", "regen")
    names = {f"{kind}_{ratio}x": ratio for kind in kinds for ratio in TABLE_4}
    is_cuda = torch.cuda.is_available()
    for name, ratio in (names | {name: peer.temporal for name, peer in PEERS.items()}).items():
        flops, length = decode_flops(name, size)
        is_timed = is_cuda or config.size == "paper" or flops <= MOST_ON_CPU
        found = measure_here(name, size) if is_timed else None
        cells = [f"{name} ({PEERS[name].class_name})" if name in PEERS else name, str(ratio)]
        cells += [str(length), f"{flops / length / 1e9:,.4g}", f"{flops / 1e12:.3g}"]
        cells += [f"{value:,.0f}" for value in found] if found else [MISSING, MISSING]
        kind = name.partition("_")[0]
        if is_its_size and kind in ("magvit", "regen") and "small" not in name:
            ms = TABLE_4[ratio][kind == "regen"]
            cells += [f"{ms:g}", f"{flops / ms / 1e9:,.0f}"]
        table.rows.append(cells + [MISSING] * (len(columns) - len(cells)))
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


# -- figures of one model --------------------------------------------------------------------------


def one_model(config: ReproduceConfig) -> list[Trained]:
    return all_seeds(config, preset_of(config, "REGEN", FIGURE_RATIO))


def per_seed(
    config: ReproduceConfig,
    models: Sequence[Trained],
    name: str,
    measure: Callable[[Autoencoder, np.ndarray], Record],
    num_frames: int,
) -> list[Measured]:
    return [
        means(over_clips(config, one.folder, name, partial(measure, one.load()), None, num_frames))
        for one in models
    ]


def cells_of(results: Sequence[Measured], prefix: str) -> list[str]:
    """The metrics of `compare` that `results` hold under `prefix`."""
    names = [name for name in DIGITS if f"{prefix}{name}" in results[0]]
    return [spread([one[f"{prefix}{name}"] for one in results], DIGITS[name]) for name in names]


def prefixed(prefix: str, record: Record) -> Record:
    return {f"{prefix}{name}": value for name, value in record.items()}


def figure7(config: ReproduceConfig) -> Table:
    """The number of sampling steps."""
    models = one_model(config)
    table = Table("Figure 7: sampling steps", ["steps", *metric_columns()])
    for steps in STEPS:
        results = [reconstruction(config, one, steps) for one in models]
        table.rows.append([str(steps), *metric_cells(results)])
    table.notes = notes(config, models)
    table.notes.append(
        "The paper draws it: with more steps PSNR falls slightly and rFVD improves (Sec. 5)."
    )
    return table


def plain_and_extended(model: Autoencoder, frames: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Whole chunks without and with latent extension."""
    chunks = np.split(frames, len(frames) // CHUNK)
    latents = torch.cat([encode_frames(model, chunk) for chunk in chunks], dim=2)
    plain = decode_frames(model, latents, frames, steps)
    generator = torch.Generator().manual_seed(0)
    extended = decode_extended(model, latents, steps, generator)
    return {"plain": plain, "extended": video_to_frames(extended[0])}


def figure9(config: ReproduceConfig) -> Table:
    """The seam between chunks, with and without latent extension (also Figure 11)."""
    models = one_model(config)
    num_frames = max(2, config.eval_frames // CHUNK) * CHUNK

    def seam(frames: np.ndarray) -> float:
        return seam_ratio(frames_to_video(frames)[None], CHUNK).item()

    def seams(model: Autoencoder, frames: np.ndarray) -> Record:
        frames = frames[: len(frames) // CHUNK * CHUNK]
        values: Record = {"source": seam(frames)}
        for steps in SEAM_STEPS:
            for name, rebuilt in plain_and_extended(model, frames, steps).items():
                values[f"{name}_{steps}"] = seam(rebuilt)
                pair = (frames_to_video(one)[None] for one in (rebuilt, frames))
                values[f"{name}_psnr_{steps}"] = psnr(*pair).mean().item()
        return values

    results = per_seed(config, models, "seams", seams, num_frames)
    columns = ["steps", "seam, plain", "seam, extended", "PSNR, plain", "PSNR, extended"]
    table = Table("Figure 9: the seam between chunks", columns)
    for steps in SEAM_STEPS:
        names = [f"{name}_{steps}" for name in ("plain", "extended", "plain_psnr", "extended_psnr")]
        cells = [spread([one[name] for one in results], 3) for name in names]
        table.rows.append([str(steps), *cells])
    model = models[0].load()

    def rows_of(frames: np.ndarray) -> list[list[np.ndarray]]:
        frames = frames[: 2 * CHUNK]
        videos = plain_and_extended(model, frames, SEAM_STEPS[1]).values()
        return [[time_slices([frames, *videos], CHUNK)]]

    draw(config, "figure9", rows_of, num_frames)
    table.notes = [
        "Seam: mean absolute difference of frames across the seams over that within chunks, 1 = no "
        f"seam; of the source {spread([one['source'] for one in results[:1]], 3)}. The paper shows "
        "pictures and no number.",
        "With one step the extension shares noise alone (docs of regen.model.extension).",
        "figure9.png: a column of pixels in time, of the source, plain and extended, "
        f"{SEAM_STEPS[1]} steps, seed {config.seeds[0]}; the seam is at the mark.",
        *notes(config, models),
    ]
    return table


def frames_between(model: Autoencoder, chunk: np.ndarray) -> dict[str, np.ndarray]:
    """The frames between those of `chunk`, by how they are made, as the table calls it."""
    latents = encode_frames(model, chunk)
    rebuilt = decode_frames(model, latents, chunk, frame_times=range(CHUNK))
    half_times = [index + 0.5 for index in range(CHUNK - 1)]
    return {
        "average of the source's neighbours": _average(chunk),
        "average of the reconstruction's neighbours": _average(rebuilt),
        "minterpolate (FFmpeg) of the reconstruction": interpolate_frames(rebuilt),
        "the decoder at half times": decode_frames(model, latents, chunk, frame_times=half_times),
    }


def _average(frames: np.ndarray) -> np.ndarray:
    video = frames_to_video(frames)
    return video_to_frames((video[:, 1:] + video[:, :-1]) / 2)


def figure13(config: ReproduceConfig) -> Table:
    """Interpolation: the decoder's frames between, against other ways to them."""
    models, span = one_model(config), 2 * CHUNK - 1

    def measure(model: Autoencoder, frames: np.ndarray) -> Record:
        values: Record = {}
        for name, made in frames_between(model, frames[0:span:2]).items():
            values |= prefixed(f"{name}|", compare(frames[1:span:2], made))
        return values

    results = per_seed(config, models, "between", measure, span)
    columns = [name for name in metric_columns() if name != "rFVD"]
    table = Table("Figure 13: interpolation", ["frames between", "sees", *columns])
    methods = dict.fromkeys(name.partition("|")[0] for name in results[0])
    for name in methods:
        sees = "the source" if "source" in name else "the latents"
        table.rows.append([name, sees, *cells_of(results, f"{name}|")])
    model = models[0].load()
    folder = config.output / "figure13"
    if outside := other_interpolator(config, model, folder, span):
        name = f"{config.interpolated.name} of the reconstruction"  # type: ignore[union-attr]
        table.rows.append([name, "the latents", *cells_of([means(outside)], "")])

    def rows_of(frames: np.ndarray) -> list[list[np.ndarray]]:
        middle = (CHUNK - 1) // 2
        made = frames_between(model, frames[0:span:2]).values()
        return [[frames[2 * middle + 1], *(one[middle] for one in made)]]

    draw(config, "figure13", rows_of, span)
    table.notes = [
        "The source is every second frame. The paper's external interpolator is EMA-VFI, whose "
        "weights are not here; minterpolate is FFmpeg's, by motion compensation. Of any other: "
        f"interpolate {folder}/*.mkv (seed {config.seeds[0]}) and give --interpolated FOLDER. The "
        "paper shows pictures and no number.",
        f"figure13.png: the source between, then {', '.join(methods)}.",
        *notes(config, models),
    ]
    return table


def other_interpolator(
    config: ReproduceConfig, model: Autoencoder, folder: Path, span: int
) -> list[Record]:
    """Writes the reconstructed chunks to `folder`, and measures what `--interpolated` made of them.

    ValueError where that lacks a clip, or has it in another size.
    """
    found: dict[str, Path] = {}
    if config.interpolated is not None:
        paths = media_in(config.interpolated)
        found = {path.name if path.is_dir() else path.stem: path for path in paths}
    records: list[Record] = []
    folder.mkdir(parents=True, exist_ok=True)
    for clip in find_clips(config):
        frames = read_prepared(clip, config.eval_size, span)
        name = clip.name if clip.is_dir() else clip.stem
        rebuilt = reconstruct(model, frames[0::2])
        write_video(folder / f"{name}.mkv", rebuilt, Fraction(25))
        if config.interpolated is None:
            continue
        if name not in found:
            raise ValueError(f"--interpolated {config.interpolated} holds no {name}")
        made, between = read_prepared(found[name]), frames[1::2]
        if made.shape != between.shape:
            raise ValueError(
                f"{found[name]} has {len(made)} frames of {made.shape[2]} x {made.shape[1]}: "
                f"give the {len(between)} between those of {folder / name}.mkv, in its size"
            )
        records.append(compare(between, made))
    return records


def extrapolation(experiment: Experiment, config: ReproduceConfig) -> Table:
    """Frames after (figure14) or before (figure15) those that the encoder saw."""
    models, most, is_past = one_model(config), OFFSETS[-1], experiment == "figure15"
    kind = "before" if is_past else "after"
    times = [-offset for offset in OFFSETS] if is_past else [CHUNK - 1 + o for o in OFFSETS]
    start = most if is_past else 0  # of the chunk, in the frames that are read

    def beyond(model: Autoencoder, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        """At `OFFSETS`: the source, the decoder, and the nearest frame of the reconstruction."""
        chunk = frames[start : start + CHUNK]
        latents, nearest_time = encode_frames(model, chunk), 0 if is_past else CHUNK - 1
        nearest = decode_frames(model, latents, chunk, frame_times=[nearest_time])
        ours = decode_frames(model, latents, chunk, frame_times=times)
        source = frames[[start + time for time in times]]
        return source, ours, np.repeat(nearest, len(OFFSETS), axis=0)

    def measure(model: Autoencoder, frames: np.ndarray) -> Record:
        source, ours, nearest = beyond(model, frames)
        values: Record = {}
        for index, offset in enumerate(OFFSETS):
            one = slice(index, index + 1)
            values |= prefixed(f"ours_{offset}_", compare(source[one], ours[one]))
            values |= prefixed(f"nearest_{offset}_", compare(source[one], nearest[one]))
        return values

    results = per_seed(config, models, experiment, measure, CHUNK + most)
    metrics = [one for one in metric_columns() if one != "rFVD"]
    repeated = [f"{one}, nearest frame repeated" for one in metrics]
    title = f"Figure {experiment.removeprefix('figure')}: frames {kind} the chunk"
    table = Table(title, [f"frames {kind}", *metrics, *repeated])
    for offset in OFFSETS:
        cells = cells_of(results, f"ours_{offset}_") + cells_of(results, f"nearest_{offset}_")
        table.rows.append([str(offset), *cells])
    model = models[0].load()

    def rows_of(frames: np.ndarray) -> list[list[np.ndarray]]:
        source, ours, _ = beyond(model, frames)
        return [list(source), list(ours)]

    draw(config, experiment, rows_of, CHUNK + most)
    table.notes = [
        f"The encoder sees {CHUNK} frames; those {kind} them are decoded at their times, in one "
        "step. The paper shows pictures and no number.",
        f"{experiment}.png: {', '.join(map(str, OFFSETS))} frames {kind}; of each clip the source "
        "above, the decoder below.",
        *notes(config, models),
    ]
    return table


EXPERIMENTS: dict[Experiment, Callable[[ReproduceConfig], Table]] = {
    **{name: partial(comparison, name) for name in COMPARISONS},
    "table3": table3,
    "table4": table4,
    "figure7": figure7,
    "figure9": figure9,
    "figure13": figure13,
    "figure14": partial(extrapolation, "figure14"),
    "figure15": partial(extrapolation, "figure15"),
}
assert set(EXPERIMENTS) == set(get_args(Experiment))
