"""Chapter 01: the pictures and sentences of a training, and the comparison of two networks on the same images."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils.lab import data, models, training
from lowrank_utils.workbook.chapters import training as chapter
from lowrank_utils.workbook.exercises import check


@pytest.fixture(scope="module")
def images():
    return data.load("digits", seed=0)


def constant(answer):
    """A network that gives the same answer to every image of the digits."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(net[1].weight)
    net[1].bias.data = nn.functional.one_hot(torch.tensor(answer), 10).float()
    return net


def test_layers_are_counted_and_drawn():
    table = chapter.layers(models.build("lenet300", (1, 28, 28), 10))
    assert table["weights"].tolist() == [784 * 300, 300 * 100, 1000] and table["biases"].sum() == 410
    (axis,) = chapter.sizes(table).axes
    assert [bar.get_width() for bar in axis.patches] == table["weights"].tolist()
    assert "88.2% of the parameters" in axis.texts[0].get_text()


def test_examples_show_two_images_of_each_class(images):
    titles = [axis.get_title() for axis in chapter.examples(images).axes]
    assert titles == list(images.classes) * 2


def test_the_history_is_told_as_it_ended():
    table = pd.DataFrame({"train_loss": [1, 0.25], "valid_loss": [1, 0.5], "valid_accuracy": [0.6, 0.8]})
    assert "0.25 on training images and 0.50" in chapter.about_losses(table)
    assert "is 60.0% at the end, and was 80.0%" in chapter.about_epochs(table.assign(valid_accuracy=[0.8, 0.6]))


def test_the_gallery_is_compared_with_what_is_there():
    rows = pd.DataFrame({"accuracy": [0.89, 0.90, 0.91]})
    assert chapter.near_gallery(0.905, rows, 10000) and not chapter.near_gallery(0.92, rows, 10000)
    assert chapter.near_gallery(0.92, rows, 360) and chapter.near_gallery(0.1, rows[:0], 10000)
    told = chapter.about_gallery(0.905, rows, False)
    assert "90.50%" in told and "89.00% to 91.00%" in told and "another recipe" in told
    assert "no rows" in chapter.about_gallery(0.905, rows[:0], True)


def test_mistakes_are_told_and_drawn_by_their_certainty(images):
    counts = [[7, 2, 1], [3, 6, 1], [0, 0, 10]]
    told = chapter.about_confusion(counts, ("cat", "dog", "fish"))
    assert "confuses cat and dog most: 25.0% of the images of these two" in told
    assert "hardest class is dog with 60.0% right" in told and "easiest is fish with 100.0%" in told
    other_way = [[7, 3, 0], [2, 6, 2], [0, 0, 10]]  # cats are taken for dogs more often now, and the pair is the same
    assert chapter.about_confusion(other_way, ("cat", "dog", "fish")) == told
    labels = torch.as_tensor(images.test.labels)
    logits = nn.functional.one_hot(labels, 10).float()
    wrong = [5, 3]
    for place, certain in zip(wrong, (9.0, 5.0), strict=True):
        logits[place] = certain * nn.functional.one_hot((labels[place] + 1) % 10, 10)
    axes = chapter.mistakes(images, logits).axes
    assert [axis.get_title().split("\n")[0] for axis in axes] == [images.classes[int(labels[i])] for i in wrong]
    none = chapter.mistakes(images, nn.functional.one_hot(labels, 10).float()).axes
    assert none[0].get_xlabel() == "no image is wrong"


def test_two_networks_are_compared_on_the_same_images(images):
    found = chapter.paired(constant(0), constant(1), images)
    labels = np.asarray(images.test.labels)
    assert found["first alone"] == (labels == 0).sum() and found["second alone"] == (labels == 1).sum()
    flags = (labels == 1).astype(float) - (labels == 0)
    assert found["points"] == pytest.approx(100 * flags.mean())
    assert found["error"] == pytest.approx(100 * flags.std() / np.sqrt(len(flags)))
    told = chapter.about_paired({"first alone": 30, "second alone": 90, "points": 6.0, "error": 1.0})
    assert "disagree on 120 images" in told and "is 6.0 standard errors" in told


def test_an_answer_is_checked_against_the_network_that_was_trained(images, capsys):
    test = chapter.is_paired(constant(0), constant(1), images)
    found = chapter.paired(constant(0), constant(1), images)
    assert check(found, test=test)
    for wrong in (found | {"points": 5}, {}, 3, [found]):
        assert not check(wrong, test=test)
    assert not check(found, test=chapter.is_paired(constant(0), ..., images))
    assert "train `second` first" in capsys.readouterr().out


def test_a_difference_has_two_error_bars_or_says_that_it_is_missing():
    found = chapter.compared(30, 50, 1000)
    (axis,) = chapter.difference(found, 0.9, 1000).axes
    assert len(axis.containers) == 2
    for missing in (..., None, {}, {"points": "many", "error": 1}):
        (axis,) = chapter.difference(missing, 0.9, 1000).axes
        assert "no comparison yet" in axis.texts[0].get_text()


def test_a_long_training_on_few_images_is_recognised():
    few = pd.DataFrame({"epoch": range(40), "train_loss": np.linspace(1, 0.01, 40), "valid_loss": 0.5})
    assert check(few, test=chapter.is_history_of_few)
    for wrong in (few[:10], few.drop(columns="valid_loss"), few.assign(train_loss=0.4), 3, [1, 2]):
        assert not check(wrong, test=chapter.is_history_of_few)
    assert len(chapter.overfitting(few, few).axes[1].lines) == 2
    for missing in (..., None, 3, few.drop(columns="epoch")):
        assert "no history yet" in chapter.overfitting(few, missing).axes[1].texts[0].get_text()


def test_training_on_few_images_is_learnt_by_heart(images):
    net = models.build("lenet300", images.input_shape, 10, seed=0)
    split = data.Split(images.train.images[:100], images.train.labels[:100])

    few = dataclasses.replace(images, train=split)
    history = training.fit(net, few, training.Recipe(40, 20, 2e-3, 0.0), seed=0, device="cpu", progress=False)
    assert chapter.is_history_of_few(history)
