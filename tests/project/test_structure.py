"""Mirror symmetry: each op has the same name in every layer, its documentation and its tests."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import pytest
import torch
from places import TESTS

import vpdarts_fast
from vpdarts_fast import native, ops
from vpdarts_fast.backends import pytorch, registry
from vpdarts_fast.backends.registry import BACKENDS
from vpdarts_fast.contract import reference

PACKAGE = Path(vpdarts_fast.__file__).parent


def parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def test_the_ops_are_those_of_the_registry() -> None:
    assert set(ops.__all__) == set(pytorch.__all__) == set(registry.FUSED_OPS)
    files = {path.stem for path in (PACKAGE / "ops" / "functions").glob("*.py")}
    assert files == {*registry.FUSED_OPS, "__init__"}


def test_no_op_hides_a_module() -> None:
    """What `from vpdarts_fast.ops import masked_cell` gives is all that has this name there."""
    modules = {path.stem for path in (PACKAGE / "ops").iterdir()}
    assert not modules & set(ops.__all__)


def test_importing_the_package_does_not_import_pytorchs_compiler() -> None:
    """Which takes half a second."""
    command = "import sys, vpdarts_fast; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=PACKAGE.parent, check=False).returncode == 0


@pytest.mark.parametrize("op", registry.FUSED_OPS)
@pytest.mark.parametrize("layer", ["ops.functions", "backends.pytorch"])
def test_every_op_has_a_file_of_its_name(op: str, layer: str) -> None:
    module = importlib.import_module(f"vpdarts_fast.{layer}.{op}")
    assert isinstance(module, ModuleType)
    assert callable(getattr(module, op))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("op", ["relu_conv", "mixed_sum", "mixed_cell", "masked_cell"])
def test_the_triton_backend_has_a_file_for_its_ops(op: str) -> None:
    """Also where it cannot run, and so is not registered."""
    module = importlib.import_module(f"vpdarts_fast.backends.triton.{op}")
    assert parameters(getattr(module, op)) == parameters(getattr(reference, op))


@pytest.mark.parametrize("op", registry.FUSED_OPS)
def test_every_op_takes_the_arguments_of_its_reference_and_a_backend(op: str) -> None:
    expected = parameters(getattr(reference, op))
    assert parameters(getattr(ops, op)) == [*expected, "backend"]
    for backend in BACKENDS:
        implementation = backend.implementations.get(op)
        if isinstance(implementation, torch._ops.OpOverloadPacket):  # the native op itself
            schema = implementation.default._schema
            assert [argument.name for argument in schema.arguments] == expected
        elif implementation is not None:
            assert parameters(implementation) == expected, backend.name


@pytest.mark.parametrize("op", registry.FUSED_OPS)
@pytest.mark.parametrize("module", [ops, reference], ids=lambda module: module.__name__)
def test_every_op_documents_the_shape_of_every_tensor(op: str, module: ModuleType) -> None:
    function = getattr(module, op)
    text = inspect.getdoc(function)
    assert text is not None
    assert "Args:" in text and "Returns:" in text
    returns = text.partition("Returns:")[2]
    assert "[" in returns
    lines = {line.split(":")[0].strip(): line for line in text.splitlines() if ":" in line}
    for name, parameter in inspect.signature(function).parameters.items():
        assert name in lines, f"{name} is not documented"
        if "Tensor" in str(parameter.annotation):
            assert "[" in lines[name] or "likewise" in lines[name], f"{name} has no shape"
    if module is ops:
        assert "Raises:" in text and "UserError" in text


@pytest.mark.parametrize("op", registry.FUSED_OPS)
def test_every_op_has_its_tests(op: str) -> None:
    assert f"def test_{op}_values" in (TESTS / "ops" / f"test_{op}.py").read_text()


def test_every_op_has_its_native_files_and_its_table_of_kernels() -> None:
    """What of the kernels is no op's is named for what it does."""
    folder = PACKAGE.parent / "csrc" / "cpu"
    tables = dict(re.findall(r"^  TABLE\((\w+), (\w+)\)", (folder / "kernels.h").read_text(), re.MULTILINE))
    assert set(tables) == {*registry.FUSED_OPS, "gather"}
    for name, table in tables.items():
        assert table == name.title().replace("_", "") + "Kernels"
        header = (folder / "kernels" / f"{name}.h").read_text()
        assert f"const {table}& {name}_kernels();" in header
        assert (folder / "kernels" / f"{name}.cpp").exists()
    hosts = {path.stem for path in (folder / "ops").glob("*.cpp")}
    assert set(registry.FUSED_OPS) <= hosts
    beside = {name for name in hosts if not any(f"{name}_".startswith(f"{op}_") for op in registry.FUSED_OPS)}
    assert beside == {"batch_norm"}


