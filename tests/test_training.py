"""Training: the same seed gives the same weights, every score by hand, and each way to a trained network."""

import contextlib
import dataclasses
import hashlib
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_utils import paths
from lowrank_utils.factors.refine import refine
from lowrank_utils.lab import checkpoints, models, training
from lowrank_utils.lab.data import Dataset, Split, load

QUICK = training.Recipe(epochs=2, batch_size=64, learning_rate=3e-3)


@pytest.fixture(scope="module")
def digits():
    return load("digits", seed=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(training, "LOCAL", tmp_path / "local")
    return tmp_path


def quick(data, network="lenet300", seed=0, **more):
    return training.trained(data, network, seed, QUICK, device="cpu", **more)


def build(seed=0):
    return models.build("lenet300", (1, 8, 8), 10, seed)


def fit(digits, recipe=QUICK, seed=0, model=None):
    model = model or build(seed)
    return model, training.fit(model, digits, recipe, seed, device="cpu", progress=False)


# fit


def test_history_has_one_row_an_epoch_and_the_loss_falls(digits):
    model, history = fit(digits, dataclasses.replace(QUICK, epochs=4))
    assert list(history) == ["epoch", "train_loss", "valid_loss", "valid_accuracy", "valid_f1", "seconds"]
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["train_loss"].iloc[-1] < 0.5 < history["train_loss"].iloc[0]
    assert (history["seconds"] > 0).all() and not model.training
    scores = training.evaluate(model, *digits.tensors("valid"))
    last = history.iloc[-1]
    assert (scores.accuracy, scores.f1, scores.loss) == (last.valid_accuracy, last.valid_f1, last.valid_loss)
    assert scores.accuracy > 0.85


def test_the_seed_decides_everything_and_the_global_generator_is_untouched(digits):
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, _ = fit(digits)
    assert torch.equal(before, torch.get_rng_state()) and (np.random.get_state()[1] == numpy_before).all()
    torch.manual_seed(6)
    again, _ = fit(digits)
    other, _ = fit(digits, seed=1, model=build(0))  # the same start, another order of the batches
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


def test_test_images_play_no_part(digits):
    poisoned = dataclasses.replace(digits, test=Split(digits.test.images[:0], digits.test.labels[:0]))
    assert torch.equal(fit(digits)[0].fc1.weight, fit(poisoned)[0].fc1.weight)


def test_progress_goes_to_stderr(digits, capsys):
    training.fit(build(), digits, QUICK, device="cpu")
    out, err = capsys.readouterr()
    assert out == "" and "epochs" in err and "2/2" in err and "valid=" in err
    fit(digits)
    assert capsys.readouterr() == ("", "")


def test_a_single_step_is_enough_to_train(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, history = fit(digits, training.Recipe(epochs=1, batch_size=10_000))
    assert len(history) == 1
    assert (model.fc1.weight - build().fc1.weight).abs().max() > 1e-4  # at a learning rate that is not zero


def test_a_loss_that_is_no_number_stops_and_names_the_learning_rate(digits):
    with pytest.raises(ValueError, match=r"NaN or infinite in epoch 1; try a learning_rate below 1e\+20"):
        fit(digits, dataclasses.replace(QUICK, learning_rate=1e20))


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0}, {"epochs": 2.5}, {"epochs": True}, {"batch_size": 0}, {"learning_rate": 0.0},
        {"learning_rate": float("nan")}, {"learning_rate": float("inf")}, {"weight_decay": -1e-3},
        {"weight_decay": float("nan")}, {"learning_rate": "3e-3"}, {"augment": 1}, {"augment": "flip"},
    ],
)  # fmt: skip
def test_bad_recipes_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name}="):
        training.Recipe(**({"epochs": 1} | bad))


