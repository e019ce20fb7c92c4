"""What a pickle can do to whoever trusts it."""

from __future__ import annotations

from typing import Any


class Hostile:
    """Unpickling an instance calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call
