import hashlib
import io
import socket
import subprocess
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lowrank_utils import paths
from lowrank_utils.lab import data, fetch

FASHION_MNIST = paths.DATA / "fashion-mnist.npz"


def digits_arrays():
    """The one official set that needs neither network nor file."""
    return data._from_sklearn()


def rows(split):
    return sorted(image.tobytes() + bytes([label]) for image, label in zip(split.images, split.labels))


@pytest.fixture
def digits_file(tmp_path):
    return data.fetch("digits", folder=tmp_path)


# Fingerprints


def test_fingerprint_follows_its_rule():
    images, labels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([1, 0, 255])
    digests = sorted(hashlib.sha256(images[i].tobytes() + bytes([labels[i]])).digest() for i in range(3))
    assert data.fingerprint(images, labels) == hashlib.sha256(b"".join(digests)).hexdigest()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_fingerprint_is_independent_of_order_and_sensitive_to_content(seed, count):
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (count, 2, 3), dtype=np.uint8), rng.integers(0, 400, count)
    order, at = rng.permutation(count), rng.integers(count)
    reference = data.fingerprint(images, labels)
    assert data.fingerprint(images[order], labels[order]) == reference
    other_images, other_labels = images.copy(), labels.copy()
    other_images[at, 0, 0] ^= 1
    other_labels[at] ^= 1
    assert data.fingerprint(other_images, labels) != reference
    assert data.fingerprint(images, other_labels) != reference


def test_label_above_255_takes_four_bytes():
    image = np.zeros((1, 2, 2), dtype=np.uint8)
    inner = hashlib.sha256(bytes(4) + b"\x2c\x01\x00\x00").digest()
    assert data.fingerprint(image, [300]) == hashlib.sha256(inner).hexdigest()


def test_fingerprint_refuses_unequal_lengths():
    with pytest.raises(ValueError):
        data.fingerprint(np.zeros((2, 2, 2), dtype=np.uint8), [0])


def test_dataset_fingerprints_are_on_record_and_differ(tmp_path):
    found = {name: data.dataset_fingerprint(name, folder=tmp_path) for name in data.NAMES}
    assert len(set(found.values())) == len(data.NAMES) and all(len(value) == 64 for value in found.values())
    assert list(tmp_path.iterdir()) == []
    joined = "".join(data.FINGERPRINTS["mnist"])
    assert found["mnist"] == hashlib.sha256(joined.encode()).hexdigest()


# Splits