def test_unknown_network_and_device_are_refused():
    with pytest.raises(ValueError, match="unknown network 'vgg'; known: lenet300, mlp"):
        training.recipe_for("vgg")
    others = {n for n in models.NAMES if n.startswith("torchvision/")} | {"efficientnet-lite0"}  # come with weights
    assert set(training.RECIPES) | others == set(models.NAMES)
    assert training.recipe_for("torchvision/resnet50", "cifar10").augment  # any that can be built has a recipe
    for device in ("gpu", "cuda:99", 3.5):
        with pytest.raises(ValueError, match="cannot be used .*; known: auto, cpu, cuda") as refusal:
            training.device_for(device)
        assert "\n" not in str(refusal.value)


def test_convolutions_with_batch_norm_learn_and_end_in_eval_mode(digits):
    model = models.build("vgg_small", (1, 8, 8), 10)
    recipe = training.Recipe(epochs=3, batch_size=64, learning_rate=5e-3)
    training.fit(model, digits, recipe, device="cpu", progress=False)
    assert not any(m.training for m in model.modules()) and model.bn6.num_batches_tracked == 3 * 21
    assert training.evaluate(model, *digits.tensors("valid")).accuracy > 0.9


# augmentation


def numbered(count=200, channels=2, side=6):
    """Images whose pixels all differ, so that each can be followed."""
    return torch.arange(1.0, count * channels * side * side + 1).view(count, channels, side, side)


def test_each_image_is_moved_and_mirrored_as_a_whole():
    images, padding = numbered(), 2
    seen = set()
    border = torch.tensor([-1.0, -2.0])
    moved = training.crop_flip(images, torch.Generator().manual_seed(0), padding, border)
    large = torch.nn.functional.pad(images, 4 * [padding])
    large = torch.where(large == 0, border.view(2, 1, 1), large)
    for image, candidates in zip(moved, large):
        found = [
            (top, left, mirrored)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for mirrored in (False, True)
            if torch.equal(image.flip(-1) if mirrored else image, candidates[:, top : top + 6, left : left + 6])
        ]
        assert len(found) == 1
        seen.update(found)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert len(seen) > 45  # of 50, by 200 images
    assert torch.equal(images, numbered())  # and what came in is as it was


