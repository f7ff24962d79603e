"""Ranks as others choose them for language models, against counts and losses that can be checked by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_utils import profile
from lowrank_utils.network.profile import plan_cost
from lowrank_utils.ranks import published

Q, K = ["h.0.q", "h.1.q", "h.2.q"], ["h.0.k", "h.1.k"]
NAMES = ["h.0.q", "h.0.k", "h.1.q", "h.1.k", "h.2.q"]


def net(bias=False):
    """Five matrices of 40 x 40 in blocks, and a head of 20 x 40."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            kinds = ["qk", "qk", "q"]
            self.h = nn.ModuleList(nn.ModuleDict({k: nn.Linear(40, 40, bias=bias) for k in ks}) for ks in kinds)
            self.head = nn.Linear(40, 20, bias=bias)

        def forward(self, x):
            for block in self.h:
                for layer in block.values():
                    x = layer(x).tanh()
            return self.head(x)

    return Net().eval()


@pytest.fixture
def read():
    return profile(net(), torch.randn(60, 40, generator=torch.Generator().manual_seed(1)))


def kept_inside(read, plan, names=NAMES, resource="macs"):
    return sum(read[n].cost(plan.get(n), resource) for n in names) / sum(read[n].cost(None, resource) for n in names)


@pytest.mark.parametrize("resource", ["macs", "parameters"])
@pytest.mark.parametrize("bias", [False, True])
def test_one_share_is_the_largest_rank_below_it(bias, resource):
    read = profile(net(bias), input_shape=(40,))
    plan = published.one_share(read, 0.4, resource=resource)
    assert set(plan) == {*NAMES, "head"}
    for name, rank in plan.items():
        dense = read[name].cost(None, resource)
        assert read[name].cost(rank, resource) <= 0.4 * dense < read[name].cost(rank + 1, resource)


def test_one_share_of_some_matrices_leaves_the_others_dense(read):
    kept = read.whole_share(0.5, "macs", NAMES)
    plan = published.one_share(read, kept, names=NAMES)
    assert plan == dict.fromkeys(NAMES, 10)  # 10 (40 + 40) is half of 40 x 40
    assert plan_cost(read, plan) == pytest.approx(kept * plan_cost(read, {}))


@pytest.mark.parametrize(("chosen", "least"), [(published.one_share, 1), (published.svd_llm_v2, 2)])
def test_a_budget_out_of_reach_names_the_smallest(read, chosen, least):
    with pytest.raises(ValueError, match="kept=0.1 of macs cannot be reached: the smallest possible is 0.8") as told:
        chosen(read, 0.1, names=["h.0.q"])
    smallest = float(str(told.value).split()[-1])
    assert smallest == pytest.approx((80 * least + 4 * 1600 + 800) / 8800, abs=1e-3)  # V2 leaves a tenth of each matrix
    plan = chosen(read, smallest, names=["h.0.q"])
    assert plan == {"h.0.q": least} and plan_cost(read, plan) <= smallest * plan_cost(read, {})
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="is not a share"):
            chosen(read, wrong)
    with pytest.raises(ValueError, match="names= holds no layer"):
        chosen(read, 0.5, names=[])


@pytest.mark.parametrize("chosen", [published.one_share, published.svd_llm_v2])
def test_a_small_matrix_sets_the_smallest_share(chosen):
    read = profile(nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)), torch.randn(50, 40))
    with pytest.raises(ValueError, match="kept=0.3 of macs cannot be reached: the smallest possible is 0.3") as told:
        chosen(read, 0.3)  # rank 1 costs 43 of 120 in the second
    smallest = float(str(told.value).split()[-1])
    plan = chosen(read, smallest)
    assert plan["2"] == 1 and plan_cost(read, plan) <= smallest * plan_cost(read, {})


def test_truncation_losses_are_norms_of_what_is_lost(read):
    kept = read.whole_share(0.5, "macs", NAMES)
    found = published.truncation_losses(read, kept, names=NAMES)
    x = read.calibration
    with torch.no_grad():
        first = read.model.get_submodule("h.0.q")
        outputs = (x @ first.weight.T).double()
    # a layer without bias: what is lost is the tail of the singular values of W X
    tail = torch.linalg.svdvals(outputs)[10:].square().sum()
    assert list(found) == NAMES
    assert found["h.0.q"] == pytest.approx(float(tail.sqrt()), rel=1e-3)


def test_svd_llm_v2_cuts_more_where_the_loss_is_smaller(read):
    kept = read.whole_share(0.7, "macs", NAMES)
    losses = {"h.0.q": 1.0, "h.1.q": np.e, "h.2.q": np.e**3, "h.0.k": 5.0, "h.1.k": 5.0}
    plan = published.svd_llm_v2(read, kept, names=NAMES, losses=losses)
    # within q: logs 1, 2, 4 of the losses over the smallest, times e; so 1, 1/2, 1/4 of 0.3 * 3 / 1.75
    shares = 0.9 / 1.75 * np.array([1, 0.5, 0.25])
    assert [plan.get(name, 20) for name in Q] == [int((1 - share) * 1600 / 80) for share in shares]
    assert [plan[name] for name in K] == [14, 14]  # equal losses of a kind: one share, whatever the other kind's are
    assert kept_inside(read, plan) <= 0.7
    small = published.svd_llm_v2(read, kept, names=NAMES, losses={name: 1e-3 * loss for name, loss in losses.items()})
    assert small == plan  # losses below 1 are divided by the smallest of their kind
    large = published.svd_llm_v2(read, kept, names=NAMES, losses={name: 1e3 * loss for name, loss in losses.items()})
    logs = np.log(1e3) + np.array([0, 1, 3])  # all are above 1: the logarithms of the losses themselves
    assert [large[name] for name in Q] == [int((1 - 0.9 / log / (1 / logs).sum()) * 20) for log in logs]


