"""Network-wide ranks: options that pay, curves that mean what they say, ENC's searches, and plans that fit."""

import numpy as np
import pytest
import torch
from torch import nn

import conftest
from lowrank_utils.factors import replace
from lowrank_utils.lab import score
from lowrank_utils.network import profile, statistics, unfold
from lowrank_utils.network.profile import Profile
from lowrank_utils.ranks.enc import enc_inf, enc_map, enc_model
from lowrank_utils.ranks.search import (
    energy,
    exact_search,
    from_error,
    logarithms,
    measured,
    measured_ranks,
    output_error,
    rank_options,
    worth,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 40), nn.ReLU(), nn.Linear(40, 5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def x():
    return torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def cards(model):
    return profile.read_layers(model, (3, 8, 8))


@pytest.fixture(scope="module")
def choices(cards):
    return rank_options(cards)


def cost_of(cards, plan, resource="macs"):
    return profile.plan_cost(cards, plan, resource) / profile.plan_cost(cards, {}, resource)


def test_options_cost_what_the_cards_say_and_less_than_dense(cards, choices):
    named = {card.name: card for card in cards}
    assert [o.name for o in choices] == ["0", "3", "5", "8", "10"]
    for own in choices:
        card = named[own.name]
        assert own.entries[-1] is None and own.costs[-1, 0] == card.macs
        assert (np.diff(own.costs[:, 0]) >= 0).all() and (own.costs[:-1] < own.costs[-1]).all()
        for entry, cost in zip(own.entries, own.costs[:, 0]):
            assert cost == card.cost(entry, "macs")
        ranks = [unfold.parse_entry(entry)[1] for entry in own.entries[:-1]]
        assert ranks[0] == max(1, np.ceil(0.1 * card.break_even("macs"))) and ranks[-1] == card.break_even("macs")


def test_options_of_every_scheme_in_multiples_for_two_resources(cards):
    mixed = {o.name: o for o in rank_options(cards, ("macs", "parameters"), mixed=True, floor=0, multiple=4)}
    assert set(mixed["3"].full) == {"spatial", "channel", "input"} and set(mixed["8"].full) == {None}
    for own in mixed.values():
        assert all(unfold.parse_entry(entry)[1] % 4 == 0 for entry in own.entries[:-1])
        assert (own.costs[:-1] < own.costs[-1]).all()
    strided = next(card for card in cards if card.name == "3")
    assert mixed["3"].full["spatial"] == min(strided.break_even(r, "spatial") for r in ("macs", "parameters"))


def test_energy_is_the_formula(cards, choices):
    curves = energy(cards, choices)
    card, own = cards[2], choices[2]
    sums = np.cumsum(card.singular_values)
    most = card.break_even("macs")
    for entry, y in zip(own.entries[:-1], curves[own.name]):
        rank = entry[1]
        assert y == pytest.approx((sums[rank - 1] - sums[0]) / (sums[most - 1] - sums[0]))
    assert curves[own.name][-2] == pytest.approx(1) and curves[own.name][-1] == 1
    with pytest.raises(ValueError, match="cannot compare the schemes of layer '0'"):
        energy(cards, rank_options(cards, mixed=True))


def test_measured_passes_through_what_was_measured(model, choices, x):
    calls = []

    def measure(net):
        calls.append(net)
        with torch.no_grad():
            return float((net(x) - model(x)).square().mean())

    own = choices[3]
    found = measured(Profile(model), [own], measure=measure, factors="svd", points=4)[own.name]
    at = measured_ranks(own, 4)[None]
    assert len(calls) == 5 and calls[0] is model and at[0] == own.entries[0] and at[-1] == own.entries[-2]
    for rank in at:
        net = replace.apply_plan(Profile(model), {own.name: rank}, resource="macs")
        assert found[own.entries.index(rank)] == pytest.approx(measure(net), rel=1e-5)
    assert found[-1] == 0 and (np.diff(found) <= 1e-12).all()
    with pytest.raises(ValueError, match="hold NaN"):
        measured(Profile(model), [own], measure=lambda net: np.nan, factors="svd")


@pytest.mark.parametrize("factors", ["svd", "data-aware"])
def test_output_error_is_the_error_of_the_layer_on_data(model, cards, x, factors):
    choices = rank_options(cards, mixed=True)
    found = output_error(Profile(model, x), choices, factors=factors, points=3)
    with torch.no_grad():
        inputs = {"3": model[:3](x), "8": model[:8](x)}
        for own in (o for o in choices if o.name in inputs):
            layer, seen = model.get_submodule(own.name), inputs[own.name]
            out = layer(seen)
            over = (0, 2, 3) if out.ndim == 4 else 0
            for scheme, ranks in measured_ranks(own, 3).items():
                entry = ranks[1] if scheme is None else (scheme, ranks[1])
                thin = replace.apply_plan(
                    Profile(model, x if factors != "svd" else None), {own.name: entry}, factors=factors, resource="macs"
                )
                lost = thin.get_submodule(own.name)(seen) - out
                lost, whole = (y - y.mean(over, keepdim=True) for y in (lost, out))
                expected = float(lost.square().sum() / whole.square().sum())
                assert found[own.name][own.entries.index(entry)] == pytest.approx(expected, rel=1e-3)
    assert all(e[-1] == 0 and (e >= 0).all() for e in found.values())


def test_output_error_in_the_fisher_metric_predicts_the_divergence(x):
    # one linear layer, a softmax behind it: to second order the loss is the Kullback-Leibler divergence itself
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    model[1].weight.data *= 0.1
    choices = rank_options(profile.read_layers(model, (3, 8, 8)), floor=0.0)
    metric = statistics.fisher(model, ["1"], x)
    found = output_error(Profile(model, x), choices, factors="data-aware", points=7, metric=metric)["1"]
    with torch.no_grad():
        logs = model(x).log_softmax(1)
        own = choices[0]
        for entry in own.entries[3:-1]:
            thin = replace.apply_plan(Profile(model, x), {"1": entry}, factors="data-aware", resource="macs")
            divergence = float((logs.exp() * (logs - thin(x).log_softmax(1))).sum(1).mean())
            assert found[own.entries.index(entry)] == pytest.approx(divergence, rel=0.35, abs=1e-5)


def test_all_searches_fit_and_the_exact_one_is_worth_most(model, cards, choices, x):
    curves = energy(cards, choices)
    logs = logarithms(curves)
    for kept in (0.75, 0.5, 0.3):
        mapped = enc_map(cards, kept, options=choices, curves=curves)
        boxed = enc_model(cards, kept, options=choices, curves=curves)
        exact = exact_search(cards, kept, options=choices, values=logs)
        assert exact.gap == 0 and exact.value == pytest.approx(worth(choices, logs, exact.plan))
        for found in (mapped, boxed):
            assert found.value <= exact.value + 1e-9
        for found in (mapped, boxed, exact):
            assert cost_of(cards, found.plan) <= kept
            small = replace.apply_plan(Profile(model), found.plan, resource="macs")
            assert score.macs(small, (3, 8, 8)) == profile.plan_cost(cards, found.plan, "macs")
        assert boxed.value >= mapped.value - 1e-9 or cost_of(cards, mapped.plan) < 0.995 * kept


def test_map_puts_layers_on_one_level(cards, choices):
    curves = energy(cards, choices)
    found = enc_map(cards, 0.5, options=choices, curves=curves)
    at = {o.name: o.entries.index(found.plan.get(o.name)) for o in choices}
    reached = min(curves[name][j] for name, j in at.items())
    for own in choices:  # one rank less would fall below the level that all reach
        assert at[own.name] == 0 or curves[own.name][at[own.name] - 1] < reached
    # and the next level of any layer does not fit
    higher = min(curves[o.name][curves[o.name] > reached].min() for o in choices if (curves[o.name] > reached).any())
    plan = {o.name: o.entries[int(np.argmax(curves[o.name] >= higher))] for o in choices}
    assert cost_of(cards, {name: entry for name, entry in plan.items() if entry is not None}) > 0.5


def test_model_takes_the_best_combined_accuracy_of_its_box(cards, choices):
    curves = energy(cards, choices)
    flat = {o.name: np.linspace(0.5, 1, len(o.entries)) for o in choices}
    found = enc_model(cards, 0.5, options=choices, curves=curves, accuracy=flat, margin=0.02)

    def combined(plan):
        a_p = np.exp(worth(choices, logarithms(curves), plan))
        return a_p * cost_of(cards, plan) + np.exp(worth(choices, logarithms(flat), plan))

    scores = [combined(plan) for plan in found.ranked]
    assert len(scores) > 5 and scores == sorted(scores, reverse=True) and found.plan == found.ranked[0]
    assert all(0.98 * 0.5 <= cost_of(cards, plan) <= 0.5 for plan in found.ranked)
    coarse = enc_model(cards, 0.5, options=choices, curves=curves, density=30, accuracy=flat)
    assert coarse.candidates <= 30 and combined(coarse.plan) <= scores[0] + 1e-9


def test_layers_of_equal_cost_share_a_level():
    model = conftest.mlp((30, 30, 30, 30))
    cards = profile.read_layers(model, (30,))
    choices = rank_options(cards)
    curves = energy(cards, choices)
    for plan in enc_model(cards, 0.5, options=choices, curves=curves).ranked:
        at = [o.entries.index(plan.get(o.name)) for o in choices]
        level = max(curves[o.name][j - 1] if j else 0 for o, j in zip(choices, at))
        assert all(curves[o.name][j] > level - 1e-12 for o, j in zip(choices, at))


def test_inf_measures_and_takes_the_winner(cards, choices):
    box = enc_model(cards, 0.5, options=choices, curves=energy(cards, choices), margin=0.03)
    wanted = box.ranked[3]
    found = enc_inf(box, measure=lambda plan: float(plan == wanted), count=6)
    assert found.plan == wanted and found.evaluations == 6
    with pytest.raises(ValueError, match="count=0"):
        enc_inf(box, measure=lambda plan: 1.0, count=0)
    with pytest.raises(ValueError, match="not a finite number"):
        enc_inf(box, measure=lambda plan: np.nan, count=3)


def test_two_budgets_and_a_table_of_latencies(cards):
    both = rank_options(cards, ("macs", "parameters"))
    values = {o.name: np.sqrt(np.arange(len(o.entries))) for o in both}
    found = exact_search(cards, (0.6, 0.4), options=both, values=values, resource=("macs", "parameters"))
    assert cost_of(cards, found.plan) <= 0.6 and cost_of(cards, found.plan, "parameters") <= 0.4 and found.gap < 1e-6
    table = {"8": {4: 1.0, 16: 2.0, None: 3.0}, "10": {2: 1.0, None: 1.5}}
    timed = rank_options(cards, ("ms",), floor=0, tables={"ms": table})
    assert [(o.name, o.entries) for o in timed] == [("8", (4, 16, None)), ("10", (2, None))]
    values = {"8": np.array([0.0, 1.0, 1.5]), "10": np.array([0.0, 2.0])}
    assert exact_search(cards, [3.5], options=timed, values=values, resource=("ms",)).plan == {"8": 16}
    with pytest.raises(ValueError, match=r"no cost of the dense layer '8'"):
        rank_options(cards, ("ms",), floor=0, tables={"ms": {"8": {4: 1.0}}})


@pytest.mark.parametrize("find", [exact_search, enc_map, enc_model])
def test_a_budget_out_of_reach_says_the_smallest(cards, choices, find):
    curves = energy(cards, choices)
    logs = logarithms({name: y + 1 for name, y in curves.items()})
    given = {"options": choices} | ({"values": logs} if find is exact_search else {"curves": curves})
    with pytest.raises(ValueError, match="kept=0.01 of macs cannot be reached: the smallest possible is 0.1") as told:
        find(cards, 0.01, **given)
    smallest = float(str(told.value).split()[-1])
    least = {o.name: o.entries[0] for o in choices}
    assert smallest == pytest.approx(cost_of(cards, least), abs=1e-4)
    for kept in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="is not a share"):
            find(cards, kept, **given)


