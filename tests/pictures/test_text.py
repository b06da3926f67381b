"""Tests text in pictures: any script, one warning for what no font has, nothing cut off."""

import pathlib

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

from noah_jax.pictures import fonts as fonts_module
from noah_jax.pictures.colour_bar import colour_bar
from noah_jax.pictures.fonts import Fonts
from noah_jax.pictures.layout import LINE, below, beside, blank, fit_into, line, paragraph
from noah_jax.pictures.text import shorten, text_width, wrap

STIX = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/STIXSizOneSymReg.ttf")


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine with no fonts besides those of matplotlib."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    found = Fonts()
    monkeypatch.setattr("noah_jax.pictures.text.fonts", lambda: found)
    return found


@pytest.mark.parametrize("letters", ["éüß", "Жук", "Ωμέγα", "łőž"])
def test_letters_of_other_alphabets_are_no_boxes(no_fonts, letters, capsys):
    drawn = {line(letter, 40).tobytes() for letter in letters}
    assert len(drawn) == len(set(letters))  # boxes would all look alike
    assert capsys.readouterr().err == ""


def test_what_no_font_has_is_told_once(no_fonts, capsys):
    no_fonts.families("猫 犬 ант" + "".join(chr(0x4E00 + i) for i in range(20)))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no font on this machine has" in said and "more" in said
    line("猫", 40)
    text_width("犬")
    assert capsys.readouterr().err == ""
    line("鳥", 40)
    assert capsys.readouterr().err.count("鳥") == 1


def test_fonts_of_the_machine_are_taken(monkeypatch, capsys):
    dejavu = fonts_module._characters(
        str(pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
    )
    others = fonts_module._characters(str(STIX)) - dejavu
    character = next(chr(code) for code in sorted(others) if fonts_module._is_drawn(chr(code)))
    paths = ["/no/such/font.ttf", str(STIX)]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    families = Fonts().families(f"a{character}")
    assert families[0] == "DejaVu Sans" and families[1].startswith("STIX")
    assert capsys.readouterr().err == ""


def test_a_space_that_does_not_break_a_line_is_a_space():
    assert np.array_equal(line("50\u00a0%", 60), line("50 %", 60))
    assert text_width("50\u00a0%") == text_width("50 %")


def test_names_that_are_no_text():
    # A file name in Latin-1, as Python hands it on; a tab; a formula that is none.
    assert np.array_equal(line("caf\udce9.png", 100), line("caf\\xe9.png", 100))
    assert np.array_equal(line("a\tb", 100), line("a\\tb", 100))
    assert not np.array_equal(line("$x^2$", 100), line("x2", 100))


def test_long_names_are_shortened():
    name = "a_class_with_a_name_that_is_much_too_long"
    short = shorten(name, 120)
    assert short.endswith("…") and name.startswith(short[:-1]) and text_width(short) <= 120
    assert len(short) > 10 and shorten("ant", 120) == "ant"
    end = shorten(name, 120, keep_end=True)
    assert end.startswith("…") and name.endswith(end[1:]) and text_width(end) <= 120
    lines = wrap(f"some words and {name}", 120)
    assert len(lines) >= 2 and max(map(text_width, lines)) <= 120
    drawn = line(name, 120)
    assert drawn.shape == (LINE, 120, 3) and (drawn[:, -2:] > 128).all()  # nothing is cut off
    assert paragraph("some words " * 9, 120).shape[0] % LINE == 0


def test_pictures_beside_each_other():
    a, b = np.zeros((2, 3, 3), np.uint8), np.full((4, 1, 3), 7, np.uint8)
    both = below([a, b], 1)
    assert both.shape == (7, 3, 3) and (both[2] == 255).all() and (both[3:, 0] == 7).all()
    assert beside([a, b], 2).shape == (4, 6, 3)
    assert fit_into(blank(30, 60), 20).shape == (10, 20, 3)


def test_a_bar_leaves_out_numbers_without_room():
    colours = np.linspace(0, 255, 256).round().astype(np.uint8)[:, None].repeat(3, 1)
    ticks = [(0.0, "-0.498"), (1.0, "+0.498"), (0.5, "0")]
    crowded = colour_bar(colours, [*ticks, (0.25, "-0.249"), (0.75, "+0.249")], 160)
    assert np.array_equal(crowded, colour_bar(colours, ticks, 160))
    assert crowded[5, 1, 0] <= 1 and crowded[5, -2, 0] >= 254 and crowded[5, 80, 0] in (127, 128)
