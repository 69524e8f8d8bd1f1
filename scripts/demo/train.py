"""Train the demo network on drawn people, with the method of the DEKR paper.

    python3 scripts/demo/train.py --minutes 80

keeps its state under models/demo_train/ (the same command continues an interrupted run). It ends with the averaged
weights in the official checkpoint's layout, models/demo_train/pose_dekr_demo.pth, and with their COCO metrics on images
that training has not seen. scripts/demo/training/in_memory_eval.py prints these metrics at any time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(ROOT))

import torch

from dekr_infer.cli.app import Arguments, Parser, non_negative_int, positive_int, run, worker_count
from dekr_infer.evaluation.coco_metrics import metrics_table
from dekr_infer.model.checkpoint import save
from scripts.demo.people import write_data_set
from scripts.demo.training.grouped import checkpoint_state
from scripts.demo.training.in_memory_eval import SPLIT, demo_detector, demo_metrics, load_grouped, read_training_file
from scripts.demo.training.schedule import Length
from scripts.demo.training.trainer import STATE, VALIDATION_SEED, TrainingOptions, train

WEIGHTS = "pose_dekr_demo.pth"


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--cfg", default=str(ROOT / "dekr_infer/config/demo.yaml"), help="the network (demo.yaml)")
    parser.add_argument("--output", type=Path, default=ROOT / "models/demo_train", help="folder for state and weights")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="training time; the learning rate falls towards its end (80)")
    length.add_argument("--steps", type=positive_int, help="steps instead of minutes: the run can be repeated")
    parser.add_argument("--seed", type=non_negative_int, default=1, help="of weights and images (1)")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate (0.002)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--processes", type=worker_count, help="number of processes (CPU: 2, GPU: 1)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the convolutions (bf16)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="continue (default)")
    parser.add_argument(
        "--init",
        type=Path,
        help="weights to start from, a state or a checkpoint; it may have fewer channels per joint (random)",
    )
    parser.add_argument("--validate", type=positive_int, default=40, help="images for the COCO metrics at the end (40)")
    args = parser.parse_args(argv)

    def work() -> None:
        device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        options = TrainingOptions(
            cfg=args.cfg,
            output=args.output,
            length=Length(args.steps, None if args.steps else args.minutes or 80.0),
            seed=args.seed,
            processes=args.processes or (2 if device == "cpu" else 1),
            device=device,
            precision=args.precision,
            lr=args.lr,
            resume=args.resume,
            init=args.init,
        )
        resumed = args.resume and (args.output / STATE).exists()
        if (given := args.output / STATE if resumed else args.init) is not None:
            load_grouped(given, args.cfg, widen=not resumed)  # fails early on another network's weights
        launch(options)
        state = read_training_file(args.output / STATE)
        save(checkpoint_state(state["average"]), args.output / WEIGHTS)
        print(f"{state['step']} steps in {state['seconds'] / 60:.1f} minutes -> {args.output / WEIGHTS}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            print(write_data_set(Path(folder), SPLIT, args.validate, VALIDATION_SEED))
            detector = demo_detector(load_grouped(args.output / WEIGHTS, args.cfg))
            print(metrics_table(demo_metrics(detector, Path(folder))))

    return run(work)


def launch(options: TrainingOptions) -> None:
    """Train in this process, or in `options.processes` processes."""
    if options.processes == 1:
        train(0, options, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options, str(Path(folder) / "rendezvous"))
        torch.multiprocessing.spawn(train, arguments, options.processes, start_method="spawn")  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())
