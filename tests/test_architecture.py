"""The rules of the house, read from the source with `ast`: who imports whom, and what no one does.

Each rule is a function from sources to a list of faults; the tests below also break each rule.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room is a module or package of src/regen. It imports the rooms named here, all of them above it.
ROOMS: dict[str, set[str]] = {
    "files": set(),
    "video": {"files"},
    "flow": set(),
    "offloading": set(),
    "flops": set(),
    "chunking": set(),
    "latent_statistics": {"offloading"},
    "latent_file": {"files", "chunking"},
    "perceptual": set(),
    "model": {"flow", "offloading", "chunking", "latent_statistics", "perceptual"},
    "baselines": {"offloading", "chunking", "model"},
    "loading": {"model", "baselines"},
    "data": {"files", "video"},
    "moving_shapes": {"files", "video"},
    "evaluation": {"files", "video", "flops", "latent_file", "perceptual", "loading", "data"},
    "training": {
        *("files", "flops", "chunking", "perceptual", "model", "baselines", "loading", "data"),
        "evaluation",
    },
    "t2v": {
        *("files", "video", "flow", "chunking", "latent_statistics", "latent_file", "model"),
        *("loading", "data", "evaluation", "training"),
    },
    "streaming": {"video", "chunking", "model", "loading"},
    "codec": {"video", "chunking", "latent_file", "model", "loading", "evaluation", "streaming"},
    "reproduction": {
        *("files", "video", "flops", "model", "loading", "data", "evaluation", "training"),
        "streaming",
    },
    "cli": {
        *("video", "latent_file", "model", "loading", "data", "moving_shapes", "evaluation"),
        *("training", "t2v", "codec", "reproduction"),
    },
    "weights": set(),
    "__init__": {"model", "loading", "t2v"},  # its public names, on first use
    "__main__": {"cli"},
}
DOORS = {"video"}  # packages that others import from as a whole, not from their modules

# What only some files may import.
RESERVED = {
    "av": {"video"},
    "tyro": {"cli"},
    "accelerate": {"training", "t2v/task", "evaluation/evaluate"},
    "ray": {"t2v/cache/building"},
    "transformers": {"t2v/text_encoder"},
    "safetensors.safe_open": {"latent_file", "training/checkpoint", "t2v/cache/latent_shards"},
    "safetensors.torch.save_file": {"latent_file", "training/checkpoint"},
    "safetensors.torch.load_file": set(),
    "PIL.Image.open": {"video"},
}
LATENT_FILE_WORDS = {
    "regen-latents-1",
    "regen-latents-2",
    "ticks_per_s",
    "checksum",
}  # known to latent_file.py alone
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"torch.load", "torch.save"}
# Published networks of metrics come pickled: their reader checks hashes and admits arrays alone.
ADMITTED = {
    "src/regen/perceptual/weights.py": {"pickle", "torch.load"},
    "tests/test_perceptual.py": {"pickle", "torch.save"},
}
FORBIDDEN_OPTIONS = {("strict", False), ("allow_pickle", True), ("weights_only", False)}
FORBIDDEN_NAMES = {"utils.py", "util.py", "common.py", "misc.py"}

# What needs no import of ours, and distributions whose modules have another name.
INDIRECT = {"tensorboard"}  # accelerate's tracker
MODULES = {
    "pillow": "PIL",
    "scikit-image": "skimage",
    "pre-commit": "pre_commit",
}

Sources = dict[str, str]  # "models/dit" -> its source


def sources() -> Sources:
    package = ROOT / "src" / "regen"
    files = sorted(package.rglob("*.py"))
    return {
        path.relative_to(package).with_suffix("").as_posix(): path.read_text() for path in files
    }


def room_of(name: str) -> str:
    return name.split("/")[0]


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every imported name ("regen.flow.add_noise", "av"), and whether importing the module does it.

    What stands in a function or under `if TYPE_CHECKING` is imported later, or never.
    """

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, "imports are absolute"
                yield from ((f"{child.module}.{alias.name}", at_once) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, False)
            else:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                yield from walk(child, at_once and not is_function)

    yield from walk(ast.parse(source), True)


