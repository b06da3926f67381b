"""Tests the colours of the maps: linear in the value, readable on any photograph."""

import numpy as np
import pytest

from noah_jax.explain.colours import KINDS, TABLES, blend, greyed, table_index
from noah_jax.explain.maps import overlay, percent, scale_bar, short_number


def test_the_index_is_linear_from_zero():
    values = np.array([0, 0.25, 0.5, 1, 2])
    assert table_index(values, 1.0, "attention").tolist() == [0, 64, 127, 254, 254]
    signed = table_index(np.array([-1, -0.5, 0, 0.5, 1]), 1.0, "contributions")
    assert signed.tolist() == [0, 64, 127, 190, 254]
    assert (np.diff(TABLES["attention"][:, 3].astype(int)) >= 0).all()  # the more, the more opaque
    for kind in KINDS:
        assert TABLES[kind][table_index(np.zeros(1), 1.0, kind)][0, 3] == 0  # shows the photograph


def test_colours_show_on_every_photograph():
    random = np.random.default_rng(0)
    warm = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    warm[..., 0] = 255  # a photograph as red as the map
    for photo in (warm, np.zeros_like(warm), np.full_like(warm, 255)):
        grey = greyed(photo)
        assert np.ptp(grey, axis=2).max() == 0 and grey.min() > 40 and grey.max() < 215
        for kind in KINDS:
            full = overlay(photo, np.ones((2, 2)), 1.0, kind, side=32, cells=True)
            none = overlay(photo, np.zeros((2, 2)), 1.0, kind, side=32, cells=True)
            assert np.array_equal(none, grey)
            assert np.ptp(full.astype(int), axis=2).min() > 100


def test_smooth_maps_keep_the_values_of_the_cells():
    values = np.array([[0.0, 1.0, 0.2], [0.5, 0.1, 0.9]])
    photo = np.full((20, 30, 3), 90, np.uint8)
    smooth = overlay(photo, values, 1.0, "attention", side=300, cells=False)
    cells = overlay(photo, values, 1.0, "attention", side=300, cells=True)
    assert smooth.shape == cells.shape == (200, 300, 3)
    middles = np.s_[50::100, 50::100]
    assert np.abs(smooth[middles].astype(int) - cells[middles]).max() <= 3
    expected = blend(
        TABLES["attention"][table_index(values, 1.0, "attention")], greyed(photo)[0, 0]
    )
    assert np.array_equal(cells[middles], expected)
    assert len(np.unique(cells.reshape(-1, 3), axis=0)) == 6
    # No value beyond those of the cells: a peak has no halo of the other sign.
    peak = np.zeros((4, 4))
    peak[1, 2] = 1
    drawn = overlay(photo, peak, 1.0, "contributions", side=100, cells=False).astype(int)
    assert (drawn[..., 0] >= drawn[..., 2]).all()


def test_bars_and_numbers():
    bar = scale_bar("attention", 0.273, 254)
    row = bar[5, 1:-1].astype(int)
    assert np.abs(row[0] - blend(TABLES["attention"][0], 130)).max() <= 2
    assert np.abs(row[-1] - blend(TABLES["attention"][-1], 130)).max() <= 2
    assert short_number(-0.98765, "contributions") == "-0.988"
    assert short_number(0.98765, "contributions") == "+0.988"
    assert short_number(0.0, "contributions") == "0" and short_number(0.25, "attention") == "0.25"


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.9789, "97.89 %"),
        (1e-7, "< 0.01 %"),
        (0.0, "0.00 %"),
        (1 - 1e-7, "> 99.99 %"),
        (1, "100.00 %"),
    ],
)
def test_percent(probability, words):
    assert percent(probability).replace("\N{NO-BREAK SPACE}", " ") == words
    assert " " not in percent(probability)
