"""The adaptive 3x3 convolution of all joints at once, at chosen cells only: this makes training on a CPU affordable.

On a CPU with a C compiler it is `adaptive_conv.c`, built once per channel count; otherwise it is computed by torch.
Layout: one vector of channels per cell and joint, (N, H, W, J, C), which is the channels_last form of (N, J * C, H, W).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("adaptive_conv.c")
BUILT = Path.home() / ".cache" / "dekr_infer"  # the user's own, so that no other user can put a library there
INEXACT = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")  # may be reordered
FLAGS = ("-O3", "-march=native", *INEXACT, "-fopenmp", "-shared", "-fPIC", "-lm", "-Wno-psabi")


@functools.cache
def compiled(channels: int) -> ctypes.CDLL | None:
    """Return `adaptive_conv.c`, built for vectors of `channels` floats; `None` without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or channels & (channels - 1):
        return None
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode()).hexdigest()[:16]
    library = BUILT / f"adaptive_{digest}_{channels}.so"
    if not library.exists():
        BUILT.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            command = [compiler, str(SOURCE), f"-DC={channels}", *FLAGS, "-o", str(built)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return None
            built.rename(library)
    return ctypes.CDLL(str(library))


def adaptive_conv(maps: Tensor, shape: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    """Return the deformable 3x3 convolution without bias whose taps are at cell + A R + t.

    Args:
        maps: (N, H, W, J, C) float32, contiguous.
        shape: (M, J, 6) float32, cells: A row by row, then t, each (y, x), of every chosen cell.
        weight: (J, C, C, 3, 3) float32, outputs before inputs.
        cells: (M,) int64, the chosen cells as indices into N * H * W, ascending.
    Returns:
        (M, J, C) float32.
    """
    library = compiled(maps.shape[-1]) if maps.device.type == "cpu" else None
    if library is None:
        return _plain(maps, shape, weight, cells)
    result = _Compiled.apply(maps, shape, weight, cells, library)
    assert isinstance(result, Tensor)
    return result


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, shape: Tensor, weight: Tensor, cells: Tensor, library: ctypes.CDLL) -> Tensor:
        n, h, w, joints, channels = maps.shape
        maps, shape = maps.contiguous(), shape.contiguous()
        taps = weight.flatten(3).permute(0, 3, 2, 1).contiguous()  # (J, 9, C in, C out)
        starts = torch.searchsorted(cells, torch.arange(n + 1) * (h * w)).int()
        within = (cells % (h * w)).int()
        out = maps.new_empty(len(cells), joints, channels)
        library.adaptive_forward(*map(_pointer, (maps, shape, taps, within, starts, out)), n, joints, h, w)
        ctx.save_for_backward(maps, shape, taps, within, starts)
        ctx.library = library
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        maps, shape, taps, within, starts = ctx.saved_tensors
        n, h, w, joints, channels = maps.shape
        out_grad, transposed = grads[0].contiguous(), taps.transpose(2, 3).contiguous()
        maps_grad, taps_grad, shape_grad = torch.zeros_like(maps), torch.zeros_like(taps), torch.empty_like(shape)
        tensors = (maps, shape, transposed, within, starts, out_grad, maps_grad, shape_grad, taps_grad)
        ctx.library.adaptive_backward(*map(_pointer, tensors), n, joints, h, w)
        weight_grad = taps_grad.permute(0, 3, 2, 1).reshape(joints, channels, channels, 3, 3)
        return maps_grad, shape_grad, weight_grad, None, None


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _plain(maps: Tensor, shape: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    """Return the convolution computed by torch alone; arguments as in `adaptive_conv`."""
    _, h, w, joints, _ = maps.shape
    grid = torch.arange(-1, 2, device=maps.device, dtype=maps.dtype)
    row, column = grid.repeat_interleave(3), grid.repeat(3)
    image, within = cells // (h * w), cells % (h * w)
    y = (within // w).view(-1, 1, 1) + shape[..., 0:1] * row + shape[..., 1:2] * column + shape[..., 4:5]
    x = (within % w).view(-1, 1, 1) + shape[..., 2:3] * row + shape[..., 3:4] * column + shape[..., 5:6]
    flat = maps.flatten(0, 3)
    joint = torch.arange(joints, device=maps.device).view(1, -1, 1)
    top, left = y.floor(), x.floor()
    total = maps.new_zeros(())
    for r, r_share in ((top, top + 1 - y), (top + 1, y - top)):
        for c, c_share in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
            cell = (image.view(-1, 1, 1) * h + r.clamp(0, h - 1).long()) * w + c.clamp(0, w - 1).long()
            total = total + flat[cell * joints + joint] * (r_share * c_share * inside).unsqueeze(-1)
    return torch.einsum("mjki,joik->mjo", total, weight.flatten(3))
