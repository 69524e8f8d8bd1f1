"""Run the whole chain, from images to COCO metrics, on the CPU or on an NPU; everything it makes is below --work.

The steps are preprocess, export, convert (NPU only), infer, infer_flip and postprocess. A step is done again if the
content of a file or a setting that decides its result has changed, whatever the dates; every other step is skipped, so
an interrupted run resumes. --backend om converts with atc for this host's chip, or for --chip, and runs ais_bench.
--stream evaluates on the CPU without tensors and outputs on the disk; its steps are export and evaluate.
--onnx takes an exported file instead of the weights. RESCORE.VALID False does without the rescoring file.

  bash scripts/run_pipeline.sh --data data/coco --weights models/pose_dekr_hrnetw32_coco.pth
  bash scripts/run_pipeline.sh --backend om --work npu --limit 100 TEST.FLIP_TEST True
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from yacs.config import CfgNode

import dekr_infer
from dekr_infer.ascend.ais_bench import run_passes
from dekr_infer.ascend.atc import convert
from dekr_infer.ascend.soc_version import chip_name
from dekr_infer.backends.folder_runner import Options, summary_path
from dekr_infer.cli.app import Arguments, Parser, add_category, add_config, cores, non_negative_int, positive_int, run
from dekr_infer.cli.data_set import data_set_of, image_files_of
from dekr_infer.cli.evaluate import Evaluation, parse
from dekr_infer.cli.onnx_infer import infer
from dekr_infer.cli.postprocess import postprocess
from dekr_infer.cli.preprocess import preprocess
from dekr_infer.config.load import load_config
from dekr_infer.config.settings import configured_sizes, influences, require_one_scale
from dekr_infer.data.coco import DataSet
from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import folder_lock, sha256
from dekr_infer.storage.run_record import Head, RunRecord, mark_folder, record_path

BACKENDS = ("om", "onnx")
NAME = "pipeline"  # of its record and its log, below the work folder


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code, which is that of the step that failed."""
    parser = Parser(__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="onnx", help="om: NPU; onnx: CPU")
    parser.add_argument("--data", default="data/coco", help="the data set")
    weights, rescore = "models/pose_dekr_hrnetw32_coco.pth", "models/final_rescore_coco_kpt.pth"
    parser.add_argument("--weights", default=weights, help="the trained checkpoint")
    parser.add_argument("--onnx", type=Path, help="a graph that is exported already, instead of the weights")
    parser.add_argument("--rescore", default=rescore, help="the rescoring checkpoint")
    parser.add_argument("--work", type=Path, default=Path(), help="folder for everything that is made (default: here)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N images")
    parser.add_argument("--stream", action="store_true", help="no tensors and outputs on the disk: people only (CPU)")
    parser.add_argument("--device", type=non_negative_int, metavar="N", help="NPU to convert for and run on")
    parser.add_argument("--chip", metavar="NAME", help="e.g. Ascend310P3 (default: this host's)")
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)
    if args.stream and args.backend == "om":
        parser.error("--stream runs on the CPU: leave out --backend om")
    failed: list[int] = []

    def work() -> None:
        try:
            _pipeline(args)
        except StepFailedError as failure:
            failed.append(failure.code)

    return run(work) or sum(failed)


