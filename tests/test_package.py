from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinyqa_ray

ROOT = Path(tinyqa_ray.__file__).parent
PURE = ("evaluate.squad_metrics", "datasets.windows", "augment.rewriting", "distill.losses", "reader.spans")
FLOORS = (
    ("core",),
    ("configs", "models"),
    ("datasets", "documents"),
    ("corpus", "engines"),
    ("reader",),
    ("evaluate", "teacher_logits"),
    ("answer", "augment", "distill", "export", "gather", "integrations", "serve"),
    ("ray_data", "recipes"),
    ("cli",),
)
"""Folders of the package from the ground up: each may import those of lower floors, and no others."""


def modules() -> dict[str, Path]:
    """Path by dotted name within the package; a package's own file has its folder's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports: on top, within functions, and for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # ``from package import module`` and ``from module import name`` look alike.
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(path: Path) -> set[str]:
    """The package's modules that a file imports; a package is itself where a name of its face is imported."""
    prefix = "tinyqa_ray."
    names = {
        name.removeprefix(prefix) for name in imported(path) if name.startswith(prefix)
    } & modules().keys()
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


def test_wheel_is_told_to_hold_the_package_and_nothing_else() -> None:
    """The build takes an option that it does not know for none, and then guesses what a wheel holds."""
    project = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    wheel = project.partition("[tool.hatch.build.targets.wheel]\n")[2].partition("\n\n")[0]
    assert wheel == f'packages = ["{ROOT.name}"]'


def test_every_folder_has_its_floor() -> None:
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert folders == {room for floor in FLOORS for room in floor}
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("floor", range(len(FLOORS)), ids=lambda floor: "-".join(FLOORS[floor]))
def test_no_folder_imports_one_above_or_beside_it(floor: int) -> None:
    below = {room for rooms in FLOORS[:floor] for room in rooms}
    for name, path in modules().items():
        room = name.partition(".")[0]
        if room in FLOORS[floor]:
            others = {each.partition(".")[0] for each in own(path)}
            assert others <= {room, *below}, f"{name} imports {sorted(others - {room, *below})}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: own(path) for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def private(path: Path) -> set[str]:
    """Names of others' that begin with an underscore, which their next version may take away."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names):
                found |= {part for alias in names for part in alias.name.split(".")}
            case ast.ImportFrom(module, names):
                found |= {*str(module).split("."), *(alias.name for alias in names)}
            case ast.Attribute(value, attribute) if ast.unparse(value) not in ("self", "cls"):
                found.add(attribute)
            case ast.keyword(str(argument)):
                found.add(argument)
    return {name for name in found if name.startswith("_") and not name.endswith("__")} - {"_replace"}


def test_private_interfaces_of_libraries_are_left_alone() -> None:
    """Versions are ranges: what a library does not promise may be gone with its next one."""
    found = {(name, each) for name, path in modules().items() for each in private(path)}
    allowed = {
        ("serve.app", "_internal"),  # Ray Serve takes the version of a deployment in no other way
        # A model is read without them where a torch lacks them.
        *(("engines.packed", name) for name in ("_linear_pointwise", "_reorder_linear_weight")),
    }
    assert found - allowed == set()


@pytest.mark.parametrize("name", PURE)
def test_pure_module_imports_neither_ray_nor_transformers(name: str) -> None:
    """Nor does anything that it imports."""
    todo, seen = [name], set()
    while todo:
        path = modules()[todo.pop()]
        seen.add(path)
        roots = {each.split(".")[0] for each in imported(path)}
        assert not roots & {"ray", "transformers", "datasets"}, path
        todo += [each for each in own(path) if modules()[each] not in seen]


@pytest.mark.parametrize(
    "statement",
    [
        "import tinyqa_ray",
        "from tinyqa_ray.cli import console",
        "from tinyqa_ray.cli.main import main\nwith suppress(SystemExit): main(['--help'])",
    ],
)
def test_start_is_light(statement: str) -> None:
    """Torch and Ray take seconds to import; help, mistakes and finished stages do without them."""
    heavy = ("torch", "ray", "transformers", "datasets", "matplotlib")
    script = f"import sys\nfrom contextlib import suppress\n{statement}\nprint('LOADED', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = ran.stdout.rpartition("LOADED")[2].split()
    assert "tinyqa_ray" in loaded
    assert [name for name in heavy if name in loaded] == []
