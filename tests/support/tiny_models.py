"""A network of DEKR's full structure and tiny widths, and a graph whose outputs are readable by eye."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from yacs.config import CfgNode

from dekr_infer.cli import export as export_command
from dekr_infer.cli import random_checkpoint
from dekr_infer.config.load import load_config
from dekr_infer.geometry import InputSizes, Size
from dekr_infer.model.checkpoint import load_network
from dekr_infer.model.head import DekrNet, build_network
from dekr_infer.onnx_graph.cpu_optimize import affine_mixing

PAIRS = (
    *("MODEL.SPEC.STEM_CHANNELS", "4"),
    *("MODEL.SPEC.STAGES.NUM_MODULES", "[1,1,1]"),
    *("MODEL.SPEC.STAGES.NUM_BLOCKS", "[[1,1],[1,1,1],[1,1,1,1]]"),
    *("MODEL.SPEC.STAGES.NUM_CHANNELS", "[[4,6],[4,6,8],[4,6,8,10]]"),
    *("MODEL.SPEC.HEAD_HEATMAP.NUM_CHANNELS", "5"),
    *("MODEL.SPEC.HEAD_OFFSET.NUM_CHANNELS_PERKPT", "3"),
)
SMALL_INPUT_SIZES = InputSizes(
    (Size(64, 96), Size(96, 64), Size(64, 160))
)  # where the five real ones would only take time
ONE_THREAD = ("--threads", "1")


@contextmanager
def single_thread() -> Iterator[None]:
    """Give torch one thread: on maps this small, several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Tiny:
    """The tiny network, its checkpoint, and the file the export command made of it (`ascend`, five input sizes)."""

    config: CfgNode
    network: DekrNet
    checkpoint: Path
    graph: Path

    def model(self) -> ModelProto:
        """A fresh copy of the exported graph."""
        return onnx.load(self.graph)

    def pairs(self) -> list[str]:
        """KEY VALUE pairs that describe this network and name its checkpoint."""
        return [*PAIRS, "TEST.MODEL_FILE", str(self.checkpoint)]


def make_tiny(folder: Path) -> Tiny:
    """Make the checkpoint and the graph by the project's own commands."""
    checkpoint, rescore, graph = (folder / name for name in ("tiny.pth", "rescore.pth", "tiny.onnx"))
    made = random_checkpoint.main(["--output", str(checkpoint), "--output_rescore", str(rescore), *PAIRS])
    exported = export_command.main(
        ["--output", str(graph), "--skip_check", *ONE_THREAD, *PAIRS, "TEST.MODEL_FILE", str(checkpoint)]
    )
    assert made == exported == 0
    config = load_config(None, PAIRS)
    network = build_network(config)
    load_network(network, checkpoint)
    return Tiny(config, network, checkpoint, graph)


def toy_model(input_sizes: InputSizes = SMALL_INPUT_SIZES, scale: float = 1.0) -> ModelProto:
    """A graph of the contract's form with two convolutions for a network; see `toy_outputs`."""
    heat, offset = np.zeros((18, 3, 4, 4), np.float32), np.zeros((34, 3, 4, 4), np.float32)
    heat[:, 0, 0, 0] = scale * np.arange(1, 19)
    offset[:, 1, 1, 2] = -scale * np.arange(1, 35)
    nodes = [
        helper.make_node("Conv", ["image", "heat"], ["heatmap"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["image", "off"], ["offset"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "rows", "columns"])
        for name, channels in (("heatmap", 18), ("offset", 34))
    ]
    weights = [numpy_helper.from_array(heat, "heat"), numpy_helper.from_array(offset, "off")]
    graph = helper.make_graph(nodes, "toy", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    helper.set_model_props(model, {"input_sizes": str(input_sizes)})
    return model


def linked_model() -> ModelProto:
    """A graph in the `ascend` dialect, as small as can be, in which everything occurs that loading rewrites."""
    rng = np.random.default_rng(0)
    mixed = np.tensordot(affine_mixing(), rng.standard_normal((6, 3, 3, 3)), 1)  # dy and dx of each tap in turn
    shapes = {"w.x": (8, 3, 4, 4), "w.a": (8, 8, 2, 2), "w.b": (8, 8, 4, 4), "w.feature": (6, 16, 1, 1)}
    shapes |= {"w.heatmap": (18, 16, 1, 1), "b.heatmap": (18,), "w.moved": (4, 3, 3, 3), "w.offset": (34, 7, 1, 1)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    weights["w.taps"] = np.concatenate((mixed[1::2], mixed[::2], np.zeros((9, 3, 3, 3))))
    weights["b.taps"] = np.repeat([0.0, 1.0], (18, 9))
    weights |= {"by2": np.array([1, 1, 2, 2]), "by4": np.array([1, 1, 4, 4]), "roi": np.zeros(0)}
    repeat = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    ones = {"strides": [1, 1], "pads": [1, 1], "dilations": [1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "w.x"], ["x"], strides=[4, 4]),
        helper.make_node("Conv", ["x", "w.a"], ["a"], strides=[2, 2]),
        helper.make_node("Conv", ["x", "w.b"], ["b"], strides=[4, 4]),
        helper.make_node("Resize", ["a", "roi", "by2"], ["a.large"], **repeat),
        helper.make_node("Resize", ["b", "roi", "by4"], ["b.large"], **repeat),
        helper.make_node("Add", ["x", "a.large"], ["sum"]),
        helper.make_node("Add", ["sum", "b.large"], ["near"]),
        helper.make_node("Resize", ["b", "roi", "by4"], ["far"], mode="linear"),
        helper.make_node("Concat", ["near", "far"], ["all"], axis=1),
        helper.make_node("Conv", ["all", "w.heatmap", "b.heatmap"], ["heatmap"]),
        helper.make_node("Conv", ["all", "w.feature"], ["feature"]),
        helper.make_node("Split", ["feature"], ["u", "v"], axis=1, split=[3, 3]),
        helper.make_node("Conv", ["u", "w.taps", "b.taps"], ["taps"], pads=[1, 1, 1, 1], group=1),
        helper.make_node(
            "DeformableConv2D", ["u", "w.moved", "taps"], ["moved"], groups=1, deformable_groups=1, **ones
        ),
        helper.make_node("Concat", ["moved", "v"], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "w.offset"], ["offset"]),
    ]
    model = toy_model()
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items())
    return model


def toy_outputs(image: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return `toy_model`'s outputs for whole numbers: heat c is c + 1 times the red, offset c minus the green."""
    heat = scale * np.arange(1, 19, dtype=np.float32)[:, None, None] * image[:, 0, None, ::4, ::4]
    offset = -scale * np.arange(1, 35, dtype=np.float32)[:, None, None] * image[:, 1, None, 1::4, 2::4]
    return heat, offset
