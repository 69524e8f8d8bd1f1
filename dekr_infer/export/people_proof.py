"""Prove a file that yields people: its maps against torch, its people against our numpy decoding of the same maps.

The maps decoded are the file's own, and scenes made for what is hard in decoding: ties, plateaus, chains of duplicates,
joints outside the maps, more candidates than are kept, and nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.convenience import extract

from dekr_infer.export.parity import SEED, Difference, difference_of, sample_image
from dekr_infer.geometry import Size, cells
from dekr_infer.onnx_graph.baked import PIXEL_NAME, UINT8, Baked
from dekr_infer.pose.decode import decode
from dekr_infer.pose.preprocess import as_uint8, mirror, normalise
from dekr_infer.pose.rescore import RescoreNet
from dekr_infer.skeleton import Skeleton
from dekr_infer.structures import INPUT_NAME, OUTPUT_NAMES, PEOPLE_NAMES, Maps, Passes

if TYPE_CHECKING:
    from torch import nn

PIXELS_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-5  # the latter relative, from scores of 1 on
CHAINS = 3  # scenes of chains: not every one has a person whose best duplicate is taken already
SCALES = (1.0, 2.5)  # input pixels in an image pixel: what the rescoring net is told

PassesArrays = tuple[np.ndarray, np.ndarray]  # heatmap (P, J + 1, h, w), offset (P, 2 J, h, w)


class PeopleDifference(NamedTuple):
    """What a file that yields people differs by at an input size.

    Args:
        maps: from torch.
        people: how many people were compared.
        same: whether there were as many people everywhere, by score, and nothing but 0 after them.
        pixels: the largest difference of a coordinate, in input pixels.
        score: the largest difference of a person's or a joint's score.
    """

    maps: Difference
    people: int
    same: bool
    pixels: float
    score: float

    @property
    def holds(self) -> bool:
        """Whether all differences are within what float32 allows (NaN is not)."""
        near = self.pixels <= PIXELS_TOLERANCE and self.score <= SCORE_TOLERANCE
        return self.maps.holds and self.same and near


def compare_people(
    network: nn.Module,
    path: Path,
    baked: Baked,
    rescore: RescoreNet | None,
    skeleton: Skeleton,
    input_sizes: Iterable[Size],
    input_dtype: str,
    threads: int,
) -> Iterator[PeopleDifference]:
    """Run the written file, and the decoding in it alone, at each input size.

    Args:
        network: as it was before folding, in evaluation mode.
        path: the ONNX file.
        baked: the decoding in it.
        rescore: the rescoring net in it.
        skeleton: of the network.
        input_sizes: of the file.
        input_dtype: of its input.
        threads: for ONNX Runtime.
    """
    import torch

    model = onnx.load(path)
    pixel = [PIXEL_NAME] if rescore is not None else []
    whole = part_of(model, [INPUT_NAME, *pixel], [*PEOPLE_NAMES, *OUTPUT_NAMES], threads)
    decoder = part_of(model, [*OUTPUT_NAMES, *pixel], PEOPLE_NAMES, threads)
    rng = np.random.default_rng(SEED)
    for input_size in input_sizes:
        warped = sample_image(rng, input_size)
        images = [normalise(pixels) for pixels in (warped, mirror(warped))[: 1 + baked.flip]]
        with torch.inference_mode():
            expected = [output.numpy() for output in network(torch.from_numpy(np.concatenate(images)))]
        image = as_uint8(warped) if input_dtype == UINT8 else images[0]
        *found, heat, offset = whole.run(None, {INPUT_NAME: image})
        cases = [compare(found, expected_people((heat, offset), baked, rescore, skeleton))]
        for maps in scenes(rng, cells(input_size), skeleton, baked):
            for scale in SCALES if rescore is not None else SCALES[:1]:
                feed = dict(zip(OUTPUT_NAMES, maps, strict=True)) | {
                    name: np.array(scale, np.float32) for name in pixel
                }
                wanted = expected_people(maps, baked, rescore, skeleton, scale)
                cases.append(compare(decoder.run(None, feed), wanted))
        counts, same, pixels, scores = zip(*cases, strict=True)
        maps_apart = difference_of(input_size, expected, (heat, offset))
        yield PeopleDifference(maps_apart, sum(counts), all(same), float(np.max(pixels)), float(np.max(scores)))


def part_of(
    model: onnx.ModelProto, inputs: list[str], outputs: Iterable[str], threads: int
) -> onnxruntime.InferenceSession:
    """Return the part of a model between some of its tensors, loaded for ONNX Runtime."""
    source = ir.from_proto(model)
    for value in (value for node in source.graph for value in node.outputs if value.name in OUTPUT_NAMES):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * 4)
    part = ir.Model(extract(source.graph, inputs, list(outputs)), ir_version=source.ir_version)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    data = ir.to_proto(part).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def expected_people(
    maps: PassesArrays, baked: Baked, rescore: RescoreNet | None, skeleton: Skeleton, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return poses in input pixels and scores of our own decoding, by score."""
    passes = Passes(*(Maps(heat, offset) for heat, offset in zip(*maps, strict=True)))
    poses, scores = decode(passes, baked.settings, skeleton)
    if rescore is not None:
        scores = scores * rescore(poses / np.array([scale, scale, 1], np.float32))
    order = np.argsort(-scores, kind="stable")
    return poses[order], scores[order]


