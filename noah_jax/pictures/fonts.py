"""Finds fonts for text in any script.

matplotlib brings DejaVu Sans, which has Latin, Greek, Cyrillic and more. For characters that it
lacks, the fonts of the machine are searched. What no font has is told once, in one line.
"""

import functools
import os
import pathlib
import unicodedata

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from noah_jax import console

_DEFAULT = "DejaVu Sans"
_SHOWN = 8  # characters that the warning lists
# Fonts that claim every character and draw none of them, and those that need colour layers.
_USELESS = ("lastresort", "blank", "emoji")


class Fonts:
    """The families that text is drawn with; remembers what it found and what it warned of."""

    def __init__(self) -> None:
        bundled = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
        self._families = {_DEFAULT: _characters(str(bundled))}
        self._missing: set[str] = set()

    def families(self, text: str) -> list[str]:
        """Returns the families that have the characters of a text, the preferred one first.

        Warns of the characters that no font has, of each once. Whoever draws many texts calls
        this with all of them first, so that one line names all characters.
        """
        wanted = {c for c in text if _is_drawn(c)} - self._missing
        unknown = {c for c in wanted if not any(ord(c) in has for has in self._families.values())}
        if unknown:
            self._search(unknown)
        return [
            family
            for family, has in self._families.items()
            if family == _DEFAULT or any(ord(c) in has for c in wanted)
        ]

    def _search(self, characters: set[str]) -> None:
        """Adds fonts of the machine until every character is found or no font is left."""
        for path in sorted(font_manager.findSystemFonts(), key=_preference):
            has = _characters(path)
            found = {c for c in characters if ord(c) in has}
            if not found:
                continue
            try:
                font_manager.fontManager.addfont(path)
                self._families[FT2Font(path).family_name] = has
            except (OSError, RuntimeError, NotImplementedError):
                continue  # matplotlib cannot draw with it
            characters -= found
            if not characters:
                return
        self._missing |= characters
        listed = " ".join(sorted(characters)[:_SHOWN])
        more = f" and {len(characters) - _SHOWN} more" if len(characters) > _SHOWN else ""
        console.warn(
            f"no font on this machine has {listed}{more}: pictures show boxes instead; install a"
            " font of that script, such as Noto (on Debian and Ubuntu: apt install fonts-noto)"
        )


@functools.cache
def fonts() -> Fonts:
    """Returns the fonts of this process."""
    return Fonts()


def _is_drawn(character: str) -> bool:
    """Whether a character has a shape of its own: no space, control or variation selector."""
    return unicodedata.category(character)[0] not in "CZ" and not (
        0xFE00 <= ord(character) <= 0xFE0F
    )


def _preference(path: str) -> tuple[bool, bool, bool, str]:
    name = os.path.basename(path).casefold()
    return "noto" not in name, "serif" in name or "mono" in name, "regular" not in name, path


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has a glyph for; none if it cannot be read or is of no use."""
    if any(word in os.path.basename(path).casefold() for word in _USELESS):
        return frozenset()
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
