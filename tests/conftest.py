"""What several tests share: toy projects whose notebooks take a second."""

import ast
import contextlib
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import matplotlib
import nbformat
import pytest

from lowrank_utils import paths

matplotlib.use("Agg")  # not by the environment: kernels would inherit it and show no figures
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children would not hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

PARAMETERS = """\
seed: int = 0  # random numbers
threshold: float = 0.9  # share of energy kept, at most 1
word: str = "plain"  # what cell 3 does
output_folder: str = ""  # where results go; empty: nothing is written
"""
WORK = """\
import time, os
if word == "boom":
    raise ValueError("went wrong")
if word == "die":
    os.kill(os.getpid(), 9)
from lowrank_utils import paths
while word == "hold" and not (paths.ROOT / "go").exists():
    time.sleep(0.05)
"""
SAVE = """\
from lowrank_utils.workbook import results
results.save(output_folder, [{"chooser": "toy", "accuracy": threshold / 3}], files={"big.bin": bytes(%d)})
"""


def mlp(sizes=(12, 9, 7, 4), seed=0, bias=True):
    """A small network of linear layers with ReLU between them, named 0, 2, 4 ..."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    steps = []
    for d_in, d_out in zip(sizes, sizes[1:]):
        steps += [nn.Linear(d_in, d_out, bias=bias), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def byte_tokenizer():
    """A fast tokenizer of transformers with a token for each byte: its 256 ids need no training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def small_llama(tied=True, vocabulary=256, seed=0):
    """A Llama of two layers and width 32 with random weights, in eval mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "vocab_size": vocabulary}
    config = LlamaConfig(**sizes, tie_word_embeddings=tied, initializer_range=0.3)
    return LlamaForCausalLM(config).eval()


def write_notebook(path, *cells, parameters=PARAMETERS):
    """Write a notebook of the given code cells behind a cell tagged parameters."""
    new = nbformat.v4
    sources = [
        new.new_markdown_cell("# A toy"),
        new.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new.new_notebook(cells=sources + [new.new_code_cell(c) for c in cells], metadata=metadata), path)
    return path


def make_project(root):
    """Make a project of two toy notebooks below `root`, with functions that call its command line."""
    first = write_notebook(root / "notebooks" / "01_first.ipynb", "print(seed)", SAVE % 0)
    second = write_notebook(root / "notebooks" / "02_second.ipynb", WORK, SAVE % 0)
    environment = {**os.environ, "LOWRANK_ROOT": str(root)}

    def start(*words, **options):
        options = {"cwd": root.parent, "env": environment, "text": True, **options}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([sys.executable, "-m", "lowrank_utils", *map(str, words)], **options)

    def call(*words, **options):
        process = start(*words, **options)
        out, err = process.communicate(timeout=120)
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    return SimpleNamespace(
        root=root, first=first, second=second, start=start, call=call, runs=root / "outputs" / "runs"
    )


def wait_for(condition, seconds=120):
    """Return what `condition` returns once it is true."""
    end = time.time() + seconds
    while not (found := condition()):
        assert time.time() < end, "waited in vain"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def mounted(folder, options):
    """Yield `folder` as a file system of its own, for root only."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("file systems can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A toy project that the package takes for its own, in this process and in kernels."""
    root = tmp_path / "project {x}"  # papermill would read the braces as a parameter
    monkeypatch.setenv("LOWRANK_ROOT", str(root))
    own = {
        name: getattr(paths, name)
        for name in ("ROOT", "DATA", "NOTEBOOKS", "SOLUTIONS", "OUTPUTS", "RUNS", "SWEEPS", "GALLERY")
    }
    for name, path in own.items():
        monkeypatch.setattr(paths, name, root / path.relative_to(own["ROOT"]))
    return make_project(root)


def notebook_cells(path, kind="code"):
    """The cells of a notebook of one kind."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def check_calls(path):
    """The check calls of a notebook, as text without regard to layout."""
    trees = [ast.parse(cell.source) for cell in notebook_cells(path)]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if getattr(call.func, "id", "") == "check"]