def test_augmentation_follows_its_generator_alone(digits):
    images, _ = digits.tensors("train", limit=50)
    augment = training.augmentation(digits)
    first, second = (augment(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(images, torch.Generator().manual_seed(2)))
    black = (0 - digits.mean[0]) / digits.std[0]
    beyond = training.augmentation(digits)(torch.full((50, 1, 8, 8), 9.0), torch.Generator().manual_seed(1))
    assert beyond.unique().tolist() == pytest.approx([black, 9.0])


def test_training_with_augmentation_is_decided_by_the_seed(digits):
    recipe = dataclasses.replace(QUICK, augment=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = fit(digits, recipe)
    assert torch.equal(before, torch.get_rng_state())
    again, _ = fit(digits, recipe)
    assert torch.equal(first.fc1.weight, again.fc1.weight)
    assert not torch.equal(first.fc1.weight, fit(digits)[0].fc1.weight)


def test_only_augmentation_changes_the_name_of_a_kept_network(digits):
    # the rule by which files were named before recipes had `augment`
    steps = {"epochs": 2, "batch_size": 64, "learning_rate": 3e-3, "weight_decay": 1e-2}
    split = {"seed": 0, "train": 1290, "valid": 143, "test": 364}
    made_by = json.dumps([steps, digits.fingerprint, split], sort_keys=True)
    digest = hashlib.sha256(made_by.encode()).hexdigest()[:8]
    path = training.local_path(digits, "lenet300", 0, QUICK)
    assert path == training.LOCAL / f"digits-lenet300-seed0-{digest}.safetensors"
    other = training.local_path(digits, "lenet300", 0, dataclasses.replace(QUICK, augment=True))
    assert other != path
    inner = training.local_path(digits, "torchvision/resnet18", 0, QUICK)
    assert inner.parent == training.LOCAL and inner.name.startswith("digits-torchvision-resnet18-seed0-")


# recalibrate


class Drop(nn.Sequential):
    """Batch norm of two channels behind dropout, and a dense layer."""

    def __init__(self):
        super().__init__(nn.Dropout(0.5), nn.BatchNorm2d(2, momentum=0.3), nn.Flatten(), nn.Linear(18, 3))


def test_statistics_of_the_images_by_hand():
    model = Drop().train()
    model[1].eval()  # frozen, and it stays so
    model[1].running_mean.fill_(50.0)
    model[1].num_batches_tracked.fill_(30)  # what it saw before must not count
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(90, 2, 3, 3) * torch.tensor([1.0, 3.0]).view(2, 1, 1) + 4
    new = training.recalibrate(model, images, batch_size=45)
    by_channel = images.permute(1, 0, 2, 3).flatten(1)
    halves = [by_channel[:, :405], by_channel[:, 405:]]
    assert torch.allclose(new[1].running_mean, by_channel.mean(1), atol=1e-5)  # dropout would change it
    assert torch.allclose(new[1].running_var, (halves[0].var(1) + halves[1].var(1)) / 2, atol=1e-4)
    assert new[1].momentum == 0.3 and [m.training for m in new] == [True, False, True, True]
    assert torch.equal(new[3].weight, model[3].weight) and torch.equal(new[1].weight, model[1].weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert new[3].weight.requires_grad and new[3].weight is not model[3].weight


def test_no_batch_is_smaller_than_asked_for_and_no_image_is_left_out():
    images = torch.randn(7, 2, 3, 3)
    for batch_size in (2, 3, 5, 7, 100):
        new = training.recalibrate(Drop(), images, batch_size=batch_size)
        sizes = [len(part) for part in images.tensor_split(max(1, 7 // batch_size))]
        means = [part.mean((0, 2, 3)) for part in images.split(sizes)]
        assert min(sizes) >= min(batch_size, 7) and new[1].num_batches_tracked == len(sizes)
        assert torch.allclose(new[1].running_mean, sum(means) / len(means), atol=1e-6)


def test_deeper_statistics_are_those_behind_the_new_ones(digits):
    model = models.build("vgg_small", (1, 8, 8), 10).eval()
    images, _ = digits.tensors("train", limit=300)
    new = training.recalibrate(model, images, batch_size=300)
    seen = []
    new.conv4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        new(images)  # in eval mode, with the statistics just set: nearly those of the batch itself
    assert torch.allclose(new.bn4.running_mean, seen[0].mean((0, 2, 3)), atol=1e-3)
    assert not torch.allclose(new.bn4.running_mean, model.bn4.running_mean, atol=1e-2)


def test_recalibration_with_augmentation_follows_the_seed(digits):
    model = models.build("vgg_small", (1, 8, 8), 10).eval()
    images, _ = digits.tensors("train", limit=100)
    augment = training.augmentation(digits)
    plain, first, again, other = (
        training.recalibrate(model, images, how, seed=seed).bn1.running_mean
        for how, seed in ((None, 0), (augment, 0), (augment, 0), (augment, 1))
    )
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, plain)


@pytest.mark.parametrize(
    "model, images, said",
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(18, 3)), torch.zeros(4, 2, 3, 3), "the model has no batch norms"),
        (nn.BatchNorm2d(2, track_running_stats=False), torch.zeros(4, 2, 3, 3), "the model has no batch norms"),
        (Drop(), torch.zeros(0, 2, 3, 3), "0 images have no variance"),
        (Drop(), torch.zeros(1, 2, 3, 3), "1 images have no variance"),
        (Drop(), torch.full((4, 2, 3, 3), torch.nan), "the images hold NaN or infinite values"),
    ],
)
def test_what_cannot_be_recalibrated_is_refused(model, images, said):
    with pytest.raises(ValueError, match=said):
        training.recalibrate(model, images)


def test_a_broken_model_or_batch_size_is_refused():
    model = Drop()
    with pytest.raises(ValueError, match="batch_size=1 is not"):
        training.recalibrate(model, torch.zeros(4, 2, 3, 3), batch_size=1)
    model[1].running_var[0] = torch.nan
    with pytest.raises(ValueError, match="1.running_var holds NaN"):
        training.recalibrate(model, torch.zeros(4, 2, 3, 3))


# evaluate


class Fixed(nn.Module):
    """Says `classes` with certainty, whatever it sees."""

    def __init__(self, classes, count):
        super().__init__()
        self.outputs = nn.Parameter(torch.nn.functional.one_hot(torch.tensor(classes), count) * 5.0)

    def forward(self, x):
        return self.outputs[x.flatten().long()]


def test_scores_of_a_case_counted_by_hand():
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    model = Fixed([0, 0, 0, 1, 1, 0, 2, 1], 3)
    scores = training.evaluate(model, torch.arange(8.0).view(8, 1), truth, batch_size=3)
    # precision and recall: class 0 3/4 and 3/4, class 1 1/3 and 1/2, class 2 1/1 and 1/2
    assert scores.accuracy == 5 / 8
    assert scores.f1 == pytest.approx((3 / 4 + 2 / 5 + 2 / 3) / 3, abs=1e-12)
    right, wrong = -np.log(np.exp(5) / (np.exp(5) + 2)), -np.log(1 / (np.exp(5) + 2))
    assert scores.loss == pytest.approx((5 * right + 3 * wrong) / 8, abs=1e-9)


def test_one_guess_for_all_has_the_accuracy_of_chance_and_a_lower_f1():
    scores = training.evaluate(Fixed([0] * 10, 10), torch.arange(10.0).view(10, 1), torch.arange(10))
    assert scores.accuracy == 0.1 and scores.f1 == pytest.approx(2 * 0.1 / 1.1 / 10)


def test_evaluate_uses_eval_mode_and_puts_the_model_back():
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3)).train()
    images, labels = torch.randn(20, 4), torch.arange(20) % 3
    assert training.evaluate(model, images, labels) == training.evaluate(model, images, labels)
    assert model.training and model[0].training and model[1].weight.grad is None


