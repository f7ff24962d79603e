"""Chapter 02b, its pictures and toys: a kernel taken apart, its three unfoldings, and the sweep on small networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace, svd
from lowrank_utils.network import unfold
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import LayerProfile, Profile, profile
from lowrank_utils.workbook.chapters.ten_minutes import as_numbers
from lowrank_utils.workbook.plots import SIGNED, canvas, colour_of, name_ends, tiles

NAMES = {  # of kinds of factors in figures and sentences
    "svd": "plain",
    "data-aware": "data-aware",
    "sequential": "sequential",
    "relu-aware": "ReLU-aware",
    "fisher-weighted": "Fisher-weighted",
}
SHARES = (0.1, 0.25, 0.5)  # of the MACs of one layer, at which its errors are measured
MARK = "tab:green"  # of the frame around one kernel in the drawing of the unfoldings

# ---- where the work is -----------------------------------------------------------------------------------------------


def work(read: Profile) -> pd.DataFrame:
    """Return where the parameters and the work of a network are: one row a layer.

    Columns: layer, weights (the shape of its weights), parameters, MACs, and the shares of both.
    """
    table = pd.DataFrame(
        {
            "layer": layer.name,
            "weights": "x".join(map(str, read.model.get_parameter(f"{layer.name}.weight").shape)),
            "parameters": layer.parameters,
            "MACs": layer.macs,
        }
        for layer in read
    )
    shares = {f"share of {name}": table[name] / table[name].sum() for name in ("parameters", "MACs")}
    return table.assign(**shares)


def where_work(table: pd.DataFrame) -> Figure:
    """Return the share of each layer in the parameters and in the MACs of a network, as bars; `table` is that of `work`."""
    figure, (axis,) = canvas(width=10, height=3.2)
    places = np.arange(len(table))
    bars = (("parameters", -0.2, "silver"), ("MACs", 0.2, "dimgray"))
    for name, shift, colour in bars:
        axis.bar(places + shift, table[f"share of {name}"], width=0.4, color=colour)
    top = max(float(table[f"share of {name}"].max()) for name, *_ in bars)
    for line, (name, _, colour) in enumerate(bars):
        axis.text(0.01, 0.95 - 0.11 * line, f"share of the {name}", color=colour, transform=axis.transAxes, va="top")
    axis.set(ylim=(0, 1.3 * top), xlim=(-0.6, len(table) - 0.4))
    few = len(table) <= 12
    axis.set_xticks(places, table["layer"], rotation=0 if few else 90, fontsize=9 if few else 6)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(False, axis="x")
    return figure


def about_work(table: pd.DataFrame) -> str:
    """Return in sentences which layer does most of the work and which one holds most parameters; `table` of `work`."""
    rows = table.to_dict("records")
    busy, large = (max(rows, key=lambda row, name=name: row[name]) for name in ("MACs", "parameters"))
    told = f"`{busy['layer']}` does {busy['share of MACs']:.0%} of the work with {busy['share of parameters']:.0%} of the parameters."
    if busy["layer"] == large["layer"]:
        return f"{told} No layer holds more parameters."
    return (
        f"{told} `{large['layer']}` holds {large['share of parameters']:.0%} of the parameters and does "
        f"{large['share of MACs']:.1%} of the work."
    )


def busiest(read: Profile) -> str:
    """Return the name of the convolution with the most MACs among those with a square kernel above 1 x 1 and no stride.

    Raises ValueError where the network has none that can be factored.
    """

    def fits(card: LayerProfile) -> bool:
        layer: Any = read.model.get_submodule(card.name)
        if card.reason or not isinstance(layer, nn.Conv2d) or layer.groups > 1:
            return False
        return layer.stride == (1, 1) and layer.kernel_size[0] == layer.kernel_size[1] > 1

    found = [card for card in read if fits(card)]
    if not found:
        raise ValueError("this network has no square convolution of stride 1 between its first and last layer")
    return max(found, key=lambda card: card.macs).name


# ---- a kernel in pictures --------------------------------------------------------------------------------------------


def _with_numbers(axis: Axes, matrix: torch.Tensor, limit: float) -> None:
    """Draw a small matrix with its numbers in the cells, every cell of the same size in all axes."""
    axis.imshow(matrix.numpy(), cmap=SIGNED, vmin=-limit, vmax=limit)
    for (y, x), value in np.ndenumerate(matrix.numpy()):
        axis.text(x, y, f"{value:g}", ha="center", va="center", fontsize=10)
    centre_y, centre_x = ((size - 1) / 2 for size in matrix.shape)
    axis.set(xlim=(centre_x - 1.5, centre_x + 1.5), ylim=(centre_y + 1.5, centre_y - 1.5))
    for side in axis.spines.values():
        side.set_visible(False)


def taken_apart(picture: torch.Tensor, column: torch.Tensor, row: torch.Tensor) -> Figure:
    """Return a drawing of a kernel of rank 1 as a column times a row, and of what each of the two makes of an image.

    Parameters: `picture`, height x width; `column` and `row`, vectors of an odd length, whose outer product is the kernel.
    """
    kernel = torch.outer(column, row)
    image, pads = picture[None, None], [len(column) // 2, len(row) // 2]
    down = nn.functional.conv2d(image, column.reshape(1, 1, -1, 1), padding=(pads[0], 0))
    across = nn.functional.conv2d(down, row.reshape(1, 1, 1, -1), padding=(0, pads[1]))
    figure, axes = tiles(1, 6, 1.7)
    titles = ("the kernel", "= column", "x row", "an image", "after the column", "and after the row")
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    limit = 1.8 * float(kernel.abs().max())
    for axis, matrix in zip(axes[0], (kernel, column[:, None], row[None])):
        _with_numbers(axis, matrix, limit)
    axes[0, 3].imshow(picture.numpy(), cmap="gray_r")
    for axis, result in zip(axes[0, 4:], (down, across)):
        most = float(result.abs().max()) or 1.0
        axis.imshow(result[0, 0].numpy(), cmap=SIGNED, vmin=-most, vmax=most)
    return figure


def _corner(layer: nn.Conv2d, outputs: int, inputs: int) -> nn.Conv2d:
    """Return a convolution of a few outputs and inputs of another one, those with the largest weights."""
    weight = layer.weight.detach().cpu()
    rows = weight.flatten(1).norm(dim=1).topk(min(outputs, len(weight))).indices.sort().values
    sizes = weight[rows].transpose(0, 1).flatten(1).norm(dim=1)
    weight = weight[rows][:, sizes.topk(min(inputs, len(sizes))).indices.sort().values]
    high, wide = weight.shape[2:]
    part = nn.Conv2d(weight.shape[1], weight.shape[0], (high, wide), bias=False)
    part.weight.data = weight
    return part


def unfolded(layer: nn.Conv2d, outputs: int = 3, inputs: int = 3) -> Figure:
    """Return a drawing of some of the kernels of a convolution, and of the same numbers as three matrices.

    The `outputs` and `inputs` with the largest weights are drawn. One kernel is framed wherever its numbers stand.
    """
    if max(layer.kernel_size) > 3:
        outputs, inputs = 2, 2  # of larger kernels fewer fit on a page
    part = _corner(layer, outputs, inputs)
    weight = part.weight.detach()
    (o, i, high, wide), limit = weight.shape, float(weight.abs().max())
    frame = torch.zeros_like(weight)
    frame[o // 2, i // 2] = 1
    figure, (axis,) = canvas(width=6.2, height=4.9)
    axis.set_axis_off()
    for a in range(o):
        for b in range(i):
            place = (b * (wide + 1), a * (high + 1))
            _cells(axis, weight[a, b], place, limit)
            if frame[a, b].any():
                axis.add_patch(Rectangle(place, wide, high, fill=False, edgecolor=MARK, linewidth=2.5))
    axis.text(0, -0.6, f"kernels of {o} outputs (down)\nand {i} inputs (across)", fontsize=9, va="bottom")
    right, below = max(i * (wide + 1), 13) + 3, max(o * (high + 1), o * wide) + 4
    places = ((right, 0), (0, below), (max(right + i * high, i * high * wide) + 4, 0))  # beside, below, far right
    for scheme, (x, y) in zip(unfold.NAMES, places):
        matrix, marked = (unfold.to_matrix(part, scheme, values)[0] for values in (weight, frame))
        rows, columns = (np.flatnonzero(marked.bool().any(other).numpy()) for other in (1, 0))
        _cells(axis, matrix, (x, y), limit)
        corner, size = (x + columns[0], y + rows[0]), (len(columns), len(rows))
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=MARK, linewidth=2.5))
        axis.text(x, y - 0.6, f"{scheme}: {matrix.shape[0]} x {matrix.shape[1]}", fontsize=9, va="bottom")
    bottom = max(below + o, o * high * wide)
    axis.set(xlim=(-0.5, places[-1][0] + i + 4), ylim=(bottom + 0.5, -3.5), aspect="equal")
    return figure


def _cells(axis: Axes, matrix: torch.Tensor, place: tuple[float, float], limit: float) -> None:
    """Draw a matrix in cells of size 1 with its upper left corner at `place` (x, y), y downwards."""
    (x, y), (rows, columns) = place, matrix.shape
    mesh = axis.pcolormesh(
        np.arange(columns + 1) + x, np.arange(rows + 1) + y, matrix.numpy(), cmap=SIGNED, vmin=-limit, vmax=limit
    )
    mesh.set(edgecolor="lightgray", linewidth=0.5)


# ---- what a rank loses -----------------------------------------------------------------------------------------------


def _inputs_of(read: Profile, name: str, images: torch.Tensor) -> torch.Tensor:
    """Return what layer `name` receives while the network sees `images`."""
    seen = []

    def keep(module, args, kwargs):
        seen.append(args[0])

    device = next(read.model.parameters()).device
    with evaluating(read.model), torch.no_grad(), hooked(read.model, {name: keep}, before=True):
        read.model(images.to(device))
    return seen[0]


def errors(read: Profile, name: str, images: torch.Tensor, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """Return what a convolution loses in each scheme, with plain and data-aware factors, at shares of its MACs.

    Parameters
    ----------
    read : with calibration images, which data-aware factors see.
    name : of a convolution.
    images : those that the error is measured on (N first).
    shares : of the MACs of the layer, each in (0, 1].

    One row a scheme, kind of factors and share: columns scheme, factors, share, rank, lost (share of the energy of the outputs,
    whose mean is taken a channel).
    """
    for share in shares:
        checks.check_share(share=share)
    layer: Any = read.model.get_submodule(name)
    moments, x, rows = read.moments_of([name])[name], _inputs_of(read, name, images), []
    with torch.no_grad():
        y = layer(x)
        energy = (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
        for scheme in [found for found in unfold.schemes_of(layer) if found]:
            own = read.but(scheme={name: scheme})[name]
            for method in svd.METHODS:
                factors = svd.decompose_layer(layer, method, moments, scheme, True)
                for share in shares:
                    rank = max(1, min(int(share * own.macs / own.cost(own.entry(1))), own.full_rank))
                    lost = float((factors.layers(rank)(x) - y).square().sum() / energy)
                    rows.append({"scheme": scheme, "factors": method, "share": share, "rank": rank, "lost": lost})
    return pd.DataFrame(rows)


def error_curves(table: pd.DataFrame, name: str) -> Figure:
    """Return the energy that a layer loses against its MACs: a panel a scheme, a line a kind of factors; `table` of `errors`."""
    schemes = list(table["scheme"].unique())
    figure, axes = canvas(len(schemes), width=10 / len(schemes), height=3.3, sharey=True)
    for axis, scheme in zip(axes, schemes):
        mine, ends = table[table["scheme"] == scheme], {}
        for kind in svd.METHODS:
            line = mine[mine["factors"] == kind].sort_values("share")
            axis.plot(line["share"], line["lost"], "o-", markersize=5, color=colour_of(kind), label=NAMES[kind])
            ends[kind] = (float(line["share"].iloc[-1]), float(line["lost"].iloc[-1]))
            for share, lost, rank in zip(line["share"], line["lost"], line["rank"]):
                if kind == "svd":
                    axis.annotate(f"rank {rank}", (share, lost), (-2, 9), textcoords="offset points", fontsize=8)
        axis.set(yscale="log", title=scheme, xlabel=f"MACs of {name} kept", xlim=(0, 0.85))
        axis.xaxis.set_major_locator(FixedLocator(sorted(table["share"].unique())))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_locator(FixedLocator([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(0.7 * table["lost"].min(), 1.6 * table["lost"].max())
        name_ends(axis, ends, names=NAMES)
    axes[0].set_ylabel("energy of the outputs lost")
    return figure


def about_errors(table: pd.DataFrame) -> str:
    """Return in sentences what the kinds of factors and the schemes lose; `table` is that of `errors`."""
    by = table.pivot(index=["share", "scheme"], columns="factors", values="lost")
    told = []
    for share in sorted({table["share"].min(), table["share"].max()}):
        each = by.xs(share, level="share")[["svd", "data-aware"]].itertuples()
        told.append(f"- {share:.0%} of the MACs: " + "; ".join(f"{name} {a:.0%} and {b:.0%}" for name, a, b in each))
    less = int((by["data-aware"] < by["svd"]).sum())
    return (
        "The share of the energy of the outputs that is lost, by plain factors and by data-aware ones:\n\n" + "\n".join(told) + "\n\n"
        f"At all sizes measured (the list has the smallest and the largest), data-aware factors lose less in {less} of {len(by)} cases."
    )  # fmt: skip


# ---- toys for the sweep ----------------------------------------------------------------------------------------------


def signals(count: int = 3000, length: int = 30, seed: int = 1) -> torch.Tensor:
    """Return random signals (count x length, float64) whose neighbouring values are alike, as those of pixels are.

    Each value is the mean of four numbers of white noise in a row, with the weights 1, 3, 3, 1.
    """
    noise = torch.randn(count, 1, length + 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.conv1d(noise, torch.tensor([[[1.0, 3.0, 3.0, 1.0]]], dtype=torch.float64) / 8)[:, 0]


def _falling(d_out: int, d_in: int, draw: torch.Generator) -> nn.Linear:
    """Return a layer of random directions whose singular values fall as i^-1/2, with outputs about as large as its inputs."""
    layer = nn.Linear(d_in, d_out).double()
    u, _, vt = torch.linalg.svd(torch.randn(d_out, d_in, generator=draw, dtype=torch.float64), full_matrices=False)
    values = torch.arange(1.0, len(vt) + 1, dtype=torch.float64) ** -0.5
    layer.weight.data = (2 * d_out) ** 0.5 * values / values.norm() * u @ vt
    layer.bias.data.zero_()
    return layer


def two_layers(seed: int = 0) -> nn.Sequential:
    """Return two layers of random directions, ``first`` (30 x 30) and ``second`` (10 x 30), with a ReLU between them."""
    draw = torch.Generator().manual_seed(seed)
    steps = {"first": _falling(30, 30, draw), "relu": nn.ReLU(), "second": _falling(10, 30, draw)}
    return nn.Sequential(OrderedDict(steps))


class Block(nn.Module):
    """A layer, and behind it a residual block: h = relu(stem(x)), and y = h + second(relu(first(h))).

    >>> Block()(torch.zeros(5, 30, dtype=torch.float64)).shape
    torch.Size([5, 20])
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        shapes = ((20, 30), (40, 20), (20, 40))
        self.stem, self.first, self.second = (_falling(*shape, draw) for shape in shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.stem(x))
        return h + self.second(torch.relu(self.first(h)))


