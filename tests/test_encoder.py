"""Sentence encoders: embeddings by hand, pairs of sentences read or refused, and rows of compressed ones."""

import dataclasses
import hashlib
import urllib.error

import numpy as np
import pytest
import torch
import transformers

from conftest import byte_tokenizer, small_llama
from lowrank_utils import paths, profile
from lowrank_utils.lab import encoder, score, sentences
from lowrank_utils.lab.fetch import DataUnavailable
from lowrank_utils.network import statistics
from lowrank_utils.workbook import encoder as chapter
from lowrank_utils.workbook import rivals, spectra

WORDS = "river hill mill bridge town flood wind willow wheat stone road teacher school church city war".split()
HERE = (paths.DATA / encoder.NAME / "model.safetensors").is_file() and (
    paths.DATA / "stsbenchmark/sts-dev.csv"
).is_file()


def some_pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    first, second = ([" ".join(rng.choice(WORDS, 5)) for _ in range(count)] for _ in range(2))
    return sentences.Pairs(tuple(first), tuple(second), tuple(rng.uniform(0, 5, count).tolist()))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=300, max_position_embeddings=64, initializer_range=0.2, **sizes)
    model = transformers.BertModel(config, add_pooling_layer=False)
    return encoder.Encoder("small", encoder.SentenceEncoder(model).eval(), tokenizer)


# ---- embeddings


def test_an_embedding_is_the_mean_over_the_tokens_of_a_sentence_whatever_it_is_padded_with(small):
    texts = ["river", "a mill by the river", "hill"]
    found = small.embed(texts, batch_size=3)
    assert found.shape == (3, 32) and torch.allclose(found.norm(dim=1), torch.ones(3))
    for sentence, embedding in zip(texts, found):
        ids = torch.tensor([small.tokenizer(sentence)["input_ids"]])
        with torch.no_grad():
            mean = small.model.transformer(input_ids=ids)[0][0].mean(0)
        assert torch.allclose(embedding, mean / mean.norm(), atol=1e-5)
    assert torch.allclose(small.embed(texts, batch_size=1), found, atol=1e-5)


def test_similarities_are_cosines(small):
    pairs = sentences.Pairs(("river", "hill", "mill"), ("river", "mill", "hill"), (5.0, 1.0, 2.0))
    found = small.similarities(pairs)
    hill, mill = small.embed(["hill", "mill"])
    assert found.tolist() == pytest.approx([1.0, float(hill @ mill), float(hill @ mill)], abs=1e-5)


