"""Rank rules against hand-made spectra, brute force, and noise of a known rank."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank_utils.factors import replace
from lowrank_utils.network import profile
from lowrank_utils.network.profile import Profile
from lowrank_utils.ranks import rules

SPECTRA = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 100.0)), min_size=1, max_size=15)
SHARES = st.floats(0.01, 1.0)


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
    for layer, rate in zip(model[::2], (0.8, 0.9, 0.99)):  # spectra that fall at different speeds
        u, s, vt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        layer.weight.data = u * rate ** torch.arange(len(s)) @ vt
    return model, profile.read_layers(model, (60,))


def test_ranks_by_hand():
    s = [3.0, 2.0, 1.0]  # p = 9/14, 4/14, 1/14
    assert [rules.rank(s, t, "energy") for t in (0.1, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]
    p = np.array([9, 4, 1]) / 14
    entropy = -(p * np.log(p)).sum()
    assert np.isclose(rules.spectral_entropy(s), entropy)
    assert [rules.rank(s, t, "entropy") for t in (0.34, 0.35, 0.77, 0.78)] == [1, 2, 2, 3]
    assert [rules.rank(s, t, "fixed") for t in (0.3, 0.34, 2 / 3, 0.7)] == [1, 2, 2, 3]


@settings(deadline=None)
@given(SPECTRA, SHARES, st.sampled_from(["energy", "entropy"]))
def test_rank_is_the_smallest_that_reaches_the_threshold(s, t, rule):
    r = rules.rank(s, t, rule)
    p = rules.energy_shares(s)
    if not any(s):
        assert r == 0
        return
    terms = p if rule == "energy" else np.array([-x * np.log(x) if x > 0 else 0 for x in p])
    if not terms.sum():
        assert r == 1
        return
    assert terms[:r].sum() >= t * terms.sum() - 1e-9
    assert r == 1 or terms[: r - 1].sum() < t * terms.sum() + 1e-9


@given(SPECTRA, SHARES, SHARES, st.sampled_from(rules.RULES), st.floats(1e-3, 1e3))
def test_rank_rises_with_the_threshold_and_ignores_scale(s, low, high, rule, scale):
    low, high = sorted((low, high))
    assert rules.rank(s, low, rule) <= rules.rank(s, high, rule) <= len(s)
    # thresholds a hair from a level may round either way after scaling
    if np.abs(rules.levels(s, rule) - high).min() > 1e-9:
        assert rules.rank(np.array(s) * scale, high, rule) == rules.rank(s, high, rule)


@given(SPECTRA, SHARES)
def test_entropy_never_asks_for_fewer_components_than_energy(s, t):
    assert rules.rank(s, t, "entropy") >= rules.rank(s, t, "energy")


def test_effective_rank_and_odd_spectra():
    assert np.isclose(rules.effective_rank([2.0] * 7), 7)
    assert np.isclose(rules.effective_rank([5.0, 0.0, 0.0]), 1)
    assert rules.effective_rank([0.0, 0.0]) == 0
    assert rules.rank([5.0, 0.0, 0.0], 1.0, "entropy") == 1
    assert rules.rank([5.0, 0.0, 0.0], 1.0, "energy") == 1
    assert rules.rank([1e-200, 1e-200], 0.9, "energy") == 2  # squares would underflow


@pytest.mark.parametrize("true_rank, sigma", [(1, 0.2), (5, 0.2), (12, 0.1)])
def test_evbmf_finds_the_rank_under_noise(true_rank, sigma):
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(80, true_rank)) @ rng.normal(size=(true_rank, 120))
    noisy = signal + sigma * rng.normal(size=signal.shape)
    s = np.linalg.svd(noisy, compute_uv=False)
    assert rules.evbmf_rank(s, (80, 120)) == rules.evbmf_rank(s, (120, 80)) == true_rank
    assert rules.evbmf_rank(37 * s, (80, 120)) == true_rank


def test_evbmf_on_odd_matrices():
    rng = np.random.default_rng(1)
    noise = np.linalg.svd(rng.normal(size=(50, 70)), compute_uv=False)
    assert rules.evbmf_rank(noise, (50, 70)) == 0
    assert rules.evbmf_rank(np.zeros(4), (4, 9)) == 0
    exact = np.array([3.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    assert rules.evbmf_rank(exact, (6, 9)) == 2
    with pytest.raises(ValueError, match="has 6 singular values, not 2"):
        rules.evbmf_rank([2.0, 1.0], (6, 9))


@settings(deadline=None, max_examples=30)
@given(st.floats(0.08, 1.0), st.sampled_from(rules.RULES), st.sampled_from(profile.RESOURCES))
def test_plans_for_a_size_fit_it_and_are_real(kept, rule, resource):
    model, cards = network()
    plan = rules.plan_at_size(cards, kept, rule=rule, resource=resource)
    dense = profile.plan_cost(cards, {}, resource)
    cost = profile.plan_cost(cards, plan, resource)
    assert cost <= kept * dense + 1e-9
    # the smallest step is one rank of the last layer (40 weights): no plan leaves more than the larger steps unused
    assert cost >= kept * dense - 110
    replace.apply_plan(Profile(model), plan, resource="parameters")


def test_a_plan_for_a_size_follows_the_rule():
    _, cards = network()
    budget = 0.3
    sizes = {}
    for rule in ("energy", "entropy", "fixed"):
        plan = rules.plan_at_size(cards, budget, rule=rule, resource="parameters")
        # the plan of one threshold that fits, plus at most a few components more
        fitting = [
            candidate
            for t in np.linspace(0.01, 1, 400)
            if profile.plan_cost(
                cards,
                candidate := rules.threshold_plan(cards, threshold=float(t), rule=rule, resource="parameters"),
                "parameters",
            )
            <= budget * 3940
        ][-1]
        assert all(plan[name] >= r for name, r in fitting.items())
        sizes[rule] = plan
    assert sizes["energy"] != sizes["fixed"]
    assert sizes["energy"]["0"] < sizes["fixed"]["0"]  # the steepest spectrum gives up most


def test_dense_fallback_is_told():
    _, cards = network()
    table = rules.rank_table(cards, threshold=1.0, rule="fixed", resource="parameters").set_index("layer")
    assert set(table["kept_as"]) == {"dense"}
    assert table.loc["0", "why"] == "rank 40 costs no less than the dense layer (break-even 23)"
    assert rules.threshold_plan(cards, threshold=1.0, rule="fixed", resource="parameters") == {}
    # keeping everything is the dense network
    assert rules.plan_at_size(cards, 1.0, rule="energy", resource="parameters") == {}


def test_zero_layer_gets_rank_zero_and_still_runs():
    model, _ = network()
    model[2].weight.data.zero_()
    cards = profile.read_layers(model, (60,))
    for rule in rules.RULES:
        plan = rules.threshold_plan(cards, threshold=0.3, rule=rule, resource="parameters")
        assert plan["2"] == 0
        smaller = replace.apply_plan(Profile(model), plan, resource="parameters")
        assert torch.isfinite(smaller(torch.randn(3, 60))).all()
        assert profile.plan_cost(cards, plan, "parameters") == sum(p.numel() for p in smaller.parameters())
    assert rules.threshold_plan(cards, rule="evbmf", resource="parameters")["2"] == 0
    assert rules.plan_at_size(cards, 0.3, resource="parameters")["2"] == 0


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5])
def test_adaptive_finds_the_smallest_threshold_and_records_every_evaluation(drop):
    _, cards = network()
    dense = profile.plan_cost(cards, {}, "parameters")
    calls = []

    def accuracy(plan):  # rises with size
        calls.append(plan)
        return profile.plan_cost(cards, plan, "parameters") / dense

    search = rules.adaptive_threshold(cards, measure=accuracy, drop=drop, resource="parameters")
    assert search.dense_accuracy == 1 and search.accuracy >= 1 - drop - 1e-9
    assert len(search.evaluations) == len(calls) - 1
    assert list(search.evaluations["within"]) == [bool(a >= 1 - drop - 1e-9) for a in search.evaluations["accuracy"]]
    # brute force over all thresholds: nothing smaller is within the drop
    smallest = min(
        cost
        for t in np.unique(np.concatenate([rules.levels(c.singular_values, "energy") for c in cards]))
        if (
            cost := profile.plan_cost(
                cards,
                rules.threshold_plan(cards, threshold=float(t), rule="energy", resource="parameters"),
                "parameters",
            )
        )
        / dense
        >= 1 - drop - 1e-9
    )
    assert profile.plan_cost(cards, search.plan, "parameters") == smallest


def test_adaptive_when_nothing_can_go():
    _, cards = network()
    search = rules.adaptive_threshold(
        cards, measure=lambda plan: 1.0 if plan == {} else 0.0, drop=0.01, resource="parameters"
    )
    assert search.plan == {} and search.accuracy == 1.0


def test_bad_input_is_refused_in_words():
    _, cards = network()
    for value in (0, -0.1, 1.01, float("nan"), "0.9", True, None):
        with pytest.raises(ValueError, match=r"threshold=.* is not a share in \(0, 1\]"):
            rules.rank([1.0], value)
        with pytest.raises(ValueError, match="kept="):
            rules.plan_at_size(cards, value, resource="parameters")
    with pytest.raises(ValueError, match="unknown rule 'best'; known: energy, entropy, fixed"):
        rules.rank([1.0], 0.5, "best")
    for spectrum in ([], [[1.0]], [1.0, float("nan")], [-1.0], [float("inf")]):
        with pytest.raises(ValueError, match="singular values must be"):
            rules.rank(spectrum, 0.5)
    with pytest.raises(ValueError, match="kept=0.001 of parameters cannot be reached: rank 1 in every layer keeps"):
        rules.plan_at_size(cards, 0.001, resource="parameters")
    with pytest.raises(ValueError, match="drop -0.1"):
        rules.adaptive_threshold(cards, measure=lambda plan: 1.0, drop=-0.1, resource="parameters")


def test_same_ranks_sees_a_change_of_one_component():
    model, _ = network()
    rounded, _ = network()
    for layer in rounded[::2]:
        layer.weight.data = layer.weight.data.half().float()
    assert rules.same_ranks(model, rounded, (60,))
    other, _ = network()
    u, s, vt = torch.linalg.svd(other[0].weight.detach(), full_matrices=False)
    s[3] *= 1.5
    other[0].weight.data = u * s @ vt
    assert not rules.same_ranks(model, other, (60,))


def test_components_of_zero_are_never_bought():
    model = nn.Sequential(nn.Linear(60, 40))
    model[0].weight.data = torch.randn(40, 3) @ torch.randn(3, 60)
    cards = profile.read_layers(model, (60,))
    for kept in (0.5, 1.0):
        assert rules.plan_at_size(cards, kept, resource="parameters") == {"0": 3}


def test_where_no_plan_passes_the_dense_network_is_the_answer():
    model = nn.Sequential(nn.Linear(60, 40))
    model[0].weight.data = torch.randn(40, 3) @ torch.randn(3, 60)
    cards = profile.read_layers(model, (60,))
    search = rules.adaptive_threshold(cards, measure=lambda plan: 1.0 if plan == {} else 0.2, resource="parameters")
    assert search.plan == {} and search.accuracy == 1.0
    with pytest.raises(ValueError, match="is nan, not a number to compare by"):
        rules.adaptive_threshold(cards, measure=lambda plan: float("nan") if plan else 1.0, resource="parameters")
    with pytest.raises(ValueError, match="drop '0.01' is not a share"):
        rules.adaptive_threshold(cards, measure=lambda plan: 1.0, drop="0.01", resource="parameters")


def test_a_rule_without_its_threshold_is_refused():
    cards = profile.read_layers(nn.Sequential(nn.Linear(6, 5)), (6,))
    with pytest.raises(ValueError, match=r"threshold=None is not a share in \(0, 1\], which rule 'entropy' needs"):
        rules.threshold_plan(cards, rule="entropy")


def test_a_network_without_cards_is_said():
    assert rules.threshold_plan([], threshold=0.9, resource="parameters") == {}
    with pytest.raises(ValueError, match="these 0 layers hold no parameters"):
        rules.least_kept([], "parameters")


def test_thresholds_that_rounding_lifts_still_count_as_reached():
    assert rules.rank([1.0] * 10, 0.1 + 0.2, "fixed") == 3


def test_evbmf_follows_the_published_free_energy_near_its_threshold():
    # theorem 2 of Nakajima et al. 2013 on a fine grid of the noise variance, signals as strong as the noise edge
    rng = np.random.default_rng(0)
    small, large = 20, 40
    alpha = small / large
    tau_bar = 2.5129 * np.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)

    def free_energy(variance, squares):
        total = 0.0
        for value in squares / (large * variance):
            total += value - np.log(value)
            if value > x_bar:
                half = value - (1 + alpha)
                tau = (half + np.sqrt(half**2 - 4 * alpha)) / 2
                total += np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
        return total

    differing = 0
    for _ in range(20):
        signal = rng.normal(size=(small, 4)) @ rng.normal(size=(4, large)) * rng.uniform(0.3, 0.9)
        s = np.linalg.svd(signal + rng.normal(size=(small, large)), compute_uv=False)
        tail = int(np.ceil(small / (1 + alpha))) - 1
        low = max(s[tail] ** 2 / (large * x_bar), (s[tail:] ** 2).mean() / large)
        grid = np.geomspace(low, (s**2).sum() / (small * large), 4000)
        best = grid[np.argmin([free_energy(v, s**2) for v in grid])]
        differing += rules.evbmf_rank(s, (small, large)) != int((s**2 > large * best * x_bar).sum())
    assert differing == 0
