"""The profile of a network: what it reads, that it reads once, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

import lowrank_utils
from lowrank_utils.factors import replace, sequential
from lowrank_utils.network import graph, profile, statistics
from lowrank_utils.ranks import components, enc, rules, search


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 20), nn.ReLU(), nn.Linear(20, 5)
    ).eval()  # fmt: skip


@pytest.fixture
def x():
    return torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_it_holds_what_is_read_one_by_one(x):
    model = net()
    read = lowrank_utils.profile(model, x, dense=["6"])
    assert isinstance(read, profile.Profile) and read.input_shape == (1, 8, 8)
    apart = profile.read_layers(model, (1, 8, 8), dense=["6"])
    assert [layer.name for layer in read] == [layer.name for layer in apart] == ["0", "4", "6"]
    for mine, theirs in zip(read, apart, strict=True):
        assert (mine.macs, mine.parameters, mine.reason, mine.costs) == (
            theirs.macs,
            theirs.parameters,
            theirs.reason,
            theirs.costs,
        )
        assert (mine.singular_values == theirs.singular_values).all()
    assert read.factorable == ["0", "4"] and read["4"] is read[1] and len(read) == 3
    assert read.order == ["0", "4", "6"]
    assert read.followers == graph.followed_by(model, None, x) and read.followers["0"].norm == "1"
    assert [read.takes_mean(name) for name in ("0", "4")] == [True, True]  # by the batch norm, by its own bias
    moments, fisher = statistics.collect_moments(model, ["0", "4"], x), statistics.fisher(model, ["0", "4"], x)
    for name in ("0", "4"):
        assert torch.equal(read.moments[name].covariance, moments[name].covariance)
        assert torch.equal(read.fisher[name], fisher[name])
    assert torch.equal(read.fisher_of(["4"], images=7)["4"], statistics.fisher(model, ["4"], x[:7])["4"])


def test_statistics_are_collected_once(x, monkeypatch):
    calls = []
    for name in ("collect_moments", "fisher"):
        original = getattr(statistics, name)
        monkeypatch.setattr(
            statistics,
            name,
            lambda model, names, *a, f=original, n=name, **o: (
                calls.append((n, tuple(names))) or f(model, names, *a, **o)
            ),
        )
    read = lowrank_utils.profile(net(), x)
    assert calls == []
    first = read.moments_of(["0"])["0"]
    assert read.moments_of(["0", "4"])["0"] is first and calls == [
        ("collect_moments", ("0",)),
        ("collect_moments", ("4",)),
    ]
    other = read.but(dense=["4"])
    assert other.moments_of(["0"])["0"] is first and len(calls) == 2 and other.factorable == ["0", "6"]
    read.fisher_of(["4"])
    read.fisher_of(["4"], images=1000)  # all there are
    assert calls[2:] == [("fisher", ("4",))]
    sampled = read.but(estimator="signs", draws=1, samples=100)
    both = []
    together = statistics.moments_and_fisher
    monkeypatch.setattr(statistics, "moments_and_fisher", lambda *a, **o: both.append(1) or together(*a, **o))
    sampled.fisher_of(["0", "4"])
    assert sampled.moments_of(["0", "4"])["0"].count == 40 * 3 and both == [1] and len(calls) == 3
    assert read.but(calibration=x[:9]).moments_of(["0"])["0"].count == 9 * 64


def test_spectra_are_computed_when_they_are_read(monkeypatch):
    calls, original = [], profile._singular_values
    monkeypatch.setattr(
        profile, "_singular_values", lambda layer, scheme: calls.append(scheme) or original(layer, scheme)
    )
    read = lowrank_utils.profile(net(), input_shape=(1, 8, 8))
    assert calls == []
    read["4"].singular_values, read["4"].singular_values
    assert calls == [None]
    assert lowrank_utils.profile(net(), input_shape=(1, 8, 8), spectra=False)["4"].singular_values is None


def test_another_profile_of_the_same_network_reads_it_again_only_where_it_must(x, monkeypatch):
    runs, spectra = [], []
    count_uses, values = profile.count_uses, profile._singular_values
    monkeypatch.setattr(profile, "count_uses", lambda *given: runs.append(1) or count_uses(*given))
    monkeypatch.setattr(profile, "_singular_values", lambda *given: spectra.append(1) or values(*given))
    read = lowrank_utils.profile(net(), x, dense=["6"])
    others = [
        read.but(dense=["4"]),
        read.but(samples=100, estimator="signs", draws=1, seed=3, batch_size=7),
        read.but(calibration=x[:9]),
        read.but(calibration=x[:9], dense=(), draws=2),
    ]
    assert len(runs) == 1 and read["0"].singular_values is not None
    assert all((other["0"].singular_values == read["0"].singular_values).all() for other in others)
    assert len(spectra) == 1
    assert [other.factorable for other in (read, *others)] == [
        ["0", "4"],
        ["0", "6"],
        ["0", "4"],
        ["0", "4"],
        ["0", "4", "6"],
    ]
    for other, fresh in zip(others, ({"dense": ["4"]}, {"dense": ["6"]}, {"dense": ["6"]}, {})):
        anew = lowrank_utils.profile(net(), x, **fresh)
        assert [(c.name, c.reason, c.macs) for c in other] == [(c.name, c.reason, c.macs) for c in anew]
    assert (others[1].seed, others[1].batch_size, others[3].draws, read.draws) == (3, 7, 2, 10)
    before = len(runs)
    assert (
        read.but(scheme="input")["0"].scheme == "input" and read.but(input_shape=(1, 8, 8)) and len(runs) == before + 2
    )
    with pytest.raises(ValueError, match="dense= names a layer that the model does not have: fc"):
        read.but(dense=["fc"])
    with pytest.raises(ValueError, match="dense='4' must be a list of layer names"):
        read.but(dense="4")


def test_every_chooser_and_factoriser_takes_it_and_leaves_the_model_alone(x):
    model = net()
    before = copy.deepcopy(model.state_dict())
    read = lowrank_utils.profile(model, x)
    plans = [
        rules.plan_at_size(read, 0.5),
        rules.threshold_plan(read, threshold=0.6),
        components.components_plan(read, 0.5),
        enc.enc_map(read, 0.5).plan,
        enc.enc_model(read, 0.5).plan,
        search.exact_search(read, 0.5).plan,
    ]
    whole = profile.plan_cost(read, {})
    assert all(plan for plan in plans)
    assert all(profile.plan_cost(read, plan) <= 0.5 * whole for plan in [plans[0], *plans[2:]])
    for method in (*replace.SWEEPS, "svd", "data-aware"):
        small = replace.apply_plan(read, plans[-1], factors=method)
        assert small(x).shape == (40, 5) and small is not model
    assert type(sequential.sweep(read, {"4": 3})[4]) is nn.Sequential
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("resource", ["macs", "parameters"])
def test_a_plan_of_compress_is_applied_again_as_it_stands(resource):
    torch.manual_seed(0)
    # of a strided convolution a rank can pay in one resource and not in the other
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    ).eval()
    x = torch.randn(60, 8, 8, 8)
    found = lowrank_utils.compress(model, x, kept=0.6, resource=resource, dense=[])
    again = replace.apply_plan(lowrank_utils.profile(model, x), found.plan)
    assert [tuple(p.shape) for p in again.parameters()] == [tuple(p.shape) for p in found.model.parameters()]


def test_a_model_that_has_changed_is_not_served(x):
    model = net()
    read = lowrank_utils.profile(model, x)
    read.moments_of(["0"])
    plan = rules.plan_at_size(read, 0.5)
    with torch.no_grad():
        model[4].weight[0, 0] += 1e-3
    for use in (
        lambda: rules.plan_at_size(read, 0.5),
        lambda: read.followers,
        lambda: read.order,
        lambda: profile.plan_cost(read, plan),
    ):
        with pytest.raises(ValueError, match="the model has changed since its profile was made"):
            use()
    model = net()
    read = lowrank_utils.profile(model, x)
    model[4].weight.data[0, 0] += 1e-3  # past autograd's version counter
    for use in (
        lambda: read.moments,
        lambda: read.fisher,
        lambda: read["4"].singular_values,
        lambda: replace.apply_plan(read, {"4": 2}),
        lambda: replace.decompose_layers(read, ["4"]),
        lambda: sequential.sweep(read, {"4": 2}),
        lambda: read.but(dense=["4"]),
    ):
        with pytest.raises(ValueError, match="the model has changed since its profile was made; make a new one"):
            use()


def half(change):
    model = net()
    change(model)
    return model


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (nn.Sequential(nn.ReLU()), {"input_shape": (3,)}, "no parameters, so it has no layer to read"),
        (net().to("meta"), {"input_shape": (1, 8, 8)}, "meta"),
        (
            half(lambda m: m[4].weight.data.fill_(torch.nan)),
            {"input_shape": (1, 8, 8)},
            "layer '4' holds NaN or infinite weights",
        ),
        (half(lambda m: m[4].weight.data.fill_(torch.nan)), {}, "NaN"),
        (nn.Sequential(nn.BatchNorm1d(3)), {"input_shape": (3,)}, "no layer with a weight matrix or kernel"),
        (
            half(lambda m: m[4].bias.data.fill_(torch.nan)),
            {"input_shape": (1, 8, 8)},
            "4.bias holds NaN or infinite values",
        ),
        (net(), {"input_shape": (3, 8, 8)}, r"the network cannot take one input of shape \(3, 8, 8\)"),
        (
            net(),
            {"calibration": torch.zeros(4, 1, 9, 9)},
            r"the network cannot take calibration images of shape \(1, 9, 9\)",
        ),
        (net(), {"input_shape": (1, 8, 8), "dense": ["fc"]}, "dense= names a layer that the model does not have: fc"),
        (net(), {"input_shape": (1, 8, 8), "scheme": "diagonal"}, "unknown scheme 'diagonal'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(model, given, words):
    with pytest.raises(ValueError, match=words) as told:
        lowrank_utils.profile(model, **given)
    assert "\n" not in str(told.value)


def test_what_was_not_given_is_asked_for():
    read = lowrank_utils.profile(net(), input_shape=(1, 8, 8))
    for use, what in (
        (lambda: read.moments, "moments of layer inputs need"),
        (lambda: read.fisher, "Fisher information needs"),
    ):
        with pytest.raises(ValueError, match=f"{what} calibration inputs: make the profile with calibration="):
            use()
    with pytest.raises(ValueError, match="make the profile with input_shape= or calibration="):
        _ = lowrank_utils.profile(net()).layers
    with pytest.raises(
        ValueError, match="a profile has no device to change; it has calibration, input_shape, dense, scheme"
    ):
        read.but(device="cpu")
    with pytest.raises(KeyError, match="there is no layer 'fc' in this profile; it has 0, 4, 6"):
        read["fc"]


def test_without_spectra_rules_say_how_to_get_them():
    read = lowrank_utils.profile(net(), input_shape=(1, 8, 8), spectra=False)
    for use in (rules.plan_at_size, rules.threshold_plan, rules.least_plan, components.components_plan, enc.enc_map):
        given = {"threshold": 0.9} if use is rules.threshold_plan else {}
        with pytest.raises(ValueError, match="this profile has no spectra; make it with spectra=True"):
            use(read, *[] if use in (rules.threshold_plan, rules.least_plan) else [0.5], **given)


def test_the_exact_search_says_where_the_answers_tell_nothing(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)).eval()
    found = search.exact_search(lowrank_utils.profile(model, x, dense=["3"]), 0.5)
    assert "The answers are one number each" in found.note and found.value < 0


class Blocks(torch.nn.Module):
    """Two layers a block, in three blocks, and a head."""

    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(12, 16), "b": nn.Linear(16, 12)}) for _ in range(3))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        for block in self.h:
            x = block["b"](block["a"](x).tanh())
        return self.head(x)


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return lowrank_utils.profile(Blocks().eval(), torch.randn(50, 12), estimator="signs", draws=2)


def test_layers_are_named_by_patterns_in_their_order(blocks):
    assert blocks.within(["h.*"]) == [f"h.{i}.{kind}" for i in range(3) for kind in "ab"]
    assert blocks.within(["head", "h.1.*", "h.1.b"]) == ["h.1.a", "h.1.b", "head"]
    assert blocks.within(["h.[02].a"]) == ["h.0.a", "h.2.a"]
    with pytest.raises(ValueError, match="within= is empty"):
        blocks.within([])
    with pytest.raises(ValueError, match=r"within='H\.\*' names no layer; there are h.0.a, h.0.b, h.1.a"):
        blocks.within(["h.0.a", "H.*"])
    with pytest.raises(ValueError, match=r"within='h\.\*' must be a list of layer names or patterns"):
        blocks.within("h.*")


@pytest.mark.parametrize("resource", ["macs", "parameters"])
def test_a_share_of_some_layers_is_a_share_of_all(blocks, resource):
    names = blocks.within(["h.*"])
    inside = sum(blocks[name].cost(None, resource) for name in names)
    total = profile.plan_cost(blocks, {}, resource)
    assert blocks.whole_share(1.0, resource, names) == 1 and inside < total
    assert blocks.whole_share(0.25, resource, names) * total == pytest.approx(0.25 * inside + total - inside)
    assert blocks.whole_share(0.25, resource, [card.name for card in blocks]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="kept=2 is not a share"):
        blocks.whole_share(2, resource, names)


def test_the_information_of_rows_is_collected_once(blocks, monkeypatch):
    calls, original = [], statistics.row_information
    monkeypatch.setattr(
        statistics,
        "row_information",
        lambda model, names, *given: calls.append((tuple(names), given[-1])) or original(model, names, *given),
    )
    first = blocks.rows_of(["h.0.a"])["h.0.a"]
    assert first.shape == (16,) and bool((first > 0).all())
    assert blocks.rows_of(["h.0.a", "head"])["h.0.a"] is first
    assert blocks.but(dense=["head"]).rows_of(["h.0.a"])["h.0.a"] is first
    exact = blocks.but(estimator="exact")
    assert exact.rows_of(["h.0.a"])["h.0.a"] is not first
    assert calls == [(("h.0.a",), "signs"), (("head",), "signs"), (("h.0.a",), "signs")]
    model, x = blocks.model, blocks.calibration
    by_hand = original(model, ["h.0.a"], x, 2, blocks.seed, 1, "signs")["h.0.a"]
    assert torch.equal(first, by_hand)
    with pytest.raises(ValueError, match="the information of rows needs calibration inputs"):
        lowrank_utils.profile(model, input_shape=(12,)).rows_of(["head"])


def test_the_metric_is_the_information_mixed_with_its_mean(blocks):
    found, raw = blocks.metric_of(["head"])["head"], blocks.fisher_of(["head"])["head"]
    assert torch.allclose(found, 0.7 * raw / raw.diagonal().mean() + 0.3 * torch.eye(5).to(raw))
    some = blocks.metric_of(["head"], images=9)["head"]
    assert not torch.allclose(some, found, rtol=0.01)
    with pytest.raises(ValueError, match="the Fisher information needs calibration inputs"):
        lowrank_utils.profile(blocks.model, input_shape=(12,)).metric_of(["head"])


class Tokens(nn.Module):
    """Of token ids; a layer that no answer feels."""

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.unfelt, self.head = (
            nn.Embedding(20, 8),
            nn.Linear(8, 6),
            nn.Linear(8, 6),
            nn.Linear(6, 20),
        )

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.a(x).tanh() + 0 * self.unfelt(x))


def test_the_metric_of_tokens_trusts_the_information_as_far_as_there_are_tokens():
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (10, 11))
    read = lowrank_utils.profile(Tokens().eval(), ids, estimator="signs", draws=1)
    for images, count in ((None, 110), (4, 44)):
        found, raw = read.metric_of(["a", "unfelt"], images), read.fisher_of(["a", "unfelt"], images)
        share = 440 / (440 + count)
        expected = (1 - share) * raw["a"] + share * raw["a"].diagonal().mean() * torch.eye(6)
        assert torch.allclose(found["a"], expected) and torch.linalg.eigvalsh(found["a"])[0] > 0
        assert not raw["unfelt"].any() and torch.allclose(found["unfelt"], share * torch.eye(6).to(found["unfelt"]))


def test_a_cost_does_not_look_at_the_weights_for_each_layer(x, monkeypatch):
    read = lowrank_utils.profile(net(), x)
    looks, versions = [], profile.versions
    monkeypatch.setattr(profile, "versions", lambda model: looks.append(model) or versions(model))
    assert profile.plan_cost(read, {"0": 1, "4": 1, "6": 1}, "parameters") > 0
    assert len(looks) == 2  # for the number of layers and for the three themselves
    assert [layer.name for layer in read] == ["0", "4", "6"] and len(looks) == 3
