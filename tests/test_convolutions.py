"""Whole networks with convolutions, batch norms and shortcuts: plans, costs, factors of every kind, and what is left alone."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lowrank_utils.factors import replace, sequential, svd
from lowrank_utils.factors.sequential import sweep
from lowrank_utils.network import graph, profile, statistics, unfold
from lowrank_utils.network.graph import followed_by
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import Profile
from lowrank_utils.network.walk import Walk
from lowrank_utils.ranks import components, rules, units


class Block(nn.Module):
    def __init__(self, d_in, d_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(d_in, d_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(d_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1 or d_in != d_out:
            self.shortcut = nn.Sequential(nn.Conv2d(d_in, d_out, 1, stride, bias=False), nn.BatchNorm2d(d_out))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


class Residual(nn.Module):
    """Two blocks of 12 and 16 channels, with running statistics that are not the first ones."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 12, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.block1, self.block2 = Block(12, 12, 1), Block(12, 16, 2)
        self.linear = nn.Linear(16, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.3, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
        self.train()(images(200, seed))
        self.eval()

    def forward(self, x):
        x = self.block2(self.block1(F.relu(self.bn1(self.conv1(x)))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def images(count=100, seed=0):
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed)).cumsum(2).cumsum(3) / 5


@pytest.fixture(scope="module")
def net():
    return Residual()


def counted(model):
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, 10, 10))
    return counter.get_total_flops() // 2


def weights(model):
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for m in norms for p in m.parameters())


def error(small, net, x):
    with torch.inference_mode():
        return float((small(x) - net(x)).square().mean())


@pytest.mark.parametrize("scheme", ["spatial", "channel", "input"])
@pytest.mark.parametrize("rule", [*rules.RULES, "evbmf"])
def test_every_rule_plans_convolutions_and_the_ledger_holds(net, scheme, rule):
    cards = profile.read_layers(net, (3, 10, 10), dense=("conv1", "linear"), scheme=scheme)
    assert [c.scheme for c in cards if not c.reason].count(scheme) == 4 + (
        scheme == "channel"
    )  # the 1 x 1 shortcut has its own
    for resource in profile.RESOURCES:
        if rule == "evbmf":
            plan = rules.threshold_plan(cards, rule=rule, resource=resource)
        else:
            plan = rules.plan_at_size(cards, 0.5, rule=rule, resource=resource)
            total = profile.plan_cost(cards, {}, resource)
            assert 0.4 * total < profile.plan_cost(cards, plan, resource) <= 0.5 * total
        small = replace.apply_plan(Profile(net), plan, resource=resource)
        assert profile.plan_cost(cards, plan, "parameters") == weights(small)
        assert profile.plan_cost(cards, plan, "macs") == counted(small)


@pytest.mark.parametrize("rule", components.COMPONENT_RULES)
def test_components_of_convolutions_are_ranked_over_the_network(net, rule):
    cards = profile.read_layers(net, (3, 10, 10), dense=("conv1", "linear"))
    names = [card.name for card in cards if not card.reason]
    bases = replace.decompose_layers(Profile(net, images()), names, "data-aware")
    moments = statistics.collect_moments(net, names, images())
    plan = components.components_plan(cards, 0.4, rule=rule, resource="macs", factors=bases, moments=moments)
    assert 0.3 < profile.plan_cost(cards, plan, "macs") / profile.plan_cost(cards, {}, "macs") <= 0.4
    assert counted(replace.apply_plan(Profile(net), plan, factors=bases, resource="macs")) == profile.plan_cost(
        cards, plan, "macs"
    )


def test_units_first_and_components_second_also_in_a_residual_network(net):
    small = units.units_then_components(Profile(net, images(), dense=("conv1", "linear")), 0.5, units=0.8)
    assert weights(small) <= 0.5 * weights(net)
    assert error(small, net, images(seed=1)) < error(nn.Sequential(net, nn.Linear(5, 5)), net, images(seed=1))


