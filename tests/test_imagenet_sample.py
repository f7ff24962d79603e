"""The free images of ImageNet classes: read from a folder, parted by content, with their authors."""

import numpy as np
import pytest
from PIL import Image

from lowrank_utils import paths
from lowrank_utils.lab import data, imagenet_sample

HEAD = "ImageId,URL,x1,y1,x2,y2,TrueLabel,TargetClass,OriginalLandingURL,License,Author,AuthorProfileURL\n"


def write(place, names, seed=0):
    rng = np.random.default_rng(seed)
    (place / "images").mkdir(parents=True)
    lines = ""
    for i, name in enumerate(names):
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(place / f"images/{name}.png")
        lines += f"{name},u,0,0,1,1,{1 + 300 * i},5,page {i},CC BY 2.0,Author {i},profile {i}\n"
    (place / "dev_dataset.csv").write_text(HEAD + lines + "unused,u,0,0,1,1,9,5,p,l,Nobody,q\n")


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(imagenet_sample, "CALIBRATION", 2)


def test_halves_follow_from_the_content_and_not_from_names(tmp_path, few):
    write(tmp_path / "one", "abc")
    write(tmp_path / "two", "zyx")
    one, two = (imagenet_sample.by_hand(tmp_path / name, data._digests)[0] for name in ("one", "two"))
    assert one["x_train"].shape == (2, 224, 224, 3) and one["x_test"].shape == (1, 224, 224, 3)
    assert one["y_train"].dtype == np.uint16
    assert sorted([*one["y_train"], *one["y_test"]]) == [0, 300, 600]  # labels begin at 0, in the table at 1
    for key, value in one.items():
        assert np.array_equal(value, two[key])


def test_authors_of_the_images_are_kept(tmp_path, few):
    write(tmp_path, "abc")
    text = imagenet_sample.by_hand(tmp_path, data._digests)[1]
    assert text.splitlines()[0] == "ImageId,TrueLabel,OriginalLandingURL,License,Author,AuthorProfileURL"
    assert text.splitlines()[2] == "b,301,page 1,CC BY 2.0,Author 1,profile 1" and "Nobody" not in text


def test_an_image_without_a_row_and_a_folder_that_is_not_there(tmp_path, few):
    write(tmp_path / "some", "abc")
    (tmp_path / "some/images/a.png").rename(tmp_path / "some/images/stray.png")
    with pytest.raises(ValueError, match="dev_dataset.csv has no row for stray.png"):
        imagenet_sample.by_hand(tmp_path / "some", data._digests)
    with pytest.raises(OSError, match=r"dev_dataset.csv"):
        imagenet_sample.by_hand(tmp_path / "nowhere", data._digests)


def test_other_images_are_refused_and_the_way_out_is_named(tmp_path, monkeypatch):
    write(tmp_path / imagenet_sample.NAME, "abc")
    monkeypatch.setattr(data.shutil, "which", lambda tool: None)
    with pytest.raises(data.DataUnavailable) as refusal:
        data.load(imagenet_sample.NAME, folder=tmp_path)
    said = str(refusal.value)
    assert "the folder imagenet-sample said: its x_train is 3 x 224 x 224 x 3, uint8, not 455 x" in said
    assert "git clone https://github.com/NilsRublein/DL said: this machine has no git" in said
    assert "dev_dataset.csv and images/ of that repository's data/" in said and "\n" not in said


@pytest.mark.slow
@pytest.mark.skipif(not (paths.DATA / "imagenet-sample.npz").exists(), reason="data/imagenet-sample.npz is not there")
def test_the_sample():
    held = data.load(imagenet_sample.NAME)
    assert len(held.train) + len(held.valid) == 455 and len(held.test) == 456 and len(held.classes) == 1000
    labels = np.concatenate([held.train.labels, held.valid.labels, held.test.labels])
    assert len(set(labels.tolist())) == 410
