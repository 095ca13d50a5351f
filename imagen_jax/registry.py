"""Methods of one kind by name: what a configuration or a command line can name, and what code outside may add."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from imagen_jax.checks import choice, require

T = TypeVar("T")


class Registry(Mapping[str, Any]):
    """A mapping from names to classes or functions of one kind.

    Args:
      kind: what it holds, in messages: "sampler" or "objective".
    """

    __eq__, __hash__ = object.__eq__, object.__hash__  # equal to itself alone, and so part of an Annotated type

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters a class or function under `name`.

        A file that is run again, as presets are, may enter what it entered before.

        Raises:
          ValueError: `name` is empty, or taken by another class or function.
        """
        rule = f"be a new name of a {self.kind}, other than {', '.join(self)}"

        def enter(entry: T) -> T:
            known = self._entries.get(name)
            is_again = known is not None and _origin(known) == _origin(entry)
            require(isinstance(name, str) and (is_again or name not in ("", *self)), "name", rule, name)
            self._entries[name] = entry
            return entry

        return enter

    def name_of(self, entry: Any) -> str:
        """Return the name of a class or function, or of the class of an instance.

        Raises:
          ValueError: it is not registered.
        """
        for name, known in self._entries.items():
            if known is entry or known is type(entry):
                return name
        rule = f"be a registered {self.kind}, one of {', '.join(self)}"
        require(False, self.kind, rule, entry, "register it")

    def __getitem__(self, name: str) -> Any:
        """Return what is registered under `name`; raise a ValueError that lists the names for any other."""
        return self._entries[choice(self.kind, name, tuple(self._entries))]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _origin(entry: Any) -> tuple[str, str]:
    """Return the module and the name in it of a class or function."""
    return entry.__module__, entry.__qualname__