def test_correlations(small):
    pairs = some_pairs(20)
    assert encoder.agreement(small, small, pairs) == 1
    own = small.similarities(pairs)
    ranked = dataclasses.replace(pairs, scores=tuple(np.exp(own.numpy().astype(float)).tolist()))
    assert encoder.sts(small, ranked) == 1  # people's scores in the very order of the similarities
    assert encoder.correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)  # 1 - 6 sum d^2 / (n (n^2 - 1))
    with pytest.raises(ValueError, match="two series of one length, 3 or more, not 2 and 3"):
        encoder.correlation([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="a constant series has no rank correlation"):
        encoder.correlation([1, 1, 1], [1, 2, 3])


def test_calibration_inputs_have_no_padding(small):
    taken = small.unpadded(["too short", *some_pairs(6).first], 12, 4)
    assert taken["input_ids"].shape == (4, 12) and bool(taken["attention_mask"].all())
    assert small.tokenizer.decode(taken["input_ids"][0]) == some_pairs(6).first[0][:12]
    with pytest.raises(ValueError, match="1 of 2 sentences have 12 tokens or more, 2 are wanted"):
        small.unpadded(["too short", "this one is not"], 12, 2)
    with pytest.raises(ValueError, match="there is no sentence"):
        small.tokens([])


# ---- pairs of sentences


def test_lines_of_the_benchmark_are_read():
    found = sentences.parsed(
        ["news\tMSRpar\t2012\t1\t2.5\tOne. \tTwo.", "forum\tdeft\t2014\t2\t0\tTwo.\tThree.\tlicence\tx"]
    )
    assert found.first == ("One.", "Two.") and found.second == ("Two.", "Three.") and found.scores == (2.5, 0.0)
    assert found.sentences == ["One.", "Two.", "Three."] and len(found[:1]) == 1
    for bad in ("news\tMSRpar\t2012\t1\t2.5\tOne.", "news\tMSRpar\t2012\t1\thigh\tOne.\tTwo.", "nothing"):
        with pytest.raises(ValueError, match="line 2 has no score and two sentences between tabs: "):
            sentences.parsed(["n\tf\t1\t1\t1\ta\tb", bad])


def test_a_file_at_hand_is_checked_and_one_that_is_missing_is_asked_for(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", refused)
    with pytest.raises(
        ValueError, match="unknown split 'valid'; choose|unknown split 'valid': choose train, dev, test"
    ):
        sentences.load("valid", tmp_path)
    with pytest.raises(DataUnavailable) as refusal:
        sentences.load("dev", tmp_path)
    path = tmp_path / "stsbenchmark" / "sts-dev.csv"
    said = str(refusal.value)
    assert said.startswith(
        "sts-dev.csv cannot be had (Name or service not known): put the file from https://github.com/"
    )
    assert said.endswith(f"stsbenchmark/sts-dev.csv at {path}") and not path.exists()
    path.parent.mkdir(exist_ok=True)
    path.write_text("news\tMSRpar\t2012\t1\t2.5\tOne.\tTwo.\n")
    with pytest.raises(ValueError, match="is not the file on record: its SHA-256 starts with"):
        sentences.load("dev", tmp_path)
    monkeypatch.setitem(sentences.SHA256, "dev", hashlib.sha256(path.read_bytes()).hexdigest())
    assert sentences.load("dev", tmp_path).second == ("Two.",)


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="the encoder or the STS benchmark is not below data")
def test_the_published_encoder_orders_pairs_as_people_do():
    found = encoder.load()
    assert score.parameters(found.model) == 22_565_376
    assert encoder.sts(found, sentences.load("dev")[::5]) > 0.84  # 0.867 on all pairs


# ---- compressed


@pytest.fixture(scope="module")
def rows(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "encoder.csv"
    seen = small.unpadded(some_pairs(60, seed=1).sentences, 16)
    return chapter.measure(small, seen, some_pairs(40), path, kept=(0.6,), network="small")


@pytest.mark.slow
def test_each_way_has_a_row_within_the_budget_of_the_layers(small, rows):
    assert list(rows["method"]) == ["dense", *rivals.METHODS]
    dense, cut = rows.iloc[0], rows.iloc[1:]
    assert dense["agreement"] == 1 and dense["correlation"] == encoder.sts(small, some_pairs(40)).__round__(6)
    stack = score.parameters(small.model.transformer.encoder)
    outside = score.parameters(small.model) - stack
    assert (cut["parameters_kept"] * (stack + outside) <= outside + 0.63 * stack).all()  # norms of layers stay, too
    assert (cut["agreement"] < 1).all() and (rows["calibration_sentences"] == 120).all() and (rows["pairs"] == 40).all()
    by = cut.set_index("method")["agreement"]
    assert by["compress, not refined"] > by["plain SVD, one share"]


@pytest.mark.slow
def test_figure_table_and_page(rows):
    drawn = chapter.figure(rows)
    assert [axis.get_title() for axis in drawn.axes] == list(chapter.SHOWN.values())
    assert list(chapter.table(rows)) == ["people's scores, 60% kept", "dense network, 60% kept"]


# ---- what a matrix loses


def test_what_a_matrix_loses_is_what_its_outputs_lose(small, monkeypatch):
    monkeypatch.setattr(statistics, "TOKEN_PRIOR", 0)  # so few tokens would mostly be prior
    seen = small.unpadded(some_pairs(30).sentences, 16)
    read = profile(small.model, seen)
    name = "transformer.encoder.layer.1.output.dense"
    found = spectra.of_layer(read, read[name])
    layer, inputs = small.model.get_submodule(name), []
    handle = layer.register_forward_pre_hook(lambda module, taken: inputs.append(taken[0].flatten(0, 1)))
    with torch.no_grad():
        small.model(**seen)
    handle.remove()
    x, weight = torch.cat(inputs).double(), layer.weight.detach().double()
    x = x - x.mean(0)
    rank = 10  # 10 (32 + 64) + 32 numbers are the most that half of 32 x 64 + 32 allow
    assert read[name].cost(rank, "parameters") <= read[name].parameters / 2 < read[name].cost(rank + 1, "parameters")
    outputs = x @ weight.T
    kept = torch.linalg.svd(outputs, full_matrices=False)[1].square()
    assert found["lost"] == pytest.approx(float(kept[rank:].sum() / kept.sum()), rel=1e-4)
    u, s, vt = torch.linalg.svd(weight)
    plain = x @ ((u[:, :rank] * s[:rank]) @ vt[:rank]).T
    lost = (outputs - plain).square().sum() / outputs.square().sum()
    assert found["lost_plain"] == pytest.approx(float(lost), rel=1e-4) and found["lost"] < found["lost_plain"]
    shares = s.square() / s.square().sum()
    effective = torch.exp(-(shares * shares.log()).sum()) / 32
    assert found["effective_rank"] == pytest.approx(float(effective), rel=1e-6)


def test_matrices_of_both_kinds_of_networks_are_named(small):
    model = small_llama()
    ids = torch.randint(0, 256, (6, 20), generator=torch.Generator().manual_seed(0))
    one = spectra.measure(profile(model, ids), ["model.layers.*"], network="llama")
    seen = small.unpadded(some_pairs(30).sentences, 16)
    other = spectra.measure(profile(small.model, seen), chapter.WITHIN, network="small")
    assert len(one) == 14 and len(other) == 12 and sorted(one["block"].unique()) == [0, 1]
    assert set(one["kind"]) - set(other["kind"]) == {"gate"} and set(other["kind"]) < set(one["kind"])
    rows = spectra.pd.concat([one, other])
    assert ((rows[list(spectra.PANELS)] > 0) & (rows[list(spectra.PANELS)] < 1.0001)).all(axis=None)
    drawn = spectra.figure(rows)
    assert [axis.get_title() for axis in drawn.axes] == list(spectra.PANELS.values())
    assert list(spectra.medians(rows).index) == ["llama", "small"]
