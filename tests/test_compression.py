"""The one call: within its budget, exact about what it did, and a clear sentence for what it cannot take."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

import conftest
import lowrank_utils
from lowrank_utils import compression, progress
from lowrank_utils.factors import replace, sequential
from lowrank_utils.lab import latency, score
from lowrank_utils.network import profile, statistics
from lowrank_utils.network.profile import Profile
from lowrank_utils.ranks import rules, search

swept = partial(compression.compress, refine=False)  # what these tests ask of the sweep


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24),
        nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 40), nn.ReLU(), nn.Linear(40, 5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def x():
    return torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def divergence(model, small, x):
    with torch.no_grad():
        p, q = model(x).log_softmax(1), small(x).log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("resource", ["macs", "parameters"])
def test_the_budget_holds_for_the_whole_network(x, resource):
    model = net()
    before = copy.deepcopy(model.state_dict())
    found = lowrank_utils.compress(model, x, kept=0.5, resource=resource, refine=False)
    counted = {
        "macs": score.macs(found.model, (3, 8, 8)) / score.macs(model, (3, 8, 8)),
        "parameters": score.parameters(found.model) / score.parameters(model),
    }
    assert found.kept == counted and 0.45 < counted[resource] <= 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.found.gap < 1e-6 and found.note == ""
    told = found.layers.set_index("layer")
    assert told.loc["0", "why"] == told.loc["11", "why"] == "left dense by default"
    assert {name for name in told.index if told.loc[name, "planned"] != "dense"} == set(found.plan)
    assert f"{counted['macs']:.1%} of the MACs" in str(found)
    if resource == "macs":
        assert (
            told["macs"] * [layer.macs for layer in profile.read_layers(model, (3, 8, 8), spectra=False)]
        ).sum() == pytest.approx(score.macs(found.model, (3, 8, 8)))


def test_it_beats_one_fixed_share_with_plain_factors(x):

    model = net()
    found = swept(model, x, kept=0.4)
    cards = profile.read_layers(model, (3, 8, 8), dense=("0", "11"))
    plain = replace.apply_plan(
        Profile(model), rules.plan_at_size(cards, 0.4, rule="fixed", resource="macs"), resource="macs"
    )
    assert divergence(model, found.model, x) < 0.5 * divergence(model, plain, x)


def test_every_kind_of_factors_writes_the_same_plan(x):
    model = net()
    found = {f: swept(model, x, kept=0.5, factors=f) for f in ("svd", "data-aware", "sequential")}
    assert found["svd"].plan == found["data-aware"].plan == found["sequential"].plan
    assert divergence(model, found["sequential"].model, x) < divergence(model, found["svd"].model, x)


def test_an_mlp_keeps_its_last_layer_only():
    model = conftest.mlp((20, 30, 30, 5))
    found = swept(model, torch.randn(60, 20), kept=0.6, dense=None)
    assert list(found.layers["why"] == "left dense by default") == [False, False, True]
    assert swept(model, torch.randn(60, 20), kept=0.6, dense=()).layers["why"].ne("left dense by default").all()


def test_answers_that_are_no_classes_are_said(x):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 2, 3, padding=1),
    )
    found = swept(model, x, kept=0.6)
    assert "not N x classes" in found.note and found.note in str(found) and found.kept["macs"] <= 0.6
    assert found.model(x).shape == (90, 2, 8, 8)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        if x.sum() > -1:  # depends on the data
            x = torch.relu(self.b(x))
        return self.c(x)


def test_data_dependent_control_flow_is_compressed_and_said():
    model = Branches()
    found = swept(model, torch.randn(60, 20), kept=0.7)
    assert "torch.fx cannot trace" in found.note
    assert found.kept["macs"] <= 0.7 and set(found.plan) <= {"a", "b"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kept": 0}, "kept=0 is not a share"),
        ({"kept": 0.01}, "kept=0.01 of macs cannot be reached: the smallest possible is 0.2"),
        ({"kept": 0.005, "resource": "parameters"}, "cannot be reached"),
        ({"resource": "time"}, "unknown resource 'time'"),
        ({"dense": "11"}, r"dense='11' must be a list of layer names"),
        ({"factors": "magic"}, "unknown factors 'magic'"),
        ({"calibration": torch.zeros(0, 3, 8, 8)}, "at least one input"),
        ({"calibration": torch.zeros(4, 3, 9, 9)}, "cannot take one input of shape"),
        ({"calibration": torch.full((4, 3, 8, 8), torch.nan)}, "NaN"),
        ({"calibration": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, "calibration is torch.uint8; pass floating-point inputs"),
        ({"model": net().half()}, "torch.float16; compress it in float32"),
        ({"model": nn.Sequential(nn.ReLU())}, "no parameters"),
        ({"model": nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 3, 3, groups=3))}, "no layer can be factored"),
    ],
)  # fmt: skip
def test_bad_input(x, change, words):
    given = {"model": net(), "calibration": x, "kept": 0.5} | change
    with pytest.raises(ValueError, match=words):
        swept(**given)


def test_few_inputs_are_said(x):
    found = swept(net(), x[:3], kept=0.5)
    assert "rest on 3 inputs only" in found.note and "rest on" not in swept(net(), x, kept=0.5).note


def test_the_budget_holds_on_maps_of_odd_sides():
    # from 3 x 3 to 2 x 2 positions rank 12 pays, by the product of the strides it would not
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    x = torch.randn(60, 8, 5, 5)
    built = replace.apply_plan(Profile(model, x), {"2": ("input", 12)}, resource="macs")
    assert isinstance(built[2], nn.Sequential)
    found = swept(model, x, kept=0.975, factors="svd", dense=["0"], floor=0.5)
    assert list(found.plan) == ["2"] and isinstance(found.model[2], nn.Sequential)
    assert 0.95 < found.kept["macs"] <= 0.975


def test_a_network_with_a_layer_used_twice_is_compressed_around_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(20, 30), nn.Linear(30, 30), nn.Linear(30, 4)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x)))))))

    found = swept(Twice(), torch.randn(60, 20), kept=0.95)
    assert list(found.plan) == ["a"] and found.kept["macs"] <= 0.95
    assert found.layers.set_index("layer").loc["b", "why"] == "it is used 2 times in one pass"


class Attention(nn.Module):
    """Whose products of queries, keys and values belong to no layer."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.last = (
            nn.Linear(32, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 10),
        )

    def forward(self, x):
        shares = (self.query(x) @ self.key(x).mT / 5).softmax(-1)
        return self.last((shares @ self.value(x)).mean(1))


