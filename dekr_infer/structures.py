"""The values that the parts of the chain hand to each other: frames, network outputs, people.

Names, channels and file suffixes of the network's input and outputs are here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dekr_infer.errors import DekrError
from dekr_infer.geometry import Placement, Size
from dekr_infer.skeleton import COCO_17, Skeleton

INPUT_NAME = "image"
OUTPUT_NAMES = ("heatmap", "offset")  # in the graph's order
PEOPLE_NAMES = ("keypoints", "scores", "num")  # of a graph that yields people


def output_shapes(joints: Sized, cells: Size, images: int = 1) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of both outputs for one input: (images, channels, h, w) in `OUTPUT_NAMES`' order."""
    return tuple((images, channels, *cells) for channels in (len(joints) + 1, 2 * len(joints)))


def output_files(stem: str, suffix: str = ".npy", names: Sequence[str] = OUTPUT_NAMES) -> tuple[str, ...]:
    """Return the file names of the outputs of a tensor, in the order of the outputs' names.

    >>> output_files("000000000139")
    ('000000000139_0.npy', '000000000139_1.npy')
    """
    return tuple(f"{stem}_{index}{suffix}" for index in range(len(names)))


class Maps(NamedTuple):
    """The network's outputs for one input, in cells.

    Args:
        heatmap: (J + 1, h, w) float32 or float16: the joints, then the person centre.
        offset: (2 J, h, w) float32 or float16: x then y of each joint; joint = cell - offset.
        sources: the places of heatmap and offset, for error messages: files, or the model.
        milliseconds: of the forward pass, where it has just been run.

    Values are checked where they are used: decoding needs few of them.
    """

    heatmap: np.ndarray
    offset: np.ndarray
    sources: tuple[str, str] = ("the network's heatmap", "the network's offset")
    milliseconds: float | None = None

    @property
    def cells(self) -> Size:
        """The size of the maps."""
        return Size(*self.heatmap.shape[1:])

    def heat_at(self, channel: Any, y: Any, x: Any) -> np.ndarray:
        """Return finite values of the heatmap, float32; the arguments are numpy indices.

        Raises:
            DekrError: a value is NaN or infinite.
        """
        return _finite(np.asarray(self.heatmap[channel, y, x]), self.sources[0])

    def offset_at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return finite offsets at cells y, x (n,): (n, J, 2) float32, x and y in cells.

        Raises:
            DekrError: a value is NaN or infinite.
        """
        return _finite(np.asarray(self.offset[:, y, x]), self.sources[1]).T.reshape(len(y), len(self.offset) // 2, 2)


def _finite(values: np.ndarray, source: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DekrError(f"{source}: holds NaN or infinite values; run the network on this image again")
    return values.astype(np.float32, copy=False)


class Passes(NamedTuple):
    """The maps of an image and, if the network ran on it, of its flipped twin, as the network returned them."""

    original: Maps
    flipped: Maps | None = None


@dataclass(frozen=True)
class People:
    """The people of one image.

    Args:
        poses: (n, J, 3) float32: x, y in image pixels, joint score.
        scores: (n,) float32.
        decoded_scores: (n,) float32, the scores before rescoring; `None` without rescoring.
        skeleton: their joints.
    """

    poses: np.ndarray
    scores: np.ndarray
    decoded_scores: np.ndarray | None = None
    skeleton: Skeleton = COCO_17

    def __len__(self) -> int:
        return len(self.poses)

    @classmethod
    def nobody(cls, skeleton: Skeleton) -> People:
        """Return the people of an empty image."""
        return cls(np.zeros((0, len(skeleton), 3), np.float32), np.zeros(0, np.float32), skeleton=skeleton)

    def draw(
        self, image: np.ndarray | str | Path, *, min_score: float = 0.1, min_joint_score: float = 0.05
    ) -> np.ndarray:
        """Draw the people over a copy of their image.

        Args:
            image: (h, w, 3) uint8 BGR, or a file.
            min_score: people that score less are left out.
            min_joint_score: joints that do not score more are left out.
        Returns:
            (h, w, 3) uint8 BGR, as `cv2.imwrite` takes it.
        Raises:
            DekrError: the file cannot be read, or the array is no image.
        """
        from dekr_infer.data.images import bgr, read_image
        from dekr_infer.visualization.overlay import draw_poses

        pixels = read_image(Path(image)) if isinstance(image, str | Path) else bgr(image)
        kept = self.scores >= min_score
        poses, scores = self.poses[kept], self.scores[kept]
        drawn = draw_poses(pixels[:, :, ::-1], poses, scores, joint_threshold=min_joint_score, skeleton=self.skeleton)
        return np.ascontiguousarray(drawn[:, :, ::-1])

    def to_coco(self, image_id: int, category_id: int) -> list[dict[str, Any]]:
        """Return the entries of COCO's result file, one a person.

        Returns:
            image_id, category_id, keypoints [x, y, score] * J, score, and the joints' box as bbox [x, y, w, h].
        """
        entries = []
        values = self.poses.astype(np.float64)
        lows, highs = values[:, :, :2].min(1), values[:, :, :2].max(1)
        for pose, score, low, high in zip(values, self.scores.tolist(), lows, highs, strict=True):
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "keypoints": pose.ravel().tolist(),
                    "score": score,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                }
            )
        return entries


@dataclass(frozen=True)
class Frame:
    """One image on its way through the chain.

    Args:
        key: names the image's tensors, outputs and records; unique in a run.
        placement: the image's place in the network's input.
        read: decodes the image: (h, w, 3) uint8 BGR. Backends that read outputs from files never call it.
        image_id, file_name: of the annotation file, where there is one.
    """

    key: str
    placement: Placement
    read: Callable[[], np.ndarray] = field(repr=False)
    file_name: str = ""
    image_id: int | None = None

    @property
    def name(self) -> str:
        """The image's name for messages: its file name where it has one."""
        return self.file_name or self.key