FULL = {
    "block1.conv1": ("spatial", 36),
    "block1.conv2": ("input", 12),
    "block2.conv1": ("channel", 16),
    "block2.shortcut.0": 12,
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_sweep_at_full_rank_changes_nothing(net, relu, weighted):
    small = sweep(Profile(net, images()), FULL, relu=relu, weighted=weighted, iterations=2)
    fresh = images(seed=1)
    assert torch.allclose(small(fresh), net(fresh), atol=1e-3)
    assert isinstance(small.block1.conv1, nn.Sequential) and small.block1.conv1.second.bias is None


PLAN = {
    "block1.conv1": 6,
    "block1.conv2": ("channel", 4),
    "block2.conv1": ("input", 5),
    "block2.conv2": 6,
    "block2.shortcut.0": 3,
}


def test_each_kind_of_factors_loses_less_than_the_one_before(net):
    x, fresh = images(300), images(300, seed=1)
    kinds = ("svd", "data-aware", "sequential")
    losses = [
        error(replace.apply_plan(Profile(net, x), PLAN, factors=kind, resource="macs"), net, fresh) for kind in kinds
    ]
    assert losses[1] < 0.5 * losses[0] and losses[2] < 0.8 * losses[1]


def test_the_shortcut_takes_part_of_the_target(net, monkeypatch):
    x, fresh, plan = images(300), images(300, seed=1), {"conv1": ("channel", 5)}  # what the shortcut carries is damaged

    def after_the_first_block(model):
        return nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.block1)

    def lost():
        return error(after_the_first_block(sweep(Profile(net, x), plan)), after_the_first_block(net), fresh)

    swept = lost()
    blind = graph.Followers
    monkeypatch.setattr(graph, "followed_by", lambda *a: {k: blind(v.norm) for k, v in followed_by(*a).items()})
    assert swept < 0.8 * lost()


def test_the_scale_of_the_batch_norm_weighs_the_errors(net):
    loud = Residual()
    with torch.no_grad():
        loud.block1.bn1.weight[:6] = 0.01
    x, fresh = images(300), images(300, seed=1)
    swept = sweep(Profile(loud, x), {"block1.conv1": 4}, refit_dense=False)
    plain = {
        "block1.conv1": svd.decompose_layer(
            loud.block1.conv1, "data-aware", statistics.collect_moments(loud, ["block1.conv1"], x)["block1.conv1"]
        )
    }
    assert error(swept, loud, fresh) < 0.5 * error(
        replace.apply_plan(Profile(loud), {"block1.conv1": 4}, factors=plain, resource="parameters"), loud, fresh
    )


def test_what_follows_each_layer(net):
    found = followed_by(net)
    assert list(found) == [
        "conv1",
        "block1.conv1",
        "block1.conv2",
        "block2.conv1",
        "block2.conv2",
        "block2.shortcut.0",
        "linear",
    ]
    assert [f.norm for f in found.values()] == [
        "bn1",
        "block1.bn1",
        "block1.bn2",
        "block2.bn1",
        "block2.bn2",
        "block2.shortcut.1",
        None,
    ]
    assert [f.other is not None for f in found.values()] == [False, False, True, False, True, True, False]
    assert [f.relu for f in found.values()] == [True] * 6 + [False]


def test_the_same_answer_from_kept_and_from_recomputed_activations(net):
    x = images(90)
    answers = [sweep(Profile(net, x), PLAN, memory=m, batch_size=30)(x) for m in (0, 3e5, 1e9)]
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    assert torch.allclose(sweep(Profile(net, x), PLAN, batch_size=13)(x), answers[0], atol=2e-3)


def test_a_bias_that_has_no_place_goes_into_the_batch_norm(net):
    for kind in ("data-aware", "sequential"):
        small = replace.apply_plan(Profile(net, images()), {"block1.conv1": 3}, factors=kind, resource="macs")
        assert small.block1.conv1.second.bias is None
        assert not torch.equal(small.block1.bn1.running_mean, net.block1.bn1.running_mean)
        assert torch.equal(small.block1.bn1.weight, net.block1.bn1.weight)
    caught = {}
    for model in (net, small):
        hook = model.block1.bn1.register_forward_hook(
            lambda module, inputs, out, m=model: caught.__setitem__(m, out.clone())
        )
        model(images())
        hook.remove()
    assert torch.allclose(caught[net].mean((0, 2, 3)), caught[small].mean((0, 2, 3)), atol=1e-3)