def test_work_of_no_layer_counts_towards_the_budget():
    torch.manual_seed(0)
    model, inputs = Attention(), torch.randn(60, 64, 32)
    found = swept(model, inputs, kept=0.9)
    assert score.macs(found.model, (64, 32)) <= 0.9 * score.macs(model, (64, 32)) and found.note == ""
    with pytest.raises(ValueError, match="kept=0.4 of macs cannot be reached: the smallest possible is 0.") as refused:
        swept(model, inputs, kept=0.4)
    smallest = float(str(refused.value).split()[-1])
    assert smallest - 0.01 < swept(model, inputs, kept=smallest).kept["macs"] <= smallest


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7])
def test_what_batch_norms_hold_counts_towards_the_budget(kept):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 80),
        nn.BatchNorm1d(80),
        nn.ReLU(),
        nn.Linear(80, 80),
        nn.BatchNorm1d(80),
        nn.ReLU(),
        nn.Linear(80, 3),
    )
    found = swept(model, torch.randn(60, 10), kept=kept, resource="parameters")
    assert kept - 0.03 < score.parameters(found.model) / score.parameters(model) <= kept


@pytest.mark.parametrize("kept", [0.01, 0.05])
@pytest.mark.parametrize("resource", ["macs", "parameters"])
def test_the_smallest_share_that_is_named_can_be_asked_for(kept, resource):
    for width in range(20, 50, 7):
        torch.manual_seed(width)
        model = nn.Sequential(
            nn.Linear(width, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 5)
        )
        with pytest.raises(ValueError, match="cannot be reached") as refused:
            swept(model, torch.randn(50, width), kept=kept, resource=resource)
        named = float(str(refused.value).split()[-1])
        assert swept(model, torch.randn(50, width), kept=named, resource=resource).kept[resource] <= named


def mlp(last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, last))


def test_ranks_and_factors_follow_the_fisher_information_of_all_inputs():
    model, inputs = mlp(4), torch.randn(200, 30)
    found = swept(model, inputs, kept=0.5, samples=None, estimator="exact", draws=10)
    metric = statistics.fisher(model, ["0", "2"], inputs)
    options = search.rank_options(profile.read_layers(model, (30,), dense=("4",)), "macs", mixed=True)
    losses = search.output_error(Profile(model, inputs), options, metric=metric, points=None)
    assert found.found.value == pytest.approx(-search.worth(options, losses, found.plan), rel=1e-6)
    expected = replace.apply_plan(Profile(model, inputs), found.plan, factors="fisher-weighted", resource=None)
    assert torch.equal(found.model(inputs), expected(inputs))


