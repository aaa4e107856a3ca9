from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinyqa_ray

ROOT = Path(tinyqa_ray.__file__).parent
PURE = ("metrics", "windows", "augment.rewriting", "distill.losses", "reader.spans")
# What stands below every stage: it may be imported by all, and imports none of them.
GROUND = (
    "errors",
    "shipped",
    "storage",
    "runs",
    "configs",
    "squad",
    "texts",
    "windows",
    "metrics",
    "models",
    "engines",
    "openvino_engine",
    "loading",
    "machine",
    "cluster",
    "shards",
    "local_copies",
    "html",
    "plots",
    "report",
    "score",
)
STAGES = (
    *("augment", "distill", "reader", "corpus", "answer", "evaluate", "runner", "cli", "console"),
    *("recipes", "stages", "quickstart", "overrides", "options"),
)


def modules() -> dict[str, Path]:
    """Path by dotted name within the package; a package's own file has its folder's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def checked_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported(path: Path, *, inner: bool) -> set[str]:
    """Dotted names that a file imports when it is imported and, with ``inner``, within its functions too."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if checked_for_types_only(node) or (isinstance(node, ast.FunctionDef) and not inner):
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # ``from package import module`` and ``from module import name`` look alike.
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(path: Path, *, inner: bool) -> set[str]:
    """The package's modules that a file imports."""
    prefix = "tinyqa_ray."
    names = {name.removeprefix(prefix) for name in imported(path, inner=inner) if name.startswith(prefix)}
    return names & modules().keys()


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: own(path, inner=False) for name, path in modules().items()}
    for name, names in graph.items():
        # Importing a module runs its package's file first.
        packages = {each.rpartition(".")[0] for each in names if "." in each}
        graph[name] = names | (packages - {name, name.rpartition(".")[0]})
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", GROUND)
def test_ground_knows_no_stage(name: str) -> None:
    names = own(modules()[name], inner=True)
    assert {each for each in names if any(below(each, stage) for stage in STAGES)} == set()


@pytest.mark.parametrize(("package", "other"), [("reader", "distill"), ("distill", "reader")])
def test_making_and_reading_models_know_nothing_of_each_other(package: str, other: str) -> None:
    for name, path in modules().items():
        if below(name, package):
            assert not [each for each in own(path, inner=True) if below(each, other)], name


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
    # Ray Serve takes the version of a deployment in no other way.
    assert found - {("serve.app", "_internal")} == set()


@pytest.mark.parametrize("name", PURE)
def test_pure_module_imports_neither_ray_nor_transformers(name: str) -> None:
    """Nor does anything that it imports."""
    todo, seen = [name], set()
    while todo:
        path = modules()[todo.pop()]
        seen.add(path)
        roots = {each.split(".")[0] for each in imported(path, inner=True)}
        assert not roots & {"ray", "transformers", "datasets"}, path
        todo += [each for each in own(path, inner=True) if modules()[each] not in seen]


def test_every_stage_is_known_here() -> None:
    tops = {name.split(".")[0] for name in modules() if name}
    assert set(GROUND) <= tops
    assert set(STAGES) <= tops


@pytest.mark.parametrize(
    "statement",
    ["import tinyqa_ray", "from tinyqa_ray import cli\nwith suppress(SystemExit): cli.main(['--help'])"],
)
def test_start_is_light(statement: str) -> None:
    """Torch and Ray take seconds to import; help and mistakes come without them."""
    heavy = ("torch", "ray", "transformers", "datasets", "matplotlib")
    script = f"import sys\nfrom contextlib import suppress\n{statement}\nprint('LOADED', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = ran.stdout.rpartition("LOADED")[2].split()
    assert "tinyqa_ray" in loaded
    assert [name for name in heavy if name in loaded] == []
