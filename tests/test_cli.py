"""How the programs parse, fail and end."""

import subprocess
import sys

import pytest

from noah_jax.cli import Parser, load_config, run
from noah_jax.errors import InputError, UsageError, error_line, one_line


def _config_parser() -> Parser:
    parser = Parser("python -m noah_jax.test")
    parser.add_config()
    parser.add_argument("--workdir")
    parser.add_argument("--profile", action="store_true")
    return parser


def test_keys_of_the_configuration_stand_among_flags():
    words = "--config.seed=3 --workdir w --config sample.py:mixer --config.optim.weight_decay 1"
    parsed = _config_parser().parse_args([*words.split(), "--noconfig.data.flip", "--profile"])
    assert parsed.workdir == "w" and parsed.profile
    assert parsed.config == "sample.py:mixer"
    config = load_config(parsed)
    assert (config.seed, config.optim.weight_decay, config.data.flip) == (3, 1, False)
    assert config.model.name == "mixer_b16_224"


def test_a_value_of_its_own_may_be_a_negative_number():
    parsed = _config_parser().parse_args(["--config.optim.weight_decay", "-1", "--profile"])
    assert parsed.overrides == ["--config.optim.weight_decay", "-1"] and parsed.profile
    with pytest.raises(InputError, match=r"optim.weight_decay must be .* got -1"):
        load_config(parsed, "quickstart.py")


def test_several_configurations():
    parser = Parser("test")
    parser.add_config(nargs="+")
    parsed = parser.parse_args(["--config", "quickstart.py", "sample.py:deit", "--config.seed=4"])
    configs = [load_config(parsed, name) for name in parsed.config]
    assert [config.seed for config in configs] == [4, 4]
    assert configs[1].model.name == "deit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "--config FILE is needed"),
        (["--config", "quickstart.py", "--config.sed=1"], "no key sed; did you mean seed"),
        (["--config", "quickstart.py", "--config.seed=x"], "seed"),
    ],
)
def test_configurations_that_do_not_fit(words, problem):
    with pytest.raises(UsageError, match=problem):
        load_config(_config_parser().parse_args(words))
    with pytest.raises(UsageError, match="unrecognized arguments: --x"):
        _config_parser().parse_args([*words, "--x"])


def test_help_has_the_keys():
    text = _config_parser().format_help()
    assert "--config FILE[:VARIANT]" in text and "--config.KEY VALUE" in text
    assert "  optim.learning_rate = 0.1\n" in text and "  init_from = None\n" in text
    assert "optim.learning_rate" not in Parser("test").format_help()


def _end(error: BaseException | None):
    def program(parsed):
        if error is not None:
            raise error
        return 3

    return run(program, Parser("test"), [])


def test_what_a_user_can_mend_is_one_line(capsys, monkeypatch):
    monkeypatch.delenv("NOAH_TRACEBACK", raising=False)
    assert _end(None) == 3
    assert _end(InputError("a\n  b")) == 1
    assert capsys.readouterr().err == "error: a b\n"
    assert _end(KeyboardInterrupt()) == 130
    monkeypatch.setenv("NOAH_TRACEBACK", "1")
    with pytest.raises(InputError):
        _end(InputError("a"))


@pytest.mark.parametrize("error", [ValueError("a"), OSError("a"), RuntimeError("a")])
def test_a_bug_shows_its_traceback(error, monkeypatch):
    monkeypatch.delenv("NOAH_TRACEBACK", raising=False)
    with pytest.raises(type(error)):
        _end(error)


def test_a_missing_package_names_its_extra(capsys, monkeypatch):
    monkeypatch.delenv("NOAH_TRACEBACK", raising=False)
    assert _end(ModuleNotFoundError("no", name="PIL.Image")) == 1
    said = capsys.readouterr().err
    assert said == "error: PIL is not installed; pip install 'noah-jax[train]'\n"
    with pytest.raises(ModuleNotFoundError):
        _end(ModuleNotFoundError("no", name="noah_jax.typo"))


def test_a_reader_that_stops_reading_ends_the_program_quietly():
    code = (
        "import sys\nfrom noah_jax.cli import Parser, run\n"
        "def program(parsed):\n    while True: print('line')\n"
        "sys.exit(run(program, Parser('test'), []))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(30) == 141


def test_one_line():
    assert one_line("a\n\tb  c") == "a b c" and one_line("abcdef", 3) == "abc"
    assert one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ("Traceback:\n  f()\nValueError: no\n", "ValueError: no"),
        (
            "a.b.MosaicError: INTERNAL: no\n\nThe operation:\n  %1\n\n",
            "a.b.MosaicError: INTERNAL: no",
        ),
        ("killed\n", "killed"),
        ("", "it printed no error"),
    ],
)
def test_the_line_of_an_error_is_found(stderr, line):
    assert error_line(stderr) == line
