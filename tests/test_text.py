"""Texts: checked by content, split so that nothing comes back in the score, and cut into windows."""

import hashlib
import re
import zipfile
from pathlib import Path

import pytest
import torch

from conftest import byte_tokenizer
from lowrank_utils import paths
from lowrank_utils.lab import text
from lowrank_utils.lab.fetch import DataUnavailable

RAW = " \n = A title = \n \n The first line , with an umlaut : Köln \n The second line \n \n"
TOKENS = " \n = A <unk> = \n \n The first line , with an umlaut : <unk> \n The second line \n \n"


def digest(content):
    return hashlib.sha256(content.encode()).hexdigest()


def paragraphs(content):
    return {" ".join(part.split()) for part in re.split(r"\n\s*\n", content) if part.strip()}


# ---- the topics of Python


def test_no_paragraph_of_the_topics_is_in_two_splits_and_none_is_lost():
    from pydoc_data.topics import topics

    topic = text.load("python-topics")
    parts = {split: paragraphs(topic.split(split)) for split in text.SPLITS}
    assert not parts["train"] & parts["valid"] and not (parts["train"] | parts["valid"]) & parts["test"]
    assert set.union(*parts.values()) == set.union(*(paragraphs(content) for content in topics.values()))
    for split in text.SPLITS:
        assert len(paragraphs(topic.split(split))) == len(re.split(r"\n\s*\n", topic.split(split).strip()))


def test_lines_of_the_topics_stay_as_they_are():
    assert "\n   assert_stmt ::=" in "\n".join(text.load("python-topics").parts.values())


def test_topics_depend_neither_on_their_order_nor_on_new_ones(monkeypatch):
    from pydoc_data import topics

    before = text.load("python-topics")
    monkeypatch.setattr(topics, "topics", dict(reversed(topics.topics.items())))
    again = text.load("python-topics")
    assert again.parts == before.parts and again.fingerprint == before.fingerprint
    monkeypatch.setattr(topics, "topics", topics.topics | {"novelty": "A topic of a later Python.\n"})
    after = text.load("python-topics")
    (grown,) = (split for split in text.SPLITS if after.parts[split] != before.parts[split])
    assert len(after.parts[grown]) - len(before.parts[grown]) == len("A topic of a later Python.\n\n")
    assert after.fingerprint != before.fingerprint


def test_the_version_of_python_is_in_the_fingerprint(monkeypatch):
    before = text.load("python-topics")
    monkeypatch.setattr(text.platform, "python_version", lambda: "3.99.1")
    after = text.load("python-topics")
    assert after.version == "Python 3.99.1" and after.parts == before.parts and after.fingerprint != before.fingerprint