def test_dense_layers_count_towards_the_budget(model):
    cards = profile.read_layers(model, (3, 8, 8), dense=("0", "10"))
    choices = rank_options(cards)
    assert [o.name for o in choices] == ["3", "5", "8"]
    found = exact_search(cards, 0.5, options=choices, values=logarithms(energy(cards, choices)))
    assert score.macs(replace.apply_plan(Profile(model), found.plan, resource="macs"), (3, 8, 8)) <= 0.5 * score.macs(
        model, (3, 8, 8)
    )


def test_bad_input(cards, choices):
    with pytest.raises(ValueError, match="unknown resource 'time'"):
        rank_options(cards, ("time",))
    with pytest.raises(ValueError, match="multiple=0"):
        rank_options(cards, multiple=0)
    with pytest.raises(ValueError, match="floor=2"):
        rank_options(cards, floor=2)
    with pytest.raises(
        ValueError, match="no layer can be factored at less than its dense cost: 0: left dense on request"
    ):
        rank_options(profile.read_layers(nn.Sequential(nn.Linear(9, 9)), (9,), dense=("0",)))
    with pytest.raises(ValueError, match="there are no values for layer '0'"):
        exact_search(cards, 0.5, options=choices, values={})
    with pytest.raises(ValueError, match="2 budgets are given for 1 resources"):
        exact_search(cards, (0.5, 0.5), options=choices, values={})
    with pytest.raises(ValueError, match="none of the options of layer '8'"):
        worth(choices, logarithms(energy(cards, choices)), {"8": 40})
    mixed = rank_options(cards, mixed=True)
    with pytest.raises(ValueError, match="one scheme a layer"):
        enc_map(cards, 0.5, options=mixed, curves={})


