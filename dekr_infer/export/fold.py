"""Algebra on weights: everything linear between two convolutions becomes part of them, in float64.

A batch norm becomes part of the convolution whose output it reads. An adaptive block predicts a 2x2 matrix A and a
translation t per cell and moves the nine taps by A R - R + t. Both are linear in the block's input, so one 3x3
convolution yields the taps' movements directly.

Every parameter carries the checkpoint key of what it is made of; see `key_of`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dekr_infer.errors import DekrError
from dekr_infer.export.symbolics import deformable_conv2d

TAPS = 9  # of a 3x3 kernel
_KEY = "checkpoint_key"


def mark_keys(network: nn.Module) -> None:
    """Let every parameter and buffer of a network carry its own key."""
    for key, values in network.state_dict(keep_vars=True).items():
        setattr(values, _KEY, key)


def key_of(values: Tensor) -> str:
    """Return the checkpoint key that a parameter is made of; empty for constants.

    Where a parameter is made of several entries, the parts in which their keys differ are joined: numbers as a range,
    names by `_and_`. So `a.0-16.b_and_c.weight` is made of `a.0.b.weight`, `a.0.c.weight`, ..., `a.16.c.weight`.
    """
    return getattr(values, _KEY, "")


def parameter(values: Tensor, *sources: Tensor) -> nn.Parameter:
    """Return values as a constant parameter that carries the joined keys of its sources."""
    made = nn.Parameter(values.detach(), requires_grad=False)
    keys = filter(None, map(key_of, sources))
    setattr(made, _KEY, ".".join(map(_joined, zip(*(key.split(".") for key in keys), strict=True))))
    return made


def _joined(parts: Sequence[str]) -> str:
    different = list(dict.fromkeys(parts))
    if len(different) > 1 and all(part.isdigit() for part in different):
        return f"{different[0]}-{different[-1]}"
    return "_and_".join(different)


def fold_batch_norms(network: nn.Module, image: Tensor) -> None:
    """Make each batch norm a part of the convolution, plain or deformable, whose output it alone reads; in place.

    Which convolution that is, is seen by running the network. Batch norms that read anything else stay.

    Args:
        network: in evaluation mode.
        image: any input of the network.
    """
    names = {module: name for name, module in network.named_modules()}
    convolutions: list[tuple[Any, Any]] = []  # each call of one, as an operation in torch's graph of gradients
    norms: list[tuple[Any, nn.BatchNorm2d]] = []  # the operation whose result each call of one reads

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.BatchNorm2d):
            norms.append((inputs[0].grad_fn, module))
        elif isinstance(module, nn.Conv2d) or names[module].endswith("adapt_conv"):
            convolutions.append((output.grad_fn, module))

    hooks = [module.register_forward_hook(note) for module in names]
    network.requires_grad_(True)
    with torch.enable_grad():
        outputs = network(image)
    for hook in hooks:
        hook.remove()
    readers = _readers([outputs] if isinstance(outputs, Tensor) else outputs)
    uses = Counter(module for _, module in (*convolutions, *norms))
    by_operation = dict(convolutions)
    for operation, norm in norms:
        conv = by_operation.get(operation)
        if conv is not None and readers[operation] == uses[conv] == uses[norm] == 1 and norm.running_var is not None:
            _fold_into(conv, norm)
            parent, _, child = names[norm].rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())


def _readers(outputs: Iterable[Tensor]) -> Counter[Any]:
    """Return how many operations read the result of each operation, along torch's graph of gradients."""
    waiting = [output.grad_fn for output in outputs]
    readers: Counter[Any] = Counter()
    while waiting:
        for operation, _ in getattr(waiting.pop(), "next_functions", ()):
            readers[operation] += 1
            if readers[operation] == 1:
                waiting.append(operation)
    return readers