def chain(depth: int, seed: int = 0) -> nn.Sequential:
    """Return `depth` layers of 20 units with a ReLU between them, in float64, whose singular values fall as i^-1/2.

    Raises ValueError for a depth below 1.
    """
    checks.check_count(depth=depth)
    draw = torch.Generator().manual_seed(seed)
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, depth + 1):
        steps[f"layer{number}"] = _falling(20, 20, draw)
        if number < depth:
            steps[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(steps)


def lost(now: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the share of the energy of outputs (N x d) that was lost: E|now - wanted|^2 over E|wanted - mean|^2.

    >>> lost(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [5.0]]))
    0.5
    """
    return float((now - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def outputs(model: nn.Module, x: torch.Tensor, rank: int, factors: str) -> torch.Tensor:
    """Return what the package makes of a toy: its outputs on `x` with every linear layer at `rank`, in one kind of `factors`."""
    read = profile(model, x)
    with torch.no_grad():
        return replace.apply_plan(read, dict.fromkeys(read.factorable, rank), factors=factors, resource=None)(x)


def block_drawing() -> Figure:
    """Return a drawing of `Block`: a layer, a residual block, and what the last layer has to give when all are cut."""
    figure, (axis,) = canvas(width=10, height=2.3)
    axis.set_axis_off()
    places = {"stem": 1.2, "first": 4.0, "second": 6.6}
    for name, x in places.items():
        axis.add_patch(Rectangle((x, 0), 1.4, 0.8, facecolor="0.9", edgecolor="black"))
        axis.text(x + 0.7, 0.4, name, ha="center", va="center")
    arrows = [((0.4, 0.4), (1.2, 0.4)), ((2.6, 0.4), (4.0, 0.4)), ((5.4, 0.4), (6.6, 0.4)), ((8.0, 0.4), (8.65, 0.4)), ((9.05, 0.4), (9.7, 0.4))]  # fmt: skip
    for start, end in arrows:
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="->", mutation_scale=14))
    axis.add_patch(plt.Circle((8.85, 0.4), 0.2, fill=False))  # pyright: ignore[reportPrivateImportUsage]
    curve = "arc3,rad=-0.32"
    axis.add_patch(
        FancyArrowPatch((3.3, 0.45), (8.85, 0.62), arrowstyle="->", mutation_scale=14, connectionstyle=curve)
    )
    for text, x, y in (("x", 0.2, 0.4), ("+", 8.85, 0.38), ("y", 9.85, 0.4), ("relu", 6.0, 0.2), ("relu", 3.0, 0.2)):
        axis.text(x, y, text, ha="center", va="center", fontsize=9 if text == "relu" else 12)
    axis.text(6.0, 1.75, "shortcut: carries $h$, and $\\hat h$ once stem is cut", ha="center", fontsize=10)
    axis.text(3.3, -0.45, "$h$ or $\\hat h$", ha="center", fontsize=10)
    axis.text(7.3, -0.45, "has to give $y - \\hat h$", ha="center", fontsize=10, color=colour_of("sequential"))
    axis.set(xlim=(0, 10), ylim=(-0.7, 2.1))
    return figure


def sweeps(
    x: torch.Tensor,
    toy: nn.Module,
    sweep_toy: Callable[[int], torch.Tensor],
    block: nn.Module,
    sweep_block: Callable[..., torch.Tensor],
    ranks: Sequence[int],
) -> pd.DataFrame:
    """Return what the toys of the notebook lose at each rank, as `sweep_curves` takes it.

    Parameters
    ----------
    x : inputs (N x d_in) of both toys.
    toy, block : of `two_layers` and `Block`.
    sweep_toy, sweep_block : the notebook's functions of a rank, which return outputs on `x`; the latter takes ``repair``.
    ranks : of every layer.
    """
    rows = []
    for rank in ranks:
        found = {
            ("two layers", "each layer alone"): outputs(toy, x, rank, "data-aware"),
            ("two layers", "front to back"): sweep_toy(rank),
            ("a block", "each layer alone"): outputs(block, x, rank, "data-aware"),
            ("a block", "front to back, own outputs"): sweep_block(rank, repair=False),
            ("a block", "front to back"): sweep_block(rank),
        }
        wanted = {"two layers": toy(x), "a block": block(x)}
        rows += [(network, way, rank, lost(now, wanted[network])) for (network, way), now in found.items()]
    return pd.DataFrame(rows, columns=["network", "way", "rank", "lost"])


WAYS = {  # how a toy was cut: colour and dashes of its line
    "each layer alone": ("data-aware", "-"),
    "front to back, own outputs": ("sequential", "--"),
    "front to back": ("sequential", "-"),
}


def sweep_curves(table: pd.DataFrame) -> Figure:
    """Return the energy lost against the rank of every layer, a panel a network and a line a way.

    `table`: columns network, way (of `WAYS`), rank, lost (share of the energy of the outputs).
    """
    networks = list(table["network"].unique())
    figure, axes = canvas(len(networks), width=5.0)
    for axis, network in zip(axes, networks):
        mine, heights = table[table["network"] == network], []
        for way in [way for way in WAYS if way in set(mine["way"])]:
            line = mine[mine["way"] == way].sort_values("rank")
            colour, dash = colour_of(WAYS[way][0]), WAYS[way][1]
            axis.plot(line["rank"], line["lost"], dash, marker="o", markersize=4, color=colour, label=way)
            heights.append((float(line["lost"].mean()), way, colour))
        axis.set(title=network, xlabel="rank of every layer", ylim=(0, 1.1 * mine["lost"].max()))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for place, (_, way, colour) in enumerate(sorted(heights, reverse=True)):
            axis.text(0.97, 0.95 - 0.09 * place, way, color=colour, transform=axis.transAxes, ha="right", va="top")
    axes[0].set_ylabel("energy of the outputs lost")
    return figure


# ---- exercises -------------------------------------------------------------------------------------------------------


def is_pair_of(layer: nn.Conv2d, rank: int, scheme: str) -> Callable[[Any], bool]:
    """Return the test of an answer: a function of (layer, rank) that gives the pair of a scheme with plain factors.

    The answer's pair must have the layers of the scheme, and the outputs of the package's pair on random inputs.
    """
    side = 2 * max(layer.kernel_size) + 3
    probe = torch.randn(2, layer.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    probe = probe.to(layer.weight)

    def test(answer: Any) -> bool:
        assert callable(answer), "a function of a layer and a rank is asked for"
        pair = answer(layer, rank)
        assert isinstance(pair, nn.Module), "the function does not return a module"
        wanted = svd.factorize(layer, rank, scheme)
        shapes = [tuple(p.shape) for p in pair.parameters() if p.ndim == 4]
        assert shapes == [tuple(p.shape) for p in wanted.parameters() if p.ndim == 4], f"its kernels are {shapes}"
        with torch.no_grad():
            return torch.allclose(pair(probe), wanted(probe), atol=1e-4)

    return test


def before_norm(rank: int = 2) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a small convolution with its batch norm, W, W_r and the mean patch mu, and the running mean after the cut.

    W and W_r are outputs x numbers in a patch; W_r are data-aware factors of the channel scheme. All in float64.
    """
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)).double().eval()
    x = torch.rand(40, 3, 9, 9, generator=draw).double()
    norm: Any = net[1]
    norm.running_mean.copy_(net[0](x).detach().mean((0, 2, 3)))
    read = profile(net, x)
    small = replace.apply_plan(read, {"0": ("channel", rank)}, factors="data-aware", resource=None)
    first, second = (small.get_parameter(f"0.{part}.weight").detach().flatten(1) for part in ("first", "second"))
    weight, mean = net.get_parameter("0.weight").detach().flatten(1), read.moments_of(["0"])["0"].mean.flatten()
    return net, weight, second @ first, mean, small.get_buffer("1.running_mean")


