"""Which edits make published rows older: those of code that they were computed with, not of what pages say."""

import pytest

from lowrank_utils.workbook import digests

CODE = '''"""A module."""

UNMET = {"*": {1: "not yet"}}
STEPS = 100


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
        ('"not yet"', '"never, for these two reasons"', False),
        ("STEPS = 100", "STEPS = 101", True),
        ("count + 1", "count + 2", True),
    ],
)
def test_only_code_that_computes_counts(tmp_path, old, new, older):
    assert old in CODE
    assert (digest_of(tmp_path, CODE) != digest_of(tmp_path, CODE.replace(old, new))) == older


def test_what_a_module_imports_counts_with_it_but_for_pages():
    controls = {path.stem for path in digests.reached("controls")}
    assert {"controls", "contest", "laboratory", "rivals"} <= controls
    assert not controls & (set(digests.PAGES) - {"controls"})
    assert "controls" not in {path.stem for path in digests.reached("chapters/arsvd")}
    assert digests.reached("no_such_module") == []


def test_every_page_is_a_module():
    there = {path.stem for path in (digests.PACKAGE / "workbook").rglob("*.py")}
    assert set(digests.PAGES) <= there
