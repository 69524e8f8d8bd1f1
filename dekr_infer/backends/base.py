"""What a backend is: it turns a frame into the network's outputs. Any model file is opened here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dekr_infer.errors import ConfigError
from dekr_infer.geometry import InputSizes
from dekr_infer.pose.preprocess import as_tensor, mirror
from dekr_infer.structures import Frame, Maps, Passes, People

if TYPE_CHECKING:
    from dekr_infer.backends.ascend_session import AscendSession
    from dekr_infer.backends.onnxruntime import OnnxRuntime
    from dekr_infer.onnx_graph.float16 import Rounding

NPU_SUFFIX = ".om"


class Backend(Protocol):
    """The network, wherever it runs, or its recorded outputs."""

    @property
    def input_sizes(self) -> InputSizes:
        """The sizes that the network takes."""

    def infer(self, frame: Frame, flip: bool) -> Passes | People:
        """Return the maps of a frame and, with `flip`, those of its flipped twin; or its people in image pixels.

        A backend that returns people has an attribute `baked`, which describes the decoding and settles the flip.

        Raises:
            DekrError: the frame cannot be read, or the network does not run on it.
        """


def open_network(
    path: Path,
    threads: int | None = None,
    provider: str | None = None,
    devices: Sequence[int] | None = None,
    rounding: Rounding | None = None,
) -> OnnxRuntime | AscendSession:
    """Load a model: an .om file on NPUs, any other file as a graph on ONNX Runtime.

    Args:
        path: the file; its ending decides.
        threads: of ONNX Runtime, for one pass.
        provider: the execution provider of ONNX Runtime.
        devices: the NPUs' numbers; by default device 0.
        rounding: rehearse an NPU's float16 on ONNX Runtime.
    Raises:
        ConfigError: an argument that is of the other runtime.
        DekrError: the file, or what runs it, is missing or does not fit.
    """
    if path.suffix == NPU_SUFFIX:
        from dekr_infer.backends.ascend_session import AscendSession

        if provider is not None:
            raise ConfigError(f"--provider {provider}: is of ONNX Runtime, and {path} runs on an NPU; leave it out")
        if rounding is not None:
            raise ConfigError(f"--precision fp16: {path} runs on an NPU, in the precision it was converted for")
        return AscendSession(path, devices or (0,))
    from dekr_infer.backends.onnxruntime import CPU_PROVIDER, OnnxRuntime

    if devices is not None:
        raise ConfigError(f"--device: {path} runs on ONNX Runtime, not on an NPU; name an .om file, or leave it out")
    return OnnxRuntime(path, threads, provider=provider or CPU_PROVIDER, rounding=rounding)


def infer_passes(
    frame: Frame,
    warped: np.ndarray,
    flip: bool,
    dtype: str,
    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, float]],
) -> Passes:
    """Run the pass of a warped image and, with `flip`, that of its flipped twin.

    Args:
        frame: names the maps.
        warped: (H, W, 3) uint8 BGR, H x W an input size.
        flip: run the second pass.
        dtype: of the network's input, float32 or uint8.
        run: from a tensor (1, 3, H, W) to heatmap (1, 18, h, w), offset (1, 34, h, w) and the milliseconds it took.
    """
    maps = []
    for pixels in (warped, mirror(warped))[: 1 + flip]:
        heatmap, offset, milliseconds = run(as_tensor(pixels, dtype))
        sources = (f"{frame.name}: heatmap", f"{frame.name}: offset")
        maps.append(Maps(heatmap[0], offset[0], sources, milliseconds))
    return Passes(*maps)
