"""Two passes side by side over a network that torch.fx cannot trace: what each layer reads, what the stream lost, how it ends."""

import contextlib
import copy
import threading

import pytest
import torch
from torch import nn

from conftest import small_llama
from lowrank_utils.factors import sequential
from lowrank_utils.factors.sequential import sweep
from lowrank_utils.network import lockstep
from lowrank_utils.network.lockstep import Lockstep, residual_streams
from lowrank_utils.network.profile import Profile
from lowrank_utils.network.walk import Walk

ORDER = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head"]
STREAMS = {"blocks.0.down": "blocks.0.norm", "blocks.1.down": "blocks.1.norm"}


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(size), nn.Dropout(0.5)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        return x + self.down(self.drop(self.up(self.norm(x)).tanh()))


class Stream(nn.Module):
    """Two blocks that add to a stream of width 12; the branch on the data keeps torch.fx out."""

    def __init__(self, size=12):
        super().__init__()
        self.blocks = nn.ModuleList([Block(size), Block(size)])
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, 5)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)) if x.sum() < 1e9 else x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Stream().eval()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(80, 12, generator=generator) @ torch.randn(12, 12, generator=generator)


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert not [thread for thread in set(threading.enumerate()) - before if type(thread).__name__ == "_Pass"]


def hooks(model):
    return [hook for part in model.modules() for hook in (*part._forward_hooks, *part._forward_pre_hooks)]


def smaller(layer):
    """A coarse stand-in for a layer, so that what comes behind it changes."""
    new = copy.deepcopy(layer)
    with torch.no_grad():
        new.weight.mul_(0.5)
    return new


def passes(walk, model, instead, names=ORDER):
    found = {}
    with walk:
        for name in names:
            ((now, then, lost),) = walk.at(name)
            found[name] = now.clone(), then.clone(), None if lost is None else tuple(part.clone() for part in lost)
            instead[name] = smaller(model.get_submodule(name))
    return found


def layer_by_layer(monkeypatch):
    monkeypatch.setattr(sequential, "LARGEST", 0)  # two passes side by side are taken for too large


def difference(small, model, given):
    with torch.no_grad():
        answers = [net(given) for net in (small, model)]
    first, second = (getattr(answer, "logits", answer) for answer in answers)
    return float((first - second).abs().max())


def test_each_layer_reads_what_it_reads_in_a_pass_of_its_own(model, x):
    thin = {}
    found = passes(Lockstep(model, ORDER, thin, x), model, thin)
    alone, walk = {}, None
    for name in ORDER:
        walk = Walk(model, None, alone, x, len(x), 1e8)
        ((now, then, _),) = walk.at(name)
        assert torch.allclose(found[name][0], now, atol=1e-6) and torch.allclose(found[name][1], then, atol=1e-6)
        alone[name] = smaller(model.get_submodule(name))
    assert not torch.allclose(found["head"][0], found["head"][1], atol=1e-2)  # the halves before it are seen


def test_what_the_stream_lost_is_that_before_the_norm(model, x):
    thin = {}
    found = passes(Lockstep(model, ORDER, thin, x), model, thin)
    first = model.blocks[0]
    with torch.no_grad():
        cut = thin["blocks.0.up"](first.norm(x)).tanh()
        then, now = first(x), x + thin["blocks.0.down"](cut)
    lost, stream = found["blocks.1.down"][2]
    assert torch.allclose(lost, then - now, atol=1e-5) and torch.allclose(stream, now, atol=1e-5)
    assert (then - now).abs().max() > 0.05
    assert found["blocks.0.down"][2][0].abs().max() == 0  # nothing comes before the first norm
    assert all(found[name][2] is None for name in ORDER if name not in STREAMS)
    thin = {}
    assert all(lost is None for _, _, lost in passes(Lockstep(model, ORDER, thin, x, False), model, thin).values())


def test_streams_are_found_in_the_numbers(model, x):
    assert residual_streams(model, ORDER, x[:1]) == STREAMS
    assert hooks(model) == []
    with torch.no_grad():
        model.blocks[0].down.weight.zero_(), model.blocks[0].down.bias.zero_()
    assert residual_streams(model, ORDER, x[:1]) == {"blocks.1.down": "blocks.1.norm"}  # zeros repair nothing


