"""Export a trained DEKR checkpoint to ONNX and prove the written file against torch at all five sizes.

The default dialect is what Ascend's atc compiles; the CPU runner takes it as well. --dialect onnx writes the standard
operators for ONNX Runtime, TensorRT and others. --deform arranges the deformable convolutions in other ways that may be
faster on an accelerator: `padded` (16 channels each), `grouped` (all joints in one), `gather` (plain operators only).

  python3 DEKR_pth2onnx.py --output models/dekr_bs1.onnx TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth
"""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import torch

import dekr_infer
from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, cores, run, worker_count
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.export.check import compare
from dekr_infer.export.difference import HEAT_TOLERANCE, OFFSET_TOLERANCE
from dekr_infer.export.trace import build_graph
from dekr_infer.export.variants.arrange import SEPARATE, VARIANTS
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.model.checkpoint import load_network
from dekr_infer.model.head import build_network
from dekr_infer.model.upstream import upstream_config, upstream_network, use_checkout
from dekr_infer.onnx_graph.dialects import ASCEND, DIALECTS, ONNX, check_standard, to_dialect
from dekr_infer.pose.preprocess import MEAN, STD
from dekr_infer.storage.atomic import atomic_write, sha256


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("models/dekr_bs1.onnx"), help="the ONNX file")
    parser.add_argument("--dialect", choices=DIALECTS, default=ASCEND, help=f"deformable operator (default: {ASCEND})")
    parser.add_argument("--deform", choices=VARIANTS, default=SEPARATE, help=f"their form (default: {SEPARATE})")
    parser.add_argument("--skip_check", action="store_true", help="do not compare the written file with torch")
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    parser.add_argument("--upstream", type=Path, metavar="DEKR", help="network and config from this patched checkout")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        started = time.monotonic()
        torch.set_num_threads(args.threads)
        if args.upstream is None:
            config = config_of(args)
            network: torch.nn.Module = build_network(config)
        else:
            use_checkout(args.upstream)
            config = upstream_config(args.upstream, args.cfg, args.pairs)
            network = upstream_network(config)
        if not config.TEST.MODEL_FILE:
            raise ConfigError("no checkpoint is named; add TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth")
        checkpoint = Path(config.TEST.MODEL_FILE)
        if args.output.exists() and checkpoint.exists() and args.output.samefile(checkpoint):
            raise ConfigError(f"--output {args.output} is the checkpoint itself; name another file")
        load_network(network, checkpoint)
        model = build_graph(network, args.deform)
        check_standard(to_dialect(model, ONNX))
        onnx.helper.set_model_props(model, _provenance(checkpoint, args.deform))
        with atomic_write(args.output) as temporary:
            temporary.write_bytes(to_dialect(model, args.dialect).SerializeToString())
            if not args.skip_check:
                _prove(network, temporary, args.threads)
        deformable = sum("Deform" in node.op_type for node in model.graph.node)
        print(
            f"{args.output}: dialect {args.dialect}, {len(model.graph.node)} nodes, {deformable} deformable, "
            f"{args.output.stat().st_size:,} bytes, in {time.monotonic() - started:.1f} s"
        )

    return run(work)


def _prove(network: torch.nn.Module, file: Path, threads: int) -> None:
    print(f"largest differences from torch (allowed: heatmap {HEAT_TOLERANCE:g}, offset {OFFSET_TOLERANCE:g} cells)")
    failed = False
    for difference in compare(network, file, PUBLISHED_SIZES, threads):
        failed |= not difference.holds
        print(
            f"  {difference.input_size!s:>9}  heatmap {difference.heat:.1e} of {difference.largest_heat:.3g}"
            f"  offset {difference.offset:.1e} of {difference.largest_offset:.3g}"
            f"  {'ok' if difference.holds else 'TOO LARGE'}",
            flush=True,
        )
    if failed:
        raise DekrError("the exported graph differs from torch; nothing was written. Is the checkpoint a trained one?")


def _provenance(checkpoint: Path, deform: str) -> dict[str, str]:
    """What the file says of itself; `deform` only where it is not the published form."""
    variant = {} if deform == SEPARATE else {"deform": deform}
    return {
        "input_sizes": str(PUBLISHED_SIZES),
        "mean": ",".join(map(str, MEAN)),
        "std": ",".join(map(str, STD)),
        "checkpoint_sha256": sha256(checkpoint),
        "dialect": ASCEND,
        **variant,
        "versions": f"dekr_infer {dekr_infer.__version__}, torch {torch.__version__}, onnx {onnx.__version__}",
    }
