"""Which edits make published rows older: those of code that they were computed with, not of what pages say."""

import pytest

from lowrank_utils.workbook import digests

CODE = '''"""A module."""

UNMET = {
    "*": {1: "not yet"},
}
WORDS = {"none": "cut"}
WORDS |= {"svd": "plain"}
STEPS = 100  # of training
PAGE = """A text.
# Heading
"""


def made(count):
    """Return more."""
    # one more
    return count + 1
'''


def digest_of(folder, text):
    (folder / "module.py").write_text(text)
    return digests.of_files([folder / "module.py"])


@pytest.mark.parametrize(
    ("old", "new", "older"),
    [
        ("# one more", "# and one", False),
        ('"""Return more."""', '"""Return one more,\n\n    and say so.\n    """', False),
        ("# of training", "# at most", False),
        ("    # one more\n", "\n\n", False),
        ('"not yet"', '"never,"\n    "for these two reasons"', False),
        ('"plain"', '"truncated"', False),
        ("# Heading", "# Another", True),  # of a text, not a comment
        ("STEPS = 100", "STEPS = 101", True),
        ("count + 1", "count + 2", True),
    ],
)
def test_only_code_that_computes_counts(tmp_path, old, new, older):
    assert old in CODE
    assert (digest_of(tmp_path, CODE) != digest_of(tmp_path, CODE.replace(old, new))) == older


def test_what_a_module_imports_counts_with_it_but_for_pages(monkeypatch):
    controls = {path.stem for path in digests.reached("controls")}
    assert {"controls", "contest", "laboratory", "rivals"} <= controls
    assert not controls & (set(digests.PAGES) - {"controls"})
    assert "answers" in {path.stem for path in digests.reached("batch_norm")}  # it rebuilds what is measured
    assert "controls" not in {path.stem for path in digests.reached("chapters/side_by_side")}
    monkeypatch.setattr(digests, "PAGES", ())
    assert "controls" in {path.stem for path in digests.reached("chapters/side_by_side")}


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="no_such_module"):
        digests.of_code("no_such_module")


def test_every_page_is_a_module():
    there = {path.stem for path in (digests.PACKAGE / "workbook").rglob("*.py")}
    assert set(digests.PAGES) <= there
