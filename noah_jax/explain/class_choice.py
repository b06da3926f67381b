"""Reads which classes of each image are to be explained."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from noah_jax.errors import UsageError, near_matches
from noah_jax.inference.class_words import explain_ambiguity, is_number, read_word

_MAX_LISTED = 3

_TOP = re.compile(r"top(\d+)")


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
    wanted = word.casefold()
    similar = [name for name in display_names if wanted in name.casefold()]
    similar = similar or near_matches(word, display_names, _MAX_LISTED)
    if similar:
        hint = f"did you mean {', '.join(similar[:_MAX_LISTED])}?"
    else:
        more = ", ..." if len(display_names) > _MAX_LISTED else ""
        hint = f"there are {', '.join(display_names[:_MAX_LISTED])}{more} and their indices"
    raise UsageError(f"--classes: no class is called {word!r}; {hint}")


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
