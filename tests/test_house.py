"""The architecture kept by walking the sources: imports run downwards, and each library stays in its rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("tinygpt_jax", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__init__.py"
}
PACKAGE = {name: path for name, path in ROOMS.items() if name.startswith("tinygpt_jax.")}

# The rooms at the bottom, and all that each may import from the house.
FOUNDATIONS = {
    "errors": set(),
    "settings": {"errors"},
    "config": {"errors", "settings"},
    "files": {"errors"},
    "cards": {"errors"},
    "mesh": {"errors"},
    "functional": set(),
    "fused.products": {"functional"},
    "rows": set(),
    "fused.embedding": {"rows"},
    "fused.loss": {"functional", "fused.products"},
    "fused.blockwise": {"functional"},
    "tokenizer": {"errors"},
    "model": {"config", "functional", "rows"},
    "activations": {"functional", "model"},
    "training.muon": {"functional"},
    "training.optimizer": {"config", "training.muon"},
}

# Where in the package a library may be imported: the rooms' names begin with one of these.
HOMES = {
    "flax": ("tinygpt_jax.model",),
    "optax": ("tinygpt_jax.training.",),
    "orbax": ("tinygpt_jax.training.checkpoint",),
    "grain": ("tinygpt_jax.data.batches",),
    "datasets": ("tinygpt_jax.data.hub",),
    "pyarrow": ("tinygpt_jax.data.story_files",),
    "multiprocessing": ("tinygpt_jax.data.shards",),
    "tiktoken": ("tinygpt_jax.tokenizer",),
    "safetensors": ("tinygpt_jax.exchange.",),
    "huggingface_hub": ("tinygpt_jax.data.hub", "tinygpt_jax.exchange.hub"),
    "tyro": (),
}

# Slow to import, or not always installed: only inside the function that needs them, so that --help answers at once.
HEAVY = {"datasets", "huggingface_hub", "matplotlib", "wordcloud", "pyarrow", "tensorboardX"}


def imports(path, deep=True):
    """Dotted names that a file imports: anywhere, or (not deep) as soon as it is imported itself.

    `from a import b` gives `a.b`, as b may be a module. What stands under `if TYPE_CHECKING` is never imported.
    """
    names = set()
    pending = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: write the import out, without dots"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)
    return names


def rooms_imported(path):
    """The modules of the house among a file's imports."""
    return {room for name in imports(path) for room in ROOMS if name == room or name.startswith(room + ".")}


def libraries(path, deep=True):
    """The first parts of the names a file imports."""
    return {name.split(".")[0] for name in imports(path, deep)}


@pytest.mark.parametrize("room", FOUNDATIONS)
def test_foundations_import_only_what_lies_below(room):
    allowed = {f"tinygpt_jax.{name}" for name in FOUNDATIONS[room]}
    assert rooms_imported(PACKAGE[f"tinygpt_jax.{room}"]) <= allowed


def test_functional_knows_only_arrays():
    """The mathematics can be lifted out and read alone: jax, and jaxtyping for the shapes."""
    for room in ("functional", "fused.products", "fused.embedding", "fused.loss", "fused.blockwise"):
        rooms_own = set() if room == "functional" else {"tinygpt_jax"}
        assert libraries(PACKAGE[f"tinygpt_jax.{room}"]) <= {"jax", "jaxtyping", "functools", "typing"} | rooms_own


@pytest.mark.parametrize("library", HOMES)
def test_each_library_stays_in_its_rooms(library):
    strangers = [
        name for name, path in PACKAGE.items() if library in libraries(path) and not name.startswith(HOMES[library])
    ]
    assert strangers == []


def test_data_knows_no_model():
    for name, path in PACKAGE.items():
        if name.startswith("tinygpt_jax.data."):
            above = ("model", "functional", "fused", "evaluation", "generation.", "runs.", "training.", "report.")
            above = tuple(f"tinygpt_jax.{room}" for room in above)
            assert [room for room in rooms_imported(path) if room.startswith(above)] == [], name


def test_a_run_is_read_without_training_and_trained_without_a_report():
    rooms = {"runs": ("training", "report"), "generation": ("runs", "estimate")}
    rooms |= {"training": ("report", "estimate", "explorer"), "report": ("explorer",)}
    for lower, uppers in rooms.items():
        for name, path in PACKAGE.items():
            if name.startswith(f"tinygpt_jax.{lower}."):
                above = tuple(f"tinygpt_jax.{upper}." for upper in uppers)
                assert [room for room in rooms_imported(path) if room.startswith(above)] == [], name


def test_nobody_inside_needs_the_face_or_the_view_inside():
    """What serves who uses the package from outside costs training nothing."""
    outward = {"tinygpt_jax.library", "tinygpt_jax.activations"}
    assert [name for name, path in PACKAGE.items() if rooms_imported(path) & outward] == []


def test_the_package_does_not_know_the_experiments():
    assert [name for name, path in PACKAGE.items() if "experiments" in libraries(path)] == []


def test_imports_run_in_one_direction():
    """No room imports, by any path, a room that imports it."""
    below = {name: rooms_imported(path) - {name} for name, path in ROOMS.items()}
    while floor := {name for name, rooms in below.items() if not rooms}:
        below = {name: rooms - floor for name, rooms in below.items() if name not in floor}
    assert below == {}, "these import each other"


def test_heavy_libraries_are_imported_where_they_are_used():
    at_once = {name: libraries(path, deep=False) & HEAVY for name, path in ROOMS.items()}
    assert {name: found for name, found in at_once.items() if found} == {}


def test_every_component_is_our_own():
    """Of Flax only what declares parameters, of `jax.nn` nothing: no ready-made layer does the work."""
    tree = ast.parse(PACKAGE["tinygpt_jax.model"].read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn"
    }
    assert used == {"Module", "compact", "remat"}
    from_flax = {name for name in imports(PACKAGE["tinygpt_jax.model"]) if name.startswith("flax")}
    assert all(name == "flax.linen" or name.startswith("flax.linen.initializers.") for name in from_flax)
    for name, path in PACKAGE.items():
        text = path.read_text(encoding="utf-8")
        for word in ("jax.nn", "from jax import nn", "dot_product_attention", "softmax_cross_entropy"):
            assert word not in text, f"{word} in {name}"


def test_no_drawer_for_odds_and_ends():
    """What has no noun of its own belongs beside what uses it."""
    names = {part for name in ROOMS for part in name.split(".")}
    assert names.isdisjoint({"utils", "util", "helpers", "misc", "common"})
