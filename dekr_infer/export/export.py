"""Export a checkpoint to an ONNX file, and prove the written file against torch before it gets its name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

import dekr_infer
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.export.parity import Difference, compare_with_torch
from dekr_infer.export.trace import build_graph
from dekr_infer.export.variants import SEPARATE
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes
from dekr_infer.model.checkpoint import load_network
from dekr_infer.model.weights import weights_kind
from dekr_infer.onnx_graph.dialects import ASCEND, ONNX, check_standard, to_dialect
from dekr_infer.pose.preprocess import MEAN, STD
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage.atomic import atomic_write, sha256


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Args:
        deformable: how many nodes are deformable convolutions.
        size: of the file, in bytes.
        differences: from torch, one for each input size; empty if the check was skipped.
    """

    output: Path
    dialect: str
    deform: str
    nodes: int
    deformable: int
    size: int
    seconds: float
    differences: tuple[Difference, ...]


def export_onnx(
    network: nn.Module,
    checkpoint: Path,
    output: Path,
    *,
    dialect: str = ASCEND,
    deform: str = SEPARATE,
    check: bool = True,
    input_sizes: InputSizes = PUBLISHED_SIZES,
    skeleton: Skeleton = COCO_17,
    threads: int | None = None,
    on_difference: Callable[[Difference], object] = lambda _: None,
) -> ExportReport:
    """Load a checkpoint into a network and write the network as an ONNX file, whole or not at all.

    Args:
        checkpoint: the trained weights.
        output: the ONNX file.
        network: in evaluation mode, built for the checkpoint; its weights are replaced by the checkpoint's.
        dialect: of the file, one of `DIALECTS`.
        deform: the variant of the deformable convolutions, one of `VARIANTS`.
        check: compare the written file with torch at every input size.
        input_sizes: named in the file's metadata, in this order.
        skeleton: its joints are named in the file's metadata.
        threads: for torch and ONNX Runtime; by default as many as torch uses now.
        on_difference: called with each difference as soon as it is measured.
    Raises:
        ConfigError: the output is the checkpoint itself.
        DekrError: the checkpoint or the network cannot be exported, or the file differs from torch.
    """
    started = time.monotonic()
    if threads is not None:
        torch.set_num_threads(threads)
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise ConfigError(f"--output {output} is the checkpoint itself; name another file")
    load_network(network, checkpoint)
    model = build_graph(network, deform)
    check_standard(to_dialect(model, ONNX))
    metadata = {
        "input_sizes": str(input_sizes),
        "skeleton": ",".join(skeleton.joints),
        "mean": ",".join(map(str, MEAN)),
        "std": ",".join(map(str, STD)),
        "checkpoint_sha256": sha256(checkpoint),
        "weights": weights_kind(checkpoint),
        "dialect": ASCEND,
        "versions": f"dekr_infer {dekr_infer.__version__}, torch {torch.__version__}, onnx {onnx.__version__}",
    }
    if deform != SEPARATE:
        metadata["deform"] = deform
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))  # the order in which onnx-ir writes them
    written = to_dialect(model, dialect)
    differences = []
    with atomic_write(output) as temporary:
        temporary.write_bytes(written.SerializeToString())
        if check:
            for difference in compare_with_torch(network, temporary, input_sizes, torch.get_num_threads()):
                differences.append(difference)
                on_difference(difference)
        if not all(difference.holds for difference in differences):
            raise DekrError(
                "the exported graph differs from torch; nothing was written. Is the checkpoint a trained one?"
            )
    return ExportReport(
        output,
        dialect,
        deform,
        nodes=len(written.graph.node),
        deformable=sum("Deform" in node.op_type for node in written.graph.node),
        size=output.stat().st_size,
        seconds=time.monotonic() - started,
        differences=tuple(differences),
    )
