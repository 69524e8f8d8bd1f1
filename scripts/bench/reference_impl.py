"""The reference's way of working, written plainly: one process, one image after the other, torch, full-size maps.

The project's stages are measured against these functions, which give the same results. Whole maps are merged and
enlarged, people are handled in loops, and the rescoring net is loaded again for every image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dekr_infer.data.coco import ImageEntry
from dekr_infer.data.images import decode_image
from dekr_infer.data.sources import ImageFiles
from dekr_infer.geometry import FLIP_SHIFT, PUBLISHED_SIZES, STRIDE
from dekr_infer.pose.decode import CENTRE, DecodeSettings
from dekr_infer.pose.preprocess import MEAN, STD
from dekr_infer.pose.rescore import layer_shapes
from dekr_infer.skeleton import COCO_17

JOINTS = len(COCO_17)
Folders = tuple[Path, Path]


def write_tensors(images: Sequence[ImageEntry], files: ImageFiles, folders: Folders) -> None:
    """Compute and save both tensors, image by image."""
    for image in images:
        for folder, values in zip(folders, tensors_of(files.read(image.file_name), image), strict=True):
            np.save(folder / f"{image.stem}.npy", values)


def tensors_of(encoded: bytes, image: ImageEntry) -> tuple[np.ndarray, np.ndarray]:
    """Decode, warp, normalise by arithmetic, and flip the whole tensor; return both, (1, 3, H, W) float32."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    placement = PUBLISHED_SIZES.place(image.size)
    rgb = cv2.cvtColor(decode_image(encoded, image.file_name, image.size), cv2.COLOR_BGR2RGB)
    matrix = cv2.getAffineTransform(*placement.warp_points)
    warped = cv2.warpAffine(rgb, matrix, (placement.input.w, placement.input.h))
    tensor = (torch.from_numpy(warped.transpose(2, 0, 1).copy())[None].float().div(255) - mean) / std
    flipped = torch.flip(tensor, [3])
    flipped[..., :-FLIP_SHIFT] = flipped[..., FLIP_SHIFT:].clone()
    return tensor.numpy(), flipped.numpy()


def find_people(
    images: Sequence[ImageEntry], folders: Folders, settings: DecodeSettings, rescore: Path
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read whole outputs and decode them, image by image.

    Args:
        images: of the data set.
        folders: the outputs of both passes.
        settings: of decoding.
        rescore: the rescoring net's checkpoint.
    Returns:
        For every image poses (people, 17, 3) in image pixels and rescored scores (people,).
    """
    found = []
    for image in images:
        maps = [np.load(folder / f"{image.stem}_{index}.npy") for folder in folders for index in (0, 1)]
        people, scores = decode_poses(*merge(*map(torch.from_numpy, maps)), settings)
        matrix = PUBLISHED_SIZES.place(image.size).to_image
        for person in people:
            for joint in person:
                joint[:2] = matrix @ np.array([joint[0], joint[1], 1.0])
        found.append((people, rescored(people, scores, rescore) if len(people) else scores))
    return found


def merge(heat: Tensor, offset: Tensor, heat_flip: Tensor, offset_flip: Tensor) -> tuple[Tensor, Tensor]:
    """Return both passes' maps (1, C, h, w) merged: heat (1, 18, h, w) and joint positions in cells (1, 34, h, w)."""
    mirrored = torch.flip(heat_flip, [3])[:, [*COCO_17.partners, CENTRE]]
    h, w = offset.shape[2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    cell = torch.stack((x, y)).float()
    poses = cell - offset.view(1, JOINTS, 2, h, w)
    poses_flip = (cell - offset_flip.view(1, JOINTS, 2, h, w))[:, COCO_17.partners]
    poses_flip[:, :, 0] = w - poses_flip[:, :, 0] - 1
    return (heat + mirrored) / 2, ((poses + torch.flip(poses_flip, [4])) / 2).flatten(1, 2)


def decode_poses(heat: Tensor, poses_map: Tensor, settings: DecodeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return merged maps as poses (people, 17, 3) in input pixels and scores (people,)."""
    h, w = heat.shape[2:]
    full = F.interpolate(heat, size=(STRIDE * h - 3, STRIDE * w - 3), mode="bilinear", align_corners=True)
    full = F.pad(full, (0, 3, 0, 3), mode="replicate")[0]
    centre = heat[0, CENTRE]
    peaks = centre * (F.max_pool2d(centre[None], 3, 1, 1)[0] == centre).float()
    values, index = peaks.flatten().topk(settings.max_people)
    index, values = index[values > settings.threshold], values[values > settings.threshold]
    joints = STRIDE * poses_map[0].permute(1, 2, 0).reshape(h * w, JOINTS, 2)[index]
    if not len(joints):
        return np.zeros((0, JOINTS, 3), np.float32), np.zeros(0, np.float32)
    x = joints[:, :, 0].floor().clamp(0, STRIDE * w - 1).long()
    y = joints[:, :, 1].floor().clamp(0, STRIDE * h - 1).long()
    heat_at = torch.stack([full[joint, y[:, joint], x[:, joint]] for joint in range(JOINTS)], 1)
    kept = _without_duplicates(joints, heat_at.sum(1) / JOINTS, settings)
    people = torch.cat((joints, (values[:, None] * heat_at)[:, :, None]), 2)[kept].numpy()
    return people, np.array([person[:, 2].mean() for person in people])


def _without_duplicates(joints: Tensor, mean_heat: Tensor, settings: DecodeSettings) -> list[int]:
    extent = joints.amax(1) - joints.amin(1)
    reach = settings.nms_distance * torch.sqrt((extent**2).sum(1))
    distance = torch.sqrt(((joints[:, None] - joints) ** 2).sum(3))
    duplicates = (distance < reach[:, None, None]).sum(2) > settings.nms_joints
    kept: list[int] = []
    taken: list[int] = []
    for person in range(len(joints)):
        if person in taken:
            continue
        group = [int(other) for other in duplicates[person].nonzero()] or [person]
        best = group[int(mean_heat[group].argmax())]
        if best not in taken:
            kept.append(best)
            taken += group
    return kept


def rescored(people: np.ndarray, scores: np.ndarray, checkpoint: Path) -> np.ndarray:
    """Return scores times the factors of the rescoring net, which is read from its file each time."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    net = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in layer_shapes(len(state["l1.bias"])).items()})
    net.load_state_dict(state)
    start, end = zip(*COCO_17.rescore_pairs, strict=True)
    rows = []
    for person in people:
        difference = person[list(start), :2] - person[list(end), :2]
        length = np.sqrt((difference**2).sum(1))
        torso = max(length[list(COCO_17.torso_pairs)].mean(), 1)
        rows.append(np.concatenate((difference.ravel() / torso, length / torso, person[:, 2])))
    values = torch.from_numpy(np.array(rows, np.float32))
    with torch.inference_mode():
        for name in ("l1", "l2"):
            values = torch.relu(net[name](values))
        factors = net["l3"](values)[:, 0].numpy()
    return np.nan_to_num(factors, nan=0.0, posinf=np.inf, neginf=-np.inf) * scores