def test_digits_end_to_end(tmp_path):
    digits = data.load("digits", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (len(digits.train), len(digits.valid), len(digits.test)) == (1290, 143, 364)
    assert digits.input_shape == (1, 8, 8) and digits.classes == tuple("0123456789")
    assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int64
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255
    assert digits.fingerprint == data.dataset_fingerprint("digits")


def test_digits_test_set_is_a_fifth_of_each_class():
    arrays = digits_arrays()
    train, test = np.bincount(arrays["y_train"]), np.bincount(arrays["y_test"])
    assert len(train) == len(test) == 10
    np.testing.assert_array_equal(test, -(-(train + test) // 5))


def test_splits_cover_the_official_images_and_do_not_meet():
    digits, arrays = data.load("digits", seed=3), digits_arrays()
    train, valid, test = (rows(split) for split in (digits.train, digits.valid, digits.test))
    official = data.Split(arrays["x_train"], arrays["y_train"])
    assert sorted(train + valid) == rows(official)
    assert test == rows(data.Split(arrays["x_test"], arrays["y_test"]))
    assert not set(train) & set(valid) and not set(train + valid) & set(test)  # digits holds no image twice


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_split_never_depends_on_the_order_of_the_source(shuffle, seed):
    rng, arrays = np.random.default_rng(shuffle), digits_arrays()
    for part in ("train", "test"):
        order = rng.permutation(len(arrays[f"y_{part}"]))
        arrays |= {key: arrays[key][order] for key in (f"x_{part}", f"y_{part}")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_from_sklearn", lambda: arrays)
        shuffled = data.load("digits", seed=seed)
    reference = data.load("digits", seed=seed)
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(getattr(shuffled, split).images, getattr(reference, split).images)
        np.testing.assert_array_equal(getattr(shuffled, split).labels, getattr(reference, split).labels)
    assert (shuffled.mean, shuffled.std) == (reference.mean, reference.std)


def test_digits_test_set_does_not_depend_on_the_order_of_scikit_learn(monkeypatch):
    import sklearn.datasets

    held = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(held.target))
    held.images, held.target = held.images[order], held.target[order]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: held)
    assert data.load("digits").fingerprint == data.dataset_fingerprint("digits")


def test_seed_moves_valid_but_not_test_mean_or_fingerprint():
    one, two, again = (data.load("digits", seed=seed) for seed in (0, 1, 0))
    assert rows(one.valid) != rows(two.valid) and rows(one.valid) == rows(again.valid)
    np.testing.assert_array_equal(one.test.images, two.test.images)
    assert (one.mean, one.std, one.fingerprint) == (two.mean, two.std, two.fingerprint)


def test_splits_are_shuffled():
    digits = data.load("digits")
    for split in (digits.train, digits.valid, digits.test):
        assert len(set(split.labels[:40].tolist())) >= 8


@pytest.mark.parametrize("share, count", [(0.5, 716), (1e-9, 1), (1 - 1e-9, 1432)])
def test_valid_share(share, count):
    digits = data.load("digits", valid_share=share)
    assert len(digits.valid) == count and len(digits.train) == 1433 - count


def test_tensors_are_standardised():
    digits = data.load("digits")
    images = np.concatenate([digits.train.images, digits.valid.images]) / 255
    assert digits.mean == pytest.approx([images.mean()]) and digits.std == pytest.approx([images.std()])
    pixels, labels = digits.tensors("valid", limit=10)
    assert str(pixels.dtype) == "torch.float32" and str(labels.dtype) == "torch.int64"
    expected = (digits.valid.images[:10, None] / 255 - digits.mean[0]) / digits.std[0]
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(labels.numpy(), digits.valid.labels[:10])


def test_tensors_of_colour_images_put_channels_first():
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 3), dtype=np.uint8)
    mean, std = data._mean_and_std(images)
    assert mean == pytest.approx(images.mean((0, 1, 2)) / 255)
    assert std == pytest.approx(images.std((0, 1, 2)) / 255)
    split = data.Split(images, np.arange(5))
    pixels, _ = data.Dataset("x", tuple("abcde"), "", 0, split, split, split, mean, std).tensors("train")
    assert pixels.shape == (5, 3, 2, 3) and pixels.is_contiguous()
    np.testing.assert_allclose(pixels[4, 2, 1, 0], (images[4, 1, 0, 2] / 255 - mean[2]) / std[2], atol=1e-6)


def test_constant_channel_has_std_one():
    assert data._mean_and_std(np.full((3, 2, 2), 51, dtype=np.uint8)) == (pytest.approx((0.2,)), (1.0,))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: data.load("mnits"), "unknown data set 'mnits': choose fashion-mnist, .* or folder:PATH"),
        (lambda: data.load("folder:"), "unknown data set 'folder:'"),
        (lambda: data.load(None), "unknown data set None"),
        (lambda: data.fetch("folder:x"), "unknown data set 'folder:x': fetch knows fashion-mnist"),
        (lambda: data.describe("nope"), "unknown data set 'nope'"),
        (lambda: data.dataset_fingerprint("nope"), "unknown data set 'nope'"),
        (lambda: data.load("digits", seed=-1), "seed is -1"),
        (lambda: data.load("digits", seed=True), "seed is True"),
        (lambda: data.load("digits", seed=0.5), "seed is 0.5"),
        (lambda: data.load("digits", valid_share=0), "valid_share is 0"),
        (lambda: data.load("digits", valid_share=1), "valid_share is 1"),
        (lambda: data.load("digits", valid_share=float("nan")), "valid_share is nan"),
        (lambda: data.load("digits", size=8), "size is 8, but digits has one size"),
        (lambda: data.load("folder:x", size=0), "size is 0"),
        (lambda: data.load("digits").tensors("all"), "unknown split 'all'"),
        (lambda: data.load("digits").tensors("test", limit=0), "limit is 0"),
        (lambda: data.load("digits").tensors("test", limit=0.5), "limit is 0.5"),
    ],
)
def test_bad_values_are_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Files


