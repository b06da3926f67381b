"""Finds the class that a word means: a name or an index, and which of them where both exist.

Classes may be called "1" to "12", and then "1" is the name of one class and the index of another.
`name:1` and `index:1` say which is meant.
"""

from collections.abc import Sequence
from typing import NamedTuple

_NAME, _INDEX = "name:", "index:"


class Readings(NamedTuple):
    """The classes that a word can mean.

    Attributes:
      names: Indices of the classes with this name.
      class_index: The index that the word is; `None` if it is none of a class.
    """

    names: tuple[int, ...]
    class_index: int | None

    @property
    def differ(self) -> bool:
        """Whether the word is a name and an index, of different classes."""
        return (
            bool(self.names) and self.class_index is not None and self.names != (self.class_index,)
        )


def read_word(word: str, class_names: Sequence[str], *, ignore_case: bool = False) -> Readings:
    """Returns the classes that a word can mean.

    Args:
      word: A name, an index, or one of them after `name:` or `index:`.
      class_names: Names of the classes.
      ignore_case: Whether upper and lower case are the same.
    """
    names = _find(word, class_names, ignore_case)
    if not names and word.startswith(_NAME):
        return Readings(_find(word.removeprefix(_NAME), class_names, ignore_case), None)
    digits = word.removeprefix(_INDEX)
    is_index = digits.isascii() and digits.isdigit() and int(digits) < len(class_names)
    return Readings(names, int(digits) if is_index else None)


def explain_ambiguity(word: str, readings: Readings, class_names: Sequence[str]) -> str:
    """Says in words that a word is the name of one class and the index of another."""
    assert readings.class_index is not None
    return (
        f"{word!r} is the name of class {readings.names[0]} and the index of the class called"
        f" {class_names[readings.class_index]!r}; write {_NAME}{word} or {_INDEX}{word}"
    )


def is_number(word: str) -> bool:
    """Returns whether a word may be an index."""
    return word.isascii() and word.isdigit()


def _find(word: str, class_names: Sequence[str], ignore_case: bool) -> tuple[int, ...]:
    if not ignore_case:
        return tuple(i for i, name in enumerate(class_names) if name == word)
    return tuple(i for i, name in enumerate(class_names) if name.casefold() == word.casefold())
