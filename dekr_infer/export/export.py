"""Export a checkpoint to an ONNX file, and prove the written file against torch before it gets its name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

import dekr_infer
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.export.parity import Difference, compare_with_torch
from dekr_infer.export.people_graph import add_people
from dekr_infer.export.people_proof import PeopleDifference, compare_people
from dekr_infer.export.trace import build_graph
from dekr_infer.export.uint8_input import take_uint8
from dekr_infer.export.variants import GATHER, SEPARATE
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes
from dekr_infer.model.checkpoint import load_network
from dekr_infer.model.weights import least_trained, weights_kind
from dekr_infer.onnx_graph.baked import FLOAT32, UINT8, Baked
from dekr_infer.onnx_graph.dialects import ASCEND, ONNX, check_standard, to_dialect
from dekr_infer.pose.preprocess import MEAN, STD
from dekr_infer.pose.rescore import RescoreNet
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage.atomic import atomic_write, sha256


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Args:
        deformable: how many nodes are deformable convolutions.
        size: of the file, in bytes.
        differences: one for each input size; empty if the check was skipped.
    """

    output: Path
    dialect: str
    deform: str
    nodes: int
    deformable: int
    size: int
    seconds: float
    differences: tuple[Difference | PeopleDifference, ...]


def export_onnx(
    network: nn.Module,
    checkpoint: Path,
    output: Path,
    *,
    dialect: str = ASCEND,
    deform: str = SEPARATE,
    input_dtype: str = FLOAT32,
    people: Baked | None = None,
    rescore: RescoreNet | None = None,
    with_maps: bool = False,
    check: bool = True,
    input_sizes: InputSizes = PUBLISHED_SIZES,
    skeleton: Skeleton = COCO_17,
    threads: int | None = None,
    on_difference: Callable[[Any], object] = lambda _: None,
) -> ExportReport:
    """Load a checkpoint into a network and write the network as an ONNX file, whole or not at all.

    Args:
        checkpoint: the trained weights.
        output: the ONNX file.
        network: in evaluation mode, built for the checkpoint; its weights are replaced by the checkpoint's.
        dialect: of the file, one of `DIALECTS`.
        deform: the variant of the deformable convolutions, one of `VARIANTS`.
        input_dtype: of the input, one of `baked.INPUTS`: normalised float32, or uint8 RGB.
        people: the decoding to put into the file; by default its outputs are the maps.
        rescore: the rescoring net to put into a file that yields people.
        with_maps: let a file that yields people yield the maps, too.
        check: compare the written file with torch, and its decoding with ours, at every input size.
        input_sizes: named in the file's metadata, in this order.
        skeleton: its joints are named in the file's metadata.
        threads: for torch and ONNX Runtime; by default as many as torch uses now.
        on_difference: called with each difference as soon as it is measured: `Difference` or `PeopleDifference`.
    Raises:
        ConfigError: the output is the checkpoint itself, or people are asked for in a form that cannot yield them.
        DekrError: the checkpoint or the network cannot be exported, or the file differs from torch or our decoding.
    """
    started = time.monotonic()
    if threads is not None:
        torch.set_num_threads(threads)
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise ConfigError(f"--output {output} is the checkpoint itself; name another file")
    if people is not None and dialect != ONNX:
        raise ConfigError(f"--decode people needs --dialect {ONNX}; atc does not take its operators")
    if people is not None and people.flip and deform == GATHER:
        raise ConfigError(
            f"--deform {GATHER} takes one image at a time, but a flipped pass is run with the original; "
            "add --flip off, or choose another --deform"
        )
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
    if input_dtype == UINT8:
        model = take_uint8(model)
        metadata["input_dtype"] = UINT8
    if people is not None:
        metadata |= people.metadata()
        metadata["weights"] = least_trained(metadata["weights"], rescore.kind if rescore else None)
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))  # the order in which onnx-ir writes them
    written = to_dialect(model, dialect)
    if people is not None:
        written = add_people(written, people, input_sizes, skeleton, rescore, with_maps)
        check_standard(written)
    elif dialect == ONNX and deform != GATHER:
        _open_batch(written)
    differences: list[Difference | PeopleDifference] = []
    with atomic_write(output) as temporary:
        temporary.write_bytes(written.SerializeToString())
        if check:
            used = torch.get_num_threads()
            for difference in (
                compare_with_torch(network, temporary, input_sizes, used)
                if people is None
                else compare_people(network, temporary, people, rescore, skeleton, input_sizes, input_dtype, used)
            ):
                differences.append(difference)
                on_difference(difference)
        if not all(difference.holds for difference in differences):
            raise DekrError(
                f"the exported graph differs from torch{', or its people from our decoding' * (people is not None)}; "
                "nothing was written. Is the checkpoint a trained one?"
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


def _open_batch(model: onnx.ModelProto) -> None:
    """Leave the number of images open; no node depends on it."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
