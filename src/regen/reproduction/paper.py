"""What the paper reports (arXiv:2503.08665), for the tables. PSNR in dB, SSIM, rFVD."""

Numbers = tuple[float, float, float]

# Tab. 1, at 256 x 256: ratio -> method -> set -> numbers.
TABLE_1: dict[int, dict[str, dict[str, Numbers]]] = {
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
}

# Tab. 2, 8 x 8 x 4. The text of the paper does not give the size; its summary says 512 x 512.
TABLE_2: dict[str, dict[str, Numbers]] = {
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

# Tab. 5: its numbers of MAGVIT-v2 and REGEN are those of DAVIS at 256 x 256 in Tab. 1.
TABLE_5: dict[int, dict[str, Numbers]] = {
    16: {
        "MAGVIT-v2": (20.62, 0.527, 441.24),
        "MAGVIT-v2, wide": (20.83, 0.508, 486.48),
        "REGEN": (23.85, 0.635, 328.83),
    },
    32: {
        "MAGVIT-v2": (18.23, 0.419, 1080.15),
        "MAGVIT-v2, wide": (18.98, 0.437, 1020.80),
        "REGEN": (22.20, 0.575, 488.89),
    },
}
