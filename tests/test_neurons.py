"""Feed-forward neurons of transformers: found without names, ranked by the formulas, removed exactly, saved and loaded again."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from conftest import small_llama
from lowrank_utils import profile
from lowrank_utils.factors.replace import apply_plan
from lowrank_utils.lab import checkpoints
from lowrank_utils.network.feedforward import feed_forward_layers
from lowrank_utils.network.modules import with_conv1d_layers, with_linear_layers
from lowrank_utils.network.statistics import collect_activations
from lowrank_utils.ranks import neurons, units

transformers = pytest.importorskip("transformers")
BLOCKS = {"llama": ["model.layers.*"], "gpt2": ["transformer.h.*"]}
IDS = torch.randint(0, 64, (6, 9), generator=torch.Generator().manual_seed(0))


def small_gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends, initializer_range=0.3)).eval()


def small_bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, vocab_size=64)).eval()


@pytest.fixture(params=["llama", "gpt2"])
def read(request):
    """A profile of a small transformer, with its name and original."""
    original = small_llama(vocabulary=64) if request.param == "llama" else small_gpt2()
    return request.param, original, profile(with_linear_layers(original), IDS, spectra=False)


def answers(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def matrices(model, name):
    blocks = model.model.layers if name == "llama" else model.transformer.h
    return sum(value.numel() for key, value in blocks.named_parameters() if value.ndim > 1 or "bias" in key)


def lone(model, name):
    """The norms' biases of GPT-2, which are in no card."""
    if name == "llama":
        return 0
    return sum(value.numel() for key, value in model.transformer.h.named_parameters() if "ln_" in key and "bias" in key)


# ---- found by their numbers


def test_gated_and_plain_layers_are_found(read):
    name, _, mine = read
    found = neurons.neuron_layers(mine)
    if name == "llama":
        of = "model.layers.{}.mlp.{}_proj"
        expected = [(of.format(i, "gate"), (of.format(i, "up"),), of.format(i, "down"), 48, False) for i in (0, 1)]
    else:
        of = "transformer.h.{}.mlp.{}"
        expected = [(of.format(i, "c_fc"), (), of.format(i, "c_proj"), 128, True) for i in (0, 1)]
    assert [(h.name, h.beside, h.reader, h.units, h.folds) for h in found] == expected


def test_an_encoder_and_a_width_that_is_the_models_own():
    assert [h.units for h in feed_forward_layers(small_bert(), IDS[:1])] == [48, 48]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    alike = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=64)).eval()
    assert [h.name for h in feed_forward_layers(alike, IDS[:1])] == ["model.layers.0.mlp.gate_proj"]


