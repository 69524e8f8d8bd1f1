"""Export a trained DEKR checkpoint to ONNX, and prove the written file against torch at all five input sizes.

The default dialect is the one that Ascend's atc compiles; the CPU runner accepts it, too. --dialect onnx writes the
standard operators for ONNX Runtime, TensorRT and others. --deform chooses a variant of the deformable convolutions
that may be faster on an accelerator: `padded` (16 channels each), or one of the experimental variants, which have never
run on an NPU: `grouped` (all joints in one) and `gather` (plain operators only).

  python3 DEKR_pth2onnx.py --output models/dekr_bs1.onnx TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from yacs.config import CfgNode

from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, cores, run, worker_count
from dekr_infer.errors import ConfigError
from dekr_infer.export.export import export_onnx
from dekr_infer.export.parity import HEAT_TOLERANCE, OFFSET_TOLERANCE, Difference
from dekr_infer.export.variants import SEPARATE, VARIANTS
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes
from dekr_infer.model.head import build_network
from dekr_infer.model.upstream import upstream_config, upstream_network, use_checkout
from dekr_infer.onnx_graph.dialects import ASCEND, DIALECTS


def main(argv: Arguments = None, input_sizes: InputSizes = PUBLISHED_SIZES) -> int:
    """Run the command and return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("models/dekr_bs1.onnx"), help="the ONNX file")
    parser.add_argument("--dialect", choices=DIALECTS, default=ASCEND, help=f"deformable operator (default: {ASCEND})")
    parser.add_argument(
        "--deform",
        choices=VARIANTS,
        default=SEPARATE,
        help=f"variant of the deformable convolutions; grouped and gather are experimental (default: {SEPARATE})",
    )
    parser.add_argument("--skip_check", action="store_true", help="do not compare the written file with torch")
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    parser.add_argument("--upstream", type=Path, metavar="DEKR", help="network and config from this patched checkout")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        if args.upstream is None:
            config, network = config_of(args), None
        else:
            use_checkout(args.upstream)
            config = upstream_config(args.upstream, args.cfg, args.pairs)
            network = upstream_network(config)
        export(
            config,
            args.output,
            network,
            dialect=args.dialect,
            deform=args.deform,
            check=not args.skip_check,
            input_sizes=input_sizes,
            threads=args.threads,
        )

    return run(work)


def export(
    config: CfgNode,
    output: Path,
    network: nn.Module | None = None,
    *,
    dialect: str = ASCEND,
    deform: str = SEPARATE,
    check: bool = True,
    input_sizes: InputSizes = PUBLISHED_SIZES,
    threads: int | None = None,
) -> None:
    """Export the checkpoint that a configuration names, and print what was proven; see `export_onnx`.

    Args:
        config: names the checkpoint by TEST.MODEL_FILE.
        output: the ONNX file.
        network: by default the network of the configuration.
        dialect: one of `DIALECTS`.
        deform: one of `VARIANTS`.
        check: compare the written file with torch at every input size.
        input_sizes: of the graph.
        threads: of torch and of the comparison.
    Raises:
        ConfigError: no checkpoint is named.
        DekrError: see `export_onnx`.
    """

    def show(difference: Difference) -> None:
        if difference.input_size == input_sizes[0]:
            allowed = f"heatmap {HEAT_TOLERANCE:g}, offset {OFFSET_TOLERANCE:g} cells"
            print(f"largest differences from torch (allowed: {allowed})")
        print(
            f"  {difference.input_size!s:>9}  heatmap {difference.heat:.1e} of {difference.largest_heat:.3g}"
            f"  offset {difference.offset:.1e} of {difference.largest_offset:.3g}"
            f"  {'ok' if difference.holds else 'TOO LARGE'}",
            flush=True,
        )

    network = network or build_network(config)
    if not config.TEST.MODEL_FILE:
        raise ConfigError("no checkpoint is named; add TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth")
    report = export_onnx(
        network,
        Path(config.TEST.MODEL_FILE),
        output,
        dialect=dialect,
        deform=deform,
        check=check,
        input_sizes=input_sizes,
        threads=threads,
        on_difference=show,
    )
    print(
        f"{report.output}: dialect {report.dialect}, {report.nodes} nodes, {report.deformable} deformable, "
        f"{report.size:,} bytes, in {report.seconds:.1f} s"
    )