def test_a_zero_layer_is_an_option_like_any():
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    model[0].weight.data.zero_()
    cards = profile.read_layers(model, (20,))
    choices = rank_options(cards)
    curves = energy(cards, choices)
    found = exact_search(cards, 0.5, options=choices, values=logarithms(curves))
    assert found.plan["0"] == choices[0].entries[0] and np.isfinite(found.value)
    errors = output_error(Profile(model, torch.randn(30, 20)), choices)
    assert (errors["0"] == 0).all()


def test_a_rank_that_pays_in_parameters_alone_is_measured(model, cards, x):
    # a strided spatial pair breaks even earlier in MACs than in parameters
    (own,) = [o for o in rank_options(cards, "parameters") if o.name == "3"]
    card = next(card for card in cards if card.name == "3")
    assert own.full["spatial"] > card.break_even("macs", "spatial")

    def measure(net):
        with torch.no_grad():
            return float((net(x) - model(x)).square().mean())

    found = measured(Profile(model), [own], measure=measure, factors="svd")["3"]
    assert (found[:-1] > 0).all() and found[-1] == 0


def test_options_and_budget_must_be_of_one_resource(cards, choices):
    curves = energy(cards, choices)
    with pytest.raises(ValueError, match="the options of layer '0' are for macs, the budget for parameters"):
        exact_search(cards, 0.5, options=choices, values=logarithms(curves), resource="parameters")
    with pytest.raises(ValueError, match="are for macs, the budget for parameters"):
        enc_map(cards, 0.5, options=choices, curves=curves, resource="parameters")
    with pytest.raises(ValueError, match="are for macs, the budget for macs, parameters"):
        exact_search(cards, 0.5, options=choices, values=logarithms(curves), resource=("macs", "parameters"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"curves": {}}, "no values for layer '0'"),
        ({"accuracy": {"0": [1.0]}}, "layer '0' needs"),
        ({"space": 0}, "space=0"),
        ({"margin": -1}, "margin=-1"),
        ({"density": 0}, "density=0"),
        ({"top": 0}, "top=0"),
    ],
)
def test_enc_refuses_what_it_cannot_use(cards, choices, given, words):
    own = {"options": choices, "curves": energy(cards, choices)} | given
    with pytest.raises(ValueError, match=words):
        enc_model(cards, 0.5, **own)


