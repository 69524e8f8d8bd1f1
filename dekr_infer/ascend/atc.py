"""Convert an ONNX file for an Ascend chip by atc, with the file's own input sizes; checked before and after.

OUTPUT is the model's name (default: that of the ONNX file, ending in .om). What stands behind -- goes to atc as it is.

  bash scripts/atc.sh models/dekr_bs1.onnx
  bash scripts/atc.sh models/dekr_bs1.onnx models/dekr_fp32 --precision_mode cube_fp16in_fp32out -- --log=info
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from dekr_infer.ascend.lint.check import default_input_shape, default_input_sizes, load, preflight, report
from dekr_infer.ascend.lint.rules import WARNING
from dekr_infer.ascend.soc_version import chip_name
from dekr_infer.ascend.subprocess_runner import remedy, run_tool
from dekr_infer.cli.app import Arguments, Parser, non_negative_int, run
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.storage.atomic import atomic_write, scratch_folder

SUFFIX = ".om"
SUCCESS = "ATC run success"
PRECISIONS = (
    *("force_fp16", "force_fp32", "cube_fp16in_fp32out", "allow_fp32_to_fp16"),
    *("must_keep_origin_dtype", "allow_mix_precision"),
)
CACHE_MODES = ("enable", "force")
_CHIP = "check the chip's spelling with scripts/chip_name.sh, and that this toolkit knows the chip"
_OPTION = "check the option that the message names, behind -- too"
_GEARS = "the input sizes in the file's metadata do not suit; export it again with DEKR_pth2onnx.py"
_INPUT = "the input's name or rank is not the file's; look with scripts/check_atc.py"
_OPERATOR = "an operator has no parser at this opset; scripts/check_atc.py names it"
_INNER = "see the log in ~/ascend/log (or set ASCEND_SLOG_PRINT_TO_STDOUT=1): a kernel or memory failed"
REMEDIES = {  # by regular expression
    "ModuleNotFoundError": "the kernel compiler misses a Python package: pip3 install what it names",
    r"E100(01|14)(?=.*soc_version)": _CHIP,
    **dict.fromkeys(("E10001", "E10014", "E10003", "E10004", "E10005", "E10010", "E10022"), _OPTION),
    **dict.fromkeys(("E10007", "E10008"), "leave out a --framework of your own"),
    "E10009": "two dynamic options exclude each other; leave out your own",
    **dict.fromkeys(("E10016", "E10049"), _INPUT),
    **dict.fromkeys(("E10035", "E10036", "E10037", "E10038", "E10039", "E10045", "E10046"), _GEARS),
    "E10501": "the operators are not found: source the toolkit's set_env.sh (it sets ASCEND_OPP_PATH)",
    **dict.fromkeys(("E13000", "E13001"), "the ONNX file cannot be read; check its path and rights"),
    **dict.fromkeys(("E13010", "E16002", "E16005"), _OPERATOR),
    r"\b(E19999|E[9Z]\d{4})\b": _INNER,
}


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("output", type=Path, nargs="?", metavar="OUTPUT")
    parser.add_argument(
        "--device",
        type=non_negative_int,
        metavar="N",
        help="for the chip that ais_bench opens by N (where they differ)",
    )
    parser.add_argument("--keep_dtype", type=Path, metavar="FILE", help="nodes to keep in float32, one name per line")
    add_options(parser, cache=None)
    parser.add_argument("--dry-run", action="store_true", help="print the command and stop")
    args = parser.parse_args(words[:end])
    return run(lambda: convert(args, words[end + 1 :]))


def add_options(parser: Parser, cache: str | None) -> None:
    """Add the options of a conversion that suit any file; `cache` is what is done when nothing is said of it."""
    parser.add_argument("--chip", metavar="NAME", help="e.g. Ascend310P3 (default: CHIP_NAME, or this host's)")
    parser.add_argument("--precision_mode", choices=PRECISIONS, help="(default: atc's, which is force_fp16)")
    told = "enable reuses the kernels of earlier conversions, force makes them anew, e.g. after tuning; default: "
    parser.add_argument("--cache", choices=CACHE_MODES, default=cache, help=told + (cache or "none is kept"))


def find_atc() -> Path:
    """The toolkit's atc.

    Raises:
        DekrError: it is not there.
    """
    found = shutil.which("atc")
    if found is None:
        loaded = os.environ.get("DEKR_SET_ENV")  # by scripts/common.sh
        if loaded:
            raise DekrError(
                f"atc: not found after loading {loaded}; repair this toolkit, or set ASCEND_TOOLKIT_HOME to another"
            )
        raise DekrError("atc: not found; install the CANN toolkit, or set ASCEND_TOOLKIT_HOME to where it is")
    return Path(found)


def convert(args: Namespace, extra: Sequence[str]) -> None:
    """Check, convert, check; the finished model gets its name at the very end.

    Raises:
        DekrError: atc would refuse the file, or did, or did not leave a model.
    """
    target = output_path(args.model, args.output)
    model = load(args.model)
    _check(args.model, model)
    if args.keep_dtype and not args.keep_dtype.is_file():
        raise DekrError(f"{args.keep_dtype}: no such file; list one node's name per line in it")
    chip = chip_name(args.chip, args.device)
    if args.dry_run:
        print(shlex.join(atc_command(args, model, target.with_suffix(""), chip, extra)))
        return
    find_atc()
    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(_place(target), f"{target.name}.partial") as scratch:
        if not _is_plain(args.model):
            args.model = scratch / "model.onnx"
            args.model.write_bytes(model.SerializeToString())  # with the weights of files beside it
        if args.keep_dtype and not _is_plain(args.keep_dtype):
            args.keep_dtype = shutil.copyfile(args.keep_dtype, scratch / f"keep_dtype{args.keep_dtype.suffix}")
        ran = run_tool(atc_command(args, model, scratch / target.stem, chip, extra))
        if ran.code or not any(SUCCESS in line for line in ran.lines):
            found = remedy(ran.lines, REMEDIES) or "its messages above name the reason"
            raise DekrError(f"{target}: not made, atc failed with exit code {ran.code}; {found}")
        made = sorted(scratch.glob(f"*{SUFFIX}"))  # newer versions may add the host's system to the name
        if len(made) != 1 or not made[0].stat().st_size:
            raise DekrError(f"{target}: not made, though atc reported success; see its messages above")
        with atomic_write(target) as temporary:
            shutil.copyfile(made[0], temporary)
    size = target.stat().st_size
    print(
        f"{target}: {size:,} bytes for {chip}, input sizes {default_input_sizes(model)}, "
        f"in {time.monotonic() - started:.1f} s"
    )


def _place(target: Path) -> Path:
    """Where atc writes: beside the target, or in a folder for temporary files when atc takes no such path.

    Raises:
        DekrError: atc takes none of them.
    """
    places = (target.parent, Path(tempfile.gettempdir()), Path("/tmp"))
    found = next((place for place in places if _is_plain(place)), None)
    if found is None:
        raise DekrError(
            f"{target.parent}: atc takes no such path (letters, digits and ./_+- only); name another output"
        )
    return found


def _is_plain(path: Path) -> bool:
    """Whether atc takes a path's characters."""
    return re.fullmatch(r"[A-Za-z0-9_./+-]+", str(path.resolve())) is not None