def test_grouped_convolutions_are_swept_and_depthwise_ones_refitted():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 12, 3, 1, 1, groups=2),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, 1, 1, groups=12),
        nn.ReLU(),
        nn.Conv2d(12, 6, 3, 2),
    ).eval()
    x, fresh = torch.randn(2, 200, 4, 9, 9).cumsum(3)
    plan = {"0": ("channel", 2)}
    swept, left = sweep(Profile(model, x), plan), sweep(Profile(model, x), plan, refit_dense=False)
    alone = replace.apply_plan(Profile(model, x), plan, factors="data-aware", resource="parameters")
    assert error(swept, model, fresh) < 0.9 * error(left, model, fresh) < error(alone, model, fresh)
    assert not torch.equal(swept[2].weight, model[2].weight) and swept[2].groups == 12
    full = sweep(Profile(model, x), {"0": ("spatial", 6), "4": ("input", 12)})
    assert torch.allclose(full(fresh), model(fresh), atol=1e-3)


class Deciding(nn.Module):
    """Control flow that torch.fx cannot follow."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        if x.sum() > 0:
            x = 2 * x
        return self.b(x).mean((2, 3))


def test_a_network_with_control_flow_is_swept_with_layer_targets_and_says_so(caplog):
    model, x = Deciding(), images(200)
    with caplog.at_level(logging.WARNING):
        small = sweep(Profile(model, x), {"a": 3, "b": 6})
    assert "cannot be traced by torch.fx" in caplog.text and "its own outputs as target" in caplog.text
    assert error(small, model, x) < error(
        replace.apply_plan(Profile(model, x), {"a": 3, "b": 6}, factors="data-aware", resource="parameters"), model, x
    )
    assert followed_by(model) == {}


def test_bad_input_is_refused_in_words(net):
    for plan, words in [
        (
            {"block1.conv1": ("tucker", 3)},
            "layer 'block1.conv1': scheme 'tucker' is not one of this layer, which has spatial, channel, input",
        ),
        ({"block1.conv1": ("spatial", 37)}, "rank 37 of layer 'block1.conv1' is not a whole number from 1 to 36"),
        ({"block1.conv1": ("spatial", 3, 4)}, "is no entry of a plan"),
        ({"block2.shortcut.0": ("spatial", 3)}, "which has channel"),
        ({"bn1": 3}, "layer 'bn1' of type BatchNorm2d cannot be factored"),
        ({"conv9": 3}, "a layer 'conv9' that the model does not have"),
    ]:
        with pytest.raises(ValueError, match=words):
            replace.apply_plan(Profile(net), plan, resource="parameters")
    with pytest.raises(ValueError, match="unknown scheme 'tucker'; known: spatial, channel, input"):
        profile.read_layers(net, (3, 10, 10), scheme="tucker")
    with pytest.raises(ValueError, match="scheme= names a layer that the model does not have: conv9"):
        profile.read_layers(net, (3, 10, 10), scheme={"conv9": "channel"})
    x = images(20)
    for kind in ("data-aware", "sequential"):
        with pytest.raises(ValueError, match=r"cannot take calibration images of shape \(2, 10, 10\)"):
            replace.apply_plan(Profile(net, x[:, :2]), PLAN, factors=kind, resource="parameters")
        with pytest.raises(ValueError, match="calibration images hold NaN"):
            replace.apply_plan(Profile(net, torch.full_like(x, torch.nan)), PLAN, factors=kind, resource="parameters")
        with pytest.raises(ValueError, match="at least one input"):
            replace.apply_plan(Profile(net, x[:0]), PLAN, factors=kind, resource="parameters")
        one = replace.apply_plan(Profile(net, x[:1]), PLAN, factors=kind, resource="macs")  # one image is many patches
        assert torch.isfinite(one(x)).all()
    with pytest.raises(ValueError, match="weights are torch.float16; sequential factors need float32 or float64"):
        replace.apply_plan(Profile(Residual().half(), x), PLAN, factors="sequential", resource="parameters")
    bases = replace.decompose_layers(Profile(net), {"block1.conv1": "channel"})
    with pytest.raises(
        ValueError, match="the plan wants layer 'block1.conv1' in scheme 'spatial', its factors are in 'channel'"
    ):
        replace.apply_plan(Profile(net), {"block1.conv1": 3}, factors=bases, resource="parameters")
    with pytest.raises(ValueError, match="take no option iterations; those of a sweep do"):
        replace.apply_plan(Profile(net), {"block1.conv1": 3}, iterations=3, resource="parameters")
    twice = nn.Sequential(net.block1, net.block1)
    with pytest.raises(ValueError, match="layer '0.conv1' is used 2 times in one pass"):
        sweep(Profile(twice, torch.randn(4, 12, 10, 10)), {"0.conv1": 3})
    half = replace.apply_plan(Profile(Residual().half()), {"block1.conv1": ("spatial", 3)}, resource="parameters")
    assert half.block1.conv1.first.weight.dtype == torch.float16


def test_a_network_without_a_layer_to_factor():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU())
    cards = profile.read_layers(model, (3, 10, 10))
    assert [c.reason for c in cards] == ["a depthwise convolution: each channel is one small kernel"]
    assert (
        profile.plan_cost(cards, {}, "parameters") == 30
        and rules.threshold_plan(cards, threshold=0.9, resource="parameters") == {}
    )
    for kind in ("svd", "data-aware", "sequential"):
        assert torch.equal(
            replace.apply_plan(Profile(model, images()), {}, factors=kind, resource="parameters")(images()),
            model(images()),
        )


def test_a_model_in_training_mode_is_used_in_eval_mode_and_put_back(net):
    model = Residual().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    small = replace.apply_plan(Profile(model, images()), PLAN, factors="sequential", resource="macs")
    assert model.training and small.training and small.block1.conv1.first.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(
        small.eval()(images()),
        replace.apply_plan(Profile(Residual(), images()), PLAN, factors="sequential", resource="macs")(images()),
    )


def test_stored_macs_of_other_layers_are_counted_by_torch():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    cards = profile.read_layers(model, (3, 10, 10))
    assert cards[0].reason == "a layer of type ConvTranspose2d is not factored"
    assert sum(card.macs for card in cards) == counted(model)
    assert np.all([card.parameters for card in cards] == np.array([3 * 4 * 9 + 4, 4 * 2 * 9 + 2]))


def test_the_spectrum_of_a_grouped_convolution_is_the_root_mean_square_over_its_groups():
    layer = nn.Conv2d(4, 6, 3, groups=2)
    with torch.no_grad():
        layer.weight[:3] *= 5
    seen = profile.read_layers(nn.Sequential(layer), (4, 8, 8), scheme="channel")[0].singular_values
    parts = torch.linalg.svdvals(layer.weight.detach().double().reshape(2, 3, 18)).numpy()
    assert np.allclose(seen, np.sqrt((parts**2).mean(0)))


def test_a_dead_unit_does_not_spoil_the_others():
    # its batch norm divides by sqrt(eps): a gain of hundreds on an output that is always zero
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
    x = images(60)
    model.train()(x)
    with torch.no_grad():
        model[0].weight[0] = model[1].running_mean[0] = model[1].running_var[0] = 0
    model.eval()
    for steps in (1, 2, 10):
        small = sweep(Profile(model, x), {"0": 9}, relu=True, refit_dense=False, iterations=steps)  # full rank
        assert torch.allclose(small(x), model(x), atol=1e-5)
    plain, relu = (
        error(sweep(Profile(model, x), {"0": 4}, relu=r, refit_dense=False)[:3], model[:3], x) for r in (False, True)
    )
    assert relu < plain


def test_a_dead_unit_leaves_the_repair_of_a_shortcut_as_it_is(net):
    x, plan, lost = images(), {"conv1": ("channel", 5)}, []
    for dead in (False, True):
        other = Residual()
        with torch.no_grad():
            other.block1.conv2.weight[0] = other.block1.bn2.running_mean[0] = other.block1.bn2.bias[0] = 0
            other.block1.bn2.running_var[0] = 0 if dead else 1
        front = [nn.Sequential(m.conv1, m.bn1, nn.ReLU(), m.block1) for m in (sweep(Profile(other, x), plan), other)]
        lost.append(error(*front, x))
    assert lost[1] < 1.05 * lost[0]


class Grouped(nn.Module):
    """A grouped convolution, a batch norm of unequal scales, a shortcut and a ReLU: all that the target is made of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.c0, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.n, self.l = nn.BatchNorm2d(8), nn.Linear(8, 3)
        with torch.no_grad():
            self.n.weight.copy_(torch.linspace(0.2, 2, 8))
            self.n.bias.normal_()
            self.n.running_mean.normal_()
            self.n.running_var.uniform_(0.5, 2)

    def forward(self, x):
        h = F.relu(self.c0(x))
        return self.l(F.relu(self.n(self.c(h)) + h).mean((2, 3)))