def edges(files: Sources) -> set[tuple[str, str]]:
    """(room, imported room)."""
    found = set()
    for name, source in files.items():
        for imported, _ in imports(source):
            package, room = (*imported.split("."), "__init__")[:2]
            if package == "regen" and room != room_of(name):
                found.add((room_of(name), room))
    return found


def shut_doors(files: Sources) -> list[str]:
    return [
        f"{name} imports {imported}"
        for name, source in files.items()
        for imported, _ in imports(source)
        for door in DOORS
        if room_of(name) != door and re.match(rf"regen\.{door}\.[a-z_]+\.", imported)
    ]


def reserved(files: Sources) -> list[str]:
    faults = []
    for name, source in files.items():
        used = {imported for imported, _ in imports(source)} | set(attributes(source))
        for module, allowed in RESERVED.items():
            is_used = any(one == module or one.startswith(f"{module}.") for one in used)
            if is_used and not {name, room_of(name)} & allowed:
                faults.append(f"{name} uses {module}")
    return faults


def attributes(source: str) -> Iterator[str]:
    """Dotted names as they are imported: `Image.open` after `from PIL import Image` is PIL's."""
    origin = {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                origin[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in origin:
                yield f"{origin[first]}.{rest}"


def forbidden(files: Sources) -> list[str]:
    faults = []
    for name, source in files.items():
        names = {imported for imported, _ in imports(source)}
        used = {one for one in names if one.split(".")[0] in FORBIDDEN_IMPORTS}
        used |= {*names, *attributes(source)} & FORBIDDEN_CALLS
        faults += [f"{name}: {one}" for one in sorted(used - ADMITTED.get(name, set()))]
        options = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.keyword)]
        for option in options:
            value = option.value.value if isinstance(option.value, ast.Constant) else None
            if (option.arg, value) in FORBIDDEN_OPTIONS:
                faults.append(f"{name}: {option.arg}={value}")
    return faults


def knowledge_of_the_latent_file(files: Sources) -> set[str]:
    return {
        name
        for name, source in files.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and node.value in LATENT_FILE_WORDS
    }


def imported_with(start: str, files: Sources) -> set[str]:
    """Top-level packages, but the standard library's, that `import regen.<start>` brings along."""
    waiting, seen, found = [start, "__init__"], set(), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported, at_once in imports(files[name]):
            parts = imported.split(".")
            if not at_once or parts[0] in sys.stdlib_module_names:
                continue
            if parts[0] != "regen":
                found.add(parts[0])
                continue
            for length in range(2, len(parts) + 1):  # regen.a.b.name runs regen.a and regen.a.b
                path = "/".join(parts[1:length])
                waiting += [one for one in (path, f"{path}/__init__") if one in files]
    return found


