"""The lines that run a file that yields people, in any program: OpenCV, numpy and ONNX Runtime alone."""

from __future__ import annotations

from pathlib import Path

from dekr_infer.geometry import InputSizes
from dekr_infer.onnx_graph.baked import PIXEL_NAME, UINT8, Baked
from dekr_infer.pose.preprocess import MEAN, STD

_SNIPPET = """\
import cv2, numpy as np, onnxruntime

session = onnxruntime.InferenceSession({path!r})
image = cv2.imread("photo.jpg")  # BGR
h, w = image.shape[:2]
long, sizes = (scale := {short} / min(h, w)) * max(h, w), {sizes}
H, W = next((s for s in sizes[h > w] if max(s) >= (long + 63) // 64 * 64), sizes[h > w][-1])
start, end = ((w + 1) // 2, (h + 1) // 2), (W / 2, H / 2)  # the centres, laid on each other
corners = lambda x, y, reach: np.float32([(x, y), (x, y - reach), (x - reach, y - reach)])
matrix = cv2.getAffineTransform(corners(*start, W / 2 / scale), corners(*end, W / 2))
tensor = cv2.warpAffine(image, matrix, (W, H))[None, :, :, ::-1].transpose(0, 3, 1, 2)  # RGB, (1, 3, H, W)
{normalise}keypoints, scores, num = session.run({outputs}, {{"image": np.ascontiguousarray(tensor){pixel}}})
poses, scores = keypoints[0, : num[0, 0]], scores[0, : num[0, 0]]  # people, by score
poses[:, :, :2] = (poses[:, :, :2] - end) / scale + start  # x, y in pixels of the image; then the joint's score
"""
_NORMALISE = """\
tensor = (np.float32(tensor) / 255 - np.float32({mean}).reshape(3, 1, 1)) / np.float32({std}).reshape(3, 1, 1)
"""


def usage_snippet(path: Path, baked: Baked, input_sizes: InputSizes, input_dtype: str) -> str:
    """Return the lines of Python that find the people of photo.jpg."""
    wide = sorted((size for size in input_sizes if size.h <= size.w), key=max)
    tall = sorted((size for size in input_sizes if size.h >= size.w), key=max)
    return _SNIPPET.format(
        path=str(path),
        short=min(map(min, input_sizes)),
        sizes=([tuple(size) for size in wide], [tuple(size) for size in tall]),
        normalise="" if input_dtype == UINT8 else _NORMALISE.format(mean=list(MEAN), std=list(STD)),
        outputs=["keypoints", "scores", "num"],
        pixel=f', "{PIXEL_NAME}": np.array(scale, np.float32)' if baked.rescore_sha256 else "",
    )
