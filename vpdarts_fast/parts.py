"""Parts: what a search is composed of by name, as its space, its relaxation or its pruning.

A kind of parts is a base class, `class Relaxation(Part, kind="relaxation")`; a part is a frozen dataclass
below it with a `name`, whose fields are its settings. Defining it is all that it takes to be found by that
name, on the command line and in files; so is a part of the user's own once its module is imported.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

from vpdarts_fast.errors import UserError

Kind = TypeVar("Kind", bound="Part")


class Part:
    """The base of all kinds of parts.

    Attributes:
        kind: what its base class is called, as in --relaxation.
        name: of the part; none for a base class.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    _known: ClassVar[dict[str, type[Part]]]

    def __init_subclass__(cls, kind: str | None = None) -> None:
        """Makes a new kind, or enters a part of one.

        Raises:
            UserError: another part of this kind has the name.
        """
        super().__init_subclass__()
        if kind is not None:
            cls.kind, cls._known = kind, {}
        elif "name" in vars(cls):
            other = cls._known.setdefault(cls.name, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UserError(f"two parts are called --{cls.kind} {cls.name}: {other} and {cls}")
            cls._known[cls.name] = cls

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of all parts of this kind, in the order in which they were defined."""
        return tuple(cls._known)

    @classmethod
    def named(cls: type[Kind], name: str) -> type[Kind]:
        """The part of this kind with a name; `UserError` if there is none."""
        part = cls._known.get(name)
        if part is None:
            raise UserError(
                f"--{cls.kind} {name} is not known; there are {', '.join(cls._known)}. One of your own is "
                "found where --plugin names its file"
            )
        return part  # type: ignore[return-value]
