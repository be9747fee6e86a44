"""Question lists of one's own: what is no list of sentences is named, not taken letter by letter."""

import pytest

from ctgrounding import questions
from ctgrounding.errors import ConfigError


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cyst: {positive: Cyst, negative: None}", r"'positive' is 'Cyst', but must be a list"),
        (b"cyst: {positive: [A cyst.], negative: [None.], organs: liver}", r"'organs' is 'liver'.*organs: \[\.\.\.\]"),
        (b"cyst: {positive: [A cyst.], negative: [None.], organs: }", "'organs' is None"),
        (b"cyst: {positive: [A cyst.", "is no YAML: while parsing"),
        (b"\xff\xfe\x00", r"cannot be read as text \(UnicodeDecodeError\)"),
        (b"cyst: {positive: [A cyst.]}", "1 positive and 0 negative"),
    ],
)
def test_files_that_are_no_question_lists(tmp_path, content, said):
    (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        questions.load(str(tmp_path / "own.yaml"))


def test_a_list_of_ones_own(tmp_path):
    (tmp_path / "own.yaml").write_text("cyst: {positive: [A cyst.], negative: [None.], organs: [liver]}")
    assert questions.load(str(tmp_path / "own.yaml")) == (
        questions.Question("cyst", ("A cyst.",), ("None.",), ("liver",)),
    )