def _check(path: Path, model: ModelProto) -> None:
    findings = preflight(model)
    for line in report(findings):
        print(line, file=sys.stderr)
    bad = [finding for finding in findings if finding.level != WARNING]
    if bad:
        raise DekrError(f"{path}: {bad[0].node}: {bad[0].rule}; {bad[0].remedy} ({len(bad)} findings in all)")


def output_path(model: Path, output: Path | None) -> Path:
    """The finished model's path.

    Raises:
        ConfigError: atc would refuse the name.
    """
    target = output or model.with_suffix(SUFFIX)
    if output is not None and (output.is_dir() or not output.name):
        raise ConfigError(f"{output}: is a folder; name the model, e.g. {output / model.stem}")
    if output is not None and output.suffix.lower() == ".onnx":
        raise ConfigError(
            f"{output}: is named as an ONNX file, but the second word names the model to be made; "
            "convert one file at a time, and leave it out or let it end in .om"
        )
    target = target if target.suffix == SUFFIX else target.with_name(target.name + SUFFIX)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", target.name):
        raise ConfigError(
            f"{target.name}: atc takes letters, digits, '_', '-' and '.' in the model's name; choose another"
        )
    return target


def atc_command(args: Namespace, model: ModelProto, output: Path, chip: str, extra: Sequence[str]) -> list[str]:
    """The published command for this file; `output` has no suffix."""
    input_sizes = default_input_sizes(model)
    return [
        "atc",
        "--framework=5",
        f"--model={args.model}",
        f"--output={output}",
        f"--input_format={'ND' if input_sizes else 'NCHW'}",
        f"--input_shape={default_input_shape(model)}",
        *([f"--dynamic_dims={input_sizes}"] if input_sizes else []),
        f"--soc_version={chip}",
        *([f"--precision_mode={args.precision_mode}"] if args.precision_mode else []),
        *([f"--keep_dtype={args.keep_dtype}"] if args.keep_dtype else []),
        *_unless_given(extra, "op_compiler_cache_mode", args.cache),
        *_unless_given(extra, "log", "error"),
        *extra,
    ]


def _unless_given(extra: Sequence[str], name: str, value: str | None) -> list[str]:
    """An option of ours, left out when there is no value or the user's own words give it."""
    given = {word.lstrip("-").partition("=")[0] for word in extra}
    return [] if value is None or name in given else [f"--{name}={value}"]
