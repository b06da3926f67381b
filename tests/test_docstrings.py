"""The examples in the docstrings of the public names, run as doctests."""

import doctest

import pytest

import noah_jax


@pytest.mark.parametrize("name", ["NOAH", "poca", "create_model", "load_model"])
def test_public_names_have_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes stays out of the repository
    public = getattr(noah_jax, name)
    finder = doctest.DocTestFinder(recurse=False)
    tests = [test for test in finder.find(public, name, globs={}) if test.examples]
    assert tests, f"the docstring of noah_jax.{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in tests:
        said: list[str] = []
        assert runner.run(test, out=said.append).failed == 0, "".join(said)