# ---- WikiText-2


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A folder for WikiText-2, whose published content is RAW and TOKENS."""
    monkeypatch.setattr(text, "PUBLISHED", {split: digest(RAW) for split in text.SPLITS})
    lines = {"raw": RAW.replace("\n \n", "\n"), "tokens": TOKENS.replace("\n \n", "\n")}
    content = {
        (form, split): digest(held.removeprefix(" \n")) for form, held in lines.items() for split in ("valid", "test")
    }
    monkeypatch.setattr(text, "CONTENT", content)
    monkeypatch.setattr(text, "TRAIN_WORDS", len(TOKENS.split()))
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    return folder


def load(folder):
    return text.load("wikitext-2", folder.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held,
        lambda held: held.replace("\n", "\r\n"),
        lambda held: held.replace("\n \n", "\n"),
        lambda held: "\n".join(line.strip() for line in held.split("\n")),
    ],
    ids=["as published", "line ends of Windows", "without blank lines", "without outer spaces"],
)
def test_a_text_is_the_same_from_every_source(published, change):
    (published / "wiki.test.raw").write_bytes(change(RAW).encode())
    found = load(published)
    assert found.test == " = A title = \n The first line , with an umlaut : Köln \n The second line \n"
    assert found.note == ""
    (published / "wiki.test.raw").write_bytes(RAW.encode())
    assert load(published).fingerprint == found.fingerprint


@pytest.mark.parametrize("name", ["wiki.train.raw", "wiki.test.raw", "wiki.valid.tokens", "train.txt"])
def test_other_words_are_refused(published, name):
    held = RAW if name.endswith("raw") else TOKENS
    (published / name).write_text(held)
    load(published)
    (published / name).write_text(held.replace("second", "third part"))
    with pytest.raises(ValueError, match=f"{name} is not the published .* text of WikiText-2 .*delete or replace it"):
        load(published)


def test_the_unknown_words_of_the_tokenised_form_are_dropped_and_told(published):
    (published / "valid.txt").write_text(TOKENS)
    found = load(published)
    assert found.valid == " = A = \n The first line , with an umlaut : \n The second line \n"
    share = 2 / len(TOKENS.split())
    assert found.note == f"valid is the tokenised form, of whose words {share:.1%} were <unk> and are dropped"
    (published / "wiki.valid.raw").write_text(RAW)  # the better form goes first
    assert "Köln" in load(published).valid and load(published).note == ""


def test_a_split_that_is_not_there_is_named_when_it_is_asked_for(published):
    (published / "wiki.test.raw").write_text(RAW)
    found = load(published)
    with pytest.raises(
        DataUnavailable, match=r"no train text on this machine: put wiki.train.raw into .*wikitext-2, or"
    ):
        _ = found.train
    assert set(found.absent) == {"train", "valid"}
    with pytest.raises(DataUnavailable, match="no valid text on this machine"):
        _ = found.calibration
    with pytest.raises(ValueError, match="unknown split 'all': choose train, valid or test"):
        found.split("all")
    (published / "train.txt").write_text(TOKENS)
    assert load(published).train and load(published).fingerprint != found.fingerprint
    assert load(published).calibration == load(published).train


def test_validation_text_stands_in_for_a_training_split_that_is_not_there(published):
    (published / "wiki.test.raw").write_text(RAW)
    (published / "wiki.valid.raw").write_text(RAW)
    assert load(published).calibration == load(published).valid


def test_a_file_that_is_no_text_is_refused(published):
    (published / "wiki.test.raw").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="wiki.test.raw is not WikiText-2: .*delete or replace it"):
        load(published)


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """The published archive, which every address delivers."""
    path = tmp_path / text.ARCHIVE
    with zipfile.ZipFile(path, "w") as file:
        for split in text.SPLITS:
            file.writestr(f"wikitext-2-raw/wiki.{split}.raw", RAW)
    monkeypatch.setattr(text, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_archive_is_asked_for_in_turn_and_checked(published, archive, monkeypatch):
    asked = []

    def download(address, path, progress):
        asked.append(address)
        if len(asked) == 1:
            raise OSError("no such bucket")
        content = archive.read_bytes()
        Path(path).write_bytes(content[:-1] if len(asked) == 2 else content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    found = load(published)
    assert asked == list(text.ADDRESSES) and not found.absent and found.train == found.test
    assert sorted(path.name for path in published.iterdir()) == [
        f"wiki.{split}.raw" for split in ("test", "train", "valid")
    ]


def test_where_no_address_answers_the_files_are_named(published, monkeypatch):
    def refuse(address, path, progress):
        raise OSError("no network\nat all")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(DataUnavailable) as caught:
        load(published)
    message = str(caught.value)
    assert message.count("said: no network at all") == 3 and "\n" not in message
    assert "Put wiki.train.raw, wiki.valid.raw and wiki.test.raw into" in message
    assert message.endswith("take text=python-topics, which needs no file") and list(published.iterdir()) == []


@pytest.mark.skipif(
    not (paths.DATA / "wikitext-2" / "wiki.test.raw").exists(), reason="WikiText-2 is not on this machine"
)
def test_wikitext_itself():
    found = text.load("wikitext-2")
    assert found.test.startswith(" = Robert Boulter = \n Robert Boulter is an English film") and len(found.test) > 1.2e6


# ---- a text of one's own


def write(path, count=100):
    held = [f"This is paragraph {i:03}.\nIt has two lines." for i in range(count)]
    path.write_text("\n\n".join(held) + "\n")
    return held


def test_a_text_of_ones_own_is_split_in_order(tmp_path):
    held = write(tmp_path / "my.txt")
    mine = text.load(f"file:{tmp_path / 'my.txt'}")
    assert mine.train == "\n\n".join(held[:80]) + "\n"
    assert mine.valid == "\n\n".join(held[80:90]) + "\n" and mine.test == "\n\n".join(held[90:]) + "\n"
    assert "my.txt" in text.describe(f"file:{tmp_path / 'my.txt'}")


def test_a_relative_path_starts_at_the_project_root(tmp_path, monkeypatch):
    write(tmp_path / "my.txt")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert text.load("file:my.txt").fingerprint == text.load(f"file:{tmp_path}/my.txt").fingerprint


def test_line_ends_and_byte_order_marks_change_nothing(tmp_path):
    write(tmp_path / "a.txt")
    content = (tmp_path / "a.txt").read_bytes()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert text.load(f"file:{tmp_path}/a.txt").fingerprint == text.load(f"file:{tmp_path}/b.txt").fingerprint


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "my.txt cannot be read .*: name a text file"),
        (b"caf\xe9 " * 100, "my.txt is not UTF-8 .*: save it as UTF-8"),
        (b"", "my.txt has 0 paragraphs, too few"),
        (b"one\n\ntwo\n", "my.txt has 2 paragraphs, too few or too unequal"),
        (b"one\n\n" + 100 * b"two " + b"\n\nthree\n", "my.txt has 3 paragraphs, too few or too unequal"),
    ],
)
def test_a_text_that_cannot_be_split_is_refused(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "my.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        text.load(f"file:{tmp_path}/my.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["wikitext", "file:", "mnist", None])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown text {name!r}: choose python-topics, wikitext-2 or file:PATH"):
        text.load(name)


# ---- windows


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_windows_follow_one_another(tokenizer):
    content = "".join(chr(97 + i % 26) for i in range(100))
    found = text.windows(content, tokenizer, 8)
    assert found.ids.shape == (12, 8) and found.ids.dtype == torch.int64 and len(found) == 12
    assert tokenizer.decode(found.ids.flatten()) == content[:96]
    assert found.tokens == found.bytes == 12 * 7
    first = text.windows(content, tokenizer, 8, count=3)
    assert torch.equal(first.ids, found.ids[:3]) and first.fingerprint != found.fingerprint


def test_windows_drawn_by_a_seed_are_some_of_all(tokenizer):
    content = "".join(f"{i:03}" for i in range(140))
    every = {tuple(row) for row in text.windows(content, tokenizer, 10).ids.tolist()}
    drawn, again, other = (text.windows(content, tokenizer, 10, 8, seed=seed) for seed in (1, 1, 2))
    rows = [tuple(row) for row in drawn.ids.tolist()]
    assert len(set(rows)) == 8 and set(rows) <= every
    assert torch.equal(drawn.ids, again.ids) and drawn.fingerprint == again.fingerprint
    assert not torch.equal(drawn.ids, other.ids) and drawn.fingerprint != other.fingerprint


def test_no_byte_counts_twice_where_tokens_share_a_character(tokenizer):
    content = "aé日本" * 30  # 1, 2, 3 and 3 bytes, a token each
    for length in (2, 5, 7, 9):
        found = text.windows(content, tokenizer, length)
        total = len(content.encode())
        assert 0 < found.bytes <= total and len(found) == total // length
    whole = text.windows(content, tokenizer, 9)
    assert whole.bytes == whole.tokens == 30 * 8  # every window begins with the letter of one byte


def test_windows_that_differ_in_length_differ_in_fingerprint(tokenizer):
    found = {text.windows("abcdefgh", tokenizer, length).fingerprint for length in (2, 4, 8)}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("short", {"length": 6}, "the text has 5 tokens, fewer than 1 x 6: take a longer text"),
        ("", {"length": 6}, "the text has 0 tokens, fewer than 1 x 6"),
        ("long enough", {"length": 4, "count": 3}, "the text has 11 tokens, fewer than 3 x 4"),
        ("long enough", {"length": 1}, "length=1 is not a whole number of at least 2"),
        ("long enough", {"length": 4, "count": 0}, "count=0 is not a whole number of at least 1"),
        ("long enough", {"length": 4, "count": 1, "seed": -1}, "seed=-1 is not a whole number of at least 0"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(tokenizer, content, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        text.windows(content, tokenizer, **options)


def test_a_tokenizer_that_does_not_say_where_its_tokens_begin_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="the tokenizer Slow is a slow one"):
        text.windows("long enough", Slow(), 4)
