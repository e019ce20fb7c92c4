"""The Triton backend under Triton's interpreter, which runs its kernels on the CPU.

The interpreter must be chosen before Triton is imported, and would then serve bfloat16 on the CPU by itself:
so these tests run in processes of their own.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from fresh_process import run_python
from places import ROOT

import vpdarts_fast

CONTRACT = {
    "mixed_sum": [
        "dtypes",
        "of_many[25-1-triton-float32]",
        "of_many[1-5-triton-float32]",
        "of_a_large_mean_and_a_small_variance",
        "eps",
        "alphas[mixed-triton-float32]",
        "gradients[size2-triton-float32]",
        "layouts[odd-sliced-triton-float32]",
        "gives_only_the_gradients_asked_for[all but alpha-triton-float32]",
        "gives_only_the_gradients_asked_for[a skip scale-triton-float32]",
        "second_derivatives[False-triton-float32]",
    ],
    "relu_conv": ["values", "dtypes", "layouts", "gradients", "of_any_number_of_edges", "second_derivatives"],
    "mixed_cell": [
        "dtypes",
        "of_any_number_of_nodes[4-triton-float32]",
        "gives_only_the_gradients_asked_for[(1, 2)-triton-float32]",
        "second_derivatives[1-0.25-triton-float32]",
        "second_derivatives[2-0.25-triton-float32]",
    ],
    "masked_cell": [
        "dtypes",
        "leaves_one_out[shared-3-triton-float32]",
        "takes_an_expanded_input",
        "alphas[mixed-triton-float32]",
        "eps",
    ],
}
"""Of each op's contract, what tells most in its time (the interpreter takes 50 us an operation). All of it:
TRITON_INTERPRET=1 pytest -k triton tests/ops/test_{mixed_sum,relu_conv,mixed_cell,masked_cell}.py
"""

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def interpret(tests: list[str], folder: Path = ROOT) -> tuple[int, str]:
    """How many tests passed, and what pytest wrote."""
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    status, output = run_python(["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], folder, environment)
    passed = re.search(r"(\d+) passed", output)
    assert status in (0, 1), output[-3000:]  # tests ran
    return (int(passed[1]) if passed else 0), output


def test_the_op_contract() -> None:
    tests = [f"tests/ops/test_{op}.py::test_{op}_{test}" for op, tests in CONTRACT.items() for test in tests]
    passed, output = interpret([*tests, "tests/ops/test_half_precision.py", "-k", "triton"])
    assert passed > len(tests) and "failed" not in output, output[-3000:]


def test_what_it_promises_beyond_the_contract() -> None:
    passed, output = interpret(["tests/gpu/triton_cases.py"])
    assert passed > 20 and "failed" not in output and "skipped" not in output, output[-3000:]


BROKEN = {
    "the pool reaches over the border": ("pixels.py", "(x < width)", "(x <= width)"),
    "the pool's adjoint is the pool": (
        "mixed_sum.py",
        "box_share(y + dy, x + dx, height, width)",
        "box_share(y, x, height, width)",
    ),
    "the ReLU has no adjoint": ("mixed_cell.py", "value <= 0", "value < -1e9"),
    "a later node is taken for another": ("mixed_cell.py", "alpha + edge * 5 + 4", "alpha + NODE * 5 + 4"),
}
"""What is wrong -> kernel file, text, replacement."""


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_kernel_is_caught(fault: str, tmp_path: Path) -> None:
    file, text, replacement = BROKEN[fault]
    skipped = shutil.ignore_patterns("*.so", "__pycache__", "native")
    shutil.copytree(Path(vpdarts_fast.__file__).parent, tmp_path / "vpdarts_fast", ignore=skipped)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    kernels = tmp_path / "vpdarts_fast/backends/triton/kernels" / file
    source = kernels.read_text()
    assert text in source
    kernels.write_text(source.replace(text, replacement))
    passed, output = interpret(["tests/gpu/triton_cases.py", "-k", "test_one_of_each"], tmp_path)
    assert passed == 0 and "Tensor-likes are not close" in output, output[-3000:]