def test_no_plan_is_ranked_twice_and_the_map_is_in_the_box():
    model = conftest.mlp((30, 30, 30, 30, 30))
    cards = profile.read_layers(model, (30,))
    choices = rank_options(cards)
    curves = energy(cards, choices)
    for density in (1_000_000, 3):
        for kept in (0.3, 0.5, 0.7):
            found = enc_model(cards, kept, options=choices, curves=curves, density=density, margin=0.2, top=500)
            assert len({tuple(plan.items()) for plan in found.ranked}) == len(found.ranked)
            assert enc_map(cards, kept, options=choices, curves=curves).plan in found.ranked


def test_ranks_are_measured_evenly_in_the_logarithm_and_joined_by_pchip(model):
    from scipy.interpolate import PchipInterpolator

    cards = profile.read_layers(nn.Sequential(nn.Linear(300, 300)), (300,))
    (own,) = rank_options(cards, floor=0)
    ranks = measured_ranks(own, 4)[None]
    assert ranks == [1, 5, 28, 149]
    network = nn.Sequential(nn.Linear(300, 300))
    seen = {}

    def measure(net):
        rank = net[0][0].out_features if isinstance(net[0], nn.Sequential) else 300
        return seen.setdefault(rank, float(np.sqrt(rank)))

    found = measured(Profile(network), [own], measure=measure, factors="svd", points=4)["0"]
    curve = PchipInterpolator(ranks, np.sqrt(ranks))
    assert np.allclose(found[:-1], curve(np.arange(1, 150))) and found[-1] == np.sqrt(300)


