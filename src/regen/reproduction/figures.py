"""The figures that the paper draws of one model, a function each: a table and a picture."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch

from regen.codec import encode_frames
from regen.evaluation.metrics import psnr
from regen.evaluation.protocols import media_in
from regen.evaluation.sheets import time_slices
from regen.evaluation.temporal import seam_ratio
from regen.model.autoencoder import AutoencoderREGEN
from regen.model.extension import decode_extended
from regen.reproduction.config import Experiment, ReproduceConfig
from regen.reproduction.measuring import (
    Measured,
    Record,
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
from regen.reproduction.tables import Table, spread
from regen.reproduction.training import Trained, trained
from regen.video import (
    VideoWriter,
    frames_to_video,
    interpolate_frames,
    read_prepared,
    video_to_frames,
)

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


def _one_model(config: ReproduceConfig) -> list[Trained]:
    preset = f"{'small' if config.size == 'small' else 'regen'}_{FIGURE_RATIO}x"
    return [trained(config, preset, seed) for seed in config.seeds]


def _load(one: Trained) -> AutoencoderREGEN:
    model = one.load()
    assert isinstance(model, AutoencoderREGEN)
    return model


def _per_seed(
    config: ReproduceConfig,
    models: Sequence[Trained],
    name: str,
    measure: Callable[[AutoencoderREGEN, np.ndarray], Record],
    num_frames: int,
) -> list[Measured]:
    return [
        means(over_clips(config, one.folder, name, partial(measure, _load(one)), None, num_frames))
        for one in models
    ]


def figure7(config: ReproduceConfig) -> Table:
    """The number of sampling steps."""
    models = _one_model(config)
    table = Table("Figure 7: sampling steps", ["steps", *metric_columns()])
    for steps in STEPS:
        results = [reconstruction(config, one, steps) for one in models]
        table.rows.append([str(steps), *metric_cells(results)])
    table.notes = notes(config, models)
    table.notes.append(
        "The paper draws it: with more steps PSNR falls slightly and rFVD improves (Sec. 5)."
    )
    return table


def _decode(
    model: AutoencoderREGEN, latents: torch.Tensor, frames: np.ndarray, times: Sequence[float]
) -> np.ndarray:
    """One step, at `times`, in the size of `frames`."""
    return decode_frames(model, latents, frames, frame_times=times)


def _plain_and_extended(
    model: AutoencoderREGEN, frames: np.ndarray, steps: int
) -> dict[str, np.ndarray]:
    """Whole chunks without and with latent extension."""
    latents = torch.cat(
        [encode_frames(model, chunk) for chunk in np.split(frames, len(frames) // CHUNK)], dim=2
    )
    plain = decode_frames(model, latents, frames, steps)
    extended = decode_extended(model, latents, steps, torch.Generator().manual_seed(0))
    return {"plain": plain, "extended": video_to_frames(extended[0])}


def figure9(config: ReproduceConfig) -> Table:
    """The seam between chunks, with and without latent extension (also Figure 11)."""
    models = _one_model(config)
    num_frames = max(2, config.eval_frames // CHUNK) * CHUNK

    def seam(frames: np.ndarray) -> float:
        return seam_ratio(frames_to_video(frames)[None], CHUNK).item()

    def seams(model: AutoencoderREGEN, frames: np.ndarray) -> Record:
        frames = frames[: len(frames) // CHUNK * CHUNK]
        values: Record = {"source": seam(frames)}
        for steps in SEAM_STEPS:
            for name, rebuilt in _plain_and_extended(model, frames, steps).items():
                values[f"{name}_{steps}"] = seam(rebuilt)
                pair = (frames_to_video(one)[None] for one in (rebuilt, frames))
                values[f"{name}_psnr_{steps}"] = psnr(*pair).mean().item()
        return values

    results = _per_seed(config, models, "seams", seams, num_frames)
    columns = ["steps", "seam, plain", "seam, extended", "PSNR, plain", "PSNR, extended"]
    table = Table("Figure 9: the seam between chunks", columns)
    for steps in SEAM_STEPS:
        names = [f"{name}_{steps}" for name in ("plain", "extended", "plain_psnr", "extended_psnr")]
        cells = [spread([one[name] for one in results], 3) for name in names]
        table.rows.append([str(steps), *cells])
    model = _load(models[0])

    def rows_of(frames: np.ndarray) -> list[list[np.ndarray]]:
        frames = frames[: 2 * CHUNK]
        videos = _plain_and_extended(model, frames, SEAM_STEPS[1]).values()
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


HALF_TIMES = [index + 0.5 for index in range(CHUNK - 1)]


def _between(model: AutoencoderREGEN, chunk: np.ndarray) -> dict[str, np.ndarray]:
    """Ways to the frames between those of `chunk`, by what the table calls them."""
    latents = encode_frames(model, chunk)
    rebuilt = _decode(model, latents, chunk, range(CHUNK))
    return {
        "average of the source's neighbours": _average(chunk),
        "average of the reconstruction's neighbours": _average(rebuilt),
        "minterpolate (FFmpeg) of the reconstruction": interpolate_frames(rebuilt),
        "the decoder at half times": _decode(model, latents, chunk, HALF_TIMES),
    }


def _average(frames: np.ndarray) -> np.ndarray:
    video = frames_to_video(frames)
    return video_to_frames((video[:, 1:] + video[:, :-1]) / 2)


def figure13(config: ReproduceConfig) -> Table:
    """Interpolation: the decoder's frames between, against other ways to them."""
    models, span = _one_model(config), 2 * CHUNK - 1

    def measure(model: AutoencoderREGEN, frames: np.ndarray) -> Record:
        made, between = _between(model, frames[0:span:2]), frames[1:span:2]
        compared = {name: compare(between, one) for name, one in made.items()}
        return {f"{way}|{key}": v for way, one in compared.items() for key, v in one.items()}

    results = _per_seed(config, models, "between", measure, span)
    columns = [name for name in metric_columns() if name != "rFVD"]
    table = Table("Figure 13: interpolation", ["frames between", "sees", *columns])
    ways = dict.fromkeys(name.partition("|")[0] for name in results[0])
    for way in ways:
        keys = [name for name in results[0] if name.startswith(f"{way}|")]
        cells = [spread([one[key] for one in results], 2 + 2 * ("psnr" not in key)) for key in keys]
        table.rows.append([way, "the source" if "source" in way else "the latents", *cells])
    model = _load(models[0])
    folder = config.output / "figure13"
    outside: list[Record] = []
    found = {} if config.interpolated is None else {
        (path.name if path.is_dir() else path.stem): path for path in media_in(config.interpolated)
    }  # fmt: skip
    for clip in find_clips(config):
        frames = read_prepared(clip, config.eval_size, span)
        name = clip.name if clip.is_dir() else clip.stem
        rebuilt = reconstruct(model, frames[0::2])
        _write_video(folder / f"{name}.mkv", rebuilt)
        if config.interpolated is not None:
            if name not in found:
                raise ValueError(f"--interpolated {config.interpolated} holds no {name}")
            made, between = read_prepared(found[name]), frames[1::2]
            if made.shape != between.shape:
                raise ValueError(
                    f"{found[name]} has {len(made)} frames of {made.shape[2]} x {made.shape[1]}: "
                    f"give the {len(between)} between those of {folder / name}.mkv, in its size"
                )
            outside.append(compare(between, made))
    if config.interpolated is not None:
        values = means(outside)
        cells = [spread([value], 2 + 2 * (key != "psnr")) for key, value in values.items()]
        table.rows.append(
            [f"{config.interpolated.name} of the reconstruction", "the latents", *cells]
        )

    def rows_of(frames: np.ndarray) -> list[list[np.ndarray]]:
        chunk, middle = frames[0:span:2], (CHUNK - 1) // 2
        made = _between(model, chunk).values()
        return [[frames[2 * middle + 1], *(one[middle] for one in made)]]

    draw(config, "figure13", rows_of, span)
    table.notes = [
        "The source is every second frame. The paper's external interpolator is EMA-VFI, whose "
        "weights are not here; minterpolate is FFmpeg's, by motion compensation. Of any other: "
        f"interpolate {folder}/*.mkv (seed {config.seeds[0]}) and give --interpolated FOLDER. The "
        "paper shows pictures and no number.",
        f"figure13.png: the source between, then {', '.join(ways)}.",
        *notes(config, models),
    ]
    return table