def test_fetch_writes_the_canonical_form_and_load_reads_it(digits_file, monkeypatch):
    with np.load(digits_file, allow_pickle=False) as held:
        assert sorted(held.files) == sorted(data.KEYS)
        assert all(held[key].dtype == np.uint8 for key in data.KEYS)
    reference = data.load("digits", folder=digits_file.parent.parent)
    monkeypatch.setattr(data, "_from_sklearn", lambda: pytest.fail("the file is there already"))
    found = data.load("digits", folder=digits_file.parent)
    np.testing.assert_array_equal(found.train.images, reference.train.images)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-500])


def emptied(path):
    path.write_bytes(b"")


def flipped_byte(path):
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def no_archive(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def folder_instead(path):
    path.unlink()
    path.mkdir()


def rewritten(change):
    def damage(path):
        with np.load(path) as held:
            arrays = dict(held)
        with open(path, "wb") as file:
            np.savez(file, **change(arrays))

    return damage


def altered_pixel(arrays):
    arrays["x_train"][7, 3, 3] ^= 1
    return arrays


def pickled(path):
    with zipfile.ZipFile(path, "w") as archive:
        for key in data.KEYS:
            member = io.BytesIO()
            np.save(member, np.array([{"a": 1}], dtype=object), allow_pickle=True)
            archive.writestr(f"{key}.npy", member.getvalue())


@pytest.mark.parametrize(
    "damage, what",
    [
        (truncated, "not a whole .npz"),
        (emptied, "not a whole .npz"),
        (no_archive, "not a whole .npz"),
        (folder_instead, "not a whole .npz|directory"),
        (flipped_byte, "CRC"),
        (pickled, "[Oo]bject arrays cannot be loaded"),
        (rewritten(altered_pixel), "its train images or labels are not the official ones"),
        (rewritten(lambda a: a | {"y_test": np.roll(a["y_test"], 1)}), "its test images or labels are not"),
        (rewritten(lambda a: a | {"x_train": a["x_train"][1:]}), "x_train is 1432 x 8 x 8, uint8, not 1433"),
        (rewritten(lambda a: a | {"x_test": a["x_test"][..., None]}), "x_test is 364 x 8 x 8 x 1, uint8"),
        (rewritten(lambda a: a | {"x_test": a["x_test"] / 255}), "x_test is 364 x 8 x 8, float64, not 364"),
        (rewritten(lambda a: a | {"y_train": a["y_train"].astype(int)}), "y_train is 1433, int64, not 1433"),
        (rewritten(lambda a: {"images": a["x_train"]}), "it lacks x_train, y_train, x_test, y_test"),
        (rewritten(lambda a: {k: v for k, v in a.items() if k != "y_test"}), "it lacks y_test"),
    ],
)
def test_damaged_file_is_named_and_left_alone(digits_file, damage, what):
    damage(digits_file)
    before = digits_file.read_bytes() if digits_file.is_file() else None
    for call in (data.load, data.fetch, data.describe):
        with pytest.raises(ValueError, match=what) as caught:
            call("digits", folder=digits_file.parent)
        message = str(caught.value)
        assert str(digits_file) in message and "\n" not in message
        assert "delete or replace it and run `python -m lowrank_utils data digits`" in message
    assert before == (digits_file.read_bytes() if digits_file.is_file() else None)


def test_a_write_that_fails_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    def half(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(data.DataUnavailable, match=r"digits.npz cannot be written .*No space.*make room"):
        data.fetch("digits", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_fetch_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(temporary):
        (temporary / "part").write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_sources", lambda name: [("slow source", interrupted)])
    with pytest.raises(KeyboardInterrupt):
        data.fetch("digits", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file where a folder belongs")
    with pytest.raises(data.DataUnavailable, match="cannot be written"):
        data.fetch("digits", folder=tmp_path / "data")


def test_a_rival_that_fetches_the_same_set_meanwhile_does_no_harm(tmp_path, monkeypatch):
    rivals = [lambda: data.fetch("digits", folder=tmp_path)]

    def deliver(temporary):
        if rivals:
            rivals.pop()()
        return digits_arrays()

    monkeypatch.setattr(data, "_sources", lambda name: [("source", deliver)])
    assert data.fetch("digits", folder=tmp_path) == tmp_path / "digits.npz" and not rivals
    assert [path.name for path in tmp_path.iterdir()] == ["digits.npz"]


# Sources


def test_sources_are_asked_in_turn_until_one_answers(tmp_path, monkeypatch):
    asked = []

    def source(name, answer):
        def deliver(temporary):
            assert temporary.is_dir() and temporary.parent == tmp_path
            asked.append(name)
            return answer()

        return name, deliver

    def out_of_order():
        raise OSError("out of order")

    wrong = dict(digits_arrays(), x_train=digits_arrays()["x_train"][::-1])
    sources = [source("dead", out_of_order), source("wrong", lambda: wrong), source("right", digits_arrays)]
    monkeypatch.setattr(data, "_sources", lambda name: [*sources, source("spare", out_of_order)])
    assert data.fetch("digits", folder=tmp_path) == tmp_path / "digits.npz"
    assert asked == ["dead", "wrong", "right"]
    assert [path.name for path in tmp_path.iterdir()] == ["digits.npz"]


def test_each_set_has_its_sources():
    named = {name: [source for source, _ in data._sources(name)] for name in data.NAMES}
    assert named["fashion-mnist"] == ["torchvision", "Debian package dataset-fashion-mnist"]
    assert named["mnist"] == named["cifar10"] == named["cifar100"] == ["torchvision"]
    assert named["digits"] == ["scikit-learn"]
    assert named["imagenet-sample"] == ["the folder imagenet-sample", "git clone https://github.com/NilsRublein/DL"]


def test_no_source_answers(tmp_path, monkeypatch):
    def refuse(name, temporary):
        raise OSError("no network\nat all")

    monkeypatch.setattr(data, "_from_torchvision", refuse)
    monkeypatch.setattr(data.shutil, "which", lambda tool: None)
    with pytest.raises(data.DataUnavailable) as caught:
        data.load("fashion-mnist", folder=tmp_path)
    message = str(caught.value)
    assert "no source has fashion-mnist: torchvision said: no network at all; " in message
    assert "Debian package dataset-fashion-mnist said: this machine has no apt-get. " in message
    assert str(tmp_path / "fashion-mnist.npz") in message and "x_train, y_train, x_test, y_test" in message
    assert "dataset=digits, which needs no file and runs every notebook" in message and "\n" not in message
    assert isinstance(caught.value, OSError) and list(tmp_path.iterdir()) == []


def test_torchvision_is_asked_for_the_set_by_its_name(tmp_path, monkeypatch, capsys):
    import torchvision.datasets

    class Held:
        def __init__(self, root, train, download):
            print("Downloading ...")
            assert root == tmp_path and download and socket.getdefaulttimeout()
            self.data, self.targets = np.full((2, 2, 2, 3), 1 + train, dtype=np.uint8), [0, 99]

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Held)
    before = socket.getdefaulttimeout()
    arrays = data._from_torchvision("cifar100", tmp_path)
    assert socket.getdefaulttimeout() == before
    assert arrays["x_train"].max() == 2 and arrays["x_test"].max() == 1
    assert arrays["y_test"].dtype == np.uint8 and arrays["y_test"].tolist() == [0, 99]
    assert capsys.readouterr().out == ""  # stdout belongs to results


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return data.gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.mark.parametrize("lists", ["there", "missing"])
def test_debian_package_is_unpacked_without_root(tmp_path, monkeypatch, lists):
    images, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([5, 9], dtype=np.uint8)
    commands = []

    def call(folder, *command):
        commands.append(command)
        if command[:2] == ("apt-get", "download") and lists == "missing":
            raise OSError("Unable to locate package")
        if command[0] == "apt-get" and command[-1] == "update":
            raise OSError("one list of many failed")
        if "download" in command:
            (folder / "dataset-fashion-mnist_0_all.deb").touch()
        if command[0] == "dpkg-deb":
            files = folder / "unpacked/usr/share/datasets/fashion-mnist"
            files.mkdir(parents=True)
            for stem in ("train", "t10k"):
                (files / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(images))
                (files / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx(labels))

    monkeypatch.setattr(data, "call", call)
    monkeypatch.setattr(data.shutil, "which", lambda tool: tool)
    arrays = data._from_debian(tmp_path)
    assert sorted(arrays) == sorted(data.KEYS)
    np.testing.assert_array_equal(arrays["x_test"], images)
    np.testing.assert_array_equal(arrays["y_train"], labels)
    assert len(commands) == (2 if lists == "there" else 4)
    own = f"-oDir::State::Lists={tmp_path}/lists"
    assert lists == "there" or all(own in command for command in commands[1:3])


def test_debian_package_says_both_complaints(tmp_path, monkeypatch):
    def call(folder, *command):
        raise OSError("disk full" if command[1] == "download" else "no such package")

    monkeypatch.setattr(data, "call", call)
    monkeypatch.setattr(data.shutil, "which", lambda tool: tool)
    with pytest.raises(OSError, match="disk full; with fresh package lists, no such package"):
        data._from_debian(tmp_path)


def test_call_repeats_the_last_complaint(tmp_path):
    with pytest.raises(OSError, match="^sh: really gone$"):
        fetch.call(tmp_path, "sh", "-c", "echo first >&2; echo 'E: really gone' >&2; exit 3")
    with pytest.raises(OSError, match="^sh: no such wheel$"):
        fetch.call(tmp_path, "/bin/sh", "-c", "echo 'ERROR: no such wheel' >&2; exit 1")
    with pytest.raises(OSError, match="^sh: exit code 3$"):
        fetch.call(tmp_path, "sh", "-c", "exit 3")
    fetch.call(tmp_path, "sh", "-c", "echo a warning >&2; touch here")
    assert (tmp_path / "here").exists()


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="data/fashion-mnist.npz is not fetched")
def test_fashion_mnist():
    fashion = data.load()
    assert (len(fashion.train), len(fashion.valid), len(fashion.test)) == (54000, 6000, 10000)
    assert fashion.input_shape == (1, 28, 28) and fashion.classes[0] == "T-shirt/top"
    assert (*fashion.mean, *fashion.std) == pytest.approx((0.2860, 0.3530), abs=1e-4)
    trousers = fashion.test.images[fashion.test.labels == 1] / 255
    assert trousers[:, :, 14].mean() > 2 * trousers[:, :, 4].mean()  # class 1 stands upright in the middle


def test_class_names_belong_to_the_sets():
    assert {name: len(classes) for name, classes in data.CLASSES.items()} == {
        "fashion-mnist": 10,
        "mnist": 10,
        "cifar10": 10,
        "cifar100": 100,
        "digits": 10,
    }
    assert len(set(data.class_names("imagenet-sample"))) > 990 and len(data.class_names("imagenet-sample")) == 1000
    assert list(data.CLASSES["cifar100"]) == sorted(set(data.CLASSES["cifar100"]))
    assert data.CLASSES["cifar10"][6] == "frog" and data.CLASSES["fashion-mnist"][9] == "Ankle boot"


# Folders of images


def save(path, shape=(4, 6), mode="L", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, *channels), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def tree(tmp_path):
    """train/ with two classes of four greyscale images each, test/ with one each."""
    pixels = {}
    for seed in range(10):
        part, label, stem = ("train", "ab"[seed % 2], seed // 2) if seed < 8 else ("test", "ab"[seed % 2], 0)
        path = tmp_path / part / label / f"{stem}.png"
        pixels[path] = save(path, seed=seed)
    return tmp_path, pixels


def test_folder_of_greyscale_images(tree):
    root, pixels = tree
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "a" / "notes.txt").write_text("no image")
    mine = data.load(f"folder:{root}", valid_share=0.25)
    assert (len(mine.train), len(mine.valid), len(mine.test)) == (6, 2, 2)
    assert mine.input_shape == (1, 4, 6) and mine.classes == ("a", "b") and mine.name == f"folder:{root}"
    labels = {path: bytes(["ab".index(path.parent.name)]) for path in pixels}
    expected = [pixels[path].tobytes() + labels[path] for path in pixels if path.parts[-3] == "train"]
    assert sorted(rows(mine.train) + rows(mine.valid)) == sorted(expected)
    assert mine.fingerprint == data.dataset_fingerprint(f"folder:{root}")
    assert mine.tensors("train")[0].shape == (6, 1, 4, 6)


def test_folder_is_described(tree):
    root, _ = tree
    lines = data.describe(f"folder:{root}").splitlines()
    assert lines[1] == f"source       {root}" and lines[2] == "train        8 x 4 x 6, uint8"
    assert lines[4] == "classes      2: a, b"
    assert lines[5] == f"fingerprint  {data.dataset_fingerprint(f'folder:{root}')}"


def test_folder_may_call_its_test_set_val(tree):
    root, _ = tree
    before = data.dataset_fingerprint(f"folder:{root}")
    (root / "test").rename(root / "val")
    assert data.dataset_fingerprint(f"folder:{root}") == before


def test_relative_folder_starts_at_the_project_root(tree, monkeypatch):
    root, _ = tree
    monkeypatch.setattr(paths, "ROOT", root.parent)
    assert data.dataset_fingerprint(f"folder:{root.name}") == data.dataset_fingerprint(f"folder:{root}")


def test_one_colour_image_makes_all_rgb(tree):
    root, pixels = tree
    colour = save(root / "train" / "a" / "0.png", mode="RGB", seed=99)
    save(root / "train" / "b" / "0.png", mode="RGBA", seed=98)
    mine = data.load(f"folder:{root}")
    held = rows(mine.train) + rows(mine.valid)
    assert mine.input_shape == (3, 4, 6) and len(mine.mean) == 3
    assert colour.tobytes() + b"\0" in held
    assert np.repeat(pixels[root / "train/a/1.png"], 3).tobytes() + b"\0" in held


def test_size_resizes_the_shorter_side_and_keeps_the_centre(tree):
    root, _ = tree
    bands = np.zeros((8, 16), dtype=np.uint8)
    bands[:, 4:12] = 200
    Image.fromarray(bands).save(root / "test" / "a" / "0.png")
    mine = data.load(f"folder:{root}", size=4)
    assert mine.input_shape == (1, 4, 4)
    assert mine.fingerprint == data.dataset_fingerprint(f"folder:{root}", size=4)
    (band,) = mine.test.images[mine.test.labels == 0]
    assert (band[:, 1:3] > 190).all()  # the outer quarters, which are black, fall away


def change(*steps):
    return lambda root: [step(root) for step in steps]


def remove(path):
    return lambda root: subprocess.run(["rm", "-r", str(root / path)], check=True)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (remove("test"), "must hold folders train and test"),
        (remove("train"), "must hold folders train and test"),
        (change(remove("train/b"), remove("test/b")), "1 class in train, at least 2"),
        (change(remove("train/a"), remove("train/b"), remove("test/a"), remove("test/b")), "0 class"),
        (remove("test/b"), "the same classes, but only one has b$"),
        (remove("test/b/0.png"), "test/b holds no images"),
        (lambda root: save(root / "test/a/big.png", (5, 6)), "4 x 6 and .*big.png is 5 x 6: give a size"),
        (lambda root: (root / "train/a/0.png").write_bytes(b"no"), "train/a/0.png is not a readable image"),
        (lambda root: truncated_image(root / "train/b/1.png"), "1.png is not a readable image .*mend or"),
        (lambda root: Image.new("I;16", (6, 4)).save(root / "test/a/0.png"), "0.png has pixels of mode I"),
    ],
)
def test_unusable_folder_is_refused_in_words(tree, spoil, message):
    root, _ = tree
    spoil(root)
    with pytest.raises(ValueError, match=message) as caught:
        data.load(f"folder:{root}")
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


def truncated_image(path):
    path.write_bytes(path.read_bytes()[:60])


def test_missing_folder():
    with pytest.raises(ValueError, match="/nowhere/at/all must hold folders train and test"):
        data.load("folder:/nowhere/at/all")


def test_a_folder_may_have_more_than_255_classes(tmp_path):
    for i in range(300):
        for part in ("train", "test"):
            save(tmp_path / part / f"{i:03}" / "0.png", (2, 2), seed=i)
    mine = data.load(f"folder:{tmp_path}")
    assert len(mine.classes) == 300 and sorted(mine.test.labels.tolist()) == list(range(300))