@pytest.mark.parametrize("way", ["stream", "output"])
def test_streams_are_found_where_a_network_adds_in_place(model, x, way, monkeypatch):
    def forward(self, x):
        first = x.clone()
        out = self.down(self.up(self.norm(first)).tanh())
        return first.add_(out) if way == "stream" else out.add_(first)

    plan, how = dict.fromkeys(ORDER[:4], 4), {"refit_dense": False}
    plain = sweep(Profile(model, x), plan, **how)
    monkeypatch.setattr(Block, "forward", forward)
    assert residual_streams(model, ORDER, x[:1]) == STREAMS
    assert difference(sweep(Profile(model, x), plan, **how), plain, x) < 1e-4


def test_a_norm_behind_the_sum_is_no_such_stream(x):
    class After(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.one, self.b, self.two = (
                nn.Linear(12, 12),
                nn.LayerNorm(12),
                nn.Linear(12, 12),
                nn.LayerNorm(12),
            )

        def forward(self, x):
            x = self.one(x + self.a(x))
            return self.two(x + self.b(x))

    assert residual_streams(After(), ["a", "b"], x[:1]) == {}


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sweep_without_repair_is_that_of_one_layer_after_the_other(model, x, weighted, monkeypatch):
    plan = dict.fromkeys(ORDER[:4], 4)
    how = {"repair": False, "weighted": weighted, "refit_dense": False}
    side_by_side = sweep(Profile(model, x), plan, **how)
    repaired = sweep(Profile(model, x), plan, **how | {"repair": True})
    layer_by_layer(monkeypatch)
    alone = sweep(Profile(model, x), plan, **how)
    assert difference(side_by_side, alone, x) < 1e-3 < difference(repaired, alone, x)
    assert difference(alone, model, x) > 0.05


def test_full_rank_changes_nothing_also_with_repair(model, x):
    plan = {name: min(model.get_submodule(name).weight.shape) for name in ORDER}
    assert difference(sweep(Profile(model, x), plan), model, x) < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_repair_brings_the_stream_closer_to_the_original(x, seed):
    torch.manual_seed(seed)
    model = Stream().eval()
    read, plan = Profile(model, x), dict.fromkeys(ORDER[:4], 4)

    def lost(repair):
        small, streams = sweep(read, plan, repair=repair, refit_dense=False), []
        for net in (small, model):
            handle = net.norm.register_forward_pre_hook(lambda module, args: streams.append(args[0]))
            with torch.no_grad():
                net(x)
            handle.remove()
        return float((streams[0] - streams[1]).square().mean())

    assert lost(True) < 0.95 * lost(False)


def test_an_error_in_the_network_reaches_the_caller(model, x):
    def boom(*args, **kwargs):
        raise RuntimeError("broken layer")

    for count in (1, 3):  # met behind the first and behind the third layer
        thin = {}

        def broken(count=count, thin=thin):
            with Lockstep(model, ORDER, thin, x) as walk:
                met(walk, ORDER[:count])
                thin[ORDER[count - 1]] = boom
                met(walk, [ORDER[count]])

        with pytest.raises(RuntimeError, match="broken layer"):
            broken()
    assert hooks(model) == []


def met(walk, names):
    for name in names:
        list(walk.at(name))


def test_the_passes_end_with_the_caller(model, x):
    with Lockstep(model, ORDER, {}, x) as walk:
        pass
    assert not alive(walk)
    for batch_size in (None, 30):
        with Lockstep(model, ORDER, {}, x, batch_size=batch_size) as walk, contextlib.suppress(KeyError):
            met(walk, ORDER[:1])
            assert len(alive(walk)) == 2 * len(walk.passes)
            raise KeyError("of the caller")
        assert not alive(walk) and len(walk.passes) == (1 if batch_size is None else 3)
        assert all(hooks(one.model) == [] for pair in walk.passes for one in pair)


def test_memory_is_handed_back_where_the_allocator_can_do_it(model, x, monkeypatch):
    asked = []
    for allocator in (asked.append, None):
        monkeypatch.setattr(lockstep, "_allocator", lambda found=allocator: found)
        with Lockstep(model, ORDER, {}, x, batch_size=30) as walk:
            met(walk, ORDER[:2])
    assert asked == [0] * 6  # for each batch at each layer


def alive(walk):
    return [one for pair in walk.passes for one in pair if one.is_alive()]


def test_batches_read_what_all_inputs_read_and_one_works_at_a_time(model, x, monkeypatch):
    whole, parts = passes(Lockstep(model, ORDER, thin := {}, x), model, thin), {}
    at_work, most = set(), []
    norm_forward = nn.LayerNorm.forward

    def forward(self, given):
        at_work.add(threading.get_ident())
        found = norm_forward(self, given)
        most.append(len(at_work))
        at_work.discard(threading.get_ident())
        return found

    monkeypatch.setattr(nn.LayerNorm, "forward", forward)
    with Lockstep(model, ORDER, thin := {}, x, batch_size=30) as walk:
        for name in ORDER:
            met_parts = [(now.clone(), then.clone(), lost) for now, then, lost in walk.at(name)]
            parts[name] = [torch.cat(each) for each in zip(*(part[:2] for part in met_parts))]
            parts[name].append(None if met_parts[0][2] is None else torch.cat([lost[0] for _, _, lost in met_parts]))
            thin[name] = smaller(model.get_submodule(name))
        assert [len(one.streams) for pair in walk.passes for one in pair] == [0] * 6  # what is used is let go
    assert set(most) == {1}
    for name, (now, then, lost) in parts.items():
        assert torch.allclose(now, whole[name][0], atol=1e-5) and torch.allclose(then, whole[name][1], atol=1e-5)
        assert (lost is None) == (whole[name][2] is None)
        assert lost is None or torch.allclose(lost, whole[name][2][0], atol=1e-5)


def test_a_sweep_of_tokens_goes_in_batches(monkeypatch):
    pytest.importorskip("transformers")
    model, ids = small_llama(vocabulary=64), torch.randint(0, 64, (8, 12), generator=torch.Generator().manual_seed(0))
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name != "lm_head"]
    read, plan, walks = Profile(model, ids), dict.fromkeys(names, 6), []

    def noted(*given):
        walks.append(Lockstep(*given))
        return walks[-1]

    monkeypatch.setattr(sequential, "Lockstep", noted)
    whole = sweep(read, plan, refit_dense=False)
    monkeypatch.setattr(sequential, "TOKENS_AT_ONCE", 36)
    parts = sweep(read, plan, refit_dense=False)
    assert [len(walk.passes) for walk in walks] == [1, 3]
    assert difference(parts, whole, ids) < 0.02 * difference(whole, model, ids)


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.never = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        return self.a(self.b(x)) if len(x) > 1 else self.b(self.a(x))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b"], "met layer 'b' where 'a' was expected; its order depends on the inputs"),
        (["b", "a", "never"], "met layer None where 'never' was expected"),
    ],
)
def test_another_order_and_a_layer_that_is_not_met_are_said(x, names, said):
    with Lockstep(Fork(), names, {}, x) as walk, pytest.raises(ValueError, match=said):
        met(walk, names)


