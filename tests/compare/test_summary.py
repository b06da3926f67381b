"""Tests the statistics of a comparison, its tables and its figures."""

import csv
import io
import json

import pytest
from scipy.stats import ttest_rel

from noah_jax.compare.cost_plot import costs_figure, draw_costs
from noah_jax.compare.curves import curves_figure
from noah_jax.compare.summary import holm, paired_difference, summarise
from noah_jax.compare.tables import format_csv, format_table
from tests.compare.runs import make_runs

THREE = {"linear": [50.0, 52.0, 51.0], "noah": [51.0, 53.2, 52.3], "csra": [50.5, 51.9, 51.4]}


def test_the_interval_is_students():
    # The sleep data of Student (1908), whose interval every textbook has.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    difference = paired_difference(first, second)
    assert difference["mean"] == pytest.approx(1.58)
    assert difference["mean"] - difference["half_width"] == pytest.approx(0.7001142, abs=1e-6)
    assert difference["p"] == pytest.approx(0.00283289, abs=1e-7)


def test_differences_without_a_spread():
    assert paired_difference([1.0], [2.0]) == {"mean": 1.0, "half_width": None, "p": None}
    same = paired_difference([1.0, 2.0], [2.0, 3.0])
    assert same == {"mean": 1.0, "half_width": 0.0, "p": 0.0}
    assert paired_difference([1.0, 2.0], [1.0, 2.0])["p"] == 1.0


def test_holms_correction():
    # R's p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm"), in another order.
    assert holm([0.03, 0.01, 0.05, 0.02, 0.04]) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_more_than_two_contenders_are_corrected_within_each_configuration():
    rows = summarise([*make_runs(THREE), *make_runs(config="other")])
    assert [row["label"] for row in rows] == ["linear", "noah", "csra", "linear", "noah"]
    p = [ttest_rel(THREE[label], THREE["linear"]).pvalue for label in ("noah", "csra")]
    assert [row["difference"]["p"] for row in rows[1:3]] == pytest.approx(p)
    expected = [2 * p[0], max(2 * p[0], p[1])] if p[0] < p[1] else [max(p[0], 2 * p[1]), 2 * p[1]]
    assert [row["difference"]["p_holm"] for row in rows[1:3]] == pytest.approx(expected)
    assert "p_holm" not in rows[4]["difference"]


def test_the_table():
    lines = format_table(summarise(make_runs())).splitlines()
    assert lines[0].endswith("| seeds | top-1 | difference from linear, 95 % interval |")
    assert lines[2] == ("| resnet18 | linear | 1,000 | 2.01 M | 10.5 | 2 | 51.00 ± 1.41 % |  |")
    assert lines[3] == (
        "| noah_resnet18 | noah | 1,000 | 2.00 M | 10.5 | 2 | 52.10 ± 1.56 %"
        " | +1.10 (-0.17 to +2.37) |"
    )
    assert "Holm" not in lines[-1]


def test_the_table_of_three_has_corrected_p_values():
    lines = format_table(summarise(make_runs(THREE))).splitlines()
    assert lines[0].endswith("| difference from linear, 95 % interval | p (Holm) |")
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "corrected by Holm" in lines[-1]


def test_one_seed_gives_no_interval_and_says_so():
    rows = summarise(make_runs({label: values[:1] for label, values in THREE.items()}))
    lines = format_table(rows).splitlines()
    assert lines[3] == "| noah_resnet18 | noah | 1,000 | 2.00 M | 10.0 | 1 | 51.00 % | +1.00 |"
    assert "One seed gives no standard deviation and no interval." in lines[-1]
    json.loads(json.dumps(rows, allow_nan=False))


def test_a_training_that_is_missing_leaves_the_pairs_that_are_there():
    runs = [run for run in make_runs(THREE) if (run["label"], run["seed"]) != ("noah", 1)]
    noah = summarise(runs)[1]
    assert (noah["seeds"], noah["difference"]["mean"]) == ([0, 2], pytest.approx(1.15))
    # Without any training of the first, the next one is what the others are compared with.
    rows = summarise([run for run in runs if run["label"] != "linear"])
    assert [row.get("reference") for row in rows] == [None, "noah"]
    only = [run for run in runs if run["label"] == "linear" or run["seed"] == 0][1:]
    assert "difference" not in summarise(only)[1]


def test_the_csv_has_a_column_for_each_number():
    runs = make_runs(THREE)
    for run in runs:
        run["setting"] = {"head.merge": "a|b"} if run["head"] == "noah" else {}
    table = list(csv.DictReader(io.StringIO(format_csv(summarise(runs)))))
    assert [line["head.merge"] for line in table] == ["", "a|b", ""]
    linear, noah, _ = table
    assert (linear["seeds"], linear["difference"], linear["std"]) == ("0 1 2", "", "1.0")
    assert float(noah["low"]) < float(noah["difference"]) < float(noah["high"])
    assert float(noah["p"]) < float(noah["p_holm"])


def test_the_curves_have_titles_units_and_whole_epochs():
    runs = make_runs({"linear": [50.0, 51.0, 52.0], "noah": [50.0, 51.0, 52.0]})
    runs += make_runs({"linear": [50.0], "noah": [50.0]}, config="猫.py", model="mixer_b16_224")
    figure = curves_figure(runs)
    figure.canvas.draw()
    axes = figure.get_axes()
    assert [axis.get_title() for axis in axes] == ["resnet18", "mixer_b16_224"]
    assert "Top-1 accuracy" in figure.get_suptitle()
    for axis in axes:
        assert axis.get_xlabel() == "epoch" and axis.get_ylabel() == "Top-1 accuracy (%)"
        assert all(float(tick).is_integer() for tick in axis.get_xticks())
        assert {0, 1, 2, 3, 4} <= set(axis.get_xticks())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["linear", "noah"]
    mean = max(axes[0].get_lines(), key=lambda each: each.get_linewidth())
    assert list(mean.get_ydata()) == [52.0, 53.0, 54.0, 55.0]
    # Of two configurations with one backbone the files are told too.
    figure = curves_figure([*runs, *make_runs(config="c")])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["resnet18 (q)", "mixer_b16_224", "resnet18 (c)"]


def test_every_contender_has_its_own_colour():
    values = {f"head_num={number}": [50.0 + number] for number in range(14)}
    lines = curves_figure(make_runs(values)).axes[0].get_lines()
    assert len({line.get_color() for line in lines}) == len(values)


def _point(axis):
    """The first contender on an axis."""
    line = axis.containers[0].lines[0]
    return line.get_xdata()[0], line.get_ydata()[0]


def test_accuracy_against_arithmetic_and_time():
    rows = summarise(make_runs(THREE))
    arithmetic, time = costs_figure(rows).axes
    assert "multiply-adds" in arithmetic.get_xlabel() and "ms" in time.get_xlabel()
    for axis in (arithmetic, time):
        assert len(axis.containers) == len(THREE)
    assert _point(arithmetic) == pytest.approx((2.006, 51.0))
    assert _point(time) == pytest.approx((11.0, 51.0))
    # What old runs did not record is left out, and one seed has no bar.
    single = summarise([{**run, "step_ms": None} for run in make_runs({"linear": [50.0]})])
    assert [len(axis.containers) for axis in costs_figure(single).axes] == [1, 0]
    assert draw_costs(single).startswith(b"\x89PNG")