class Deep(nn.Module):
    """Reads token ids; torch.fx cannot trace its branch on a value."""

    def __init__(self, layers):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 12)
        self.blocks = nn.ModuleList(nn.Linear(12, 12) for _ in range(layers))
        self.head = nn.Linear(12, 20)

    def forward(self, ids):
        x = self.embedding(ids)
        if x.isnan().any():
            raise ValueError("NaN")
        for block in self.blocks:
            x = x + 0.3 * block(x).tanh()
        return self.head(x)


@pytest.mark.parametrize("layers, factors", [(compression.MANY + 1, replace.LAYERWISE), (6, "fisher-weighted")])
def test_factors_of_a_deep_network_that_cannot_be_traced_are_found_layer_by_layer(layers, factors):
    model, ids = Deep(layers), torch.randint(20, (9, 1000), generator=torch.Generator().manual_seed(0))
    found = compression.compress(model, ids, kept=0.7, resource="parameters", samples=None)
    assert found.plan
    expected = {
        name: replace.apply_plan(Profile(model, ids), found.plan, factors=name, resource=None)(ids[:1])
        for name in (replace.LAYERWISE, "fisher-weighted")
    }
    apart = {name: float((found.model(ids[:1]) - answers).detach().norm()) for name, answers in expected.items()}
    assert min(apart, key=apart.__getitem__) == factors and apart[factors] < 0.2 * max(apart.values())


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = mlp(20), nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))

    def forward(self, x):
        return self.head(self.body(x).detach())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (mlp(1), "The answers are one number each"),
        (
            Frozen(),
            "No gradient of the answers reaches body.0, body.2, body.4, so ranks are by each layer's own error.",
        ),
    ],
)
def test_answers_that_do_not_tell_what_they_feel(model, words):
    inputs = torch.randn(200, 30)
    found = swept(model, inputs, kept=0.5)
    assert words in found.note and 0.45 < found.kept["macs"] <= 0.5
    with torch.no_grad():
        broken = replace.apply_plan(Profile(model), dict.fromkeys(found.plan, 1), resource=None)(inputs)
        mine, whole = found.model(inputs), model(inputs)
    assert (mine - whole).norm() < 0.5 * (broken - whole).norm()


class Backwards(nn.Module):
    """Whose last layer was made first, and which keeps an activation."""

    def __init__(self):
        super().__init__()
        self.last, self.first, self.second = nn.Linear(60, 5), nn.Linear(30, 60), nn.Linear(60, 60)
        self.kept = None

    def forward(self, x):
        self.kept = self.first(x).relu()
        return self.last(self.second(self.kept).relu())


def test_the_last_layer_is_the_last_used_and_a_kept_activation_does_no_harm():
    model, inputs = Backwards(), torch.randn(60, 30)
    model(inputs)
    found = swept(model, inputs, kept=0.6)
    whys = found.layers.set_index("layer")["why"]
    assert whys["last"] == "left dense by default" != whys["second"]
    assert found.kept["macs"] <= 0.6 and found.model(inputs).shape == (60, 5)


def test_networks_whose_layers_read_weights_in_their_own_way():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.Sequential(
        block, nn.Flatten(), nn.Linear(128, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 5)
    )
    found = swept(model, torch.randn(60, 4, 32), kept=0.9)
    whys = found.layers.set_index("layer")["why"]
    assert "TransformerEncoderLayer reads its weight" in whys["0.linear1"] and found.kept["macs"] <= 0.9
    assert torch.isfinite(found.model.eval()(torch.randn(3, 4, 32))).all()
    normed = nn.Sequential(
        nn.Linear(30, 60),
        nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(60, 60)),
        nn.ReLU(),
        nn.Linear(60, 60),
        nn.ReLU(),
        nn.Linear(60, 5),
    )
    found = swept(normed, torch.randn(60, 30), kept=0.8)
    assert list(found.plan) == ["4"] and found.kept["macs"] <= 0.8


