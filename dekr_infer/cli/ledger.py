"""Where AP goes: each choice of the chain turned the other way, one at a time, on one data set.

The choices: the five input sizes, the flipped pass and its shift, rescoring, the thresholds of duplicates, the heatmap
refinement, 8-bit input, float16 on an NPU as a whole and in parts, and int8 (--int8, a file of --precision int8). For
each the AP is printed, its difference with an interval by resampling the images, and how many images' people changed.
The network runs once for all choices that only decode its outputs. An interrupted run resumes where it was.

  python3 scripts/ledger.py --model models/dekr_bs1.onnx --limit 200 DATASET.ROOT data/coco
  python3 scripts/ledger.py --model models/dekr_bs1.onnx --int8 models/dekr_int8.onnx --only 'flip|fp16'
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from yacs.config import CfgNode

import dekr_infer
from dekr_infer.backends.onnxruntime import OnnxRuntime, load_graph
from dekr_infer.cli.app import (
    Arguments,
    Parser,
    add_category,
    add_config,
    config_of,
    cores,
    positive_int,
    print_note,
    run,
    worker_count,
)
from dekr_infer.cli.data_set import data_set_of, image_files_of
from dekr_infer.cli.progress import progress
from dekr_infer.config.settings import decode_settings, influences, refine_settings, require_fit, rescore_net
from dekr_infer.data.coco import DataSet
from dekr_infer.data.sources import ImageFiles, frames_of
from dekr_infer.detector import Detector
from dekr_infer.errors import ConfigError, DekrError, one_line
from dekr_infer.evaluation.agreement import MOVED, SHOWN
from dekr_infer.evaluation.comparison import CONFIDENCE, RESAMPLES
from dekr_infer.evaluation.ledger import PUBLISHED, SHARD, Group, Line, Row, line_of, run_group
from dekr_infer.evaluation.shards import Shards
from dekr_infer.geometry import InputSizes
from dekr_infer.onnx_graph.baked import FLOAT32, UINT8
from dekr_infer.onnx_graph.float16 import HEATMAP, MATRIX_ONLY, OFFSET, TRUNK, TWICE, Float16OverflowError, Rounding
from dekr_infer.storage.atomic import folder_lock, sha256, write_json

HELPERS = 2  # threads that decode images and poses while the others run the graph
PRECISIONS = {
    "fp16 (force_fp16)": Rounding(),
    "fp16, deform rounded twice": Rounding(deform=TWICE),
    "fp16 (allow_fp32_to_fp16)": Rounding(mode=MATRIX_ONLY),
    "fp16 of the weights only": Rounding(weights_only=True),
    "fp16 of the trunk only": Rounding(parts=(TRUNK,)),
    "fp16 of the heads only": Rounding(parts=(HEATMAP, OFFSET)),
    "fp16 of the offsets only": Rounding(parts=(OFFSET,)),
}


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--model", "-m", type=Path, required=True, help="ONNX file that takes float32 and yields maps")
    parser.add_argument("--int8", type=Path, metavar="FILE", help="the same network of --precision int8")
    parser.add_argument("--output", type=Path, default=Path("ledger"), help="folder for people and ledger.json")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N images")
    parser.add_argument("--only", metavar="TEXT", help="only the choices that this regular expression finds")
    parser.add_argument(
        "--resamples", type=positive_int, default=RESAMPLES, metavar="N", help="of the images, for the interval"
    )
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)
    return run(lambda: ledger(config_of(args), args))


@dataclass(frozen=True)
class _Run:
    """What all rows of a run share."""

    config: CfgNode
    args: Namespace
    data: DataSet
    files: ImageFiles
    graph: OnnxRuntime

    def row(self, name: str, pairs: Sequence[object] = (), *, shift: bool = True, **settings: Any) -> Row:
        """Return a row with some settings of the configuration changed."""
        config = self.config.clone()
        config.defrost()
        config.merge_from_list(list(pairs))
        config.freeze()
        rescore = rescore_net(config)
        detector = Detector(
            self.graph,
            decode_settings(config),
            flip=config.TEST.FLIP_TEST,
            refine=refine_settings(config),
            rescore=rescore,
            skeleton=self.data.skeleton,
        )
        depends = influences(config) | {
            "annotations": sha256(self.data.annotation),
            "category": self.data.category.id if self.data.category else None,
            "graph": self.graph.sha256,
            "rescore": sha256(Path(config.RESCORE.MODEL_FILE)) if rescore else None,
            "onnxruntime": self.graph.versions["onnxruntime"],
            "opencv": cv2.__version__,
            "shift": shift,
            "input_sizes": str(self.graph.input_sizes),
        }
        return Row(name, detector, depends | settings, shift)

    def other(self, path: Path, **options: Any) -> Callable[[], OnnxRuntime]:
        """Return a function that loads another form of the network."""
        return lambda: OnnxRuntime(path, self.args.threads, **options)

    def groups(self, scratch: Path) -> Iterator[Group]:
        """Yield all choices, those of the configuration first."""
        args, config, sizes, graph = self.args, self.config, self.graph.input_sizes, self.graph
        test = config.TEST
        rows = [self.row(PUBLISHED)]
        rows.append(self.row(f"flip {_turned(test.FLIP_TEST)}", ["TEST.FLIP_TEST", not test.FLIP_TEST]))
        if test.FLIP_TEST:
            rows.append(self.row("flip without its shift", shift=False))
        if config.RESCORE.VALID or Path(config.RESCORE.MODEL_FILE).is_file():
            turned = ["RESCORE.VALID", not config.RESCORE.VALID]
            rows.append(self.row(f"rescoring {_turned(config.RESCORE.VALID)}", turned))
        other = ["TEST.NMS_THRE", 0.15, "TEST.NMS_NUM_THRE", 10]
        if other[1::2] == [test.NMS_THRE, test.NMS_NUM_THRE]:
            other = ["TEST.NMS_THRE", 0.05, "TEST.NMS_NUM_THRE", 8]
        rows.append(self.row(f"NMS_THRE {other[1]}, NMS_NUM_THRE {other[3]}", other))
        rows.append(self.row(f"MATCH_HMP {_turned(test.MATCH_HMP)}", ["TEST.MATCH_HMP", not test.MATCH_HMP]))
        yield Group(lambda: graph, sizes, tuple(rows))
        exact = InputSizes.of_short_side(sizes.short_side, exact=not sizes.exact)
        name = "five sizes" if sizes.exact else "exact sizes"
        yield Group(lambda: graph, exact, (self.row(name, input_sizes=str(exact)),))
        if graph.input_dtype == FLOAT32:
            yield Group(_in_uint8(args, scratch), sizes, (self.row("8-bit input", dtype=UINT8),))
        for name, rounding in PRECISIONS.items():
            row = self.row(name, precision=str(rounding))
            yield Group(self.other(args.model, rounding=rounding), sizes, (row,))
        if args.int8 is not None:
            row = self.row("int8", graph=_int8_of(args.int8, graph))
            yield Group(self.other(args.int8), sizes, (row,))


def _in_uint8(args: Namespace, scratch: Path) -> Callable[[], OnnxRuntime]:
    def load() -> OnnxRuntime:
        from dekr_infer.export.uint8_input import take_uint8

        path = scratch / "uint8.onnx"
        onnx.save(take_uint8(load_graph(args.model)[0]), path)
        return OnnxRuntime(path, args.threads)

    return load


def _int8_of(path: Path, graph: OnnxRuntime) -> str:
    """Return the SHA-256 of an int8 file of the same checkpoint.

    Raises:
        DekrError: it is none.
    """
    model, digest = load_graph(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get("precision") != "int8" or metadata.get("checkpoint_sha256") != graph.checkpoint_sha256:
        raise DekrError(f"{path}: is not the network of {graph.path} in int8; export it with --precision int8")
    return digest


def _turned(on: bool) -> str:
    return "off" if on else "on"


def ledger(config: CfgNode, args: Namespace) -> None:
    """Run every choice, print the table, and write it to ledger.json in the output folder.

    Raises:
        DekrError: a file is missing or does not fit, or an image cannot be read.
        ConfigError: the graph decodes people itself, or the configuration asks for several scales.
    """
    data = data_set_of(config, args.category)
    data.check_annotations()
    files = image_files_of(config)
    graph = OnnxRuntime(args.model, args.threads)
    require_fit(config, args.model, graph.input_sizes, graph.joints)
    if graph.baked is not None or graph.precision is not None:
        raise ConfigError(f"{args.model}: the ledger needs a float32 graph that yields maps; export one")
    if list(config.TEST.SCALE_FACTOR) != [1]:
        raise ConfigError(f"TEST.SCALE_FACTOR {config.TEST.SCALE_FACTOR}: the ledger is of one scale; leave it out")
    chosen = data.images[: args.limit]
    files.check_present([image.file_name for image in chosen])
    print_note(graph.weights)
    context = _Run(config, args, data, files, graph)
    with folder_lock(args.output / "people", create=False), tempfile.TemporaryDirectory() as scratch:
        groups = [_only(group, args.only) for group in context.groups(Path(scratch))]
        groups = [group for group in groups if group.rows]
        lines, first, problems = [], None, dict[str, str]()
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the graph has the cores
        try:
            for group in groups:
                shards = {row.name: _shards(context, row, group.input_sizes) for row in group.rows}
                keys = [image.stem for image in chosen]
                label = group.rows[0].name if len(group.rows) == 1 else f"{group.rows[0].name}, and its decodings"
                try:
                    with progress(label, len(keys)) as advance:
                        run_group(group, shards, data, files, keys, HELPERS, advance)
                except Float16OverflowError as error:
                    problems[group.rows[0].name] = str(error)
                    print(f"{group.rows[0].name:<31} {one_line(str(error))}", flush=True)
                    continue
                for row in group.rows:
                    found = [shards[row.name].found[key] for key in keys]
                    first = first or found
                    lines.append(line_of(row.name, data, first, found, args.resamples))
                    if len(lines) == 1:
                        print(_head(lines[0], len(keys)))
                    print(_text(lines[-1]), flush=True)
        finally:
            cv2.setNumThreads(threads)
    content = {
        "images": len(chosen),
        "weights": graph.weights,
        "graph": graph.sha256,
        "resamples": args.resamples,
        "confidence": CONFIDENCE,
        "changed_above_pixels": MOVED,
        "people_from_score": SHOWN,
        "versions": {"dekr_infer": dekr_infer.__version__, "numpy": np.__version__, **graph.versions},
        "rows": [asdict(line) for line in lines],
        "problems": problems,
    }
    write_json(args.output / "ledger.json", content, indent=1)
    print(f"written: {args.output / 'ledger.json'}")
    if data.people is None:
        print(f"{data.annotation}: has no annotations, so there is no AP", file=sys.stderr)


def _only(group: Group, pattern: str | None) -> Group:
    """Return the group with the rows that are asked for; the first row of all is always run."""
    try:
        rows = tuple(row for row in group.rows if row.name == PUBLISHED or re.search(pattern or "", row.name))
    except re.error as error:
        raise ConfigError(f"--only {pattern}: is no regular expression ({error})") from None
    return Group(group.open, group.input_sizes, rows)


def _shards(context: _Run, row: Row, input_sizes: InputSizes) -> Shards:
    """Return the people of a row that are there; its folder's name is made of all that they depend on."""
    data, limit = context.data, context.args.limit
    frames = frames_of(data, input_sizes, context.files)[:limit]
    digest = hashlib.sha256(json.dumps(row.settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
    folder = context.args.output / "people" / f"{re.sub('[^a-z0-9]+', '-', row.name.lower()).strip('-')}-{digest}"
    about = {"dekr_infer": dekr_infer.__version__}

    def fingerprint(frame: Any) -> str:
        return context.files.fingerprint(frame.file_name)

    return Shards(folder, row.settings, about, SHARD, data, frames, fingerprint, data.skeleton, "delete this folder")


def _head(line: Line, images: int) -> str:
    ap = f"{'AP':>6} {'difference':>10} {f'{CONFIDENCE:.0%} interval':>21}  " if line.ap is not None else ""
    return f"{images} images\n{'':<31} {ap}{'agreement':>9} {'changed':>8}"


def _text(line: Line) -> str:
    ap = ""
    if line.ap is not None and line.low is not None:
        interval = f"[{line.low:+.4f}, {line.high:+.4f}]"
        ap = f"{line.ap:6.3f} {line.difference:+10.4f} {interval:>21}  "
    agreed = f"{line.agreed:9.3f}" if line.agreed >= 0 else f"{'-':>9}"
    return f"{line.name:<31} {ap}{agreed} {line.changed:>8}"
