"""A convolution as a matrix in three ways, and the two thin convolutions that each of them gives.

A kernel W (O x I x kh x kw) is unfolded into a matrix, and a factorization of the matrix into rank r is two layers:

- ``"channel"``: O x (I kh kw); a kh x kw convolution to r channels, then 1 x 1;
- ``"input"``: (O kh kw) x I; 1 x 1 to r channels, then kh x kw;
- ``"spatial"``: (O kw) x (I kh); kh x 1 to r channels, then 1 x kw (Jaderberg et al. 2014).

A linear layer is its own matrix, scheme None. A grouped convolution is one matrix for each group; every group gets the
rank r. In a spatial pair of stride (a, b) the first layer has stride (a, 1) and the second (1, b).

Everything that differs between schemes is in one class a scheme, a subclass of `Unfolding`; the functions of this
module look up the class, and no other file asks which scheme it has. To add a way to unfold a convolution:

1. Write a subclass of `Convolution` here. It says its ``name``, the kernel axes ``first_axes`` that stay with the first
   layer (0 is the height, 1 the width; the second layer gets the others), which kernels it `takes`, and how many
   `positions` the first layer has.
2. Add the class to `SCHEMES`.

Plans, costs, factors, the search and files then know it. The same is true of two layers of another kind: write a
subclass of `Unfolding` with all of its methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils.checks import is_whole

Entry: TypeAlias = int | tuple[str | None, int]  # of a plan: the rank of a linear layer, or (scheme, rank)


@dataclass(frozen=True)
class Cost:
    """What a rank costs in one scheme: ``parameters`` and ``macs`` (for one input) per rank, the largest rank ``full_rank``,
    and the ``shape`` (rows, columns) of the matrix of one group."""

    full_rank: int
    parameters: int
    macs: int
    shape: tuple[int, int]


class Unfolding(ABC):
    """One way to write the weights of a layer as a matrix, and the pair of layers that a factorization of it is.

    Rows of the matrix count (output channel, offset of the second layer), columns (input channel, offset of the first).
    An offset of the second layer is a place in its kernel: it sees the output of the first layer at that many places.
    """

    name: ClassVar[str | None]

    @abstractmethod
    def fits(self, layer: nn.Module) -> bool:
        """Return whether `layer` can be written this way, and no other scheme writes the same matrix more simply."""

    @abstractmethod
    def matrix_shape(self, layer: nn.Module) -> tuple[int, int]:
        """Return (rows, columns) of the matrix of one group."""

    @abstractmethod
    def positions(self, layer: nn.Module, inputs: int, outputs: int, between: int | None) -> int:
        """Return the positions of the first layer for one network input; arguments as in `rank_costs`."""

    @abstractmethod
    def offsets(self, layer: nn.Module) -> int:
        """Return the number of offsets of the second layer. With one, the order of `in_order` must be the layer's own."""

    @abstractmethod
    def to_matrix(self, layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight`, in any shape, as groups x rows x columns; as many groups as it has numbers for."""

    @abstractmethod
    def from_matrix(self, layer: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
        """Return groups x (O / groups) x (numbers in a patch), the inverse of `to_matrix`."""

    @abstractmethod
    def in_order(self, layer: nn.Module) -> torch.Tensor:
        """Return the places of a patch in the order (offset of the second layer, column of the matrix)."""

    @abstractmethod
    def empty_pair(
        self, layer: nn.Module, rank: int, bias: bool
    ) -> tuple[nn.Linear, nn.Linear] | tuple[nn.Conv2d, nn.Conv2d]:
        """Return the two layers at `rank`, without numbers; `bias`, whether the second one has a bias."""

    @abstractmethod
    def rank_of(self, first: nn.Module, second: nn.Module) -> int | None:
        """Return the rank at which `empty_pair` makes layers such as these two, None where it makes none."""

    def cost(self, layer: nn.Module, inputs: int = 1, outputs: int = 1, between: int | None = None) -> Cost:
        """Return the `Cost` of a rank; arguments as in `rank_costs`."""
        rows, columns = self.matrix_shape(layer)
        macs = columns * self.positions(layer, inputs, outputs, between) + rows * outputs
        count = groups(layer)
        return Cost(min(rows, columns), count * (rows + columns), count * macs, (rows, columns))

    def thin_layers(
        self, layer: nn.Module, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None
    ) -> nn.Sequential:
        """Return the pair with numbers, as `thin_layers` of this module says."""
        count, rank, rows = groups(layer), right.shape[-2], cast(torch.Tensor, layer.weight).shape[0]
        first, second = self.empty_pair(layer, rank, bias is not None)
        # rows (output, offset) x r  ->  output x r x offset, as the weights of a layer are kept
        left = left.reshape(count, rows // count, self.offsets(layer), rank).transpose(2, 3)
        with torch.no_grad():
            first.weight.copy_(right.reshape(first.weight.shape))
            second.weight.copy_(left.reshape(second.weight.shape))
            if bias is not None:
                cast(torch.Tensor, second.bias).copy_(bias)
        return nn.Sequential(OrderedDict(first=first, second=second))


class Linear(Unfolding):
    """A linear layer, which is its own matrix: d_in -> r -> d_out."""

    name = None

    def fits(self, layer: nn.Module) -> bool:
        return type(layer) is nn.Linear

    def matrix_shape(self, layer: nn.Linear) -> tuple[int, int]:
        rows, columns = layer.weight.shape
        return rows, columns

    def positions(self, layer: nn.Linear, inputs: int, outputs: int, between: int | None) -> int:
        return outputs

    def offsets(self, layer: nn.Linear) -> int:
        return 1

    def to_matrix(self, layer: nn.Linear, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(1, *layer.weight.shape)

    def from_matrix(self, layer: nn.Linear, matrix: torch.Tensor) -> torch.Tensor:
        return matrix

    def in_order(self, layer: nn.Linear) -> torch.Tensor:
        return torch.arange(layer.in_features)

    def empty_pair(self, layer: nn.Linear, rank: int, bias: bool) -> tuple[nn.Linear, nn.Linear]:
        options = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        first = nn.utils.skip_init(nn.Linear, layer.in_features, rank, bias=False, **options)
        second = nn.utils.skip_init(nn.Linear, rank, layer.out_features, bias=bias, **options)
        return first, second  # pyright: ignore[reportReturnType]  # skip_init is typed as giving any module

    def rank_of(self, first: nn.Module, second: nn.Module) -> int | None:
        if type(first) is not nn.Linear or type(second) is not nn.Linear or first.bias is not None:
            return None
        return first.out_features if first.out_features == second.in_features else None


class Convolution(Unfolding):
    """A convolution whose kernel axes are dealt out: ``first_axes`` (0 height, 1 width) to the first layer, the others
    to the second. Stride, dilation and padding go with their axis."""

    first_axes: ClassVar[tuple[int, ...]]

    @property
    def second_axes(self) -> tuple[int, ...]:
        """The kernel axes of the second layer."""
        return tuple(axis for axis in (0, 1) if axis not in self.first_axes)

    @abstractmethod
    def takes(self, high: int, wide: int) -> bool:
        """Return whether a kernel of `high` x `wide` is unfolded this way, and not just like in another scheme."""

    def fits(self, layer: nn.Module) -> bool:
        return type(layer) is nn.Conv2d and not why_not(layer) and self.takes(*layer.kernel_size)

    def matrix_shape(self, layer: nn.Conv2d) -> tuple[int, int]:
        rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        return rows * self.offsets(layer), columns * prod(layer.kernel_size[axis] for axis in self.first_axes)

    def offsets(self, layer: nn.Conv2d) -> int:
        return prod(layer.kernel_size[axis] for axis in self.second_axes)

    def to_matrix(self, layer: nn.Conv2d, weight: torch.Tensor) -> torch.Tensor:
        rows = layer.out_channels // layer.groups
        weight = weight.reshape(-1, rows, layer.in_channels // layer.groups, *layer.kernel_size)
        return weight.permute(self._axes()).reshape(-1, *self.matrix_shape(layer))

    def from_matrix(self, layer: nn.Conv2d, matrix: torch.Tensor) -> torch.Tensor:
        rows = layer.out_channels // layer.groups
        sizes = (-1, rows, layer.in_channels // layer.groups, *layer.kernel_size)
        axes = self._axes()
        weight = matrix.reshape([sizes[axis] for axis in axes])
        return weight.permute([axes.index(axis) for axis in range(5)]).reshape(-1, rows, prod(sizes[2:]))

    def in_order(self, layer: nn.Conv2d) -> torch.Tensor:
        size = layer.weight[0].numel()
        # a patch has neither groups nor outputs: its axes are the last three of `_axes`
        place = torch.arange(size).reshape(-1, *layer.kernel_size)
        return place.permute([axis - 2 for axis in self._axes()[2:]]).flatten()

    def _axes(self):
        # of groups x outputs x inputs x height x width: those of the rows, then those of the columns
        return (0, 1, *(3 + axis for axis in self.second_axes), 2, *(3 + axis for axis in self.first_axes))

    def empty_pair(self, layer: nn.Conv2d, rank: int, bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
        options = {"device": layer.weight.device, "dtype": layer.weight.dtype, "groups": layer.groups}
        width = rank * layer.groups
        one, two = (_along(layer, axes) for axes in (self.first_axes, self.second_axes))
        first = nn.utils.skip_init(nn.Conv2d, layer.in_channels, width, bias=False, **one, **options)
        second = nn.utils.skip_init(nn.Conv2d, width, layer.out_channels, bias=bias, **two, **options)
        return first, second  # pyright: ignore[reportReturnType]  # skip_init is typed as giving any module

    def rank_of(self, first: nn.Module, second: nn.Module) -> int | None:
        if type(first) is not nn.Conv2d or type(second) is not nn.Conv2d or first.bias is not None:
            return None
        if first.groups != second.groups or first.out_channels != second.in_channels:
            return None
        if not _is_trivial(first, self.second_axes) or not _is_trivial(second, self.first_axes):
            return None
        kernel = (a * b for a, b in zip(first.kernel_size, second.kernel_size))
        return first.out_channels // first.groups if self.takes(*kernel) else None


class Spatial(Convolution):
    """(O kw) x (I kh): kh x 1, then 1 x kw (Jaderberg et al. 2014)."""

    name = "spatial"
    first_axes = (0,)

    def takes(self, high: int, wide: int) -> bool:
        return min(high, wide) > 1

    def positions(self, layer: nn.Conv2d, inputs: int, outputs: int, between: int | None) -> int:
        return outputs * layer.stride[1] if between is None else between


class Channel(Convolution):
    """O x (I kh kw): kh x kw, then 1 x 1. Of a 1 x 1 kernel all schemes are this matrix."""

    name = "channel"
    first_axes = (0, 1)

    def takes(self, high: int, wide: int) -> bool:
        return True

    def positions(self, layer: nn.Conv2d, inputs: int, outputs: int, between: int | None) -> int:
        return outputs


class InputChannel(Convolution):
    """(O kh kw) x I: 1 x 1, then kh x kw."""

    name = "input"
    first_axes = ()

    def takes(self, high: int, wide: int) -> bool:
        return max(high, wide) > 1

    def positions(self, layer: nn.Conv2d, inputs: int, outputs: int, between: int | None) -> int:
        return inputs


# of those that fit a layer, the first is its usual one
SCHEMES = (Linear(), Spatial(), Channel(), InputChannel())
NAMES = tuple(scheme.name for scheme in SCHEMES if scheme.name is not None)


def _along(layer, axes):
    # the options of a convolution that works along some axes of the kernel of `layer`
    def along(values, otherwise):
        return tuple(values[axis] if axis in axes else otherwise for axis in (0, 1))

    padding = layer.padding
    if not isinstance(padding, str):
        padding = along(padding, 0)
    elif not axes:
        padding = 0
    return {
        "kernel_size": along(layer.kernel_size, 1),
        "stride": along(layer.stride, 1),
        "dilation": along(layer.dilation, 1),
        "padding": padding,
        "padding_mode": layer.padding_mode,
    }


def _is_trivial(layer, axes):
    # whether a convolution does nothing along these axes
    return all(layer.kernel_size[axis] == layer.stride[axis] == layer.dilation[axis] == 1 for axis in axes)


def unfolding(scheme: str | None) -> Unfolding:
    """Return the `Unfolding` of that name, None for that of a linear layer; raise ValueError for a name that none has.

    >>> unfolding("channel").matrix_shape(nn.Conv2d(4, 6, 3))
    (6, 36)
    """
    for known in SCHEMES:
        if known.name == scheme:
            return known
    raise ValueError(f"unknown scheme {scheme!r}; known: {', '.join(NAMES)}")


def schemes_of(layer: nn.Module) -> tuple[str | None, ...]:
    """Return the schemes that write `layer` exactly, the usual one first: (None,) for a linear layer, () where none does.

    >>> schemes_of(nn.Conv2d(8, 8, 3)), schemes_of(nn.Conv2d(8, 8, 1)), schemes_of(nn.Linear(8, 8)), schemes_of(nn.Conv2d(8, 8, 3, groups=8))
    (('spatial', 'channel', 'input'), ('channel',), (None,), ())
    """
    return tuple(scheme.name for scheme in SCHEMES if scheme.fits(layer))


def why_not(layer: nn.Module) -> str:
    """Return why `layer` cannot be factored, in words; empty where it can.

    >>> why_not(nn.Conv2d(8, 8, 3, groups=8))
    'a depthwise convolution: each channel is one small kernel'
    """
    if type(layer) is nn.Conv2d:
        if layer.groups > 1 and layer.groups in (layer.in_channels, layer.out_channels):
            return "a depthwise convolution: each channel is one small kernel"
        return ""
    return "" if type(layer) is nn.Linear else f"a layer of type {type(layer).__name__} is not factored"


def planned_entry(layer: nn.Module, name: str, entry: Entry) -> tuple[str | None, int]:
    """Return (scheme, rank) of the entry of a plan for `layer`, called `name`.

    Raises ValueError, with the name, for a layer or scheme that cannot be factored and a rank that is not a whole number
    from 1 to the full rank.

    >>> planned_entry(nn.Conv2d(4, 6, 3), "conv1", ("channel", 2)), planned_entry(nn.Linear(4, 6), "fc1", 3)
    (('channel', 2), (None, 3))
    """
    scheme, rank = parse_entry(entry)
    try:
        scheme = check_scheme(layer, scheme)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error
    full = rank_costs(layer)[scheme].full_rank
    if not is_whole(rank) or not 1 <= rank <= full:
        raise ValueError(f"rank {rank!r} of layer {name!r} is not a whole number from 1 to {full}")
    return scheme, int(rank)


def check_scheme(layer: nn.Module, scheme: str | None) -> str | None:
    """Return `scheme`, or the usual one of `layer` for None; raise ValueError where the layer does not have it."""
    known = schemes_of(layer)
    if not known:
        raise ValueError(f"{why_not(layer)}, so it cannot be factored")
    if scheme is None:
        return known[0]
    if scheme not in known:
        has = "only scheme=None" if known == (None,) else ", ".join(map(str, known))
        raise ValueError(f"scheme {scheme!r} is not one of this layer, which has {has}")
    return scheme


def parse_entry(planned: Entry | list[Any]) -> tuple[str | None, int]:
    """Return (scheme, rank) of an entry of a plan; the scheme is None where the entry is a rank alone.

    >>> parse_entry(8), parse_entry(["spatial", 8])
    ((None, 8), ('spatial', 8))
    """
    if isinstance(planned, (tuple, list)):
        if len(planned) != 2 or not isinstance(planned[0], (str, type(None))):
            raise ValueError(f"{planned!r} is no entry of a plan; an entry is a rank, or (scheme, rank)")
        return planned[0], planned[1]
    return None, planned


def plan_entry(scheme: str | None, rank: int) -> Entry:
    """Return the entry of a plan, the inverse of `parse_entry`: the rank for a linear layer, else (scheme, rank).

    >>> plan_entry(None, 8), plan_entry("spatial", 8)
    (8, ('spatial', 8))
    """
    return rank if scheme is None else (scheme, rank)


def in_words(scheme: str | None) -> str:
    """Return what a message adds to the shape of a matrix: nothing for a linear layer, which has one matrix only.

    >>> in_words(None), in_words("spatial")
    ('', " in scheme 'spatial'")
    """
    return "" if scheme is None else f" in scheme {scheme!r}"


def rank_costs(
    layer: nn.Module, inputs: int = 1, outputs: int = 1, between: int | None = None
) -> dict[str | None, Cost]:
    """Return ``{scheme: Cost}`` of `layer` with `inputs` and `outputs` positions for one network input.

    `between`: positions after the first layer of a spatial pair (output height x input width, in effect); where it is
    None, it is taken as outputs times the horizontal stride.

    >>> rank_costs(nn.Conv2d(16, 32, 3, stride=2, padding=1), 64, 16)["spatial"].macs == 3 * (2 * 16 + 32) * 16
    True
    """
    return {scheme: unfolding(scheme).cost(layer, inputs, outputs, between) for scheme in schemes_of(layer)}


def one_output(layer: nn.Module) -> dict[str, int]:
    """Return the `inputs` and `outputs` of `rank_costs` for one output position, far from the borders.

    >>> one_output(nn.Conv2d(4, 6, 3, stride=(2, 1))), one_output(nn.Linear(4, 6))
    ({'inputs': 2, 'outputs': 1}, {'inputs': 1, 'outputs': 1})
    """
    return {"inputs": prod(getattr(layer, "stride", (1,))), "outputs": 1}


def groups(layer: nn.Module | None) -> int:
    """Return the number of groups of a layer, 1 for a linear one."""
    return getattr(layer, "groups", 1)


def shared(layer: nn.Module | None, scheme: str | None) -> int:
    """Return how many offsets the second layer of the pair has: kw in a spatial pair, kh kw in an input pair, else 1."""
    return unfolding(scheme).offsets(cast(nn.Module, layer))  # a linear layer is not looked at


def to_matrix(
    layer: nn.Module, scheme: str | None, weight: torch.Tensor | None = None, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Return the weights of `layer` as matrices of its scheme, groups x rows x columns, in `dtype`.

    Rows count (output channel, offset of the second layer), columns (input channel, offset of the first). `weight`:
    other weights than the layer's own, of all groups or of one, in any shape of as many numbers.
    """
    weight = cast(torch.Tensor, layer.weight) if weight is None else weight
    return unfolding(scheme).to_matrix(layer, weight.detach().to(dtype))


def from_matrix(layer: nn.Module, scheme: str | None, matrix: torch.Tensor) -> torch.Tensor:
    """Return groups x (O / groups) x (I kh kw / groups) from matrices of `to_matrix`: one row an output channel, patches as columns."""
    return unfolding(scheme).from_matrix(layer, matrix)


def in_order(layer: nn.Module, scheme: str | None) -> torch.Tensor:
    """Return the places of a patch (input channel, row, column) in the order (offset of the second layer, column of the matrix)."""
    return unfolding(scheme).in_order(layer)


def by_offset(layer: nn.Module | None, scheme: str | None, covariance: torch.Tensor) -> torch.Tensor:
    """Return a covariance of patches (... x n x n) with rows and columns in the order of `in_order`; not a copy where that is the layer's own.

    >>> layer, square = nn.Conv2d(1, 1, (2, 3)), torch.arange(36.0).reshape(6, 6)
    >>> by_offset(layer, "spatial", square)[0].int().tolist()  # columns (0, 1, 2 of each row) one after the other
    [0, 3, 1, 4, 2, 5]
    """
    if shared(layer, scheme) == 1:
        return covariance  # of a large linear layer a copy would be the largest thing in memory
    place = in_order(cast(nn.Module, layer), scheme).to(covariance.device)
    return covariance[..., place, :][..., place]


def apply_factors(
    layer: nn.Module | None, scheme: str | None, left: torch.Tensor, right: torch.Tensor, patch: torch.Tensor
) -> torch.Tensor:
    """Return what the factored layer makes of one patch (numbers in a patch; groups x these for a grouped convolution).

    Shapes of `left` and `right` as in `thin_layers`; the answer has length O. Costs r products with the patch, and the
    whole matrix is not formed.

    >>> layer, patch = nn.Conv2d(2, 3, 3).double(), torch.randn(18, dtype=torch.float64)
    >>> left, (right,) = torch.eye(9, dtype=torch.float64), to_matrix(layer, "spatial")
    >>> bool(torch.allclose(apply_factors(layer, "spatial", left, right, patch), layer.weight.flatten(1) @ patch))
    True
    """
    count, offsets, rank = groups(layer), shared(layer, scheme), right.shape[-2]
    patch = patch.reshape(count, -1)
    if offsets > 1:
        patch = patch[:, in_order(cast(nn.Module, layer), scheme).to(patch.device)]
    inner = patch.reshape(count, offsets, -1) @ right.reshape(count, rank, -1).mT  # groups x offsets x r
    return (left.reshape(count, -1, offsets * rank) @ inner.reshape(count, offsets * rank, 1)).flatten()


def thin_layers(
    layer: nn.Module,
    scheme: str | None,
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> nn.Sequential:
    """Return ``nn.Sequential(first, second)`` of stock layers whose matrices are `right` and `left`.

    Shapes: `left` rows x r, `right` r x columns, with a first axis of groups for a grouped convolution; `bias` of
    length O or None. The pair takes type and device of `layer`.
    """
    return unfolding(scheme).thin_layers(layer, left, right, bias)


def recognise(module: nn.Module) -> tuple[str | None, int] | None:
    """Return (scheme, rank) of a pair that `thin_layers` made, None for any other module.

    A module is taken for a pair by the names, types and shapes of its layers.

    >>> layer = nn.Conv2d(4, 6, 3)
    >>> recognise(thin_layers(layer, "input", torch.zeros(54, 2), torch.zeros(2, 4))), recognise(layer)
    (('input', 2), None)
    """
    if type(module) is not nn.Sequential or [name for name, _ in module.named_children()] != ["first", "second"]:
        return None
    for scheme in SCHEMES:
        rank = scheme.rank_of(module.get_submodule("first"), module.get_submodule("second"))
        if rank is not None:
            return scheme.name, rank
    return None


def patches(layer: nn.Module, x: torch.Tensor, every: int = 1, at: torch.Tensor | None = None) -> torch.Tensor:
    """Return what `layer` multiplies with its matrix, groups x positions x (I kh kw / groups), from its inputs `x` (N first).

    Columns run over (input channel, row, column), as ``weight[0].flatten()``; positions over images, then rows and
    columns of the output, of which one in `every` is taken for a convolution. A linear layer's inputs are its patches.
    With `at` (N x m, places of `sampled_positions`) only these m positions of each input are taken.
    """
    if type(layer) is nn.Linear:
        if at is not None and x.ndim > 2:
            x = x.flatten(1, -2).gather(1, at[:, :, None].expand(-1, -1, x.shape[-1]))
        return x.reshape(1, -1, x.shape[-1])
    layer = cast(nn.Conv2d, layer)
    (high, wide), (dilate_down, dilate_across) = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        total = dilate_across * (wide - 1), dilate_down * (high - 1)
        sides = total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2
    else:
        down, across = (0, 0) if layer.padding == "valid" else cast(tuple[int, int], layer.padding)
        sides = across, across, down, down
    if any(sides):
        x = F.pad(x, sides) if layer.padding_mode == "zeros" else F.pad(x, sides, mode=layer.padding_mode)
    (down, across), count = layer.stride, layer.groups
    high, wide = dilate_down * (high - 1) + 1, dilate_across * (wide - 1) + 1
    # N x I x rows x columns x kh x kw, a view
    windows = x.unfold(2, high, down).unfold(3, wide, across)[..., ::dilate_down, ::dilate_across]
    windows = windows.unflatten(1, (count, -1)).permute(1, 0, 3, 4, 2, 5, 6)
    if at is not None:
        image = torch.arange(len(x), device=x.device)[:, None]
        windows = windows[:, image, at // windows.shape[3], at % windows.shape[3]]
    elif every > 1:
        some = torch.arange(0, windows.shape[2] * windows.shape[3], every, device=x.device)
        windows = windows[:, :, some // windows.shape[3], some % windows.shape[3]]
    return windows.reshape(count, -1, layer.weight[0].numel())


def output_positions(layer: nn.Module, x: torch.Tensor) -> int:
    """Return at how many positions of one of its inputs `x` (N first) `layer` is applied: tokens of a sequence, pixels of a map.

    >>> output_positions(nn.Conv2d(1, 1, 3, stride=2), torch.zeros(2, 1, 8, 9)), output_positions(nn.Linear(4, 1), torch.zeros(2, 5, 4))
    (12, 5)
    """
    if not isinstance(layer, nn.Conv2d):
        return prod(x.shape[1:-1])
    found = 1
    for axis in (0, 1):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        padding = layer.padding
        around = reach if padding == "same" else 0 if padding == "valid" else 2 * int(padding[axis])
        found *= (x.shape[2 + axis] + around - reach - 1) // layer.stride[axis] + 1
    return found


def sampled_positions(
    layer: nn.Module, x: torch.Tensor, most: int, generator: torch.Generator | None = None
) -> torch.Tensor | None:
    """Return places (N x `most`) drawn from the output positions of each input `x` of `layer`; None where there are no more.

    Every input gives as many, all different, each as likely as any other: a sample stratified over inputs.

    >>> layer, x = nn.Conv2d(1, 1, 3), torch.zeros(2, 1, 6, 6)
    >>> at = sampled_positions(layer, x, 5)
    >>> at.shape, patches(layer, x, at=at).shape, sampled_positions(layer, x, 16)
    (torch.Size([2, 5]), torch.Size([1, 10, 9]), None)
    """
    whole = output_positions(layer, x)
    if whole <= most:
        return None
    return torch.rand(len(x), whole, generator=generator).topk(most, dim=1).indices.to(x.device)


def call_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the input of a call of a layer, which may be given by its name.

    >>> call_input((), {"input": 3})
    3
    """
    return args[0] if args else kwargs["input"]


def images_at_once(layer: nn.Module, x: torch.Tensor, limit: float = 8e6) -> int:
    """Return how many of the images `x` may be unfolded together so that their patches take about `limit` bytes (at least 1)."""
    if isinstance(layer, nn.Linear):
        return max(len(x), 1)
    layer = cast(nn.Conv2d, layer)
    positions = x[0, 0].numel() / (layer.stride[0] * layer.stride[1])
    return max(1, int(limit / (positions * layer.groups * layer.weight[0].numel() * x.element_size())))


def output_rows(
    layer: nn.Module, y: torch.Tensor, groups: int = 1, every: int = 1, at: torch.Tensor | None = None
) -> torch.Tensor:
    """Return outputs of `layer` (N x O x height x width, or N x ... x O of a linear one) as groups x rows x O / groups.

    The rows are those of `patches` with the same `every` or `at`.
    """
    if isinstance(layer, nn.Conv2d):
        y = y.flatten(2)
        y = y[:, :, ::every] if at is None else y.gather(2, at[:, None].expand(-1, y.shape[1], -1))
        rows = y.transpose(1, 2).flatten(0, 1)
    else:
        if at is not None and y.ndim > 2:
            y = y.flatten(1, -2).gather(1, at[:, :, None].expand(-1, -1, y.shape[-1]))
        rows = y.reshape(-1, y.shape[-1])
    return rows.reshape(len(rows), groups, -1).transpose(0, 1)
