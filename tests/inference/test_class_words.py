"""Classes whose names are numbers: the name where there is one, or a refusal that says both."""

import pytest

from noah_jax.errors import InputError, UsageError
from noah_jax.evaluation.label_files import _read_table
from noah_jax.explain.class_choice import parse_choice
from noah_jax.inference.class_words import read_word

# Folders 1..12, in the order of their names.
NUMBERS = sorted(str(i) for i in range(1, 13))
BOTH = r"'5' is the name of class 7 and the index of the class called '{}'; write name:5 or index:5"


def _table(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return list(_read_table(str(path), NUMBERS).values())


def _lines(labels, header="file,label"):
    return "\n".join([header, *(f"{i}.png,{label}" for i, label in enumerate(labels))])


def test_labels_that_are_names_or_indices(tmp_path):
    # "12" is only a name, "0" only an index: either decides for the rest of the column.
    assert _table(tmp_path, _lines(["12"])) == [NUMBERS.index("12")]
    assert _table(tmp_path, _lines(range(1, 13))) == [NUMBERS.index(str(i)) for i in range(1, 13)]
    assert _table(tmp_path, _lines(range(12))) == list(range(12))


def test_labels_that_may_be_both_are_refused(tmp_path):
    for labels in (["5"], ["5", "1"], ["0", "12", "5"]):
        with pytest.raises(InputError, match=BOTH.format(NUMBERS[5])) as caught:
            _table(tmp_path, _lines(labels))
        assert "file,name or file,index" in str(caught.value)
    for labels, header, want in (
        (["name:5", "index:5"], "file,label", [7, 5]),
        (["5", "1"], "file,name", [7, 0]),
        (["5", "1"], "File, Index", [5, 1]),
    ):
        assert _table(tmp_path, _lines(labels, header)) == want


@pytest.mark.parametrize("label", ["13", "name:13", "index:12", "-1", "\u00b2", "1.0", ""])
def test_labels_that_are_neither(label, tmp_path):
    with pytest.raises(InputError, match="is neither a number below 12 nor the name of a class"):
        _table(tmp_path, _lines([label]))


def test_chosen_classes():
    names = [f"class {name}" for name in NUMBERS]
    for word, want in (("12", 3), ("name:5", 7), ("index:5", 5), ("0", 0)):
        assert parse_choice(word, NUMBERS, NUMBERS).class_index == want
    with pytest.raises(UsageError, match="--classes 5: " + BOTH.format(NUMBERS[5])):
        parse_choice("5", NUMBERS, NUMBERS)
    # Where the user gives other names, those of the dataset still count.
    with pytest.raises(UsageError, match="--classes 5: " + BOTH.format(NUMBERS[5])):
        parse_choice("5", names, NUMBERS)
    assert parse_choice("5", names, ()).class_index == 5
    assert parse_choice("class 5", names, NUMBERS).class_index == 7
    for word in ("13", "index:12"):
        with pytest.raises(UsageError, match="the classes are 0 to 11"):
            parse_choice(word, NUMBERS, NUMBERS)
    with pytest.raises(UsageError, match="several classes have this name; use one of index:0, in"):
        parse_choice("a", ["a", "A"], ())


def test_names_that_are_their_own_indices_are_no_problem():
    names = ["0", "1", "2"]
    assert [parse_choice(name, names, names).class_index for name in names] == [0, 1, 2]
    assert not read_word("1", names).differ
    # A name may itself start with a prefix.
    assert read_word("index:1", ["index:1", "b"]).names == (0,)