def test_batches_do_not_change_the_scores(digits):
    images, labels = digits.tensors("valid")
    whole, parts = (training.evaluate(build(), images, labels, size) for size in (1000, 7))
    assert (whole.accuracy, whole.f1) == (parts.accuracy, parts.f1) and abs(whole.loss - parts.loss) < 1e-5


class Flattened(nn.Module):
    """Notes whether the channels are last behind its convolution; flattens with view() where asked."""

    def __init__(self, view):
        super().__init__()
        self.conv, self.view, self.last = nn.Conv2d(1, 8, 3), view, []

    def forward(self, x):
        x = self.conv(x)
        self.last.append(x.stride(1) == 1)
        return x.view(len(x), -1) if self.view else x.flatten(1)


@pytest.mark.parametrize("view", [False, True])
def test_images_of_one_channel_run_with_the_channels_last_where_the_network_can_take_it(view):
    net, images = Flattened(view), torch.randn(7, 1, 6, 6)
    found = training.outputs(net, images, batch_size=3)
    assert net.last == ([True, False, False, False] if view else [True] * 3)
    assert torch.allclose(found, net(images).detach(), atol=1e-5)


class Once(nn.Sequential):
    """Fails on its first batch of images, and on no other."""

    def __init__(self, error):
        super().__init__(nn.Flatten(), nn.Linear(36, 3))
        self.error = error

    def forward(self, x):
        error, self.error = self.error, None
        if error:
            raise error
        return super().forward(x)