def compare(found: Iterable[np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> tuple[int, bool, float, float]:
    """Return the people compared, whether they are as many and in order, and the differences in pixels and scores.

    A person may stand where another one of the same score is expected: rounding decides between them.
    """
    (keypoints,), (scores,), num = found
    poses, wanted = expected
    count = len(poses)
    same = num.tolist() == [[count]] and not keypoints[count:].any() and not scores[count:].any()
    if not same or not count:
        return count, bool(same), 0.0, 0.0
    allowed = np.maximum(1, np.abs(wanted))
    score = float((np.abs(scores[:count] - wanted) / allowed).max())
    apart = np.abs(keypoints[:count, None] - poses[None]).max(2)  # (found, expected, 3)
    alike = np.abs(scores[:count, None] - wanted) <= SCORE_TOLERANCE * allowed
    distance = np.where(alike, apart[:, :, :2].max(2), np.inf)
    rows = np.arange(count)
    both = np.concatenate((apart[rows, distance.argmin(1)], apart[distance.argmin(0), rows]))
    return count, True, float(both[:, :2].max()), max(score, float(both[:, 2].max()))


def scenes(rng: np.random.Generator, size: Size, skeleton: Skeleton, baked: Baked) -> Iterator[PassesArrays]:
    """Yield maps of `size` cells, of one pass, or two with flip: crowd, ties, chains, nobody."""
    passes = 1 + baked.flip
    joints, limit = len(skeleton), max(baked.settings.threshold, 0.0)

    def maps(centre: np.ndarray, heat: np.ndarray, offset: np.ndarray) -> PassesArrays:
        both = np.concatenate((heat, np.stack((centre, centre[:, ::-1]))[:passes, None]), axis=1)
        return both.astype(np.float32), offset.astype(np.float32)

    heat = rng.random((passes, joints, *size))
    offset = rng.normal(0, max(size) / 4, (passes, 2 * joints, *size))
    levels = np.where(rng.random(size) < 0.05, rng.integers(0, 4, size) / 4, 0)
    yield maps(limit + rng.random(size), heat, offset)
    yield maps(limit + levels, np.full_like(heat, 0.5), offset)  # plateaus, and equal scores
    for _ in range(CHAINS):
        yield maps(limit + levels, heat, _chained(rng, offset.shape, skeleton, baked))
    yield maps(np.full(size, -1.0), heat, offset)


def _chained(rng: np.random.Generator, shape: tuple[int, ...], skeleton: Skeleton, baked: Baked) -> np.ndarray:
    """Return offsets of people of one shape at places so near that each duplicates some of the others."""
    passes, _, h, w = shape
    y, x = np.mgrid[:h, :w].astype(float)
    pose = np.round(rng.uniform(0, 1, (len(skeleton), 2)) * (w / 2, h / 2) * 4) / 4 + (w / 4, h / 4)
    reach = baked.settings.nms_distance * np.hypot(*np.ptp(pose, axis=0))
    moved = pose[:, 0, None, None] + reach * (rng.integers(-3, 4, (h, w)) * 0.7)
    original = np.stack((x - moved, np.broadcast_to(y - pose[:, 1, None, None], moved.shape)), axis=1)
    flipped = original[list(skeleton.partners), :, :, ::-1] * np.array([-1, 1])[:, None, None]
    return np.stack((original, flipped))[:passes].reshape(shape)
