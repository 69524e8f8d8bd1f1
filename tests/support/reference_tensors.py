"""The tensors of an image as the reference makes them, step by step."""

import cv2
import numpy as np
import torch

from dekr_infer.geometry import PUBLISHED_SIZES, Size

ONE_OF_EACH = (Size(333, 481), Size(601, 600), Size(640, 427), Size(120, 231), Size(500, 256))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def reference_normalise(rgb: np.ndarray) -> torch.Tensor:
    """ToTensor and Normalize, as torchvision's arithmetic goes: (1, 3, h, w) float32."""
    scaled = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).to(torch.float32).div(255)
    return scaled.sub(MEAN[:, None, None]).div(STD[:, None, None])[None]


def reference_tensors(bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lines [5] to [9] step by step: RGB, warp, normalise, then flip the tensor and shift it."""
    h, w = bgr.shape[:2]
    input_size = PUBLISHED_SIZES.place(Size(h, w)).input
    scale = 512 / min(h, w)
    middle, reach = np.array([int(w / 2 + 0.5), int(h / 2 + 0.5)]), input_size.w / scale / 2
    source = np.float32([middle, middle + [0, -reach], middle + [-reach, -reach]])
    target = np.float32(
        [
            [input_size.w / 2, input_size.h / 2],
            [input_size.w / 2, input_size.h / 2 - input_size.w / 2],
            [0, input_size.h / 2 - input_size.w / 2],
        ]
    )
    matrix = cv2.getAffineTransform(source, target)
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    warped = cv2.warpAffine(rgb, matrix, (input_size.w, input_size.h), flags=cv2.INTER_LINEAR, borderValue=0)
    tensor = reference_normalise(warped)
    flipped = torch.flip(tensor, [3])
    moved = flipped.clone()
    moved[..., :-3] = flipped[..., 3:]
    return tensor.numpy(), moved.numpy()
