"""Reads which classes of each image are to be explained."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from noah_jax.errors import UsageError, near_matches
from noah_jax.inference.class_words import explain_ambiguity, is_number, read_word

_TOP = re.compile(r"top(\d+)")
_SUGGESTED = 3
_LISTED = 30  # so many classes, or fewer, are all listed


@dataclasses.dataclass(frozen=True)
class ClassChoice:
    """A choice of one class, or of the most likely classes of each image.

    Exactly one of the two attributes is not `None`.

    Attributes:
      class_index: Index of the class.
      top: Number of the most likely classes.
    """

    class_index: int | None = None
    top: int | None = None


def parse_choice(
    word: str, display_names: Sequence[str], class_names: Sequence[str]
) -> ClassChoice:
    """Parses one word of `--classes`.

    Args:
      word: `topK`, a class index or a name; upper and lower case are the same. `name:` or `index:`
        in front says which it is.
      display_names: Readable names of the classes.
      class_names: The dataset's own names, which are preferred; may be empty.

    Raises:
      UsageError: If there is no such class, several have that name, or the word is the name of
        one class and the index of another.
    """
    if match := _TOP.fullmatch(word):
        if not 1 <= (count := int(match[1])) <= len(display_names):
            raise UsageError(f"--classes {word}: there are {len(display_names)} classes")
        return ClassChoice(top=count)
    for names in (class_names or display_names, display_names):
        reading = read_word(word, names, ignore_case=True)
        if reading.differ and len(reading.names) == 1:
            raise UsageError(f"--classes {word}: {explain_ambiguity(word, reading, names)}")
        if len(reading.names) == 1:
            return ClassChoice(class_index=reading.names[0])
        if reading.names:
            indices = ", ".join(f"index:{i}" for i in reading.names)
            raise UsageError(
                f"--classes {word}: several classes have this name; use one of {indices}"
            )
    if reading.class_index is not None:
        return ClassChoice(class_index=reading.class_index)
    if is_number(word.removeprefix("index:")):
        raise UsageError(f"--classes {word}: the classes are 0 to {len(display_names) - 1}")
    raise UsageError(f"--classes: no class is called {word!r}{_hint(word, display_names)}")


def _hint(word: str, names: Sequence[str]) -> str:
    """Returns the names that a word may mean, and all names if they are few."""
    wanted = word.casefold()
    near = [name for name in names if wanted in name.casefold()]
    near += near_matches(word, names, _SUGGESTED)
    hint = f"; did you mean {', '.join(list(dict.fromkeys(near))[:_SUGGESTED])}?" if near else ""
    if len(names) <= _LISTED:
        return f"{hint or '.'} The classes are {', '.join(names)}"
    return f"{hint or '.'} There are {len(names):,} classes, such as {', '.join(names[:3])}"


def chosen_classes(choices: Sequence[ClassChoice], logits: np.ndarray) -> list[int]:
    """Returns the indices of the chosen classes of one image, each once.

    Args:
      choices: The choices, in the order of the result.
      logits: float32 `[num_classes]`, the image's logits.
    """
    ranked = np.argsort(-logits, kind="stable").tolist()
    indices: list[int] = []
    for choice in choices:
        indices += ranked[: choice.top] if choice.class_index is None else [choice.class_index]
    return list(dict.fromkeys(indices))
