"""In CI, tests are skipped for known reasons only, and a build that does not load is an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import skip_policy
from fresh_process import run_python
from places import ROOT, SUPPORT

SKIPPING = {
    "mark": '@pytest.mark.skipif(True, reason="{reason}")\ndef test_it(): ...\n',
    "call": 'def test_it():\n    pytest.skip("{reason}")\n',
    "fixture": '@pytest.fixture\ndef it():\n    pytest.skip("{reason}")\n\ndef test_it(it): ...\n',
    "module": 'pytest.skip("{reason}", allow_module_level=True)\n',
    "module mark": 'pytestmark = pytest.mark.skip(reason="{reason}")\n\ndef test_it(): ...\n',
}


def run_skipping(folder: Path, reason: str, ci: str) -> tuple[int, str]:
    """Status and output of a run of all ways to skip."""
    for number, code in enumerate(SKIPPING.values()):
        (folder / f"test_{number}.py").write_text(f"import pytest\n\n{code.format(reason=reason)}")
    command = ["-m", "pytest", "-p", "skip_policy", "-p", "no:cacheprovider", "-q"]
    command += ["--continue-on-collection-errors", "."]
    environment = {"CI": ci, "PYTHONPATH": str(SUPPORT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return run_python(command, folder, environment)


def test_a_skip_without_an_allowed_reason_fails_in_ci(tmp_path: Path) -> None:
    status, said = run_skipping(tmp_path, "no native extension: it does not load", "true")
    assert status == 1
    shown = [line for line in said.splitlines() if line.startswith("CI skips nothing for this reason")]
    assert len(shown) == len(SKIPPING) and all("it does not load" in line for line in shown)


def test_allowed_skips_and_other_machines_pass(tmp_path: Path) -> None:
    for reason, ci in (("no nvcc", "true"), ("no native extension: it does not load", "")):
        status, said = run_skipping(tmp_path, reason, ci)
        assert status == 0 and f"{len(SKIPPING)} skipped" in said


def test_a_missing_extension_is_no_allowed_reason() -> None:
    for reason in ("the native extension does not load in Python 3.11", "no native extension: x", "unknown"):
        assert not skip_policy.is_allowed(reason)


def test_every_allowed_reason_is_given_by_some_test() -> None:
    sources = "".join(
        path.read_text()
        for folder in ("tests", "vpdarts_fast/backends/cuda")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("skip_policy.py", "test_skip_policy.py")
    )
    for pattern in skip_policy.ALLOWED:
        assert re.sub(r"\\(.)", r"\1", pattern) in sources, pattern


@pytest.mark.parametrize(("native", "status"), [("on", 1), ("auto", 0)])
def test_set_up_fails_where_an_extension_is_demanded_and_does_not_load(
    native: str, status: int, tmp_path: Path
) -> None:
    """What the Makefile runs behind each build, with an extension that cannot be imported."""
    found = re.search(
        r"^STATUS := \$\(BIN\)/python -c '(.*)'$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert found
    program = tmp_path / "program.py"
    program.write_text(f"import sys; sys.modules['vpdarts_fast._C'] = None\n{found[1]}")
    environment = {"VPDARTS_NATIVE": native, "PYTHONPATH": str(ROOT)}
    ended, output = run_python([str(program)], tmp_path, environment)
    assert ended == status, output
    assert "[setup] the native extension does not load" in output