@pytest.mark.parametrize("inside", [0.3, 0.5, 0.9])
def test_svd_llm_v2_keeps_the_budget_where_a_share_is_held(read, inside):
    losses = {"h.0.q": 1.0, "h.1.q": 1e9, "h.2.q": 1e9, "h.0.k": 0.0, "h.1.k": 3.0}
    plan = published.svd_llm_v2(read, read.whole_share(inside, "macs", NAMES), names=NAMES, losses=losses)
    assert inside - 0.06 < kept_inside(read, plan) <= inside + 1e-9
    assert all(read[name].cost(plan.get(name)) >= 0.1 * 1600 - 80 for name in NAMES)


def test_svd_llm_v2_measures_its_losses_itself(read):
    kept = read.whole_share(0.6, "macs", NAMES)
    losses = published.truncation_losses(read, kept, names=NAMES)
    assert published.svd_llm_v2(read, kept, names=NAMES) == published.svd_llm_v2(read, kept, names=NAMES, losses=losses)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_losses_that_are_none_are_refused(read, wrong):
    with pytest.raises(ValueError, match=r"the losses of 'h\.\*\.k' must be finite numbers, none below zero"):
        published.svd_llm_v2(read, 0.9, names=NAMES, losses={name: wrong if "k" in name else 1.0 for name in NAMES})


VALUES = {  # of ranks 10, 14 and dense: nothing comes below 1.0, the loss of the dense network
    "h.0.q": np.array([3.0, 1.2, 1.0]),
    "h.0.k": np.array([1.1, 1.05, 1.0]),
    "h.1.q": np.array([5.0, 4.0, 1.0]),
    "h.1.k": np.array([2.0, 1.5, 1.0]),
    "h.2.q": np.array([1.3, 1.01, 1.0]),
}


@pytest.mark.parametrize(
    ("inside", "threshold", "plan"),
    [
        (1.0, 1.0, {}),
        (0.9, 1.05, {"h.0.k": 14, "h.2.q": 14}),
        (0.8, 1.2, {"h.0.q": 14, "h.0.k": 10, "h.2.q": 14}),
        (0.67, 2.0, {"h.0.q": 14, "h.0.k": 10, "h.1.k": 10, "h.2.q": 10}),
        (0.5, 5.0, dict.fromkeys(NAMES, 10)),
    ],
)
def test_asvd_takes_the_smallest_threshold_that_meets_the_budget(read, inside, threshold, plan):
    kept = read.whole_share(inside, "macs", NAMES)
    found = published.asvd_search(read, kept, measure=never, names=NAMES, ratios=(0.7, 0.5), values=VALUES)
    assert (found.plan, -found.value, found.evaluations) == (plan, threshold, 0)
    assert kept_inside(read, plan) <= inside


def never(model):
    raise AssertionError("the losses were given")


def test_asvd_measures_each_matrix_alone(read):
    sizes = []

    def measure(model):
        sizes.append(sum(value.numel() for value in model.parameters()))
        with torch.no_grad():
            return float(model(read.calibration).square().mean())

    found = published.asvd_search(read, 0.75, measure=measure, names=NAMES, ratios=(0.7, 0.5))
    assert found.evaluations == len(sizes) == 11  # dense once, and two sizes of five
    assert set(sizes) == {8800, 8800 - 800, 8800 - 480} and sizes.count(8800) == 1
    options = published.ratio_options(read, NAMES, (0.7, 0.5), "macs")
    values = published.sensitivities(read, options, measure=measure)
    assert (
        published.asvd_search(read, 0.75, measure=never, names=NAMES, ratios=(0.7, 0.5), values=values).plan
        == found.plan
    )
    assert plan_cost(read, found.plan) <= 0.75 * plan_cost(read, {})


def test_options_are_a_few_sizes_and_dense(read):
    own, head = published.ratio_options(read, ["h.0.q", "head"], (0.9, 0.5, 0.5), "macs")
    assert own.entries == (10, 18, None) and own.costs[:, 0].tolist() == [800, 1440, 1600]
    assert head.entries == (6, 12, None)  # 60 a rank, of 800
    with pytest.raises(ValueError, match="ratio=1.2"):
        published.ratio_options(read, NAMES, (0.5, 1.2), "macs")


def test_asvd_says_what_its_sizes_cannot_reach(read):
    kept = read.whole_share(0.4, "macs", NAMES)
    with pytest.raises(ValueError, match="of macs cannot be reached: the smallest possible is ") as told:
        published.asvd_search(read, kept, measure=never, names=NAMES, ratios=(0.7, 0.5), values=VALUES)
    smallest = float(str(told.value).split()[-1])
    assert smallest == pytest.approx((5 * 800 + 800) / 8800, abs=1e-3)
    found = published.asvd_search(read, smallest, measure=never, names=NAMES, ratios=(0.7, 0.5), values=VALUES)
    assert found.plan == dict.fromkeys(NAMES, 10)
