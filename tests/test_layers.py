"""The layers of fedsd, the trust model as import rules, and the budgets of files and functions."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fedsd"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    ("lowrank",), ("tangent_mean",), ("seeded",), ("values",), ("sections",), ("config",), ("codec",), ("records",),
    ("wire",), ("export",), ("store",), ("strategies",), ("base",), ("data",), ("methods",), ("privacy",), ("metrics",),
    ("hybrid",), ("client_app", "server_app"), ("cli",),
)  # fmt: skip
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}

# The Training Edge Server has neither the base nor anybody's pictures (section 3.1 of the paper).
SERVER_SIDE = (
    "lowrank",
    "tangent_mean",
    "seeded",
    "values",
    "sections",
    "config",
    "codec",
    "records",
    "wire",
    "export",
    "store",
    "strategies",
    "server_app",
)
NOT_ON_THE_SERVER = {
    "torch", "torchvision", "diffusers", "transformers", "peft", "open_clip", "accelerate",
    "fedsd.base", "fedsd.data", "fedsd.methods", "fedsd.privacy", "fedsd.metrics", "fedsd.hybrid", "fedsd.cli",
    "fedsd.client_app",
}  # fmt: skip
# A device starts anew for every message, so it does not load what only the server computes with.
DEVICE_SIDE = ("base", "data", "methods", "privacy", "metrics", "hybrid", "client_app")
# The Inference Edge Server has the base, and nothing of how adapters came about; its client is on a device.
DEVICE_SIDE_OF_HYBRID = {"client.py"}
NOT_ON_THE_INFERENCE_SERVER = {
    "strategies",
    "data",
    "methods",
    "privacy",
    "metrics",
    "wire",
    "codec",
    "records",
    "client_app",
    "server_app",
}
ONLY = {"data": {"config", "data"}, "metrics": {"base", "lowrank", "metrics"}}  # what these two may import of fedsd

LONGEST_FILE = 300
LONGEST_FUNCTION = 60
SHELF_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def part_of(file: Path) -> str:
    """The layer's part that a file belongs to: "strategies" for fedsd/strategies/inter.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports with their full name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_parts(file: Path) -> set[str]:
    """Parts of fedsd that a file imports."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("fedsd.")}


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=named)
def test_imports_point_down(file: Path) -> None:
    here = part_of(file)
    if here == "__init__":
        assert not own_parts(file)
        return
    assert here in HEIGHT, f"{here} has no layer; give it one in LAYERS"
    upward = {part for part in own_parts(file) - {here} if HEIGHT[part] >= HEIGHT[here]}
    assert not upward, f"{named(file)} imports {', '.join(sorted(upward))}, not below {here}"


@pytest.mark.parametrize("part", SERVER_SIDE)
def test_the_training_server_imports_neither_the_base_nor_pictures(part: str) -> None:
    for file in FILES:
        if part_of(file) == part:
            wrong = {
                name for name in imports(file) for banned in NOT_ON_THE_SERVER if f"{name}.".startswith(f"{banned}.")
            }
            assert not wrong, f"{named(file)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("part", DEVICE_SIDE)
def test_a_device_does_not_import_the_strategies(part: str) -> None:
    files = [file for file in FILES if part_of(file) == part]
    assert files
    for file in files:
        assert "strategies" not in own_parts(file), named(file)


@pytest.mark.parametrize("part", ONLY)
def test_data_and_metrics_import_only_what_they_may(part: str) -> None:
    for file in FILES:
        if part_of(file) == part:
            assert own_parts(file) <= ONLY[part], named(file)


def test_the_inference_server_imports_neither_training_nor_pictures() -> None:
    commands = {name: PACKAGE / "cli" / name for name in ("serve.py", "neutralized_run.py")}
    files = {file.name: file for file in FILES if part_of(file) == "hybrid"} | commands
    assert files.keys() >= {"server.py", "client.py"}
    for name in files.keys() - DEVICE_SIDE_OF_HYBRID:
        assert not own_parts(files[name]) & NOT_ON_THE_INFERENCE_SERVER, name
        assert not {f"fedsd.hybrid.{Path(n).stem}" for n in DEVICE_SIDE_OF_HYBRID} & set(imports(files[name])), name


def test_the_inference_server_starts_without_training_or_pictures() -> None:
    code = "import sys, fedsd.cli.serve; print(*sorted(m.split('.')[1] for m in sys.modules if m.startswith('fedsd.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    assert "hybrid" in loaded and not loaded & NOT_ON_THE_INFERENCE_SERVER


def test_methods_stand_alone() -> None:
    for file in (PACKAGE / "methods").glob("*.py"):
        names = set(imports(file))
        if file.stem == "table":  # of them all
            continue
        assert not {name for name in names if name.split(".")[0] == "flwr"}, f"{named(file)} imports Flower"
        others = {name for name in names if name.startswith("fedsd.methods.")}
        assert not others, f"{named(file)} imports another method: {', '.join(others)}"


def test_the_server_starts_without_the_base() -> None:
    heavy = {"torch", "diffusers", "transformers", "peft"}
    code = f"import sys, fedsd.server_app; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function in a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("file", FILES, ids=named)
def test_files_and_functions_keep_their_size_and_name(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{named(file)} has {lines} lines; split it"
    assert file.stem not in SHELF_NAMES, f"{named(file)}: name a file after what it holds"
    for name, length in functions(file):
        assert length <= LONGEST_FUNCTION, f"{named(file)}: {name} has {length} lines; split it"


def test_nine_functions_in_ten_are_short() -> None:
    lengths = [length for file in FILES for _, length in functions(file)]
    assert sum(length <= 30 for length in lengths) >= 0.9 * len(lengths)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_nothing_that_is_read_can_run_code(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for unsafe in (r"torch\.load\((?![^)]*weights_only=True)", r"import pickle", r"pickle\.load", r"allow_pickle=True"):
        assert not re.search(unsafe, text), f"{named(file)} uses {unsafe}; read safetensors, or weights alone"