def test_kernels_of_triton_and_cuda_are_in_files_of_their_op() -> None:
    """Also where several ops run them."""
    triton = {path.stem for path in (PACKAGE / "backends" / "triton" / "kernels").glob("*.py")}
    assert triton - set(registry.FUSED_OPS) == {"__init__", "pixels"}
    cuda = {path.stem for path in (PACKAGE.parent / "csrc" / "cuda").glob("*/*.c[up]*")}
    assert {name.removesuffix("_backward") for name in cuda} <= set(registry.FUSED_OPS)


@pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
def test_every_native_op_has_a_fake() -> None:
    """But `masked_cell_fits`, which returns no tensor."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vpdarts_fast::")]
    assert {name.removeprefix("vpdarts_fast::") for name in names} > set(registry.FUSED_OPS)
    without = [n for n in names if torch._library.simple_registry.singleton.find(n).fake_impl.kernel is None]
    assert without == ["vpdarts_fast::masked_cell_fits"]


def test_every_backend_has_the_reference_to_fall_back_on() -> None:
    assert BACKENDS[-1].name == "reference"
    assert {b.name for b in BACKENDS} == {b.name.lower() for b in BACKENDS}
    assert len({b.name for b in BACKENDS}) == len(BACKENDS)
    assert set(BACKENDS[-1].implementations) == set(registry.FUSED_OPS)


# Rooms ------------------------------------------------------------------------------------------------------


def rooms_of_the_documentation() -> list[str]:
    """Of docs/architecture.md, from the lowest to the highest."""
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    table = re.findall(r"^\| (`[^|]*) \|", text.partition("## Words")[0], re.MULTILINE)
    return [name for cell in table for name in re.findall(r"`([\w.]+)`", cell)]


def module_of(path: Path) -> str:
    """`search.driver`; a package has the name of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: Collection[str]) -> set[str]:
    """Those of the package's modules, as `module_of` names them, that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                names.add(module if module.removeprefix("vpdarts_fast.") in modules else node.module)
    return {name.removeprefix("vpdarts_fast.") for name in names} & set(modules)


def test_rooms_import_only_what_stands_above_them_in_the_documentation() -> None:
    rooms = rooms_of_the_documentation()
    modules = {module_of(path): path for path in PACKAGE.rglob("*.py")}

    def room(module: str) -> str | None:
        """The innermost room that it is in; `backends.cpu` and not `backends`."""
        return max((r for r in rooms if f"{module}.".startswith(f"{r}.")), key=len, default=None)

    homeless = sorted(module for module in modules if module and room(module) is None)
    assert not homeless, "every module is in a room of docs/architecture.md"
    upward = [
        f"{module} imports {other}"
        for module, path in modules.items()
        if module
        for other in imported(path, modules)
        if rooms.index(str(room(other))) > rooms.index(str(room(module)))
    ]
    assert not upward, "a room imports from rooms above it in the table"


def test_an_import_is_found_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    inner = "    from vpdarts_fast.search import driver, Search"
    file.write_text(f"import os, vpdarts_fast.ops.shapes\ndef f():\n{inner}\n")
    modules = {module_of(path) for path in PACKAGE.rglob("*.py")}
    assert imported(file, modules) == {"search", "search.driver", "ops.shapes"}