def by_hand(model, h0, h1, rank, steps):
    # the majorise-minimise steps (the first two are without momentum) of model.c in one piece, without walk or batches
    g = model.n.weight / (model.n.running_var + model.n.eps).sqrt()
    offset, floor = model.n.bias - g * model.n.running_mean, 0.05 * g.square().mean().sqrt()
    u, metric = g / (g**2 + floor**2), torch.diag(g**2 + floor**2)

    def rows(v):
        return v.permute(0, 2, 3, 1).reshape(-1, 8)

    x = F.unfold(h1, 3, padding=1).transpose(1, 2).reshape(-1, 2, 36)
    shortcut, y = rows(h1), rows(model.c(h1))
    first = rows(model.c(h0)) - y + (rows(h0) - shortcut) * u
    goal, error = g * (y + first) + offset + shortcut, first
    ridges, whole, shift = [], [], []
    for step in range(steps):
        if step:
            now = g * torch.cat([x[:, k] @ whole[k].T + shift[k] for k in range(2)], 1) + offset + shortcut
            error = first + (torch.where(goal > 0, goal, now.clamp(max=0)) - goal) * u
        whole, shift = [], []
        for k in range(2):
            part, start = slice(4 * k, 4 * k + 4), model.c.weight[4 * k : 4 * k + 4].reshape(4, 36)
            mean, e = x[:, k].mean(0), error[:, part]
            centred, e = x[:, k] - mean, e - e.mean(0)
            xx, ex = centred.T @ centred / len(x), e.T @ centred / len(x)
            if not step:
                ridges.append(sequential.cross_validated_ridge(xx, ex, e.square().sum() / len(x), len(x)))
            pair = svd.reduced_rank(xx, ex + start @ xx, rank, ridges[k], metric[part, part], start)
            whole.append(pair[0] @ pair[1])
            shift.append(error[:, part].mean(0) + (start - whole[k]) @ mean)
    assert ridges[0] != ridges[1]
    return torch.stack(whole), torch.cat(shift)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_answer_of_one_layer_is_that_of_its_definition(steps, monkeypatch):
    monkeypatch.setattr(unfold, "images_at_once", lambda layer, x: 1)
    model, x = Grouped().double().eval(), images(10)[:, :, :5, :5].double()
    plan = {"c0": ("channel", 3), "c": ("channel", 2)}
    small = sweep(Profile(model, x), plan, relu=True, refit_dense=False, iterations=steps, batch_size=4)
    with torch.no_grad():
        whole, shift = by_hand(model, F.relu(model.c0(x)), F.relu(small.c0(x)), 2, steps)
        found = small.c.second.weight.reshape(2, 4, 2) @ small.c.first.weight.reshape(2, 2, 36)
    assert torch.allclose(found, whole, atol=1e-5)
    assert torch.allclose(model.n.running_mean - small.n.running_mean, shift, atol=1e-5)