def test_inputs_that_are_no_numbers_are_refused(model, x):
    with pytest.raises(ValueError, match="NaN or infinite"):
        Lockstep(model, ORDER, {}, torch.full_like(x, torch.nan))


def test_the_network_and_its_copies_stay_free_of_hooks(model, x):
    model.train()
    thin = {}
    with Lockstep(model, ORDER, thin, x) as walk:
        for name in ORDER:
            list(walk.at(name))
            assert hooks(model) == hooks(copy.deepcopy(model)) == [] and model.training
        twins = dict(walk.passes[0][1].model.named_parameters())
        assert all(twins[name] is value for name, value in model.named_parameters())  # no second set of weights
    small = sweep(Profile(model, x), dict.fromkeys(ORDER[:4], 4))
    assert hooks(small) == hooks(model) == [] and model.blocks[0].drop.training
    model.eval()
    assert difference(small.eval(), sweep(Profile(model, x), dict.fromkeys(ORDER[:4], 4)), x) < 1e-5  # dropout was off


def test_a_llama_is_swept_in_lockstep(monkeypatch):
    pytest.importorskip("transformers")
    model, ids = small_llama(vocabulary=64), torch.randint(0, 64, (8, 12), generator=torch.Generator().manual_seed(0))
    blocks = [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn.o_proj", "mlp.down_proj")]
    norms = [f"model.layers.{i}.{part}_layernorm" for i in (0, 1) for part in ("input", "post_attention")]
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name != "lm_head"]
    assert residual_streams(model, names, ids[:1]) == dict(zip(blocks, norms))
    read, plan, how = Profile(model, ids), dict.fromkeys(names, 6), {"refit_dense": False, "repair": False}
    full = {name: min(model.get_submodule(name).weight.shape) for name in names}
    assert difference(sweep(read, full, refit_dense=False), model, ids) < 5e-3
    used = []
    monkeypatch.setattr(sequential, "Lockstep", lambda *given: used.append(given) or Lockstep(*given))
    side_by_side = sweep(read, plan, **how)
    layer_by_layer(monkeypatch)
    alone = sweep(read, plan, **how)
    assert len(used) == 1 and hooks(side_by_side) == hooks(model) == []
    assert difference(side_by_side, alone, ids) < 0.02 * difference(alone, model, ids)