def _write_video(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, frame_rate=Fraction(25)) as writer:
        for index, pixels in enumerate(frames):
            writer.write(pixels, Fraction(index, 25))


def figure14(config: ReproduceConfig) -> Table:
    """Extrapolation: the frames after those that the encoder saw."""
    return _extrapolation(config, "figure14", is_past=False)


def figure15(config: ReproduceConfig) -> Table:
    """Extrapolation: the frames before those that the encoder saw."""
    return _extrapolation(config, "figure15", is_past=True)


def _extrapolation(config: ReproduceConfig, name: str, is_past: bool) -> Table:
    models, most = _one_model(config), OFFSETS[-1]
    times = [-offset for offset in OFFSETS] if is_past else [CHUNK - 1 + o for o in OFFSETS]
    start = most if is_past else 0  # of the chunk, in the frames that are read

    def beyond(model: AutoencoderREGEN, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        """At `OFFSETS`: the source, the decoder, and the nearest frame of the reconstruction."""
        chunk = frames[start : start + CHUNK]
        latents = encode_frames(model, chunk)
        nearest = _decode(model, latents, chunk, [0 if is_past else CHUNK - 1])
        source = frames[[start + time for time in times]]
        ours = _decode(model, latents, chunk, times)
        return source, ours, np.repeat(nearest, len(OFFSETS), axis=0)

    def measure(model: AutoencoderREGEN, frames: np.ndarray) -> Record:
        source, ours, nearest = beyond(model, frames)
        values: Record = {}
        for index, offset in enumerate(OFFSETS):
            for way, made in (("ours", ours), ("nearest", nearest)):
                one = slice(index, index + 1)
                compared = compare(source[one], made[one])
                values |= {f"{way}_{offset}_{key}": value for key, value in compared.items()}
        return values

    results = _per_seed(config, models, name, measure, CHUNK + most)
    keys = [key.removeprefix("ours_1_") for key in results[0] if key.startswith("ours_1_")]
    metrics = [one for one in metric_columns() if one != "rFVD"]
    kind = "before" if is_past else "after"
    table = Table(
        f"Figure {name.removeprefix('figure')}: frames {kind} the chunk",
        [f"frames {kind}", *metrics, *(f"{one}, nearest frame repeated" for one in metrics)],
    )
    for offset in OFFSETS:
        cells = [str(offset)]
        for way in ("ours", "nearest"):
            for key in keys:
                values = [one[f"{way}_{offset}_{key}"] for one in results]
                cells.append(spread(values, 2 + 2 * (key != "psnr")))
        table.rows.append(cells)
    model = _load(models[0])

    def rows_of(frames: np.ndarray) -> list[list[np.ndarray]]:
        source, ours, _ = beyond(model, frames)
        return [list(source), list(ours)]

    draw(config, name, rows_of, CHUNK + most)
    table.notes = [
        f"The encoder sees {CHUNK} frames; those {kind} them are decoded at their times, in one "
        "step. The paper shows pictures and no number.",
        f"{name}.png: {', '.join(map(str, OFFSETS))} frames {kind}; of each clip the source above, "
        "the decoder below.",
        *notes(config, models),
    ]
    return table