@pytest.mark.parametrize("of", ["outputs", "refine"])
def test_only_an_error_about_the_layout_is_met_with_another_layout(of):
    images = torch.randn(8, 1, 6, 6)
    for error in (RuntimeError("view size is not compatible"), RuntimeError("out of memory")):
        net = Once(error)
        with contextlib.ExitStack() as stack:
            if "memory" in str(error):
                stack.enter_context(pytest.raises(RuntimeError, match="out of memory"))
            if of == "outputs":
                training.outputs(net, images)
            else:
                refine(net, Once(None), images, steps=1)


def test_evaluate_refuses_what_cannot_be_scored():
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="0 images and 0 labels"):
        training.evaluate(model, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="2 images and 3 labels"):
        training.evaluate(model, torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="outputs are NaN or infinite"):
        training.evaluate(model, torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))


# trained and publish


def test_trained_once_and_kept(digits, folder, capsys):
    model, told = quick(digits)
    out, err = capsys.readouterr()
    assert out == "" and "training lenet300 on digits, seed 0: Recipe(epochs=2" in err
    again, same_story = quick(digits)
    assert capsys.readouterr() == ("", "") and same_story == told
    assert torch.equal(model.fc1.weight, again.fc1.weight) and not model.training
    assert len(list((folder / "local").iterdir())) == 1
    assert told["data_fingerprint"] == digits.fingerprint and told["recipe"] == dataclasses.asdict(QUICK)
    assert told["seed"] == 0 and told["input_shape"] == [1, 8, 8] and told["classes"] == 10
    assert told["versions"].keys() == {"python", "torch", "lowrank_utils"} and told["threads"] >= 1
    assert told["scores"]["test"] == dataclasses.asdict(training.evaluate(model, *digits.tensors("test")))


def test_other_seed_recipe_or_split_is_another_network(digits, folder):
    quick(digits)
    quick(digits, seed=1)
    training.trained(digits, "lenet300", 0, dataclasses.replace(QUICK, weight_decay=0.0), device="cpu")
    quick(load("digits", seed=1))  # its valid images were train images of the first
    quick(load("digits", seed=0, valid_share=0.2))
    assert len(list((folder / "local").iterdir())) == 5


@pytest.fixture
def published(digits, folder, monkeypatch):
    monkeypatch.setattr(training, "SMALL", QUICK)
    return training.publish(digits, "lenet300", same=lambda model, rounded: True)


def test_published_network_is_the_one_that_scored(digits, published):
    model, told = training.trained(digits, "lenet300", device="cpu")
    assert told["dtype"] == "float16" and published.name == "digits-lenet300-seed0.safetensors"
    assert torch.equal(model.fc1.weight, model.fc1.weight.half().float())
    for split in ("valid", "test"):
        assert told["scores"][split] == dataclasses.asdict(training.evaluate(model, *digits.tensors(split)))
    assert not training.LOCAL.exists()
    assert training.trained(digits, "lenet300", recipe=QUICK)[1] == told


def test_half_precision_only_where_it_is_the_same(digits, folder, monkeypatch):
    monkeypatch.setattr(training, "SMALL", QUICK)
    seen = []
    path = training.publish(digits, "lenet300", same=lambda model, rounded: seen.append((model, rounded)))
    model, rounded = seen[0]
    kept, told = checkpoints.load(path)
    assert told["dtype"] == "float32" and torch.equal(kept.fc1.weight, model.fc1.weight)
    assert torch.equal(rounded.fc1.weight, model.fc1.weight.half().float())


def test_published_network_is_not_taken_for_another_split(digits, published):
    training.trained(load("digits", seed=0, valid_share=0.2), "lenet300", device="cpu")
    assert len(list(training.LOCAL.iterdir())) == 1


def test_published_network_of_other_data_is_refused(digits, published):
    other = dataclasses.replace(digits, fingerprint="0" * 64)
    with pytest.raises(ValueError, match="is of other data than digits now is"):
        training.trained(other, "lenet300", device="cpu")


