"""How `make docs` builds the reference of the API from the docstrings; every warning is an error there.

Besides what Sphinx and Napoleon find by themselves, these are warnings: a public class, function or method
without a docstring, a section with a name that Napoleon does not know, and an entry of `Args:` that is no
argument of the function.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import roles
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.util import logging

import vpdarts_fast

project = "vpdarts_fast"
release = vpdarts_fast.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# A name that a package only passes on has its description where it is defined: see list_exports.
autodoc_default_options = {"member-order": "bysource", "ignore-module-all": True}
# Without Triton the modules of its backend but `availability` have no page: a mock would mislead PyTorch.
exclude_patterns = [] if importlib.util.find_spec("triton") else ["vpdarts_fast.backends.triton.[!a]*.rst"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
# What is written by hand has to resolve: spans (py:obj) and `Raises:` (py:exc). Annotations are Sphinx's own
# references; they also name other packages, type variables and aliases, none of which has a page.
nitpick_ignore_regex = [(r"py:(?!obj|exc)\w+", r".*"), (r"py:(obj|exc)", r"(?!vpdarts_fast\.)\w+\..*")]
suppress_warnings = [
    "ref.python",  # the built-in bytes, where Sphinx finds our attributes of that name too
    "toc.excluded",
]
default_role = "span"

SECTIONS = ("Args", "Attributes", "Examples", "Note", "Raises", "Returns", "Yields")
"""What a docstring may be divided into."""

_PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
EXEMPT = tuple(
    room.replace("/", ".")
    for room in re.findall(r'"(vpdarts_fast/\w+/)\*\*" = \["D"\]', _PYPROJECT.read_text(encoding="utf-8"))
)
"""Rooms that need not document everything yet: those that the linter exempts."""

_logger = logging.getLogger(__name__)


def span(
    name: str, raw: str, text: str, line: int, inliner: Any, *_: Any
) -> tuple[list[nodes.Node], list[Any]]:
    """What stands in single backticks: a link where it is a full name of this package, and else code."""
    if re.fullmatch(r"vpdarts_fast(\.[A-Za-z]\w*)+", text):
        return PyXRefRole()("py:obj", raw, text, line, inliner)
    return [nodes.literal(raw, text)], []


def check(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Warns of a missing docstring, of sections that are not `SECTIONS`, and of `Args:` that it has not."""
    if not name.startswith(getattr(member, "__module__", None) or name):
        return  # imported
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")  # or Napoleon takes what stands before a colon for a type
    is_field = what in ("attribute", "data") or getattr(member, "__name__", "") == "<lambda>"
    if not is_field and not any(lines) and not name.startswith(EXEMPT):
        _logger.warning("%s has no docstring", name)
    arguments = inspect.signature(member).parameters if "Args:" in lines else {}
    any_name = any(argument.kind == argument.VAR_KEYWORD for argument in arguments.values())
    section = ""
    for line in lines:
        if heading := re.fullmatch(r"([A-Z]\w*):", line):
            section = heading[1]
            if section not in SECTIONS:
                _logger.warning("%s: unknown section %s; expected %s", name, section, ", ".join(SECTIONS))
        entry = re.match(r" {4}\*{0,2}(\w+).*?:", line)
        if section == "Args" and entry and entry[1] not in arguments and not any_name:
            _logger.warning("%s: Args has %s, which is no argument", name, entry[1])


def list_exports(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Adds links to what a package passes on from its modules."""
    exports = getattr(member, "__all__", ()) if what == "module" else ()
    values = [(export, getattr(member, export)) for export in exports]
    homes = [(export, getattr(value, "__module__", name), value) for export, value in values]
    links = [
        f"- :py:obj:`{export} <{home}.{value.__qualname__}>`"
        for export, home, value in homes
        if home != name and home.startswith("vpdarts_fast.")
    ]
    lines += ["", "To be imported from here:", "", *links] if links else []


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    roles.register_local_role("span", span)
    app.connect("autodoc-process-docstring", check, priority=1)  # before Napoleon rewrites the sections
    app.connect("autodoc-process-docstring", list_exports)