def test_a_batch_norm_of_two_layers_and_a_relu_beside_another_use_count_for_nothing():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))
            self.n = nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.c(self.n(self.b(self.n(self.a(x)))))
            return F.relu(y) + y

    assert set(followed_by(Odd()).values()) == {graph.Followers()}


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.c0, self.c1, self.c2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        a = self.c0(x).chunk(2, 1)
        return self.c2(torch.cat([self.c1(a[0]), a[1]], 1)).mean((2, 3))


@pytest.mark.parametrize("limit", [0, 1e5, 1e9])
def test_kept_activations_stay_within_the_memory_and_are_only_those_still_needed(limit):
    model, x = Halves().eval(), images(40)
    walk = Walk(model, graph.trace(model, ["c0", "c1", "c2"]), {}, x, 8, limit)
    each = {"c0": 3, "c1": 16, "c2": 16}  # channels alive before each layer; both halves of the chunk are one tensor
    for name, channels in each.items():
        with evaluating(model):
            for _ in walk.at(name):
                held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(walk.kept)}
                assert sum(held.values()) <= limit
        bytes_of_batch = 2 * 8 * channels * 100 * 4  # in both networks
        assert len(walk.kept) == min(5, limit // bytes_of_batch)
        assert {size for size, _ in walk.kept.values()} <= {bytes_of_batch}


def tensors(value):
    if torch.is_tensor(value):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def test_operations_in_place_on_the_images_and_on_the_shortcut_change_nothing():
    class Place(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(0)
            self.inplace = inplace
            self.c0, self.n, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
            self.o = nn.Linear(8, 3)

        def forward(self, x):
            h = self.n(self.c0(x.sub_(0.5) if self.inplace else x - 0.5))
            y = self.c(h)
            return self.o((y + F.relu(h, inplace=self.inplace)).mean((2, 3)))

    x, answers = images(60), []
    given = x.clone()
    for inplace in (True, False):
        model = Place(inplace).eval()
        for factors_of in ("sequential", "relu-aware", "data-aware"):
            small = replace.apply_plan(
                Profile(model, given),
                {"c0": ("channel", 3), "c": ("channel", 3)},
                factors=factors_of,
                resource="parameters",
            )
            answers.append(small(x.clone()))
    assert torch.equal(given, x)
    for one, other in zip(answers, answers[3:]):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("scheme", ["spatial", "input", "channel"])
@pytest.mark.parametrize("kind", ["data-aware", "sequential"])
def test_a_layer_or_a_group_of_zeros_stays_zero(scheme, kind):
    x = images(20)
    zero = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    group = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2)).eval()
    with torch.no_grad():
        zero[0].weight.zero_()
        group[2].weight[:3] = 0
    small = replace.apply_plan(Profile(zero, x), {"0": (scheme, 1)}, factors=kind, resource="parameters")
    assert torch.allclose(small(x), zero(x), atol=1e-5)
    small = replace.apply_plan(Profile(group, x), {"2": (scheme, 2)}, factors=kind, resource=None)
    assert torch.allclose(small(x)[:, :3], group(x)[:, :3], atol=1e-5) and torch.isfinite(small(x)).all()


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 8, 10, 10), (8, 1, 1)])
def test_a_sum_with_another_shape_is_no_shortcut(shape):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.c0, self.c, self.o = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
            self.p = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return self.o(F.relu(self.c(F.relu(self.c0(x))) + self.p).mean((2, 3)))

    model, x = Shifted().eval(), images(50)
    plan = {"c0": ("channel", 4), "c": ("channel", 4)}
    swept, plain = (
        error(replace.apply_plan(Profile(model, x), plan, factors=kind, resource="parameters"), model, x)
        for kind in ("sequential", "data-aware")
    )
    assert swept < plain and followed_by(model, None, x)["c"].other is None