def test_named_checkpoint_is_taken_and_must_fit(digits, folder, published):
    kept = published.rename(folder / "mine.safetensors")
    _model, told = training.trained(digits, "lenet300", seed=7, checkpoint=str(kept), device="cpu")
    assert told["seed"] == 0 and not training.LOCAL.exists()
    wide = dataclasses.replace(digits, classes=tuple("abc"))
    with pytest.raises(ValueError, match="is for classes 10, not 3"):
        training.trained(wide, "lenet300", checkpoint=str(kept))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        training.trained(digits, "lenet300", checkpoint=str(folder / "none.safetensors"))


def test_published_convolutions_keep_whole_counts_and_score_as_stored(digits, folder, monkeypatch):
    fit = training.fit

    def fit_for_long(model, *more):
        fit(model, *more)
        model.bn1.num_batches_tracked.fill_(70_001)  # no number of half precision

    monkeypatch.setattr(training, "fit", fit_for_long)
    monkeypatch.setattr(training, "SMALL", dataclasses.replace(QUICK, batch_size=1290))
    path = training.publish(digits, "vgg_small", same=lambda model, rounded: True)
    model, told = checkpoints.load(path)
    assert told["dtype"] == "float16" and model.bn1.num_batches_tracked == 70_001
    assert told["scores"]["valid"] == dataclasses.asdict(training.evaluate(model, *digits.tensors("valid")))
    assert torch.equal(model.bn1.running_var, model.bn1.running_var.half().float())


@pytest.fixture
def public(folder, monkeypatch):
    """A file as the public ones are, in the place where they are kept."""
    held = {f"module.{n}": v for n, v in models.build("resnet20", (3, 32, 32), 10, seed=3).state_dict().items()}
    torch.save({"state_dict": held}, folder / "some.th")
    digest = hashlib.sha256((folder / "some.th").read_bytes()).hexdigest()
    monkeypatch.setattr(checkpoints, "PUBLIC", {"resnet20": digest})
    training.LOCAL.mkdir()
    return (folder / "some.th").rename(training.LOCAL / f"resnet20-{digest[:8]}.th")


def colours(**changed):
    """Ten images of noise that go by the name of CIFAR-10."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    split = Split(pixels, np.arange(10))
    scale = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    about = {"name": "cifar10", "classes": tuple("abcdefghij"), "fingerprint": "0" * 64, "seed": 0}
    return Dataset(**{**about, **dict.fromkeys(("train", "valid", "test"), split), **scale, **changed})


def test_public_network_by_name_or_by_file(public):
    images = colours()
    theirs = models.build("resnet20", (3, 32, 32), 10, seed=3).eval()
    known = dataclasses.replace(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for checkpoint in ("public", str(public), public):
        model, told = training.trained(images, "resnet20", checkpoint=checkpoint, device="cpu")
        assert told["network"] == "resnet20" and told["sha256"].startswith(public.stem[-8:]) and not model.training
        with torch.no_grad():
            assert torch.allclose(model(images.tensors("test")[0]), theirs(known.tensors("test")[0]), atol=1e-5)
    with pytest.raises(ValueError, match="holds a resnet20, but network is 'resnet56'"):
        training.trained(images, "resnet56", checkpoint=public)
    with pytest.raises(ValueError, match="there are no public weights for 'mlp'"):
        training.trained(images, "mlp", checkpoint="public")
    with pytest.raises(ValueError, match="is for classes 10, not 2"):
        training.trained(colours(classes=("a", "b")), "resnet20", checkpoint="public")
    grey = load("digits")
    with pytest.raises(ValueError, match=r"is for input_shape \[3, 32, 32\], not \(1, 8, 8\)"):
        training.trained(grey, "resnet20", checkpoint="public")


def test_interrupted_training_leaves_nothing(digits, folder, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "evaluate", cut)
    with pytest.raises(KeyboardInterrupt):
        quick(digits)
    assert not list(folder.rglob("*.safetensors"))
