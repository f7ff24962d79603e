"""Image data sets by name, checked by content and split into train, valid and test.

``fashion-mnist`` (default), ``mnist``, ``cifar10``, ``cifar100``, ``digits``, ``imagenet-sample`` and ``folder:PATH``
(any folder in torchvision's ImageFolder layout). Selection and calibration use train and valid, never test.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowrank_utils import paths
from lowrank_utils.checks import is_whole
from lowrank_utils.lab import imagenet_sample
from lowrank_utils.lab.fetch import DataUnavailable, call, patience, said

if TYPE_CHECKING:
    import torch

NAMES = ("fashion-mnist", "mnist", "cifar10", "cifar100", "digits", imagenet_sample.NAME)
KEYS = ("x_train", "y_train", "x_test", "y_test")

SHAPES = {  # (train, test) images, as they stand in data/NAME.npz
    "fashion-mnist": ((60000, 28, 28), (10000, 28, 28)),
    "mnist": ((60000, 28, 28), (10000, 28, 28)),
    "cifar10": ((50000, 32, 32, 3), (10000, 32, 32, 3)),
    "cifar100": ((50000, 32, 32, 3), (10000, 32, 32, 3)),
    "digits": ((1433, 8, 8), (364, 8, 8)),
    "imagenet-sample": ((455, 224, 224, 3), (456, 224, 224, 3)),
}
FINGERPRINTS = {  # (train, test)
    "fashion-mnist": (
        "fb88a2f5c1b590c907f860b47803d006e4fa7b276cdb551799af9d443accdff7",
        "0b381379398a0943a88bf3864ff3f5177903dcf178030b4b74c495294b38fa7c",
    ),
    "mnist": (
        "54e1ab866c9484947dd4821c52bb7a43938f555d6b046be6af55247f8e6ffc64",
        "97b756d55950f1841ebd48df7379b9b2fc87a10d63e08d6213dad41d564e8508",
    ),
    "cifar10": (
        "6a3b2c04d0a79ce272dcdacaf0bc440275db5a8cbe3717521a28fada2ea0d2ed",
        "65a6ffe079453e514083f99356b35e02cbfd581b4951e3937fae188974b79f39",
    ),
    "cifar100": (
        "640c97a4012a8aebfcaf57fd82a33dd43b37d2e397a02cb9b0a3d89e6d6d936d",
        "a6a97df7b61bc7420bc44268696e8963d33129bc050978f2a63d8fe3420989fa",
    ),
    "digits": (
        "690c88ebeb2bb731a28551e21698a9ca5e1ee07a24296adce599326a0e038753",
        "dd0c8191cfa19646433199f2a9773c9a035c1b8067d683952932588c4606aec0",
    ),
    "imagenet-sample": (
        "6eedc6378f1baa85b8f41d43f735e57d0857768b9a6c678029e2f9db2b93677a",
        "8e602a31d575b9dbcd0e5eb54175626d7fc639b19f359b52d7187c1458b425b2",
    ),
}
FASHION = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
    palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
    sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm
"""
CLASSES = {
    "fashion-mnist": tuple(FASHION.split(", ")),
    "mnist": tuple("0123456789"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(CIFAR100.split()),
    "digits": tuple("0123456789"),
}


def class_names(name: str) -> tuple[str, ...]:
    """Return the names of the classes of a named data set, in the order of its labels.

    >>> class_names("cifar10")[6]
    'frog'
    """
    return imagenet_sample.class_names() if name == imagenet_sample.NAME else CLASSES[name]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set: `images` (uint8, N x H x W or N x H x W x 3) and `labels` (int64, N)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in three splits.

    `mean` and `std` hold one number a channel, on the scale [0, 1], over all official training images (train
    and valid together), so that they do not depend on the seed; a channel that never varies has std 1.
    `fingerprint` names the official content, whatever the order of the images, the container and the seed.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    seed: int
    train: Split
    valid: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        height, width = self.train.images.shape[1:3]
        return (len(self.mean), height, width)

    def tensors(self, split: str, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images, standardised, float32 N x C x H x W, and the labels, int64 N.

        x = (pixel / 255 - mean) / std for each channel. `split` is "train", "valid" or "test"; `limit` takes
        the first so many images (every split is already shuffled). Raises ValueError for other values.

        >>> images, labels = load("digits").tensors("test", limit=100)
        >>> tuple(images.shape), tuple(labels.shape)
        ((100, 1, 8, 8), (100,))
        """
        import torch

        if split not in ("train", "valid", "test"):
            raise ValueError(f"unknown split {split!r}: choose train, valid or test")
        if limit is not None:
            _check_whole("limit", limit, 1)
        part = getattr(self, split)
        pixels = torch.from_numpy(part.images[:limit])
        pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        images = torch.empty(pixels.shape, dtype=torch.float32).copy_(pixels)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        images.div_(255).sub_(mean).div_(std)
        return images, torch.from_numpy(part.labels[:limit].copy())


def load(
    name: str = "fashion-mnist",
    seed: int = 0,
    valid_share: float = 0.1,
    folder: str | Path | None = None,
    size: int | None = None,
) -> Dataset:
    """Return the data set `name` as a Dataset, fetched first where it is not on disk.

    The official training images are sorted by content digest, permuted by `seed`, and the first `valid_share`
    of them become valid, so that a split never depends on the order in which a source delivers. Test is the
    official test set, the same for every seed.

    `folder` is where the .npz files lie (default: the project's data folder). `size` (pixels) is for
    folder:PATH only: the shorter side of each image is resized to it and the centre cut out. A relative PATH
    starts at the project root. Raises ValueError for an unknown name, a bad value or a damaged file,
    DataUnavailable where no source has the data.

    >>> digits = load("digits", seed=0)
    >>> len(digits.train), len(digits.valid), len(digits.test), digits.input_shape
    (1290, 143, 364, (1, 8, 8))
    """
    _check_whole("seed", seed, 0)
    if not 0 < valid_share < 1:
        raise ValueError(f"valid_share is {valid_share}: it must lie between 0 and 1, both excluded")
    official = _official(name, folder, size)
    by_digest = {part: np.argsort(official.digests[part]) for part in ("train", "test")}
    count = len(by_digest["train"])
    order = by_digest["train"][np.random.default_rng(seed).permutation(count)]
    held_out = min(max(1, round(valid_share * count)), count - 1)
    mean, std = _mean_and_std(official.arrays["x_train"])
    return Dataset(
        name=name,
        classes=official.classes,
        fingerprint=official.fingerprint,
        seed=int(seed),
        train=official.split("train", order[held_out:]),
        valid=official.split("train", order[:held_out]),
        test=official.split("test", by_digest["test"]),  # digest order is as good as shuffled
        mean=mean,
        std=std,
    )


def fetch(name: str, folder: str | Path | None = None) -> Path:
    """Return the path of data/NAME.npz, made from the first source that answers if it is missing.

    Sources: torchvision's download; for fashion-mnist the Debian package dataset-fashion-mnist; for digits
    scikit-learn; for imagenet-sample the folder of this name beside the file, or a git clone. Raises ValueError for an unknown name or a damaged file (which is left as it is),
    DataUnavailable where no source answers or the file cannot be written.

    >>> fetch("digits", folder=tempfile.mkdtemp()).name
    'digits.npz'
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}: fetch knows {', '.join(NAMES)}")
    path = _path(name, folder)
    _held(name, path)
    return path


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 (64 hex digits) of the sorted SHA-256 digests of (image bytes + label byte).

    It does not depend on the order of the images. `images`: uint8, N x H x W or N x H x W x 3; `labels`: N
    whole numbers, 0 or more; a label above 255 takes four bytes, little-endian.

    >>> images, labels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.array([0, 1])
    >>> fingerprint(images, labels) == fingerprint(images[::-1], labels[::-1])
    True
    >>> fingerprint(images, labels) == fingerprint(images, labels[::-1])
    False
    """
    return _combine(_digests(images, labels))


def dataset_fingerprint(name: str, folder: str | Path | None = None, size: int | None = None) -> str:
    """Return what `load(name).fingerprint` is: the SHA-256 of the fingerprints of train and test, as text.

    For the named sets it is on record, so no file is read and `folder` plays no part; for folder:PATH the
    images are read. Raises ValueError for an unknown name or an unusable folder.

    >>> dataset_fingerprint("digits") == load("digits", seed=1).fingerprint
    True
    """
    _check(name, size)
    return _join(FINGERPRINTS[name]) if name in NAMES else _from_folder(name, size).fingerprint


def describe(name: str, folder: str | Path | None = None, size: int | None = None) -> str:
    """Return a few aligned lines about a data set, fetched if need be: source, shapes, classes, fingerprints.

    >>> print(describe("digits", folder=tempfile.mkdtemp()))  # doctest: +ELLIPSIS
    data set     digits
    source       scikit-learn
    train        1433 x 8 x 8, uint8
    test         364 x 8 x 8, uint8
    classes      10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
    fingerprint  ...
      of train   ...
      of test    ...
    """
    official = _official(name, folder, size)
    source = _path(name, folder) if name in NAMES else _folder_path(name)
    if not source.exists():  # digits needs no file
        source = "scikit-learn"
    elif source.is_relative_to(paths.ROOT):
        source = source.relative_to(paths.ROOT)
    shown = ", ".join(official.classes[:10]) + (", ..." if len(official.classes) > 10 else "")
    rows = {
        "data set": name,
        "source": source,
        "train": _form(official.arrays["x_train"]),
        "test": _form(official.arrays["x_test"]),
        "classes": f"{len(official.classes)}: {shown}",
        "fingerprint": official.fingerprint,
        "  of train": official.fingerprints[0],
        "  of test": official.fingerprints[1],
    }
    return "\n".join(f"{key:<11}  {value}" for key, value in rows.items())


@dataclass(frozen=True, eq=False)
class _Official:
    """Train and test as they were delivered (`arrays`, by KEYS), with one digest an image for each part."""

    arrays: dict[str, np.ndarray]
    digests: dict[str, np.ndarray]
    classes: tuple[str, ...]

    @property
    def fingerprints(self):
        return tuple(_combine(self.digests[part]) for part in ("train", "test"))

    @property
    def fingerprint(self):
        return _join(self.fingerprints)

    def split(self, part, order):
        return Split(self.arrays[f"x_{part}"][order], self.arrays[f"y_{part}"][order].astype(np.int64))


def _official(name, folder, size):
    _check(name, size)
    if name not in NAMES:
        return _from_folder(name, size)
    path = _path(name, folder)
    if name == "digits" and not path.exists():  # no file needed, so that a read-only disk does for it
        return _verified(name, _from_sklearn())
    return _held(name, path)


def _held(name, path):
    if not path.exists():
        _make(name, path)
    return _read(name, path)


def _check(name, size):
    if name not in NAMES and not (isinstance(name, str) and name.removeprefix("folder:") not in (name, "")):
        raise ValueError(f"unknown data set {name!r}: choose {', '.join(NAMES)} or folder:PATH")
    if size is not None:
        _check_whole("size", size, 1)
        if name in NAMES:
            raise ValueError(f"size is {size}, but {name} has one size already: it is for folder:PATH")


def _check_whole(what, value, least):
    if not is_whole(value) or value < least:
        raise ValueError(f"{what} is {value!r}: it must be a whole number, {least} or more")


def _path(name, folder):
    return Path(folder or paths.DATA) / f"{name}.npz"


def _form(array):
    return f"{' x '.join(map(str, array.shape))}, {array.dtype}"


def _digests(images, labels):
    endings = (int(y).to_bytes(1 if y < 256 else 4, "little") for y in labels)
    pairs = zip(images, endings, strict=True)
    return np.frombuffer(b"".join(hashlib.sha256(x.tobytes() + y).digest() for x, y in pairs), dtype="S32")


def _combine(digests):
    return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()


def _join(fingerprints):
    return hashlib.sha256("".join(fingerprints).encode()).hexdigest()


def _mean_and_std(images):
    # Whole-number histograms: the same floats in whatever order the images come, and no float copy of them.
    channels = images[..., None] if images.ndim == 3 else images
    counts = np.zeros((channels.shape[-1], 256), dtype=np.int64)
    for start in range(0, len(channels), 1000):
        for channel, count in enumerate(counts):
            count += np.bincount(channels[start : start + 1000, ..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    std = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.where(std > 1e-6, std, 1.0).tolist())


# Files and sources of the named sets.


def _verified(name, arrays):
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)} (it holds {', '.join(arrays) or 'nothing'})")
    classes = class_names(name)
    for key, shape in zip(KEYS, (form for images in SHAPES[name] for form in (images, images[:1]))):
        wanted = f"{' x '.join(map(str, shape))}, {'uint16' if key[0] == 'y' and len(classes) > 256 else 'uint8'}"
        if _form(arrays[key]) != wanted:
            raise ValueError(f"its {key} is {_form(arrays[key])}, not {wanted}")
    digests = {part: _digests(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}
    official = _Official(arrays, digests, classes)
    for part, found, recorded in zip(("train", "test"), official.fingerprints, FINGERPRINTS[name]):
        if found != recorded:
            raise ValueError(
                f"its {part} images or labels are not the official ones "
                f"(fingerprint {found[:12]}..., recorded {recorded[:12]}...)"
            )
    return official


def _read(name, path):
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a whole .npz archive")
        with np.load(path, allow_pickle=False) as held:
            arrays = {key: held[key] for key in held.files if key in KEYS}
        return _verified(name, arrays)
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise ValueError(
            f"{path} cannot be used: {said(error)}; delete or replace it and run "
            f"`python -m lowrank_utils data {name}` to fetch it again"
        ) from error


def _sources(name):
    """Pairs of (what a source is called, function of a temporary folder that returns the arrays), in turn."""
    if name == "digits":
        return [("scikit-learn", lambda temporary: _from_sklearn())]
    sources = [("torchvision", lambda temporary: _from_torchvision(name, temporary))]
    if name == "fashion-mnist":
        sources.append(("Debian package dataset-fashion-mnist", _from_debian))
    if name == imagenet_sample.NAME:
        sources = [(f"the folder {name}", _from_sample), (f"git clone {imagenet_sample.ADDRESS}", _from_git)]
    return sources


def _make(name, path):
    tried = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for source, deliver in _sources(name):
            print(f"{name}: asking {source}", file=sys.stderr)
            try:
                with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as temporary:
                    arrays = deliver(Path(temporary))
                    _verified(name, arrays)
            except Exception as error:  # whatever a source says, the next one is asked
                tried.append(f"{source} said: {said(error)}")
                continue
            with paths.atomic_write(path) as whole, open(whole, "wb") as file:
                np.savez(file, **arrays)
            return
    except OSError as error:
        raise DataUnavailable(
            f"{path} cannot be written ({said(error)}): make room or make the folder writable, or take "
            "dataset=digits, which needs no file and runs every notebook"
        ) from error
    by_hand = f"Put the file at {path} yourself"
    if name == imagenet_sample.NAME:
        folder = path.with_suffix("")
        by_hand = f"Put dev_dataset.csv and images/ of that repository's data/ into {folder}, or the file at {path}"
    raise DataUnavailable(
        f"no source has {name}: {'; '.join(tried)}. {by_hand} (the same command makes it where there is a network; "
        f"arrays {', '.join(KEYS)}; see data/README.md), or take dataset=digits, which needs no file and runs "
        "every notebook"
    )


def _from_torchvision(name, temporary):
    from torchvision import datasets

    maker = {
        "fashion-mnist": datasets.FashionMNIST,
        "mnist": datasets.MNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }[name]
    arrays = {}
    with patience(20), contextlib.redirect_stdout(sys.stderr):  # what it prints is progress, not a result
        for part in ("train", "test"):
            held = maker(temporary, train=part == "train", download=True)
            arrays[f"x_{part}"] = np.asarray(held.data)
            arrays[f"y_{part}"] = np.asarray(held.targets).astype(np.uint8)
    return arrays


def _from_debian(temporary):
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise OSError(f"this machine has no {tool}")
    try:
        call(temporary, "apt-get", "download", "dataset-fashion-mnist")
    except OSError as first:  # no package lists yet, or old ones: fetch lists of our own, which needs no root
        for wanted in ("lists/partial", "cache/archives/partial"):
            (temporary / wanted).mkdir(parents=True)
        own = [f"-oDir::State::Lists={temporary}/lists", f"-oDir::Cache={temporary}/cache"]
        own += ["-oAPT::Sandbox::User=root", "-oAcquire::http::Timeout=20"]
        with contextlib.suppress(OSError):  # one broken list of many does not matter: the download will tell
            call(temporary, "apt-get", *own, "update")
        try:
            call(temporary, "apt-get", *own, "download", "dataset-fashion-mnist")
        except OSError as second:
            raise OSError(f"{first}; with fresh package lists, {second}") from second
    package = next(temporary.glob("*.deb"))
    call(temporary, "dpkg-deb", "-x", package.name, "unpacked")
    files = temporary / "unpacked/usr/share/datasets/fashion-mnist"
    return {
        f"{letter}_{part}": _read_idx(files / f"{stem}-{kind}-ubyte.gz")
        for part, stem in (("train", "train"), ("test", "t10k"))
        for letter, kind in (("x", "images-idx3"), ("y", "labels-idx1"))
    }


def _from_sample(temporary, place=None):
    place = place or temporary.parent / imagenet_sample.NAME
    arrays, authors = imagenet_sample.by_hand(place, _digests)
    with paths.atomic_write(temporary.parent / imagenet_sample.AUTHORS) as whole:
        whole.write_text(authors, encoding="utf-8")
    return arrays


def _from_git(temporary):
    if not shutil.which("git"):
        raise OSError("this machine has no git")
    patient = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=20", "-c", "core.askPass=true")
    call(temporary, "git", *patient, "clone", "--quiet", "--depth", "1", imagenet_sample.ADDRESS, "clone")
    return _from_sample(temporary, temporary / "clone/data")


def _read_idx(path):
    # The idx format: the fourth byte counts the dimensions, big-endian sizes follow, then the bytes.
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _from_sklearn():
    from sklearn.datasets import load_digits

    held = load_digits()
    # 0..16 onto 0..255; the stubs take the bunch for a tuple
    images = ((held.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    labels = held.target.astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    by_digest = np.argsort(_digests(images, labels))
    fifths = [by_digest[labels[by_digest] == label][::5] for label in range(10)]
    is_test = np.isin(np.arange(len(labels)), np.concatenate(fifths))
    return dict(zip(KEYS, (images[~is_test], labels[~is_test], images[is_test], labels[is_test])))


# A folder of the reader's own images.


def _folder_path(name):
    # Relative to the project root: a notebook's working directory differs from runner to runner.
    return paths.ROOT / Path(name.removeprefix("folder:")).expanduser()


def _from_folder(name, size):
    root = _folder_path(name)
    parts = {"train": root / "train", "test": root / "test" if (root / "test").is_dir() else root / "val"}
    if not all(part.is_dir() for part in parts.values()):
        raise ValueError(f"{root} must hold folders train and test (or val), with one folder a class in each")
    classes = {part: _class_folders(place) for part, place in parts.items()}
    if classes["train"] != classes["test"]:
        odd = ", ".join(sorted(set(classes["train"]) ^ set(classes["test"])))
        other = parts["test"].name
        raise ValueError(f"{root}: train and {other} must have the same classes, but only one has {odd}")
    if len(classes["train"]) < 2:
        raise ValueError(f"{root}: {len(classes['train'])} class in train, at least 2 are needed")
    files = {part: _image_files(place, classes["train"]) for part, place in parts.items()}
    grey, shape = _common_form([path for part in files.values() for path, _ in part], size)
    arrays = {}
    for part, pairs in files.items():
        images = np.empty((len(pairs), *shape) if grey else (len(pairs), *shape, 3), dtype=np.uint8)
        for image, (path, _) in zip(images, pairs):
            image[:] = _pixels(path, "L" if grey else "RGB", size)
        arrays[f"x_{part}"], arrays[f"y_{part}"] = images, np.array([label for _, label in pairs])
    digests = {part: _digests(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in files}
    return _Official(arrays, digests, classes["train"])


def _class_folders(place):
    return tuple(sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _image_files(place, classes):
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    index = {label: i for i, label in enumerate(classes)}
    pairs = make_dataset(str(place), index, IMG_EXTENSIONS, allow_empty=True)
    counts = np.bincount([label for _, label in pairs], minlength=len(classes))
    for label, count in zip(classes, counts):
        if count == 0:
            raise ValueError(f"{place / label} holds no images ({', '.join(IMG_EXTENSIONS)})")
    return pairs


def _common_form(files, size):
    """Whether all images are greyscale, and their (height, width); reads headers only."""
    first, modes = None, set()
    for path in files:
        with _opened(path) as image:
            mode, form = image.mode, (image.height, image.width)
        if mode.startswith(("I", "F")):
            raise ValueError(f"{path} has pixels of mode {mode}: save it with 8 bits a channel")
        modes.add(mode)
        first = first or (path, form)
        if size is None and form != first[1]:
            raise ValueError(
                f"images must be of one size, but {first[0]} is {first[1][0]} x {first[1][1]} and {path} is "
                f"{form[0]} x {form[1]}: give a size to resize and crop them to"
            )
    assert first is not None  # `_image_files` refuses a class without images
    return modes <= {"1", "L", "LA"}, first[1] if size is None else (size, size)


@contextlib.contextmanager
def _opened(path):
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # a damaged image raises errors of many kinds
        raise ValueError(f"{path} is not a readable image ({said(error)}): mend or remove it") from error


def _pixels(path, mode, size):
    from torchvision.transforms import functional

    with _opened(path) as image:
        image = image.convert(mode)
        if size is not None:
            # the stubs know tensors alone
            image = functional.center_crop(functional.resize(image, size), size)  # pyright: ignore[reportArgumentType]
        return np.asarray(image)
