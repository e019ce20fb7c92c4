"""What the tests of searches share."""

from __future__ import annotations

import pytest


@pytest.fixture
def pictures() -> None:
    """Asked for by tests that look at the pictures which a search draws at its end."""


@pytest.fixture(autouse=True)
def only_pictures_that_are_looked_at(request: pytest.FixtureRequest) -> None:
    """They take longer than a small search."""
    if "pictures" not in request.fixturenames:
        request.getfixturevalue("no_pictures")