def test_large_maps_are_sampled_in_all_columns():
    for side in range(1, 240):
        step = sequential._step(side, side)
        assert len({k * step % side for k in range(side)}) == side and step < side * side / 256 + 8
    assert [sequential._step(side, side) for side in (14, 28, 32)] == [1, 3, 5]


def test_macs_on_small_maps_are_settled_by_the_real_positions():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, bias=False))
    for shape, scheme, rank in (((16, 3, 3), "input", 9), ((16, 3, 3), "spatial", 13)):
        small = replace.apply_plan(Profile(model, input_shape=shape), {"0": (scheme, rank)}, resource="macs")
        assert isinstance(small[0], nn.Conv2d)  # the pair would cost more than 2304
        assert isinstance(replace.apply_plan(Profile(model), {"0": (scheme, rank)}, resource=None)[0], nn.Sequential)
    strided = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1, bias=False))
    (card,) = profile.read_layers(strided, (32, 1, 1), scheme="input")
    plan = {"0": ("input", card.break_even("macs"))}
    for given in ({"input_shape": (32, 1, 1)}, {"calibration": torch.zeros(2, 32, 1, 1)}):
        small = replace.apply_plan(Profile(strided, **given), plan, resource="macs")
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            small(torch.zeros(1, 32, 1, 1))
        assert counter.get_total_flops() // 2 == profile.plan_cost([card], plan, "macs") < card.macs


def test_half_precision_does_not_overflow():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).half()
    x = 3 * torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    moments = statistics.collect_moments(model, ["0"], x)["0"]
    assert torch.isfinite(moments.scatter).all()
    small = replace.apply_plan(Profile(model, x), {"0": ("channel", 3)}, factors="data-aware", resource="parameters")
    assert all(torch.isfinite(value).all() for value in small.parameters())
