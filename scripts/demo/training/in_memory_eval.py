"""Evaluation of a network in training, in memory: images -> two passes -> people -> COCO metrics.

    python3 scripts/demo/training/in_memory_eval.py --root data/demo --state models/demo_train/state.pth

prints the ten metrics of a training state's averaged weights on a data set that people.py wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from dekr_infer.cli.app import Arguments, Parser, run, worker_count
from dekr_infer.config.load import load_config
from dekr_infer.data.coco import DataSet, Picture, PictureFiles, load_data_set, picture_source
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import coco_figures, figures_table, person_category, results_of
from dekr_infer.geometry import PUBLISHED_SIZES, Placement
from dekr_infer.model.checkpoint import read_state
from dekr_infer.pose.decode import DecodeSettings, Passes, decode, transform_poses
from dekr_infer.pose.preprocess import decode as decode_picture
from dekr_infer.pose.preprocess import mirror, normalise, warp
from dekr_infer.pose.rescore import RescoreNet, load_rescore_net
from scripts.demo.training.grouped import GroupedNet, grouped_state
from scripts.demo.training.widen_channels import widened

DEMO = ROOT / "dekr_infer/config/demo.yaml"
SPLIT = "val2017"


def read_training_file(path: Path) -> dict[str, Any]:
    """Return the content of a training state or a checkpoint.

    Raises:
        DekrError: the file is missing or damaged.
    """
    if not path.is_file():
        raise DekrError(f"{path}: no such file; create it with scripts/demo/train.py")
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise DekrError(f"{path}: damaged ({type(error).__name__}); delete it and run scripts/demo/train.py") from None
    return loaded


def load_grouped(path: Path, cfg: str | Path = DEMO, widen: bool = False) -> GroupedNet:
    """Return the network in evaluation mode, from a training state (its average) or from a checkpoint.

    Args:
        path: the file. cfg: name or file of the configuration.
        widen: allow a file with fewer channels for every joint than `cfg` has.
    Raises:
        DekrError: the file is missing, damaged, or belongs to another network.
    """
    network = GroupedNet(load_config(cfg).MODEL.SPEC)
    loaded = read_training_file(path)
    try:
        state = loaded["average"] if "average" in loaded else grouped_state(read_state(path))
        network.load_state_dict(widened(state, network.state_dict()) if widen else state)
    except (RuntimeError, KeyError, AttributeError):
        raise DekrError(f"{path}: belongs to another network than {cfg}; pass its --cfg or another file") from None
    return network.eval()


@torch.inference_mode()
def run_network(network: GroupedNet, warped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return heatmap (18, h, w) and offset (34, h, w), float32, of an input image (H, W, 3) uint8 BGR."""
    image = torch.from_numpy(normalise(warped)).to(memory_format=torch.channels_last)
    h, w = image.shape[2] // 4, image.shape[3] // 4
    heat, offset = network(image, torch.arange(h * w))
    return heat[0].contiguous().numpy(), offset.flatten(1).T.reshape(-1, h, w).contiguous().numpy()


def detect(
    network: GroupedNet, data: DataSet, files: PictureFiles, settings: DecodeSettings, flip: bool = True
) -> Iterator[tuple[Picture, np.ndarray, np.ndarray]]:
    """Yield each image with its poses (people, 17, 3) in image pixels and their scores (people,)."""
    for picture in data.pictures:
        input_size = PUBLISHED_SIZES.place(picture.size).input
        warped = warp(decode_picture(files.read(picture.file_name), picture.file_name), input_size)
        maps = [*run_network(network, warped)]
        if flip:
            maps += run_network(network, mirror(warped))
        poses, scores = decode(Passes(*maps), settings)
        yield picture, transform_poses(poses, Placement(picture.size, input_size).to_image), scores


def evaluate(network: GroupedNet, root: Path, rescore: RescoreNet | None = None, flip: bool = True) -> dict[str, float]:
    """Return the ten COCO metrics of the network on the data set below `root`."""
    data = load_data_set(root, SPLIT)
    files = PictureFiles(picture_source(root, SPLIT), SPLIT)
    results = []
    for picture, poses, scores in detect(network, data, files, DecodeSettings(), flip):
        if rescore is not None and len(poses):
            scores = rescore(poses) * scores
        results += results_of(picture.id, person_category(data), poses, scores)
    return coco_figures(data, results, [picture.id for picture in data.pictures])


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="data set, as people.py writes it")
    parser.add_argument("--state", type=Path, default=ROOT / "models/demo_train/state.pth", help="state or checkpoint")
    parser.add_argument("--rescore", type=Path, help="rescoring checkpoint")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="both passes (default)")
    parser.add_argument("--threads", type=worker_count, default=1, help="of torch (1)")
    args = parser.parse_args(argv)

    def work() -> None:
        torch.set_num_threads(args.threads)
        rescore = load_rescore_net(args.rescore) if args.rescore else None
        print(figures_table(evaluate(load_grouped(args.state), args.root, rescore, args.flip)))

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