def test_places_without_gradients_or_numbers():
    inputs = torch.randn(60, 30)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode.. forbids; call it outside"):
        swept(mlp(5), inputs)
    for call in (
        lambda model: swept(model, inputs),
        lambda model: profile.read_layers(model, (30,)),
        lambda model: replace.apply_plan(Profile(model), {"0": 2}, resource="parameters"),
        lambda model: statistics.fisher(model, ["0"], inputs),
        lambda model: sequential.sweep(Profile(model, inputs), {"0": 2}),
    ):
        with pytest.raises(ValueError, match="on the meta device, where there are no numbers"):
            call(mlp(5).to("meta"))


def test_refinement_is_the_default_and_keeps_the_plan(x):
    model = net()
    found = lowrank_utils.compress(model, x, kept=0.6, refine_steps=20)
    before = swept(model, compression.held_apart(x)[0], kept=0.6)  # it does not see what refinement is judged by
    assert found.plan == before.plan and found.kept == before.kept
    assert torch.equal(found.swept(x), before.model(x))
    assert found.refined.steps <= 20 and found.refined.after <= found.refined.before
    assert before.tuned == "none" and before.swept is None


@pytest.mark.parametrize(
    ("best_step", "tuned", "said"),
    [(12, "refined without labels", "Refined in 20"), (0, "none", "kept none of its 20")],
)
def test_only_a_network_that_refinement_changed_is_called_refined(x, best_step, tuned, said):
    found = lowrank_utils.compress(net(), x, kept=0.6, refine_steps=2)
    refined = dataclasses.replace(found.refined, steps=20, best_step=best_step)
    assert dataclasses.replace(found, refined=refined).tuned == tuned and said in str(refined)


def test_inputs_held_apart_are_drawn_from_all_of_them():
    ordered = torch.arange(200.0).view(-1, 1)
    seen, unseen = compression.held_apart(ordered)
    assert torch.equal(torch.cat([seen, unseen]).sort(0).values, ordered)
    assert unseen.min() < 50 and unseen.max() > 150 and torch.equal(seen, seen.sort(0).values)
    assert not torch.equal(compression.held_apart(ordered, seed=1)[1], unseen)


@pytest.mark.parametrize("names", [(), ("x", "y"), ("images", "labels")])
def test_labels_beside_the_inputs_are_recognised(x, names):
    given = (x, torch.zeros(len(x), dtype=torch.long))
    what = f'"{names[1]}"' if names else "the last tensor"
    said = f"^{what} of calibration holds labels, it seems, .*: pass the inputs alone, as one tensor \\(.*forward.*\\)$"
    with pytest.raises(ValueError, match=said):
        lowrank_utils.compress(net(), dict(zip(names, given)) if names else given, kept=0.6)


class Measured(nn.Linear):
    """Takes whole numbers beside its inputs, as labels would look."""

    def forward(self, x, lengths):
        return super().forward(x) * lengths.sign()[:, None]


@pytest.mark.parametrize("names", [("x", "lengths"), ("input", "lengths"), ()])
def test_inputs_that_the_network_takes_are_not_called_labels(names):
    wrong = (torch.randn(8, 5), torch.ones(8, dtype=torch.long))  # of another width
    with pytest.raises(ValueError, match="cannot take") as caught:
        lowrank_utils.compress(Measured(4, 3), dict(zip(names, wrong)) if names else wrong, kept=0.6)
    assert "labels" not in str(caught.value)


def test_what_the_loss_of_a_refinement_means_is_said(x):
    found = lowrank_utils.compress(net(), x, kept=0.6, refine_steps=2).refined
    seen = dataclasses.replace(found, steps=20, best_step=12, before=0.5, after=0.25)
    assert "squared error over the variance of the dense answers on held-out inputs is 0.5 before, 0.25 after" in str(
        seen
    )
    assert "divergence (nats) from the dense answers" in str(dataclasses.replace(seen, loss="divergence"))


def test_multiples_of_ranks_need_a_budget_of_time(x):
    with pytest.raises(ValueError, match="multiple=8 needs resource='latency'"):
        lowrank_utils.compress(net(), x, kept=0.6, multiple=8)


def test_a_budget_of_refinement_that_is_none_is_refused(x):
    with pytest.raises(ValueError, match="refine_seconds|seconds"):
        lowrank_utils.compress(net(), x, kept=0.6, refine_seconds=-1)


