"""A convolution as a matrix in three ways, and the two thin convolutions that each of them gives.

A kernel W (O x I x kh x kw) is unfolded into a matrix, and a factorization of the matrix into rank r is two layers:

- ``"channel"``: O x (I kh kw); a kh x kw convolution to r channels, then 1 x 1;
- ``"input"``: (O kh kw) x I; 1 x 1 to r channels, then kh x kw;
- ``"spatial"``: (O kw) x (I kh); kh x 1 to r channels, then 1 x kw (Jaderberg et al. 2014).

A linear layer is its own matrix, scheme None. A grouped convolution is one matrix for each group; every group gets the
rank r. In a spatial pair of stride (a, b) the first layer has stride (a, 1) and the second (1, b).
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils.checks import is_whole

NAMES = ("spatial", "channel", "input")


@dataclass(frozen=True)
class Cost:
    """What a rank costs in one scheme: ``parameters`` and ``macs`` (for one input) per rank, the largest rank ``full_rank``,
    and the ``shape`` (rows, columns) of the matrix of one group."""

    full_rank: int
    parameters: int
    macs: int
    shape: tuple


def schemes_of(layer):
    """Return the schemes that write `layer` exactly, the usual one first: (None,) for a linear layer, () where none does.

    >>> schemes_of(nn.Conv2d(8, 8, 3)), schemes_of(nn.Conv2d(8, 8, 1)), schemes_of(nn.Linear(8, 8)), schemes_of(nn.Conv2d(8, 8, 3, groups=8))
    (('spatial', 'channel', 'input'), ('channel',), (None,), ())
    """
    if type(layer) is nn.Linear:
        return (None,)
    if why_not(layer):
        return ()
    high, wide = layer.kernel_size
    if high == wide == 1:
        return ("channel",)  # all three are the same matrix
    return NAMES if min(high, wide) > 1 else ("channel", "input")


def why_not(layer):
    """Return why `layer` cannot be factored, in words; empty where it can.

    >>> why_not(nn.Conv2d(8, 8, 3, groups=8))
    'a depthwise convolution: each channel is one small kernel'
    """
    if type(layer) is nn.Conv2d:
        if layer.groups > 1 and layer.groups in (layer.in_channels, layer.out_channels):
            return "a depthwise convolution: each channel is one small kernel"
        return ""
    return "" if type(layer) is nn.Linear else f"a layer of type {type(layer).__name__} is not factored"


def planned_entry(layer, name, entry):
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


def check_scheme(layer, scheme):
    """Return `scheme`, or the usual one of `layer` for None; raise ValueError where the layer does not have it."""
    known = schemes_of(layer)
    if not known:
        raise ValueError(f"{why_not(layer)}, so it cannot be factored")
    if scheme is None:
        return known[0]
    if scheme not in known:
        has = "only scheme=None" if known == (None,) else ", ".join(known)
        raise ValueError(f"scheme {scheme!r} is not one of this layer, which has {has}")
    return scheme


def parse_entry(planned):
    """Return (scheme, rank) of an entry of a plan; the scheme is None where the entry is a rank alone.

    >>> parse_entry(8), parse_entry(["spatial", 8])
    ((None, 8), ('spatial', 8))
    """
    if isinstance(planned, (tuple, list)):
        if len(planned) != 2 or not isinstance(planned[0], (str, type(None))):
            raise ValueError(f"{planned!r} is no entry of a plan; an entry is a rank, or (scheme, rank)")
        return planned[0], planned[1]
    return None, planned


def rank_costs(layer, inputs=1, outputs=1, between=None):
    """Return ``{scheme: Cost}`` of `layer` with `inputs` and `outputs` positions for one network input.

    `between`: positions after the first layer of a spatial pair (output height x input width, in effect); where it is
    None, it is taken as outputs times the horizontal stride.

    >>> rank_costs(nn.Conv2d(16, 32, 3, stride=2, padding=1), 64, 16)["spatial"].macs == 3 * (2 * 16 + 32) * 16
    True
    """
    if type(layer) is nn.Linear:
        rows, columns = layer.weight.shape
        return {None: Cost(min(rows, columns), rows + columns, (rows + columns) * outputs, (rows, columns))}
    found = {}
    for scheme in schemes_of(layer):
        rows, columns = matrix_shape(layer, scheme)
        if scheme == "spatial":
            first = outputs * layer.stride[1] if between is None else between
        else:
            first = inputs if scheme == "input" else outputs
        macs = layer.groups * (columns * first + rows * outputs)
        found[scheme] = Cost(min(rows, columns), layer.groups * (rows + columns), macs, (rows, columns))
    return found


def matrix_shape(layer, scheme):
    high, wide = layer.kernel_size
    rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    return {
        "channel": (rows, columns * high * wide),
        "input": (rows * high * wide, columns),
        "spatial": (rows * wide, columns * high),
    }[scheme]


def groups(layer):
    """Return the number of groups of a layer, 1 for a linear one."""
    return getattr(layer, "groups", 1)


def shared(layer, scheme):
    """Return how many offsets the second layer of the pair has: kw in a spatial pair, kh kw in an input pair, else 1."""
    if scheme in (None, "channel"):
        return 1
    high, wide = layer.kernel_size
    return wide if scheme == "spatial" else high * wide


def to_matrix(layer, scheme, weight=None, dtype=torch.float64):
    """Return the weights of `layer` as matrices of its scheme, groups x rows x columns, in `dtype`.

    Rows count (output channel, offset of the second layer), columns (input channel, offset of the first). `weight`:
    other weights than the layer's own, in any shape of as many numbers.
    """
    weight = (layer.weight if weight is None else weight).detach().to(dtype)
    if scheme is None:
        return weight.reshape(1, *layer.weight.shape)
    high, wide = layer.kernel_size
    w = weight.reshape(layer.groups, layer.out_channels // layer.groups, -1, high, wide)  # g o i a b
    order = {"channel": (0, 1, 2, 3, 4), "input": (0, 1, 3, 4, 2), "spatial": (0, 1, 4, 2, 3)}[scheme]
    return w.permute(order).reshape(layer.groups, *matrix_shape(layer, scheme))


def from_matrix(layer, scheme, matrix):
    """Return groups x (O / groups) x (I kh kw / groups) from matrices of `to_matrix`: one row an output channel, patches as columns."""
    if scheme in (None, "channel"):
        return matrix
    high, wide = layer.kernel_size
    rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    if scheme == "input":  # g o a b i
        w = matrix.reshape(-1, rows, high, wide, columns).permute(0, 1, 4, 2, 3)
    else:  # g o b i a
        w = matrix.reshape(-1, rows, wide, columns, high).permute(0, 1, 3, 4, 2)
    return w.reshape(-1, rows, columns * high * wide)


def in_order(layer, scheme):
    """Return the places of a patch (input channel, row, column) in the order (offset of the second layer, column of the matrix)."""
    size = layer.weight[0].numel()
    if scheme in (None, "channel"):
        return torch.arange(size)
    high, wide = layer.kernel_size
    place = torch.arange(size).reshape(-1, high, wide)  # i a b
    return (place.permute(1, 2, 0) if scheme == "input" else place.permute(2, 0, 1)).flatten()


def thin_layers(layer, scheme, left, right, bias=None):
    """Return ``nn.Sequential(first, second)`` of stock layers whose matrices are `right` and `left`.

    Shapes: `left` rows x r, `right` r x columns, with a first axis of groups for a grouped convolution; `bias` of
    length O or None. The pair takes type and device of `layer`.
    """
    options = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    has_bias = bias is not None
    if scheme is None:
        rank = right.shape[-2]
        first = nn.utils.skip_init(nn.Linear, layer.in_features, rank, bias=False, **options)
        second = nn.utils.skip_init(nn.Linear, rank, layer.out_features, bias=has_bias, **options)
    else:
        count = layer.groups
        left, right = left.reshape(count, -1, left.shape[-1]), right.reshape(count, right.shape[-2], -1)
        rank = count * right.shape[1]
        (high, wide), (down, across) = layer.kernel_size, layer.stride
        (dilate_down, dilate_across) = layer.dilation
        pad = layer.padding if isinstance(layer.padding, str) else None
        pad_down, pad_across = (pad, pad) if pad else layer.padding

        def both(a, b):
            return pad if pad else (a, b)

        ones = {"kernel_size": 1, "padding_mode": layer.padding_mode}
        whole = {"kernel_size": (high, wide), "stride": (down, across), "dilation": (dilate_down, dilate_across)}
        whole |= {"padding": both(pad_down, pad_across), "padding_mode": layer.padding_mode}
        if scheme == "channel":
            one, two = whole, ones
        elif scheme == "input":
            one, two = ones, whole
        else:
            one = {
                "kernel_size": (high, 1),
                "stride": (down, 1),
                "dilation": (dilate_down, 1),
                "padding": both(pad_down, 0),
            }
            two = {
                "kernel_size": (1, wide),
                "stride": (1, across),
                "dilation": (1, dilate_across),
                "padding": both(0, pad_across),
            }
            one, two = one | {"padding_mode": layer.padding_mode}, two | {"padding_mode": layer.padding_mode}
        options |= {"groups": count}
        first = nn.utils.skip_init(nn.Conv2d, layer.in_channels, rank, bias=False, **one, **options)
        second = nn.utils.skip_init(nn.Conv2d, rank, layer.out_channels, bias=has_bias, **two, **options)
        # left rows (o, offset) x r  ->  o x r x offset
        left = left.reshape(count, layer.out_channels // count, -1, rank // count).transpose(2, 3)
    with torch.no_grad():
        first.weight.copy_(right.reshape(first.weight.shape))
        second.weight.copy_(left.reshape(second.weight.shape))
        if has_bias:
            second.bias.copy_(bias)
    return nn.Sequential(OrderedDict(first=first, second=second))


def patches(layer, x, every=1):
    """Return what `layer` multiplies with its matrix, groups x positions x (I kh kw / groups), from its inputs `x` (N first).

    Columns run over (input channel, row, column), as ``weight[0].flatten()``; positions over images, then rows and
    columns of the output, of which one in `every` is taken for a convolution. A linear layer's inputs are its patches.
    """
    if type(layer) is nn.Linear:
        return x.reshape(1, -1, x.shape[-1])
    (high, wide), (dilate_down, dilate_across) = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        total = dilate_across * (wide - 1), dilate_down * (high - 1)
        sides = total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2
    else:
        down, across = (0, 0) if layer.padding == "valid" else layer.padding
        sides = across, across, down, down
    if any(sides):
        x = F.pad(x, sides) if layer.padding_mode == "zeros" else F.pad(x, sides, mode=layer.padding_mode)
    (down, across), count = layer.stride, layer.groups
    high, wide = dilate_down * (high - 1) + 1, dilate_across * (wide - 1) + 1
    # N x I x rows x columns x kh x kw, a view
    windows = x.unfold(2, high, down).unfold(3, wide, across)[..., ::dilate_down, ::dilate_across]
    windows = windows.unflatten(1, (count, -1)).permute(1, 0, 3, 4, 2, 5, 6)
    if every > 1:
        some = torch.arange(0, windows.shape[2] * windows.shape[3], every, device=x.device)
        windows = windows[:, :, some // windows.shape[3], some % windows.shape[3]]
    return windows.reshape(count, -1, layer.weight[0].numel())


def call_input(args, kwargs):
    """Return the input of a call of a layer, which may be given by its name.

    >>> call_input((), {"input": 3})
    3
    """
    return args[0] if args else kwargs["input"]


def images_at_once(layer, x, limit=8e6):
    """Return how many of the images `x` may be unfolded together so that their patches take about `limit` bytes (at least 1)."""
    if isinstance(layer, nn.Linear):
        return max(len(x), 1)
    positions = x[0, 0].numel() / (layer.stride[0] * layer.stride[1])
    return max(1, int(limit / (positions * layer.groups * layer.weight[0].numel() * x.element_size())))


def output_rows(layer, y, groups=1, every=1):
    # N x O x height x width, or N x ... x O of a linear layer -> groups x rows x O / groups
    wide = isinstance(layer, nn.Conv2d)
    rows = y.flatten(2)[:, :, ::every].transpose(1, 2).flatten(0, 1) if wide else y.reshape(-1, y.shape[-1])
    return rows.reshape(len(rows), groups, -1).transpose(0, 1)
