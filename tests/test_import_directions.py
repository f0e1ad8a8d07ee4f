"""Who may import whom, as docs/architecture.md says; read from the source, nothing is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "betakd_cache": ROOT / "cache" / "betakd_cache",
    "betakd_stages": ROOT / "stages" / "betakd_stages",
    "betakd_pipe": ROOT / "pipeline" / "betakd_pipe",
}
FORBIDDEN = {
    "betakd_cache": {"betakd_stages", "betakd_pipe", "torch", "transformers", "typer"},
    "betakd_stages": {"betakd_pipe", "typer"},
    "betakd_pipe": set[str](),
}
HEAVY = {"vllm", "ray"}
OF_VLLM = "vllm/models"
"""Classes that vLLM itself imports, by the names its plugin gives."""
TENSORS_ONLY = ("energies", "weightings")
SLOW = {"torch", "transformers", "accelerate", "datasets", "sklearn", "matplotlib"}
TORCH_FREE_STAGES = {"errors", "files", "progress", "settings"}


def source_files() -> list[tuple[str, Path]]:
    return [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules imported anywhere below `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_at_import_time(tree: ast.Module) -> Iterator[str]:
    """Those that run when the module is imported: not inside functions, and not for type checkers only."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        pending += ast.iter_child_nodes(node)


def top(name: str) -> str:
    return name.split(".")[0]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


FILES = [pytest.param(package, path, id=str(path.relative_to(ROOT))) for package, path in source_files()]


def test_the_walk_sees_all_three_packages() -> None:
    assert {package for package, _ in source_files()} == set(PACKAGES)


def test_the_walk_tells_import_time_from_later() -> None:
    tree = ast.parse(
        "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\n"
        "try:\n    from d import e\nfinally:\n    pass\nclass C:\n    import g\n"
    )
    assert set(imports_at_import_time(tree)) == {"a", "d.e", "g"}
    assert set(imports(tree)) == {"a", "b", "c", "d.e", "g"}


@pytest.mark.parametrize(("package", "path"), FILES)
def test_packages_import_in_one_direction(package: str, path: Path) -> None:
    wrong = {name for name in imports(parsed(path)) if top(name) in FORBIDDEN[package]}
    assert not wrong, f"{path} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(("package", "path"), FILES)
def test_heavy_optional_packages_are_imported_inside_functions(package: str, path: Path) -> None:
    allowed = {"vllm"} if path.parent.as_posix().endswith(OF_VLLM) else set()
    wrong = {name for name in imports_at_import_time(parsed(path)) if top(name) in HEAVY - allowed}
    assert not wrong, f"{path} must import {', '.join(sorted(wrong))} inside a function"


def test_ray_is_imported_in_one_file() -> None:
    found = [path.name for _, path in source_files() if "ray" in {top(name) for name in imports(parsed(path))}]
    assert found == ["ray_pool.py"]


def test_energies_and_weightings_see_tensors_only() -> None:
    for folder in TENSORS_ONLY:
        paths = sorted((PACKAGES["betakd_stages"] / folder).rglob("*.py"))
        assert paths
        for path in paths:
            names = set(imports(parsed(path)))
            wrong = {name for name in names if top(name) in {"betakd_cache", "transformers", "pydantic", "yaml"}}
            wrong |= {name for name in names if name.startswith(("betakd_stages.settings", "betakd_stages.data"))}
            assert not wrong, f"{path} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", sorted(PACKAGES["betakd_pipe"].rglob("*.py")), ids=lambda path: path.name)
def test_the_command_line_does_not_import_slow_packages_at_import_time(path: Path) -> None:
    slow = set()
    for name in imports_at_import_time(parsed(path)):
        package, *modules = name.split(".")
        if package in SLOW or (package == "betakd_stages" and modules[0] not in TORCH_FREE_STAGES):
            slow.add(name)
    assert not slow, f"{path} must import {', '.join(sorted(slow))} inside a function"


def test_what_the_command_line_imports_from_the_stages_is_free_of_torch() -> None:
    folder = PACKAGES["betakd_stages"]
    alone = [folder / f"{module}.py" for module in (*TORCH_FREE_STAGES - {"settings"}, "__init__", "feature_layouts")]
    for path in (*alone, *sorted((folder / "settings").glob("*.py"))):
        slow = {name for name in imports_at_import_time(parsed(path)) if top(name) in SLOW}
        assert not slow, f"{path} must not import {', '.join(sorted(slow))}"
