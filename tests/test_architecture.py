"""The rooms and who may enter: imports point down only, and each heavy package has one home."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

# From the top down; a room may import from any room below its own line, never from a neighbour.
FLOORS = (
    ("embedcache_cli",),
    ("embedcache.__init__",),
    ("embedcache.testing",),
    ("embedcache.project",),
    ("embedcache.verbs",),
    (
        "embedcache.extract",
        "embedcache.finetune",
        "embedcache.protocol",
        "embedcache.catalog",
        "embedcache.audit",
    ),
    ("embedcache.runs",),
    ("embedcache.scoring",),
    ("embedcache.encoders", "embedcache.store", "embedcache.datasets"),
    ("embedcache.probes",),
    ("embedcache.data",),
    ("embedcache.workspace",),
    ("embedcache.encoder_folders",),
    ("embedcache.files",),
    ("embedcache.errors",),
    ("embedcache.visible",),
)
HOMES = {
    "torch": ("embedcache.encoders", "embedcache.finetune"),
    "torchvision": ("embedcache.finetune",),
    "timm": ("embedcache.encoders", "embedcache.finetune"),
    "lightning_fabric": ("embedcache.finetune",),
    "peft": ("embedcache.finetune",),
    "open_clip": ("embedcache.encoders",),
    "pydicom": ("embedcache.data",),
    "yaml": ("embedcache.datasets",),
    "safetensors": ("embedcache.encoders", "embedcache.catalog", "embedcache.finetune"),
    "huggingface_hub": ("embedcache.encoders",),
    "zarr": ("embedcache.store",),
    "numcodecs": ("embedcache.store",),
    "duckdb": ("embedcache.catalog",),
    "sklearn": ("embedcache.data", "embedcache.protocol", "embedcache.probes"),
    "threadpoolctl": ("embedcache.files", "embedcache.probes"),
    "scipy": (
        "embedcache.datasets",
        "embedcache.probes",
        "embedcache.protocol",
        "embedcache.scoring",
    ),
    "PIL": (
        "embedcache.data",
        "embedcache.encoders",
        "embedcache.datasets",
        "embedcache.testing",
    ),
    "google_crc32c": ("embedcache.files",),
    "click": ("embedcache_cli",),
    "rich": ("embedcache_cli",),
}
# Where an import may stand inside a function: the command line, the front door and the verbs, the
# lazy loaders of the encoders, and what must not cost anything until it is used.
LATE = (
    "embedcache_cli.",
    "embedcache.project",
    "embedcache.verbs.",
    "embedcache.encoders.registry",
    "embedcache.encoders.hub",
    "embedcache.encoders.torch_encoder",
    "embedcache.store.segment",
    "embedcache.catalog.",
    "embedcache.files.flock",
    "embedcache.encoders.devices",
    "embedcache.encoders.checkpoints",
    "embedcache.data.folds",
    "embedcache.data.dicom",
    "embedcache.files.documents",
    "embedcache.finetune.material",
    "embedcache.finetune.regimes",
    "embedcache.finetune.events",
)


def modules() -> Iterator[tuple[str, Path]]:
    for base, folder in ((ROOT, "embedcache"), (ROOT / "cli", "embedcache_cli")):
        for path in sorted((base / folder).rglob("*.py")):
            yield ".".join(path.relative_to(base).with_suffix("").parts), path


MODULES = dict(modules())


def room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "embedcache_cli" else ".".join(parts[:2])


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """Yield each imported name, whether it stands in a function, and whether only for types."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        late, typed = id(node) in inside, id(node) in typing_only
        if isinstance(node, ast.Import):
            yield from ((alias.name, late, typed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else node.module), late, typed


def floor(name: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if name in rooms]
    assert found, f"{name} has no floor; give it one in FLOORS"
    return found[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for name, _, typed in imports(MODULES[module]):
        if not name.startswith("embedcache") or typed:
            continue
        target = "embedcache.__init__" if name == "embedcache" else name
        here, there = room(module), room(target)
        if here != there:
            assert floor(there) > floor(here), f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_stay_at_home(module):
    for name, _, _ in imports(MODULES[module]):
        package = name.split(".")[0]
        if package in HOMES:
            assert room(module) in HOMES[package], f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_every_third_party_package_is_declared_and_has_a_home(module):
    free = {"numpy", "pyarrow", "platformdirs", "embedcache", "embedcache_cli"}
    for name, _, _ in imports(MODULES[module]):
        package = name.split(".")[0]
        known = package in HOMES or package in free or package in sys.stdlib_module_names
        assert known, f"{module} imports {name}; give {package} a home in HOMES"


@pytest.mark.parametrize("module", MODULES)
def test_late_imports_stand_only_where_they_may(module):
    late = [name for name, is_late, _ in imports(MODULES[module]) if is_late]
    assert not late or module.startswith(LATE), f"{module} imports {late} inside a function"


# What a reader can hold in mind; a function's lines include its docstring.
MOST_LINES = 400
MOST_FUNCTION_LINES = 50
MOST_ROOMS = 23


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_shallow(module):
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES
    assert len(module.split(".")) <= 3


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            n_lines = node.end_lineno - node.lineno + 1
            assert n_lines <= MOST_FUNCTION_LINES, f"{module}.{node.name} has {n_lines} lines"


def test_rooms_are_few():
    rooms = {name for names in FLOORS for name in names}
    assert len(rooms) <= MOST_ROOMS
    assert rooms == set(map(room, MODULES)), "FLOORS has a room that is empty, or lacks one"


def test_the_store_knows_no_patients_and_the_encoders_no_paths_of_images():
    for module, path in MODULES.items():
        code = ast.unparse(ast.parse(path.read_text()))
        if module.startswith("embedcache.store."):
            assert "patient_id" not in code, module
        if module.startswith("embedcache.encoders.") and module != "embedcache.encoders.kept":
            assert "patient" not in code, module
            assert "image_id" not in code, module


# Rooms whose bytes go through `files/backend`, with the modules that hold what must be a file: the
# DuckDB index, and what a user exports.
BEHIND_THE_BACKEND = (
    "embedcache.store",
    "embedcache.runs",
    "embedcache.catalog",
    "embedcache.workspace",
)
FILES_OF_THEIR_OWN = {f"embedcache.catalog.{name}" for name in ("index", "export", "output")}
FILE_CALLS = {
    *("glob", "rglob", "iterdir", "stat", "open", "touch", "unlink", "mkdir", "rmdir", "rename"),
    *("read_bytes", "write_bytes", "write_text", "symlink_to", "hardlink_to", "FileIO"),
}


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in BEHIND_THE_BACKEND])
def test_stored_bytes_go_through_the_backend(module):
    if module in FILES_OF_THEIR_OWN:
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert called not in FILE_CALLS, f"{module}:{node.lineno} calls {called}()"
    packages = {name.split(".")[0] for name, _, _ in imports(MODULES[module])}
    assert not packages & {"os", "shutil", "glob", "tempfile"}, module


def test_nothing_is_marked_as_unfinished():
    for module, path in MODULES.items():
        text = path.read_text()
        for word in ("TODO", "FIXME", "XXX", "NotImplementedError"):
            assert word not in text, f"{module}: {word}"


def test_the_tree_of_errors_is_the_one_that_is_drawn():
    from embedcache import errors

    drawn = errors.__doc__
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.EmbedcacheError):
            assert name in drawn, name
            parents = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins"]
            assert all(f"{name}({parent})" in drawn for parent in parents if parent != "Exception")


def test_errors_survive_pickling():
    import pickle

    from embedcache import errors

    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.EmbedcacheError):
            again = pickle.loads(pickle.dumps(kind("what, where, way out")))
            assert str(again) == "what, where, way out"
            assert type(again) is kind