def test_every_bar_knows_its_end_and_comes_to_it(monkeypatch):
    bars = {}

    class Bar(progress.tqdm):
        def __init__(self, items, **options):
            super().__init__(items, **options)
            self.what = options["desc"]

        def __iter__(self):
            count = 0
            for count, item in enumerate(super().__iter__(), start=1):  # noqa: B007
                yield item
            bars.setdefault(self.what, []).append((self.total, count))

    monkeypatch.setattr(progress, "tqdm", Bar)
    model, inputs = conftest.mlp((12, 30, 30, 4)), torch.randn(90, 12)
    lowrank_utils.compress(model, inputs, kept=0.6, refine_steps=3)
    read = profile.profile(model, inputs)
    read.moments_of(["0", "2"])  # a pass for the moments alone
    latency.measure(read, latency.Clock(batch=2, repeats=2), multiple=8)
    assert set(bars) == {"Fisher information", "inputs seen", "factors, layer by layer", "layers timed", "refinement"}
    assert all(total == count for seen in bars.values() for total, count in seen)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(20, 32)
        self.h = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.head = nn.Linear(32, 12)

    def forward(self, x):
        x = self.first(x).relu()
        for layer in self.h:
            x = layer(x).relu()
        return self.head(x)


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return Blocks().eval(), torch.randn(80, 20)


@pytest.mark.parametrize("resource", ["macs", "parameters"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_budget_of_some_layers_is_counted_over_these_alone(blocks, resource, kept):
    model, x = blocks
    found = swept(model, x, kept=kept, resource=resource, within=["h.*"])
    names = [f"h.{i}" for i in range(3)]
    assert set(found.plan) <= set(names) and found.plan
    left = {
        "parameters": sum(score.parameters(found.model.h[i]) for i in range(3)) / (3 * 32 * 33),
        "macs": sum(layer.weight.numel() for layer in found.model.h.modules() if isinstance(layer, nn.Linear))
        / (3 * 32**2),
    }
    for what, value in left.items():
        assert found.kept[f"{what} within"] == pytest.approx(value)
    assert kept - 0.07 < found.kept[f"{resource} within"] <= kept < found.kept[resource]
    assert found.kept["parameters"] == pytest.approx(score.parameters(found.model) / score.parameters(model))
    assert type(found.model.first) is type(found.model.head) is nn.Linear
    table = found.layers.set_index("layer")
    assert set(table.loc[["first", "head"], "planned"]) == {"dense"} and "more than asked for" not in found.note


def test_layers_within_may_be_those_that_stay_dense_by_default_only_on_request(blocks):
    model, x = blocks
    by_default = swept(model, x, kept=0.7, within=["h.*", "head"])  # the last layer stays dense, and counts
    assert "head" not in by_default.plan and by_default.kept["macs within"] <= 0.7
    asked = swept(model, x, kept=0.35, within=["h.*", "head"], dense=[])
    assert "head" in asked.plan and asked.kept["macs within"] <= 0.35
    assert "macs within" not in swept(model, x, kept=0.7).kept


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"within": "h.*"}, r"within='h\.\*' must be a list of layer names or patterns"),
        ({"within": ["block.*"]}, r"within='block\.\*' names no layer; there are first, h.0"),
        ({"within": []}, "within= is empty; name layers"),
        ({"within": ["h.*"], "kept": 0.01}, "kept=0.01 of macs cannot be reached"),
        ({"within": ["h.*"], "kept": 1.2}, "kept=1.2 is not a share"),
        ({"within": ["head"]}, "no layer can be factored"),
    ],
)
def test_what_cannot_share_a_budget_is_refused(blocks, given, words):
    model, x = blocks
    with pytest.raises(ValueError, match=words) as told:
        swept(model, x, **{"kept": 0.5} | given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("resource", ["macs", "parameters"])
def test_the_smallest_share_of_some_layers_can_be_asked_for(blocks, resource):
    model, x = blocks
    with pytest.raises(ValueError, match=f"kept=0.01 of {resource} cannot be reached") as refused:
        swept(model, x, kept=0.01, resource=resource, within=["h.*"])
    named = float(str(refused.value).split()[-1])
    found = swept(model, x, kept=named, resource=resource, within=["h.*"])
    assert found.kept[f"{resource} within"] <= named


def test_what_is_no_network_and_no_profile_is_said(x):
    with pytest.raises(TypeError, match="model is the class Linear; pass a network"):
        lowrank_utils.compress(nn.Linear, x, kept=0.6)
    with pytest.raises(TypeError, match="predict reads a profile, not a network"):
        lowrank_utils.predict(net())