def test_fisher_loss_of_a_convolution_is_the_divergence_where_positions_are_alone():
    # one output position, so that nothing is left out but higher orders
    torch.manual_seed(0)
    for groups in (1, 2):
        model = nn.Sequential(nn.Conv2d(8, 12, 3, groups=groups), nn.Flatten(), nn.Linear(12, 4)).eval()
        x = torch.randn(200, 8, 3, 3)
        model[2].weight.data *= 0.3
        choices = rank_options(profile.read_layers(model, (8, 3, 3), dense=("2",)), mixed=True, floor=0)
        metric = statistics.fisher(model, ["0"], x)
        found = output_error(Profile(model, x), choices, points=5, metric=metric)["0"]
        with torch.no_grad():
            logs = model(x).log_softmax(1)
            for scheme, ranks in measured_ranks(choices[0], 5).items():
                entry = (scheme, ranks[len(ranks) // 2])
                thin = replace.apply_plan(Profile(model, x), {"0": entry}, factors="data-aware", resource="macs")
                divergence = float((logs.exp() * (logs - thin(x).log_softmax(1))).sum(1).mean())
                assert found[choices[0].entries.index(entry)] == pytest.approx(divergence, rel=0.3)


def test_model_counts_what_stays_dense(model, x):
    cards = profile.read_layers(model, (3, 8, 8), dense=("0", "10"))
    choices = rank_options(cards)
    curves = energy(cards, choices)
    found = enc_model(cards, 0.5, options=choices, curves=curves)
    assert found.note == "" and all(0.5 * 0.995 <= cost_of(cards, plan) <= 0.5 for plan in found.ranked)
    # the box ends where the maps of 90 and 110 % of the whole budget end
    wide = enc_model(cards, 0.5, options=choices, curves=curves, space=0.1, margin=0.9, top=10**6)
    low, high = (enc_map(cards, 0.5 * share, options=choices, curves=curves).plan for share in (0.9, 1.1))
    for own in choices:
        at = [own.entries.index(plan.get(own.name)) for plan in wide.ranked]
        assert (min(at), max(at)) == tuple(own.entries.index(end.get(own.name)) for end in (low, high))
    assert (
        len(wide.ranked) > 30
        and len(enc_model(cards, 0.5, options=choices, curves=curves, margin=0.9, top=3).ranked) == 3
    )
    # a map that spends the budget to the last bit fits
    exactly = enc_map(cards, cost_of(cards, high), options=choices, curves=curves)
    assert exactly.plan == high


@pytest.mark.parametrize("count", [16, 100])
def test_model_in_many_layers_holds_few_plans(count):
    torch.manual_seed(0)
    deep = nn.Sequential(*[nn.Linear(10 + 2 * i, 12 + 2 * i) for i in range(count)])
    cards = profile.read_layers(deep, (10,))
    choices = rank_options(cards)
    curves = energy(cards, choices)
    found = enc_model(cards, 0.5, options=choices, curves=curves, density=20_000)
    assert found.candidates <= 20_000 and "groups of layers stay as ENC-Map has them" in found.note
    assert cost_of(cards, found.plan) <= 0.5
    assert found.value >= enc_map(cards, 0.5, options=choices, curves=curves).value - 1e-9 and len(found.ranked) > 1


def test_curves_that_fall_are_said_and_what_is_no_curve_is_refused(cards, choices):
    curves = energy(cards, choices)
    assert enc_map(cards, 0.5, options=choices, curves=curves).note == ""
    falling = {name: curve[::-1].copy() for name, curve in curves.items()}
    said = "values fall somewhere as costs rise in 5 of 5 layers"
    assert said in enc_map(cards, 0.5, options=choices, curves=falling).note
    assert said in enc_model(cards, 0.5, options=choices, curves=curves, accuracy=falling).note
    infinite = curves | {"3": np.full_like(curves["3"], np.inf)}
    for find, what in ((enc_map, "curves"), (enc_model, "curves"), (exact_search, "values")):
        with pytest.raises(ValueError, match="layer '3' needs .* no NaN or .inf"):
            find(cards, 0.5, options=choices, **{what: infinite})
    with pytest.raises(ValueError, match="no plans to measure; pass what enc_model returned"):
        enc_inf(enc_map(cards, 0.5, options=choices, curves=curves), measure=lambda plan: 1.0)


def test_errors_beyond_one_leave_nothing(model, choices, x):
    assert from_error({"a": np.array([1.5, 0.0])})["a"].tolist() == [-np.inf, 0.0]
    with pytest.raises(ValueError, match="the metric has nothing for layer '0'"):
        output_error(Profile(model, x), choices, metric={})