def _fold_into(conv: Any, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = torch.ones_like(mean) if norm.weight is None else norm.weight
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias
    bias = getattr(conv, "bias", None)
    weight, bias = fold_batch_norm(
        _double(conv.weight),
        np.zeros(len(mean)) if bias is None else _double(bias),
        (_double(scale), _double(shift), _double(mean), _double(variance)),
        float(np.float32(norm.eps)),  # torch adds it in float32
    )
    conv.weight = parameter(_single(weight), conv.weight)
    conv.bias = parameter(_single(bias), mean if norm.bias is None else norm.bias)


def fold_batch_norm(
    weight: np.ndarray,
    bias: np.ndarray,
    norm: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (O, C, k, k) and bias (O,) of a convolution with its batch norm; all float64.

    Args:
        weight: of the convolution alone.
        bias: of the convolution alone.
        norm: the batch norm's scale, shift, running mean and running variance, each (O,).
        epsilon: what the batch norm adds to the variance.
    """
    scale, shift, mean, variance = norm
    factor = scale / np.sqrt(variance + epsilon)
    return weight * factor[:, None, None, None], (bias - mean) * factor + shift


class FoldedAdaptBlock(nn.Module):
    """An adaptive block, or one of each joint side by side, as two convolutions: the accelerator's form.

    `offsets` yields 27 channels per group, planar: all dx, all dy, all masks (always 1), each (group, tap).
    `weight` is (C, C / groups, 3, 3), `bias` (C,).
    """

    def __init__(
        self, offsets: nn.Conv2d, weight: nn.Parameter, bias: nn.Parameter, dilation: int, groups: int = 1
    ) -> None:
        super().__init__()
        self.offsets, self.weight, self.bias = offsets, weight, bias
        self.dilation, self.groups = dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual sum, of x's shape."""
        out = deformable_conv2d(x, self.weight, self.offsets(x), self.bias, self.dilation, self.groups)
        return torch.relu(out + x)


def fold_adaptive_blocks(network: nn.Module) -> int:
    """Replace every adaptive block of a network, ours or upstream's, by its folded form, in place.

    Returns:
        The number of adaptive blocks.
    """
    count = 0
    for name, child in list(network.named_children()):
        if hasattr(child, "transform_matrix_conv") and hasattr(child, "adapt_conv"):
            setattr(network, name, fold_adaptive_block(child))
            count += 1
        else:
            count += fold_adaptive_blocks(child)
    return count


def fold_adaptive_block(block: nn.Module) -> FoldedAdaptBlock:
    """Return the folded form of an adaptive block, ours or upstream's, whose batch norm is folded.

    Raises:
        DekrError: the block has a stride, groups, a down-sampling or a batch norm, which the folded form does not have.
    """
    parts: Any = block
    form = {key: np.ravel(getattr(parts.adapt_conv, key, 1)) for key in ("stride", "groups", "dilation")}
    if (form["stride"] != 1).any() or (form["groups"] != 1).any() or getattr(block, "downsample", None) is not None:
        raise DekrError("an adaptive block with a stride, groups or a down-sampling cannot be exported")
    if isinstance(parts.bn, nn.BatchNorm2d):
        raise DekrError(
            "the batch norm of an adaptive block does not read its deformable convolution alone, or the network never "
            "runs the block"
        )
    matrix, translation = parts.transform_matrix_conv, parts.translation_conv
    by_matrix, matrix_bias = _double(matrix.weight), _double(matrix.bias)
    by_translation, translation_bias = _double(translation.weight), _double(translation.bias)
    taps = _double(parts.regular_matrix)  # (2, 9): rows dy, dx
    channels = by_matrix.shape[1]
    weights, biases = [], []
    for axis in (1, 0):  # dx first, then dy
        row = slice(2 * axis, 2 * axis + 2)  # A's row that yields this axis
        weights.append(np.einsum("jk,jcyx->kcyx", taps, by_matrix[row]) + by_translation[axis])
        biases.append(taps.T @ matrix_bias[row] - taps[axis] + translation_bias[axis])
    weights.append(np.zeros((TAPS, channels, 3, 3)))
    biases.append(np.ones(TAPS))
    offsets = convolution(
        parameter(_single(np.concatenate(weights)), matrix.weight, translation.weight),
        parameter(_single(np.concatenate(biases)), matrix.bias, translation.bias),
    )
    return FoldedAdaptBlock(offsets, parts.adapt_conv.weight, parts.adapt_conv.bias, int(form["dilation"][0]))


def convolution(weight: nn.Parameter, bias: nn.Parameter, groups: int = 1) -> nn.Conv2d:
    """Return a convolution with stride 1 and same padding that has these parameters."""
    outputs, inputs, kernel, _ = weight.shape
    conv = nn.Conv2d(inputs * groups, outputs, kernel, 1, kernel // 2, groups=groups)
    conv.weight, conv.bias = weight, bias
    return conv


def _double(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()


def _single(value: np.ndarray) -> Tensor:
    return torch.from_numpy(value.astype(np.float32))