class StepFailedError(Exception):
    """A step has ended with an exit code other than 0, after its own error line."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _pipeline(args: Namespace) -> None:
    files = {"DATASET.ROOT": args.data, "TEST.MODEL_FILE": args.weights, "RESCORE.MODEL_FILE": args.rescore}
    config = load_config(args.cfg, [word for pair in files.items() for word in pair] + args.pairs)
    if not args.stream:
        require_one_scale(config)
    needed = [args.onnx or Path(config.TEST.MODEL_FILE)]
    needed += [Path(config.RESCORE.MODEL_FILE)] if config.RESCORE.VALID else []
    for file in needed:
        if not file.is_file():
            raise DekrError(
                f"{file}: not there; put the weights there, or name them with --weights, --onnx and --rescore"
            )
    chip = chip_name(args.chip, args.device) if args.backend == "om" else None
    with folder_lock(args.work / NAME, create=False), _logged(args.work / f"{NAME}.log"):
        print(f"\n{time.strftime('%F %T')} dekr pipeline --backend {args.backend}", flush=True)
        with RunRecord(record_path(args.work / NAME), Head("steps")) as record:
            Chain(args, config, chip, record).run()


class Chain:
    """The steps of one run over one work folder."""

    def __init__(self, args: Namespace, config: CfgNode, chip: str | None, record: RunRecord) -> None:
        self.args, self.config, self.chip, self.record = args, config, chip, record
        self.work: Path = args.work
        self.results = self.work / "results"
        self.report = self.work / "report.html"
        self.seconds: dict[str, float | None] = {}  # of each step; `None`: done before

    def run(self) -> None:
        """Do what is not done, then print the table of seconds."""
        started = time.monotonic()
        if self.args.stream:
            self._evaluate(self.args.onnx or self._export())
        else:
            self._preprocess()
            graph = self.args.onnx or self._export()
            model = self._convert(graph, self.chip) if self.chip else graph
            for which in ("", "_flip"):
                self._infer(model, which)
            self._postprocess()
        print(f"\nbackend {self.args.backend}, {time.monotonic() - started:.0f} s in all")
        for name, seconds in self.seconds.items():
            print(f"{'-':>8}  {name}" if seconds is None else f"{seconds:6.0f} s  {name}")
        for name, path in {"metrics": self.results / "metrics.json", "report": self.report}.items():
            if path in self._made:
                print(f"{name}: {path}")
        print(f"log: {self.work / NAME}.log", flush=True)

    @cached_property
    def data(self) -> DataSet:
        """The data set."""
        return data_set_of(self.config, self.args.category)

    @property
    def _made(self) -> list[Path]:
        """The files of the last step; there is no report on a data set without annotations."""
        made = [self.results / f"keypoints_{self.config.DATASET.TEST}_results.json", self.results / "metrics.json"]
        return made if self.data.people is None else [*made, self.report]

    def _step(self, name: str, inputs: Mapping[str, Any], command: Callable[[], None], makes: Sequence[Path]) -> None:
        """Do a step unless it is done; raise `StepFailedError` if it fails, after its error line."""

        def work() -> None:
            started = time.monotonic()
            code = run(command)
            if code:
                log = self.work / f"{NAME}.log"
                line = f"stopped at the step '{name}'; run the same command again to resume; log: {log}"
                print(line, file=sys.stderr)
                raise StepFailedError(code)
            self.seconds[name] = time.monotonic() - started

        self.seconds[name] = None
        self.record.step(name, inputs, work, makes)

    def _images(self) -> dict[str, Any]:
        """Return what is known of the data set's content: it decides whether a step is done."""
        data, files = self.data, image_files_of(self.config)
        chosen = [image.file_name for image in data.images[: self.args.limit]]
        files.check_present(chosen)
        images = {name: files.fingerprint(name) for name in chosen}
        return {"annotations": sha256(data.annotation), "images": images}

    def _rescore(self) -> str | None:
        return sha256(Path(self.config.RESCORE.MODEL_FILE)) if self.config.RESCORE.VALID else None

    def _evaluate(self, graph: Path) -> None:
        inputs = self._images() | {
            "graph": sha256(graph),
            "rescore": self._rescore(),
            "settings": influences(self.config),
            "category": self.args.category,
        }
        name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]  # a folder of its own
        words = ["--model", str(graph), "--output", str(self.results), "--run", f"people-{name}"]
        words += ["--report", str(self.report)]
        words += ["--limit", str(self.args.limit)] if self.args.limit else []
        words += ["--category", self.args.category] if self.args.category else []
        options = parse(words)
        self._step("evaluate", inputs, lambda: Evaluation(self.config, options).evaluate(), self._made)

    def _preprocess(self) -> None:
        config, limit = self.config, self.args.limit
        inputs = self._images() | {"input_sizes": str(configured_sizes(config))}
        folders = (self.work / "prep_data", self.work / "prep_data_flip")
        self._step(
            "preprocess",
            inputs,
            lambda: preprocess(
                config, folders, limit=limit, workers=cores(), replace_changed=True, category=self.args.category
            ),
            folders,
        )

    def _export(self) -> Path:
        from dekr_infer.cli.export import export  # brings torch

        config, graph = self.config, self.work / "dekr_bs1.onnx"
        inputs = {
            "weights": sha256(Path(config.TEST.MODEL_FILE)),
            "network": config.MODEL.dump(),
            "input_sizes": str(configured_sizes(config)),
            "version": dekr_infer.__version__,
        }
        self._step("export", inputs, lambda: export(config, graph, threads=cores()), [graph])
        return graph

    def _convert(self, graph: Path, chip: str) -> Path:
        model = self.work / "dekr_bs1.om"

        def command() -> None:
            convert(graph, model, chip=chip)

        self._step("convert", {"graph": sha256(graph), "chip": chip}, command, [model])
        return model

    def _infer(self, model: Path, which: str) -> None:
        tensors, outputs = self.work / f"prep_data{which}", self.work / f"out{which}"
        device, options = self.args.device or 0, Options(replace_others=True)
        arguments = {"model": str(model), "input": str(tensors), "output": str(outputs), "outfmt": "NPY"}

        def command() -> None:
            if self.chip:
                run_passes(model, source=tensors, output=self.work, dirname=outputs.name, device=device)
            else:
                infer(model, [([tensors], outputs)], options, cores(), arguments)

        inputs = {"model": sha256(model), "tensors": mark_folder(tensors).xxh3}
        self._step(f"infer{which}", inputs, command, [outputs, summary_path(outputs)])

    def _postprocess(self) -> None:
        config, data = self.config, self.data
        folders = self.work / "out", self.work / "out_flip"
        inputs = {
            "annotations": sha256(data.annotation),
            "category": data.category.id if data.category else None,
            "outputs": [mark_folder(folder).xxh3 for folder in folders[: 1 + config.TEST.FLIP_TEST]],
            "rescore": self._rescore(),
            "settings": influences(config),
        }
        missing = self.args.limit is not None
        self._step(
            "postprocess",
            inputs,
            lambda: postprocess(
                config, *folders, self.results, allow_missing=missing, category=self.args.category, report=self.report
            ),
            self._made,
        )


class _Tee(io.TextIOBase):
    """Writes to a stream and to the log, which gets no progress bars."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        if "\r" not in text:
            self.log.write(text)
            self.log.flush()
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Copy everything that is printed to a log."""
    try:
        log = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  # closed below
    except OSError as error:
        raise DekrError(f"{path}: cannot be written ({error.strerror}); name another folder with --work") from None
    with log, redirect_stdout(_Tee(sys.stdout, log)), redirect_stderr(_Tee(sys.stderr, log)):
        yield
