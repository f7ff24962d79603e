"""Whatever people bring: token ids, several inputs, loaders, answers in objects, transformers' Conv1D."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lowrank_utils
from lowrank_utils import compression
from lowrank_utils.lab import score
from lowrank_utils.network import inputs, modules, statistics
from lowrank_utils.network.inputs import Inputs

torch.manual_seed(0)

swept = partial(compression.compress, refine=False)  # what these tests ask of the sweep


class Words(nn.Module):
    """A small transformer of token ids: N x T x classes, in whatever form the answers are asked for."""

    def __init__(self, form=None):
        super().__init__()
        self.form = form
        self.embed = nn.Embedding(30, 24)
        self.up, self.down, self.head = nn.Linear(24, 96), nn.Linear(96, 24), nn.Linear(24, 30)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        x = x + self.down(torch.relu(self.up(x.cumsum(1) / (1 + torch.arange(x.shape[1])[:, None]))))
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        logits = self.head(x)
        return logits if self.form is None else self.form(logits)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(12, 40), nn.Linear(8, 40), nn.Linear(40, 5)

    def forward(self, a, b):
        return self.out(torch.relu(self.left(a) + self.right(b)))


@pytest.fixture
def ids():
    return torch.randint(0, 30, (60, 10), generator=torch.Generator().manual_seed(0))


def divergence(small, model, batch):
    with torch.no_grad():
        p, q = (inputs.logits(inputs.call(m, batch)).log_softmax(-1) for m in (model, small))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(
    "form",
    [None, lambda y: SimpleNamespace(logits=y), lambda y: {"logits": y}, lambda y: (y, "cache")],
    ids=["tensor", "object", "dict", "tuple"],
)
def test_token_ids_are_compressed_whatever_the_answers_come_in(ids, form):
    model = Words(form).eval()
    found = swept(model, ids, kept=0.9, progress=False)
    assert found.kept["macs"] <= 0.9 and set(found.plan) <= {"up", "down"} and found.plan
    assert "own error" not in found.note  # the answers N x T x classes tell what they feel
    assert divergence(found.model, model, ids) < 0.01
    assert score.macs(found.model, (), ids[:1]) < score.macs(model, (), ids[:1])


def test_inputs_by_place_by_name_and_from_a_loader_give_the_same_network(ids):
    model, mask = Words().eval(), torch.ones(60, 10)
    mask[:, 8:] = 0
    by_name = swept(model, {"input_ids": ids, "attention_mask": mask}, kept=0.9)
    by_place = swept(model, (ids, mask), kept=0.9)
    batches = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(25), mask.split(25))]
    loaded = swept(model, DataLoader(batches, batch_size=None), kept=0.9)
    assert by_name.plan == by_place.plan == loaded.plan
    weights = [list(found.model.parameters()) for found in (by_name, by_place, loaded)]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*weights))


def test_two_inputs_and_their_shortcut_are_seen(ids):
    model, both = Pair().eval(), (torch.randn(200, 12), torch.randn(200, 8))
    found = swept(model, both, kept=0.8)
    assert found.kept["macs"] <= 0.8 and "trace" not in found.note
    assert divergence(found.model, model, Inputs(both)) < 0.1


def test_the_labels_of_a_loader_are_left_aside():
    x = torch.randn(70, 20)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4))
    loader = DataLoader(TensorDataset(x, torch.zeros(70)), batch_size=32)
    found, expected = swept(model, loader, kept=0.7), swept(model, x, kept=0.7)
    assert found.plan == expected.plan and torch.equal(found.model(x), expected.model(x))


class Conv1D(nn.Module):
    """As transformers has it: weights d_in x d_out."""

    def __init__(self, out, size):
        super().__init__()
        self.nf, self.weight, self.bias = out, nn.Parameter(torch.randn(size, out)), nn.Parameter(torch.randn(out))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], self.nf)


def test_conv1d_of_transformers_becomes_a_linear_layer():
    model = nn.Sequential(Conv1D(30, 20), nn.ReLU(), Conv1D(30, 30), nn.ReLU(), nn.Linear(30, 4))
    x = torch.randn(80, 20)
    stock = modules.with_linear_layers(model)
    assert torch.allclose(stock(x), model(x), atol=1e-5) and type(model[0]) is Conv1D
    found = swept(model, x, kept=0.6)
    assert {"0", "2"} & set(found.plan) and not any(type(m) is Conv1D for m in found.model.modules())


def test_the_fisher_information_of_a_sequence_is_that_of_its_tokens_together():
    layer = nn.Linear(3, 4, bias=False)
    x = torch.randn(5, 6, 3)
    drawn = statistics.fisher(nn.Sequential(layer), ["0"], x, draws=4000, estimator="signs")["0"].double()
    p = layer(x).softmax(-1).double().detach()
    exact = torch.diag_embed(p).sum((0, 1)) / 5 - torch.einsum("nti,ntj->ij", p, p) / 5
    assert torch.allclose(drawn, exact, rtol=0.1, atol=0.02)


def test_random_signs_have_the_exact_information_as_their_mean():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), torch.randn(40, 6)
    exact = statistics.fisher(model, ["0", "2"], x)
    for name, found in statistics.fisher(model, ["0", "2"], x, draws=1000, estimator="signs").items():
        assert torch.allclose(found, exact[name], rtol=0.1, atol=0.05 * float(exact[name].diagonal().mean()))
    few = [statistics.fisher(model, ["2"], x, draws=1, seed=s, estimator="signs")["2"] for s in (0, 0, 1)]
    assert torch.equal(few[0], few[1]) and not torch.equal(few[0], few[2])


def test_sampled_moments_come_close_to_all_and_repeat():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3))
    x = torch.randn(50, 3, 12, 12).cumsum(2)
    every = statistics.collect_moments(model, ["0", "2"], x)
    some = statistics.collect_moments(model, ["0", "2"], x, samples=2000)
    again = statistics.collect_moments(model, ["0", "2"], x, samples=2000)
    for name in every:
        assert some[name].count == 2000 and torch.equal(some[name].scatter, again[name].scatter)
        lost = some[name].covariance - every[name].covariance
        assert 0 < lost.norm() < 0.2 * every[name].covariance.norm()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda ids: ids + 25, "token id .* is outside the vocabulary of 30 tokens"),
        (lambda ids: (ids, torch.ones(59, 10)), "differ in number: 59, 60"),
        (lambda ids: iter([]), "gave no batch"),
        (lambda ids: iter([ids[:5], ids[:5, :4]]), r"differ in shape \(\(10,\) and \(4,\)\)"),
        (lambda ids: {"input_ids": ids, "attention_mask": "all"}, "needs tensors"),
        (lambda ids: 7, "calibration images are a int"),
        (lambda ids: "words", "calibration images are a str"),
        (lambda ids: {"ids": ids}, "the network cannot take one input"),
        (lambda ids: DataLoader([torch.zeros(3), torch.zeros(4)], batch_size=2), "failed after 0 batches"),
    ],
)
def test_bad_inputs_are_refused_in_one_sentence(ids, given, words):
    with pytest.raises(ValueError, match=words):
        swept(Words(), given(ids), kept=0.9)


@pytest.mark.parametrize(("name", "value"), [("samples", 0), ("draws", 0), ("estimator", "magic")])
def test_bad_ways_to_estimate_are_refused(ids, name, value):
    with pytest.raises(ValueError, match=name):
        swept(Words(), ids, kept=0.9, **{name: value})


def test_a_small_batch_size_gives_the_same_answer(ids):
    model = Words().eval()
    one, many = (swept(model, ids, kept=0.9, batch_size=size, samples=None) for size in (7, 60))
    assert one.plan == many.plan and divergence(one.model, many.model, ids) < 1e-3
    assert lowrank_utils.profile(model, ids, batch_size=7).batch_size == 7


def test_a_network_of_words_is_refined_where_that_is_asked_for(ids):
    model = Words().eval()
    assert compression.compress(model, {"input_ids": ids}, kept=0.9).refined is None
    assert compression.compress(model, {"input_ids": ids}, kept=0.9, refine=True, refine_steps=1).refined.steps == 1
    found = compression.compress(model, {"input_ids": ids}, kept=0.9, refine_steps=30)
    assert found.refined.after <= found.refined.before
    assert divergence(found.model, model, ids) < 0.01
