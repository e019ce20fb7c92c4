"""The reference of the API, as `make docs` makes it: a page for every module. Nothing is built here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vpdarts_fast

PACKAGE = Path(vpdarts_fast.__file__).parent
ROOT = PACKAGE.parent


def test_every_public_module_has_a_page(tmp_path: Path) -> None:
    """Also where a folder has no `__init__.py`, which leaves it out."""
    apidoc = pytest.importorskip("sphinx.ext.apidoc")
    command = re.search(r"sphinx-apidoc (.*)", (ROOT / "Makefile").read_text())
    assert command is not None
    given = {"build/docs/source": str(tmp_path), "vpdarts_fast": str(PACKAGE)}
    *options, package = command[1].split()
    assert apidoc.main([*(given.get(option, option) for option in options), given[package]]) == 0
    pages = "".join(path.read_text() for path in tmp_path.glob("*.rst"))
    files = (path.relative_to(ROOT).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
    modules = {".".join(parts).removesuffix(".__init__") for parts in files}
    public = {name for name in modules if not re.search(r"\._", name)}
    assert set(re.findall(r"automodule:: (\S+)", pages)) == public
