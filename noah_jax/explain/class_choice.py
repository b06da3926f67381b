"""Reads which classes of each image are to be explained."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from noah_jax.errors import UsageError

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
      word: `topK`, a class index or a name; upper and lower case are the same.
      display_names: Readable names of the classes.
      class_names: The dataset's own names, which are preferred; may be empty.

    Raises:
      UsageError: If there is no such class, or several have that name.
    """
    if match := _TOP.fullmatch(word):
        if not 1 <= (count := int(match[1])) <= len(display_names):
            raise UsageError(f"--classes {word}: there are {len(display_names)} classes")
        return ClassChoice(top=count)
    if word.isdigit():
        if int(word) >= len(display_names):
            raise UsageError(f"--classes {word}: the classes are 0 to {len(display_names) - 1}")
        return ClassChoice(class_index=int(word))
    wanted = word.casefold()
    for names in (class_names, display_names):
        matching = [i for i, name in enumerate(names) if name.casefold() == wanted]
        if len(matching) == 1:
            return ClassChoice(class_index=matching[0])
        if matching:
            indices = ", ".join(map(str, matching))
            raise UsageError(
                f"--classes {word}: several classes have this name; use one of {indices}"
            )
    similar = [name for name in display_names if wanted in name.casefold()][:3]
    hint = f"; did you mean {', '.join(similar)}?" if similar else ""
    raise UsageError(f"--classes: no class is called {word!r}{hint}")


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
