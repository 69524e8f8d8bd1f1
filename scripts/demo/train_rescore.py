"""Train the demo's rescoring net: from a detected pose to its similarity (OKS) to the annotated person.

    python3 scripts/demo/train_rescore.py --weights scripts/demo/weights/pose_dekr_demo.pth

draws images, detects the people in them with the trained network, and learns the quality of each pose from the
74 features of dekr_infer/pose/rescore.py. A fifth of the poses is held back for the reported error.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from dekr_infer.cli.app import Arguments, Parser, non_negative_int, positive_int, run, worker_count
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.sources import ImageFiles, frames_of, image_source
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.model.checkpoint import save
from dekr_infer.pose.rescore import features, layer_shapes
from dekr_infer.skeleton import COCO_17
from scripts.demo.people import write_data_set
from scripts.demo.training.in_memory_eval import SPLIT, demo_detector, load_grouped

OKS_SPREAD = 2 * np.array(COCO_17.sigmas)  # per sqrt(area)
HIDDEN = 256
HELD_BACK = 0.2  # share of the poses
BATCH = 256
WEIGHT_DECAY = 0.01


def similarity(poses: np.ndarray, joints: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return COCO's object keypoint similarity of every pose to every person.

    Args:
        poses: (n, 17, 2 or more) x, y in pixels.
        joints: (people, 17, 3) x, y in pixels, v > 0 where labelled; every person has a labelled joint.
        areas: (people,) pixels.
    Returns:
        (n, people) from 0 to 1.
    """
    square = np.square(poses[:, None, :, :2] - joints[None, :, :, :2]).sum(-1)
    labelled = joints[..., 2] > 0
    near = np.exp(-square / (2 * np.square(OKS_SPREAD) * areas[:, None])) * labelled
    return near.sum(-1) / labelled.sum(-1)


def collect(weights: Path, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return poses (n, 17, 3) float32 detected on a data set, and their best similarity to a person, (n,)."""
    data = load_data_set(root, SPLIT)
    frames = frames_of(data, PUBLISHED_SIZES, ImageFiles(image_source(root, SPLIT)))
    all_poses, targets = [np.zeros((0, 17, 3), np.float32)], [np.zeros(0)]
    found = demo_detector(load_grouped(weights)).stream(frames)
    for frame, people in tqdm(found, "detecting people", len(frames), leave=False, disable=None):
        truth = [person for person in data.ground_truth() if person.image_id == frame.image_id]
        joints = np.array([person.keypoints for person in truth], float).reshape(-1, 17, 3)
        areas = np.array([person.area for person in truth])
        all_poses.append(people.poses)
        targets.append(similarity(people.poses, joints, areas).max(1, initial=0.0))
    return np.concatenate(all_poses), np.concatenate(targets)


def mirrored(poses: np.ndarray) -> np.ndarray:
    """Return the poses of the same people in a mirror."""
    result = poses[:, list(COCO_17.partners)].copy()
    result[..., 0] *= -1
    return result


class TrainableRescoreNet(nn.Module):
    """The three layers of the rescoring net under the checkpoint's names: (n, 74) -> (n,)."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in layer_shapes(HIDDEN).items():
            self.add_module(name, nn.Linear(*shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the factors of features."""
        *hidden, last = self.children()
        for layer in hidden:
            x = torch.relu(layer(x))
        return torch.Tensor(last(x)).squeeze(1)


def fit(poses: np.ndarray, targets: np.ndarray, epochs: int, seed: int) -> tuple[TrainableRescoreNet, str]:
    """Train on the first poses; report the mean square error on the last, and the error of a constant mean."""
    torch.manual_seed(seed)
    cut = round(len(poses) * (1 - HELD_BACK))
    x = torch.from_numpy(np.concatenate([features(poses[:cut]), features(mirrored(poses[:cut]))]))
    y = torch.from_numpy(np.concatenate([targets[:cut]] * 2)).float()
    held_x, held_y = torch.from_numpy(features(poses[cut:])), torch.from_numpy(targets[cut:]).float()
    net = TrainableRescoreNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(BATCH):
            loss = nn.functional.mse_loss(net(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        error = float(nn.functional.mse_loss(net(held_x), held_y))
    spread = float(held_y.var(correction=0))
    return net, f"{cut} poses; mean square error held back {error:.4f}, of the mean alone {spread:.4f}"


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--weights", type=Path, default=ROOT / "models/demo_train/pose_dekr_demo.pth", help="checkpoint"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "models/demo_train/rescore_demo.pth", help="to write")
    parser.add_argument("--pictures", type=positive_int, default=300, help="images to draw (300)")
    parser.add_argument("--epochs", type=positive_int, default=40, help="passes over the poses (40)")
    parser.add_argument("--seed", type=non_negative_int, default=2001, help="of images and weights (2001)")
    parser.add_argument("--threads", type=worker_count, default=2, help="of torch (2)")
    args = parser.parse_args(argv)

    def work() -> None:
        torch.set_num_threads(args.threads)
        with tempfile.TemporaryDirectory() as folder:
            print(write_data_set(Path(folder), SPLIT, args.pictures, args.seed))
            poses, targets = collect(args.weights, Path(folder))
        net, summary = fit(poses, targets, args.epochs, args.seed)
        save(net.state_dict(), args.output)
        print(f"{summary} -> {args.output}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
