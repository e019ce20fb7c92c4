"""Pictures, which take longer than a small search: drawn in tests that look at them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.search import running


@pytest.fixture(scope="module", autouse=True)
def no_pictures_unasked_for() -> Iterator[None]:
    """Searches end without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "draw_pictures", lambda folder: [])
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches end with pictures."""
    monkeypatch.setattr(running, "draw_pictures", draw_pictures)
