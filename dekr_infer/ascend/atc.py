"""Convert an ONNX file for an Ascend chip by atc, with the file's own input sizes; checked before and after."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from dekr_infer.ascend.lint.check import default_input_shape, default_input_sizes, load, preflight, report
from dekr_infer.ascend.lint.rules import WARNING
from dekr_infer.ascend.soc_version import chip_name
from dekr_infer.ascend.subprocess_runner import remedy, run_tool
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.storage.atomic import atomic_write, scratch_folder

SUFFIX = ".om"
SUCCESS = "ATC run success"
PRECISIONS = (
    *("force_fp16", "force_fp32", "cube_fp16in_fp32out", "allow_fp32_to_fp16"),
    *("must_keep_origin_dtype", "allow_mix_precision"),
)
CACHE_MODES = ("enable", "force")
OUTPUT_TYPES = ("FP32", "FP16")
_CHIP = "check the chip's spelling with scripts/chip_name.sh, and that this toolkit knows the chip"
_OPTION = "check the option that the message names, behind -- too"
_SIZES = "the input sizes in the file's metadata do not suit; export it again with DEKR_pth2onnx.py"
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
    **dict.fromkeys(("E10035", "E10036", "E10037", "E10038", "E10039", "E10045", "E10046"), _SIZES),
    "E10501": "the operators are not found: source the toolkit's set_env.sh (it sets ASCEND_OPP_PATH)",
    **dict.fromkeys(("E13000", "E13001"), "the ONNX file cannot be read; check its path and rights"),
    **dict.fromkeys(("E13010", "E16002", "E16005"), _OPERATOR),
    r"\b(E19999|E[9Z]\d{4})\b": _INNER,
}


def find_atc() -> Path:
    """Return the toolkit's atc.

    Raises:
        DekrError: it is missing.
    """
    found = shutil.which("atc")
    if found is None:
        loaded = os.environ.get("DEKR_SET_ENV")  # by scripts/common.sh
        if loaded:
            raise DekrError(
                f"atc: not found after loading {loaded}; repair this toolkit, or set ASCEND_TOOLKIT_HOME to another"
            )
        raise DekrError("atc: not found; install the CANN toolkit, or set ASCEND_TOOLKIT_HOME to its folder")
    return Path(found)


def convert(
    model: Path,
    output: Path | None = None,
    *,
    chip: str | None = None,
    device: int | None = None,
    precision_mode: str | None = None,
    output_type: str | None = None,
    keep_dtype: Path | None = None,
    cache: str | None = None,
    extra: Sequence[str] = (),
    dry_run: bool = False,
) -> Path:
    """Check an ONNX file, convert it, check the result; only a finished model gets its name.

    Args:
        model: the ONNX file.
        chip: the chip's name; by default this host's.
        device: the chip that ais_bench opens by this number, where chips differ.
        output: the model's name, with or without its suffix; by default the ONNX file's name.
        chip, device: see `chip_name`.
        precision_mode: one of `PRECISIONS`; by default atc's own, force_fp16.
        output_type: of the model's outputs, one of `OUTPUT_TYPES`; by default the ONNX file's, float32. float16 halves
            what is copied and written; everything that reads outputs takes it.
        keep_dtype: a file that lists nodes to keep in float32, one name per line.
        cache: of compiled kernels, one of `CACHE_MODES`; by default none is kept.
        extra: further words for atc.
        dry_run: print the command and stop.
    Returns:
        The model's path.
    Raises:
        DekrError: atc would refuse the file, or did, or did not leave a model.
        ConfigError: atc would refuse the output's name.
    """
    target = output_path(model, output)
    graph = load(model)
    _check(model, graph)
    if keep_dtype and not keep_dtype.is_file():
        raise DekrError(f"{keep_dtype}: no such file; list one node's name per line in it")
    soc = chip_name(chip, device)
    sizes = default_input_sizes(graph)

    def command(source: Path, made: Path, kept: Path | None) -> list[str]:
        return [
            "atc",
            "--framework=5",
            f"--model={source}",
            f"--output={made.with_suffix('')}",
            f"--input_format={'ND' if sizes else 'NCHW'}",
            f"--input_shape={default_input_shape(graph)}",
            *([f"--dynamic_dims={sizes}"] if sizes else []),
            f"--soc_version={soc}",
            *([f"--precision_mode={precision_mode}"] if precision_mode else []),
            *([f"--output_type={output_type}"] if output_type else []),
            *([f"--keep_dtype={kept}"] if kept else []),
            *_unless_given(extra, "op_compiler_cache_mode", cache),
            *_unless_given(extra, "log", "error"),
            *extra,
        ]

    if dry_run:
        print(shlex.join(command(model, target, keep_dtype)))
        return target
    find_atc()
    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(_place(target), f"{target.name}.partial") as scratch:
        source, kept = model, keep_dtype
        if not _is_plain(source):
            source = scratch / "model.onnx"
            source.write_bytes(graph.SerializeToString())  # with the weights of files beside it
        if kept and not _is_plain(kept):
            kept = shutil.copyfile(kept, scratch / f"keep_dtype{kept.suffix}")
        ran = run_tool(command(source, scratch / target.name, kept))
        if ran.code or not any(SUCCESS in line for line in ran.lines):
            found = remedy(ran.lines, REMEDIES) or "its messages above name the reason"
            raise DekrError(f"{target}: not made, atc failed with exit code {ran.code}; {found}")
        made = sorted(scratch.glob(f"*{SUFFIX}"))  # newer versions may add the host's system to the name
        if len(made) != 1 or not made[0].stat().st_size:
            raise DekrError(f"{target}: not made, though atc reported success; see its messages above")
        with atomic_write(target) as temporary:
            shutil.copyfile(made[0], temporary)
    size, seconds = target.stat().st_size, time.monotonic() - started
    print(f"{target}: {size:,} bytes for {soc}, input sizes {sizes}, in {seconds:.1f} s")
    return target


def _place(target: Path) -> Path:
    """Return the folder that atc writes to: beside the target, or a temporary one when atc takes no such path.

    Raises:
        DekrError: atc takes none of these paths.
    """
    places = (target.parent, Path(tempfile.gettempdir()), Path("/tmp"))
    found = next((place for place in places if _is_plain(place)), None)
    if found is None:
        raise DekrError(
            f"{target.parent}: atc takes no such path (letters, digits and ./_+- only); name another output"
        )
    return found


def _is_plain(path: Path) -> bool:
    """Return whether atc takes a path's characters."""
    return re.fullmatch(r"[A-Za-z0-9_./+-]+", str(path.resolve())) is not None


def _check(path: Path, model: ModelProto) -> None:
    """Print the findings about a graph; raise a `DekrError` if atc would refuse it or convert it wrongly."""
    findings = preflight(model)
    for line in report(findings):
        print(line, file=sys.stderr)
    bad = [finding for finding in findings if finding.level != WARNING]
    if bad:
        raise DekrError(f"{path}: {bad[0].node}: {bad[0].rule}; {bad[0].remedy} ({len(bad)} findings in all)")


def output_path(model: Path, output: Path | None) -> Path:
    """Return the finished model's path.

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


def _unless_given(extra: Sequence[str], name: str, value: str | None) -> list[str]:
    """Return an option of the wrapper, or nothing when it has no value or the user's own words give one."""
    given = {word.lstrip("-").partition("=")[0] for word in extra}
    return [] if value is None or name in given else [f"--{name}={value}"]