DEPTHS = (1, 2, 4, 8, 12)


def depth_errors(x: torch.Tensor, rank: int, factors: str, depths: Sequence[int] = DEPTHS) -> list[float]:
    """Return the energy lost by chains of layers, all at `rank`, for each depth, with one kind of factors."""
    return [lost(outputs(model := chain(depth), x, rank, factors), model(x).detach()) for depth in depths]


def depth_curves(alone: Sequence[float], answer: Any, depths: Sequence[int] = DEPTHS) -> Figure:
    """Return the energy lost against the depth of a chain: each layer alone, and front to back as a learner found it.

    Where `answer` is not one number for each depth, as when the exercise is not answered yet, the figure says so.
    """
    figure, (axis,) = canvas(width=7)
    axis.plot(depths, alone, "o-", color=colour_of("data-aware"))
    axis.set(xlabel="layers in the chain", ylabel="energy of the outputs lost", xlim=(0.5, 1.35 * depths[-1]))
    axis.set_ylim(0, 1.1 * max(alone))
    axis.xaxis.set_major_locator(FixedLocator(depths))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ends, names = {"data-aware": (depths[-1], alone[-1])}, {"data-aware": "each layer alone", "sequential": "front to back"}  # fmt: skip
    found = as_numbers(answer)
    if found is None or found.shape != (len(depths),):
        axis.text(0.03, 0.9, f"front to back: no answer of {len(depths)} numbers yet", transform=axis.transAxes)
    else:
        axis.plot(depths, found, "o-", color=colour_of("sequential"))
        axis.set_ylim(0, 1.1 * max(*alone, *found))
        ends["sequential"] = (depths[-1], float(found[-1]))
    name_ends(axis, ends, names=names)
    return figure


def about_depths(alone: Sequence[float], swept: Sequence[float], depths: Sequence[int] = DEPTHS) -> str:
    """Return in sentences how the errors of both ways grow with the depth of a chain."""
    return (
        f"With {depths[0]} layer the two ways lose {alone[0]:.1%} and {swept[0]:.1%}. With {depths[-1]} layers, each layer alone loses "
        f"{alone[-1]:.0%}, and front to back {swept[-1]:.0%}."
    )
