r"""Time a file that yields people against two passes over the maps plus our decoding, on random weights.

Both run on ONNX Runtime with all cores, in turn. The last line is the median of the rounds' ratios.

  python3 scripts/bench/people.py
  python3 scripts/bench/people.py --rounds 20 --cfg dekr_infer/config/demo.yaml TEST.MATCH_HMP False
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(ROOT))

import numpy as np
from yacs.config import CfgNode

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, cores, positive_int, run, worker_count
from dekr_infer.cli.export import export
from dekr_infer.config.settings import decode_settings, rescore_net
from dekr_infer.detector import Detector
from dekr_infer.export.parity import sample_image
from dekr_infer.geometry import InputSizes, Placement, Size
from dekr_infer.model.checkpoint import save
from dekr_infer.model.random_weights import random_network, random_rescore
from dekr_infer.onnx_graph.dialects import ONNX
from dekr_infer.structures import Frame
from scripts.bench.timing import OURS, REFERENCE, Row, alternate

SIZE = Size(512, 768)  # that of most images of COCO


def main(argv: Arguments = None, size: Size = SIZE) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=positive_int, default=10, metavar="N", help="(default: 10)")
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), config_of(args), size, args.threads, args.rounds)
        for way, name in ((REFERENCE, "two passes and our decoding"), (OURS, "the file that yields people")):
            print(f"{name}: median {1000 * (row.median(way) or 0):.1f} ms of {args.rounds} rounds")
        print(f"{row.stage}: {row.ratio(OURS, REFERENCE):.3f}")

    return run(work)


def measure(folder: Path, config: CfgNode, size: Size, threads: int, rounds: int) -> Row:
    """Return the seconds an image of both ways; `folder` takes the weights and the graphs."""
    config.defrost()
    config.TEST.MODEL_FILE, config.RESCORE.MODEL_FILE = str(folder / "network.pth"), str(folder / "rescore.pth")
    config.freeze()
    save(random_network(config, 0).state_dict(), Path(config.TEST.MODEL_FILE))
    save(random_rescore(config.RESCORE.HIDDEN_LAYER), Path(config.RESCORE.MODEL_FILE))
    graphs = folder / "maps.onnx", folder / "people.onnx"
    sizes = InputSizes((size,))
    with contextlib.redirect_stdout(io.StringIO()):
        for graph, people in zip(graphs, (False, True), strict=True):
            export(config, graph, dialect=ONNX, people=people, check=False, input_sizes=sizes, threads=threads)
    maps, yields_people = (OnnxRuntime(graph, threads) for graph in graphs)
    warped = sample_image(np.random.default_rng(0), size)
    frame = Frame("image", Placement(size, size), lambda: warped)
    steps = Detector(maps, decode_settings(config), flip=config.TEST.FLIP_TEST, rescore=rescore_net(config))
    inside = Detector(yields_people, flip=config.TEST.FLIP_TEST)
    seconds = alternate({REFERENCE: lambda: steps(frame), OURS: lambda: inside(frame)}, rounds)
    return Row(f"people of an image of {size}, the file's time over the other's", seconds)


if __name__ == "__main__":
    sys.exit(main())
