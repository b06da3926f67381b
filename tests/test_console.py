"""Tests that what takes long says so: one line on a pipe, a changing one on a terminal."""

import io
import time

import pytest

from noah_jax import console
from noah_jax.console import say, warn, working


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self):
        return True


@pytest.fixture
def impatient(monkeypatch):
    for name, seconds in (("PATIENCE", 0.05), ("_TERMINAL", 0.01), ("_PIPE", 0.05)):
        monkeypatch.setattr(console, f"{name}_SECONDS", seconds)


def _screen(written):
    """What is left on a terminal: each erasing empties the last line."""
    lines = [""]
    for part in written.split(console._ERASE):
        lines[-1] = ""
        lines[-1:] = (lines[-1] + part).split("\n")
    return "\n".join(lines)


def _until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_what_is_quick_is_silent(capsys):
    assert console.PATIENCE_SECONDS > 0
    with working("compiling"):
        pass
    assert capsys.readouterr() == ("", "")


def test_one_line_on_a_pipe(impatient, monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    with working("compiling"):
        _until(pipe.getvalue)
        time.sleep(0.2)
    assert pipe.getvalue() == "compiling ... 0:00\n"


def test_what_is_counted_says_how_far_it_is(impatient, monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    with working("evaluating", 2_000) as work:
        work.advance(500)
        _until(lambda: pipe.getvalue().count("\n") > 1)  # now and then a line
        work.advance(1_500)
        _until(lambda: "2,000 of 2,000 images\n" in pipe.getvalue())
    assert pipe.getvalue().startswith("evaluating ... 0:00, 500 of 2,000 images, 0:00 left\n")


def test_a_terminal_has_one_line_that_makes_room(impatient, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with working("evaluating"):
        _until(lambda: terminal.getvalue().count("evaluating") > 1)
        with working("reading"):  # what happens inside is shown in its place
            _until(lambda: terminal.getvalue().endswith("reading ... 0:00"))
            say("a result")
            warn("something")
    assert capsys.readouterr().out == "a result\n"
    assert _screen(terminal.getvalue()) == "warning: something\n"


def test_errors_end_it(impatient, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with pytest.raises(KeyError), working("converting"):
        _until(terminal.getvalue)
        raise KeyError
    assert terminal.getvalue().endswith(console._ERASE)
    assert console._under_way == []


def test_the_first_process_alone_speaks(impatient, monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    monkeypatch.setattr(console, "_process", lambda: (1, "process 1 of 2"))
    with working("compiling") as work:
        work.advance()
        time.sleep(0.2)
    assert pipe.getvalue() == ""
