"""What experiments share: a trained network, the images that it is measured on, and the rows that this makes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace
from lowrank_utils.lab import efficientnet, models, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.profile import Profile, profile


@dataclass(frozen=True)
class Laboratory:
    """A network read once, its data set, and what every row of an experiment says of the run.

    Attributes
    ----------
    images : the data set with its splits.
    profile : of the dense network; its calibration images are training images.
    about : columns of every row, such as notebook, dataset, network and seed.
    """

    images: Dataset
    profile: Profile
    about: dict

    @property
    def model(self) -> nn.Module:
        return self.profile.model

    @property
    def recipe(self) -> training.Recipe:
        """How the dense network was trained."""
        return training.recipe_for(self.about["network"], self.about["dataset"])

    @property
    def size(self) -> int:
        """Parameters of the dense network."""
        return score.parameters(self.model)

    @property
    def scope(self) -> str:
        """What may be cut: of a network whose first layer stays dense, as the last one does, the inner layers."""
        return ("every layer", "hidden layers", "inner layers")[min(len(self.profile.dense), 2)]

    def network(self, plan: dict, factors: str) -> nn.Module:
        """Return the network of a plan in one kind of factors."""
        return replace.apply_plan(self.profile, plan, factors=factors)

    def valid(self, net: nn.Module) -> float:
        """Return the accuracy of a network on validation images, as a share."""
        return training.evaluate(net, *self.images.tensors("valid")).accuracy

    def row(self, net: nn.Module, **columns) -> dict:
        """Return the result row of a network, measured on test images; `columns` are added, or options of `score.row`."""
        return score.row(net, self.model, self.images.tensors("test"), **self.about | columns)

    def dense_row(self, **columns) -> dict:
        """Return the row of the dense network, with its times."""
        about = {"chooser": "dense", "scope": "none", "budget_kind": "dense", "stored_as": "dense", "timed": True}
        return self.row(self.model, **about | columns)


def laboratory(images: Dataset, model: nn.Module, *, calibration_images: int, **about) -> Laboratory:
    """Return the `Laboratory` of a trained network with the first `calibration_images` training images of a data set.

    Raises ValueError where there is no calibration image.
    """
    checks.check_count(calibration_images=calibration_images)
    return Laboratory(images, profile(model, images.tensors("train", calibration_images)[0]), about)


def trained_or_public(
    images: Dataset, network: str, seed: int = 0, *, checkpoint: str | Path = "", device: str | torch.device = "auto"
) -> tuple[nn.Module, Dataset]:
    """Return (trained network on `device`, the data set as that network wants it).

    With `checkpoint` "public", a network of torchvision or EfficientNet-Lite0 comes with its published weights, and the
    images get the mean and standard deviation that it was trained with. Every other network comes from `training.trained`, the data set unchanged.
    Raises ValueError and OSError as `training.trained` and `models.pretrained` do.
    """
    if checkpoint != "public" or not network.startswith(("torchvision/", efficientnet.NAME)):
        return training.trained(images, network, seed, checkpoint=checkpoint, device=device)[0], images
    model, known = models.pretrained(network)
    scaled = dataclasses.replace(images, mean=tuple(known["mean"]), std=tuple(known["std"]))
    return model.to(training.device_for(device)), scaled
