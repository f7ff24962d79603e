"""Training: the same seed gives the same weights, every score by hand, and each way to a trained network."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_utils import data, models, paths, training

QUICK = training.Recipe(epochs=2, batch_size=64, learning_rate=3e-3)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", seed=0)


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
    poisoned = dataclasses.replace(digits, test=data.Split(digits.test.images[:0], digits.test.labels[:0]))
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
        {"weight_decay": float("nan")}, {"learning_rate": "3e-3"},
    ],
)  # fmt: skip
def test_bad_recipes_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name}="):
        training.Recipe(**({"epochs": 1} | bad))


def test_unknown_network_and_device_are_refused():
    with pytest.raises(ValueError, match="unknown network 'vgg'; known: lenet300, mlp"):
        training.recipe_for("vgg")
    for device in ("gpu", "cuda:99", 3.5):
        with pytest.raises(ValueError, match="cannot be used .*; known: auto, cpu, cuda") as refusal:
            training.device_for(device)
        assert "\n" not in str(refusal.value)


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
    quick(data.load("digits", seed=1))  # its valid images were train images of the first
    quick(data.load("digits", seed=0, valid_share=0.2))
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
    kept, told = models.load(path)
    assert told["dtype"] == "float32" and torch.equal(kept.fc1.weight, model.fc1.weight)
    assert torch.equal(rounded.fc1.weight, model.fc1.weight.half().float())


def test_published_network_is_not_taken_for_another_split(digits, published):
    training.trained(data.load("digits", seed=0, valid_share=0.2), "lenet300", device="cpu")
    assert len(list(training.LOCAL.iterdir())) == 1


def test_published_network_of_other_data_is_refused(digits, published):
    other = dataclasses.replace(digits, fingerprint="0" * 64)
    with pytest.raises(ValueError, match="is of other data than digits now is"):
        training.trained(other, "lenet300", device="cpu")


def test_named_checkpoint_is_taken_and_must_fit(digits, folder, published):
    kept = published.rename(folder / "mine.safetensors")
    model, told = training.trained(digits, "lenet300", seed=7, checkpoint=str(kept), device="cpu")
    assert told["seed"] == 0 and not training.LOCAL.exists()
    wide = dataclasses.replace(digits, classes=tuple("abc"))
    with pytest.raises(ValueError, match="is for classes 10, not 3"):
        training.trained(wide, "lenet300", checkpoint=str(kept))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        training.trained(digits, "lenet300", checkpoint=str(folder / "none.safetensors"))


def test_interrupted_training_leaves_nothing(digits, folder, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "evaluate", cut)
    with pytest.raises(KeyboardInterrupt):
        quick(digits)
    assert not list(folder.rglob("*.safetensors"))