def requirements() -> tuple[set[str], set[str]]:
    """Modules of the dependencies, and of all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def modules(lines: list[str]) -> set[str]:
        names = [re.match(r"[\w-]+", line)[0] for line in lines]  # type: ignore[index]
        return {MODULES.get(name, name) for name in names if name != project["name"]}

    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return modules(project["dependencies"]), modules(extras)


def undeclared(files: Sources, dependencies: set[str], extras: set[str]) -> list[str]:
    """Third-party imports that no requirement covers; those of extras only within functions."""
    faults = []
    for name, source in files.items():
        for imported, at_once in imports(source):
            first = imported.split(".")[0]
            known = {"regen"} | sys.stdlib_module_names | dependencies
            if first not in (known if at_once else known | extras):
                faults.append(f"{name} imports {imported}")
    return faults


# -- the rules hold -------------------------------------------------------------------------------


def test_imports_go_down_the_list() -> None:
    order = list(ROOMS)
    for room, allowed in ROOMS.items():
        above = set(order[: order.index(room)])
        assert allowed <= above, f"{room}: {allowed - above} stands below it"
    table = {(room, other) for room, allowed in ROOMS.items() for other in allowed}
    assert {room_of(name) for name in sources()} == set(ROOMS)
    assert edges(sources()) == table


def test_nobody_imports_the_command_line() -> None:
    assert {room for room, allowed in ROOMS.items() if "cli" in allowed} == {"__main__"}


def test_packages_are_entered_by_their_door() -> None:
    assert shut_doors(sources()) == []


def test_each_library_has_its_place() -> None:
    assert reserved(sources()) == []


def test_only_latents_knows_the_latent_file() -> None:
    files = sources()
    assert knowledge_of_the_latent_file(files) == {"latent_file"}
    assert all(f'"{word}"' in files["latent_file"] for word in LATENT_FILE_WORDS)


def test_nothing_is_pickled_and_loading_is_strict() -> None:
    python = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in python}
    assert forbidden(files) == []
    for name, used in ADMITTED.items():  # and nowhere else
        assert len(forbidden({"elsewhere": files[name]})) == len(used)


def test_files_are_named_after_what_they_hold() -> None:
    assert not {path.name for path in (ROOT / "src").rglob("*.py")} & FORBIDDEN_NAMES


def test_help_needs_no_heavy_library() -> None:
    assert imported_with("cli/__init__", sources()) == {"tyro"}
    assert imported_with("__init__", sources()) == set()


def test_imports_are_declared_and_extras_wait() -> None:
    files = sources()
    dependencies, extras = requirements()
    assert undeclared(files, dependencies, extras) == []
    used = {imported.split(".")[0] for source in files.values() for imported, _ in imports(source)}
    assert dependencies - used == INDIRECT


# -- and each of them can fail --------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import regen.cli",
        "from regen.cli import main",
        "from regen import cli",
        "def late():\n    from regen.cli import main",
        "if TYPE_CHECKING:\n    from regen.cli import main",
        "try:\n    import regen.cli\nexcept ImportError:\n    pass",
    ],
)
def test_an_edge_is_seen(source: str) -> None:
    assert edges({"model/dit": source}) == {("model", "cli")}


def test_a_relative_import_is_an_error() -> None:
    with pytest.raises(AssertionError, match="absolute"):
        edges({"model/dit": "from ..flow import add_noise"})


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (shut_doors, "from regen.video.reader import open_container"),
        (reserved, "import av"),
        (reserved, "import av.filter as f"),
        (reserved, "from av import open"),
        (reserved, "def late():\n    import av"),
        (reserved, "from PIL import Image\nImage.open('a.png')"),
        (reserved, "import PIL.Image\nPIL.Image.open('a.png')"),
        (reserved, "import safetensors\nsafetensors.safe_open('a')"),
        (reserved, "from safetensors.torch import save_file as write"),
        (reserved, "import safetensors.torch as st\nst.load_file('a')"),
        (forbidden, "import pickle"),
        (forbidden, "from pickle import loads"),
        (forbidden, "import torch as t\nt.load('a')"),
        (forbidden, "from torch import load"),
        (forbidden, "model.load_state_dict(weights, strict=False)"),
        (forbidden, "np.load('a', allow_pickle=True)"),
    ],
)
def test_a_fault_is_seen(rule: Callable[[Sources], list[str]], source: str) -> None:
    assert rule({"data/clips": source})
    assert not rule({"data/clips": "from regen.video import open_video"})


def test_knowledge_of_the_latent_file_is_seen() -> None:
    assert knowledge_of_the_latent_file({"codec": 'ticks = metadata["ticks_per_s"]'}) == {"codec"}


def test_a_heavy_import_is_seen() -> None:
    files = {
        "__init__": "",
        "cli": "from regen.training.config import TrainConfig",
        "training/__init__": "",
        "training/config": "from regen.model.presets import PRESETS",
        "model/__init__": "import torch",
        "model/presets": "def late():\n    import numpy",
    }
    assert imported_with("cli", files) == {"torch"}


def test_an_undeclared_import_is_seen() -> None:
    assert undeclared({"data/clips": "import ray"}, {"torch"}, {"ray"})
    assert not undeclared({"data/clips": "def late():\n    import ray"}, {"torch"}, {"ray"})
    assert undeclared({"data/clips": "def late():\n    import scipy"}, {"torch"}, {"ray"})