class Toy(nn.Module):
    """A feed-forward layer, or something that only looks like one."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(6)
        self.a, self.b, self.other, self.scale = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(1, 6)
        if kind == "tied":
            self.other.weight = self.b.weight

    def forward(self, x):
        inner = self.a(x)
        h = inner if self.kind == "nothing between" else inner.relu()
        h = {"norm": self.norm, "flip": lambda t: t.flip(-1), "roll": lambda t: t.roll(1, -2)}.get(
            self.kind, lambda t: t
        )(h)
        h = h * self.scale.weight[:, 0] if self.kind == "scale" else h
        y = self.b(h)
        if self.kind in ("two readers", "tied"):
            y = y + self.other(h)
        if self.kind == "twice":
            y = y + self.b(h.square())
        return (y, inner) if self.kind == "shown" else y


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "kind", ["nothing between", "norm", "flip", "roll", "scale", "two readers", "tied", "twice", "shown"]
)
def test_what_only_looks_like_a_feed_forward_layer_stays(kind, frozen):
    toy, x = Toy(kind).requires_grad_(not frozen), torch.randn(1, 5, 4)
    before = [value.clone() for value in toy.parameters()]
    assert feed_forward_layers(toy, x) == []
    assert [h.name for h in feed_forward_layers(Toy("plain").requires_grad_(not frozen), x)] == ["a"]
    assert all(value.requires_grad is not frozen for value in toy.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, toy.parameters()))


def test_dead_neurons_do_not_hide_a_layer():
    toy = Toy("plain")
    nn.init.zeros_(toy.a.weight)
    nn.init.constant_(toy.a.bias, -1)
    assert [h.reader for h in feed_forward_layers(toy, torch.randn(1, 5, 4))] == ["b"]


# ---- ranked by the formulas


def test_the_contribution_of_a_neuron_by_hand(read):
    name, _, mine = read
    hidden = neurons.neuron_layers(mine)
    seen = []
    handle = mine.model.get_submodule(hidden[1].reader).register_forward_pre_hook(lambda layer, x: seen.append(x[0]))
    answers(mine.model)
    handle.remove()
    a = seen[0].flatten(0, 1).double()
    size = a.square().mean(0) if name == "llama" else a.var(0, correction=0)
    gain = size * mine.model.get_submodule(hidden[1].reader).weight.double().square().sum(0)
    found = collect_activations(mine.model, IDS, hidden=hidden)
    order = units.rank_units(mine, found, "output", hidden=hidden)
    scores = order[order["layer"] == hidden[1].name].sort_values("unit")["score"]
    assert np.allclose(scores, (gain / gain.sum()).detach().numpy(), rtol=1e-4)


def test_the_magnitude_is_of_all_that_comes_in():
    mine = profile(small_llama(vocabulary=64), IDS, spectra=False)
    hidden = neurons.neuron_layers(mine)
    order = units.rank_units(mine, collect_activations(mine.model, IDS, hidden=hidden), "magnitude", hidden=hidden)
    mlp = mine.model.model.layers[0].mlp
    norm = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight], 1).norm(dim=1)
    scores = order[order["layer"] == hidden[0].name].sort_values("unit")["score"]
    assert np.allclose(scores, (norm / norm.mean()).detach().numpy(), rtol=1e-5)


# ---- removed


@pytest.mark.parametrize("refit", [False, True])
def test_nothing_removed_is_the_network(read, refit):
    _, _, mine = read
    assert torch.allclose(answers(neurons.prune_neurons(mine, 1.0, refit=refit)), answers(mine.model), atol=1e-4)


@pytest.mark.parametrize("rule", ["entropy", "output"])
def test_dead_neurons_go_first_and_without_a_trace(rule):
    model = small_llama(vocabulary=64)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[[3, 40]] = 0
        model.model.layers[1].mlp.gate_proj.weight[7] = 0
    mine = profile(model, IDS, spectra=False)
    each = 3 * 32 / sum(mine[name].cost(None, "parameters") for name in mine.within(BLOCKS["llama"]))
    small = neurons.prune_neurons(mine, 1 - 2.5 * each, rule=rule, within=BLOCKS["llama"])
    assert [block.mlp.down_proj.in_features for block in small.model.layers] == [46, 47]
    assert torch.allclose(answers(small), answers(model), atol=1e-5)


def test_a_constant_neuron_is_folded_into_a_bias_only_where_there_is_one():
    model = with_linear_layers(small_gpt2())
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[5] = 0
        model.transformer.h[1].mlp.c_fc.bias[5] = 2
    mine = profile(model, IDS, spectra=False)
    once = 1 - 1e-6
    small = neurons.prune_neurons(mine, once, rule="entropy")
    assert small.transformer.h[1].mlp.c_proj.in_features == 127
    assert torch.allclose(answers(small), answers(model), atol=1e-4)
    left = neurons.prune_neurons(mine, once, rule="entropy", fold=False)
    assert not torch.allclose(answers(left), answers(model), atol=1e-2)
    without = neurons.prune_neurons(profile(small_llama(vocabulary=64), IDS, spectra=False), 0.9)
    assert all(block.mlp.down_proj.bias is None for block in without.model.layers)


@pytest.mark.parametrize("kept", [0.9, 0.6])
@pytest.mark.parametrize("rule", neurons.RULES)
def test_the_budget_is_met_by_less_than_a_neuron(read, rule, kept):
    name, _, mine = read
    small = neurons.prune_neurons(mine, kept, rule=rule, within=BLOCKS[name])
    total = matrices(mine.model, name) - lone(mine.model, name)
    left = matrices(small, name) - lone(small, name)
    each = 3 * 32 if name == "llama" else 2 * 32 + 1
    assert kept * total - each < left <= kept * total
    assert small.get_input_embeddings().weight.shape == mine.model.get_input_embeddings().weight.shape


def test_within_one_layer_the_other_stays():
    mine = profile(small_llama(vocabulary=64), IDS, spectra=False)
    small = neurons.prune_neurons(mine, 0.5, within=["model.layers.1.mlp.*"])
    assert [block.mlp.up_proj.out_features for block in small.model.layers] == [48, 24]
    assert small.config.intermediate_size == 48


def test_refitting_is_closer(read):
    name, _, mine = read
    plain = neurons.prune_neurons(mine, 0.7, within=BLOCKS[name])
    refitted = neurons.prune_neurons(mine, 0.7, within=BLOCKS[name], refit=True)
    lost = [(answers(model) - answers(mine.model)).norm() for model in (plain, refitted)]
    assert lost[1] < lost[0]


def test_the_original_stays_what_it_was(read):
    _, _, mine = read
    neurons.prune_neurons(mine, 0.8, even=True)
    mine.check_unchanged()
    assert getattr(mine.model.config, "intermediate_size", 48) == 48


def test_what_cannot_be_pruned():
    with pytest.raises(ValueError, match="Conv1D layers take modules.with_linear_layers"):
        neurons.prune_neurons(profile(small_gpt2(), IDS, spectra=False), 0.8)
    mine = profile(small_llama(vocabulary=64), IDS, spectra=False)
    with pytest.raises(ValueError, match="no feed-forward layer within .*self_attn"):
        neurons.prune_neurons(mine, 0.8, within=["*self_attn*"])
    with pytest.raises(ValueError, match="kept=0.1 of parameters cannot be reached"):
        neurons.prune_neurons(mine, 0.1, within=BLOCKS["llama"])
    with pytest.raises(ValueError, match="unknown rule 'best'"):
        neurons.prune_neurons(mine, 0.8, rule="best")
    with pytest.raises(ValueError, match="calibration"):
        neurons.prune_neurons(profile(mine.model), 0.8)


# ---- saved and loaded again


def test_an_even_network_is_saved_by_transformers(read, tmp_path):
    name, original, mine = read
    small = neurons.prune_neurons(mine, 0.8, within=BLOCKS[name], even=True)
    (width,) = {h.units for h in feed_forward_layers(small, IDS[:1])}
    stated, before = (small.config.intermediate_size, 48) if name == "llama" else (small.config.n_inner, 128)
    assert width == stated < before
    with_conv1d_layers(small, original).save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(original) and torch.equal(answers(again), answers(small))


def test_an_uneven_network_is_saved_with_its_shapes(read, tmp_path):
    name, original, mine = read
    small = neurons.prune_neurons(mine, 0.75, rule="random", within=BLOCKS[name])
    assert len({h.units for h in feed_forward_layers(small, IDS[:1])}) == 2
    checkpoints.save_compressed(small, tmp_path / "small.safetensors", {}, original=original)
    fresh = type(original)(original.config)
    again, metadata = checkpoints.load_compressed(tmp_path / "small.safetensors", fresh)
    assert metadata == {"plan": {}} and type(again) is type(original)
    assert torch.equal(answers(again), answers(small))
    made = [model.generate(IDS[:1], max_new_tokens=4, do_sample=False) for model in (small, again)]
    assert torch.equal(*made)


@pytest.mark.parametrize("first", [True, False])
def test_low_rank_factors_before_or_after_are_saved_too(read, tmp_path, first):
    name, original, mine = read
    plan = {card.name: 6 for card in mine if card.name in mine.within(BLOCKS[name]) and not card.reason}
    if first:
        small = apply_plan(profile(neurons.prune_neurons(mine, 0.75, rule="random", within=BLOCKS[name]), IDS), plan)
    else:
        small = apply_plan(profile(mine.model, IDS), plan)
    checkpoints.save_compressed(small, tmp_path / "small.safetensors", plan, original=original)
    again, metadata = checkpoints.load_compressed(tmp_path / "small.safetensors", type(original)(original.config))
    assert metadata["plan"] == plan and torch.equal(answers(again), answers(small))


def test_a_file_with_shapes_of_another_network_is_refused(tmp_path):
    mine = profile(small_llama(vocabulary=64), IDS, spectra=False)
    small = neurons.prune_neurons(mine, 0.75, within=BLOCKS["llama"])
    path = tmp_path / "small.safetensors"
    checkpoints.save_compressed(small, path, {}, original=mine.model)
    with pytest.raises(ValueError, match="it has no linear layer 'model.layers.0.mlp"):
        checkpoints.load_compressed(path, with_linear_layers(small_gpt2()))
    with pytest.raises(ValueError, match="the metadata name shapes"):
        checkpoints.save_compressed(small, path, {}, shapes={})
    header = {"plan": "{}", "shapes": json.dumps({"model.layers.0.mlp.up_proj": [0, "x"]})}
    save_file({"a": torch.zeros(1)}, path, header)
    with pytest.raises(ValueError, match="is damaged: its shapes are"):
        checkpoints.load_compressed(path, mine.model)
