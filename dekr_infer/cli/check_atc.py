"""Check any ONNX file against what Ascend's atc accepts, before atc does; needs no toolkit and no NPU.

Prints what atc refuses or converts to something else, and warnings about what is slow or unsure. Without the options it
takes the file's own inputs (default: image:1,3,-1,-1) and the input sizes in its metadata.

  python3 scripts/check_atc.py --model models/dekr_bs1.onnx
"""

from __future__ import annotations

from pathlib import Path

from dekr_infer.ascend.lint.check import load, preflight, report
from dekr_infer.ascend.lint.rules import WARNING
from dekr_infer.cli.app import Arguments, Parser, run
from dekr_infer.errors import ConfigError, DekrError


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("file", nargs="?", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--model", "-m", type=Path, help="the file, as an option")
    parser.add_argument("--input_shape", metavar="NAME:D,D,D,D", help="as atc's")
    parser.add_argument("--dynamic_dims", metavar="D,D;D,D", help="as atc's; empty for a static model")
    args = parser.parse_args(argv)

    def work() -> None:
        path = args.model or args.file
        if path is None or (args.model and args.file):
            raise ConfigError("name one ONNX file; see --help")
        model = load(path)
        findings = preflight(model, args.input_shape, args.dynamic_dims)
        for line in report(findings):
            print(line)
        bad = [finding for finding in findings if finding.level != WARNING]
        if bad:
            raise DekrError(
                f"{path}: {len(bad)} findings that atc refuses or converts wrongly, the first at {bad[0].node}: "
                f"{bad[0].rule}; {bad[0].remedy}"
            )
        print(f"{path}: {len(model.graph.node)} nodes, nothing that atc refuses, {len(findings)} warnings")

    return run(work)
