"""Imports run one way: app -> pipelines -> (veca_core, tiling). Every import of every file is read."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "app": {"app", "pipelines"},
    "pipelines": {"pipelines", "veca_core", "tiling"},
    "veca_core": {"veca_core"},
    "tiling": {"tiling"},
}
NEVER = {"tiling": {"torch", "torchvision", "timm", "monai", "segmentation_models_pytorch"}, "veca_core": {"rasterio"}}


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"there is no code in {package}/"
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of each import, wherever it stands: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[0]
            yield node.lineno, package if node.level else str(node.module).partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
            "__import__",
        ):
            for text in ast.walk(node):
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield node.lineno, text.value.partition(".")[0]


def wrong(package: str, names: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files(package)
        for line, name in imports(path)
        if name in names
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    assert wrong(package, MAY_IMPORT.keys() - MAY_IMPORT[package] | {"tests"}) == []


@pytest.mark.parametrize("package", NEVER)
def test_a_package_does_without_what_is_not_its_business(package: str) -> None:
    assert wrong(package, NEVER[package]) == []


def test_nothing_but_these_packages_is_shipped() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == MAY_IMPORT.keys()


@pytest.mark.parametrize("package", ["tiling", "veca_core", "pipelines"])
def test_every_public_name_is_there(package: str) -> None:
    module = import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_neither_images_nor_the_command_s_own_start_load_torch() -> None:
    pipelines = ["cli", "images", "config", "view", "conversion", "report"]
    modules = ", ".join(["tiling", "tiling.canvas", "tiling.exports", *(f"pipelines.{name}" for name in pipelines)])
    command = [sys.executable, "-c", f"import sys, {modules}; print('torch' in sys.modules)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_this_test_sees_imports_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_arrows.ROOT", tmp_path)
    (tmp_path / "tiling").mkdir()
    (tmp_path / "tiling" / "a.py").write_text(
        "import torch.nn as nn\nfrom pipelines.plan import x\nfrom . import b\n"
        "def f():\n    from app import main\n    __import__('veca_core.model')\n",
        encoding="utf-8",
    )
    found = [name for _, name in imports(tmp_path / "tiling" / "a.py")]
    assert sorted(found) == ["app", "pipelines", "tiling", "torch", "veca_core"]
