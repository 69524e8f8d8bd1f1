"""Export a trained DEKR checkpoint to ONNX, and prove the written file against torch at every input size.

The default dialect is the one that Ascend's atc compiles; the CPU runner accepts it, too. --dialect onnx writes the
standard operators for ONNX Runtime, TensorRT and others. --deform chooses a variant of the deformable convolutions
that may be faster on an accelerator: `padded` (16 channels each), or one of the experimental variants, which have never
run on an NPU: `grouped` (all joints in one) and `gather` (plain operators only, for toolkits without the kernel).

--decode people (with --dialect onnx) puts everything behind the network into the file, too: the flipped pass, merging,
decoding and the rescoring net, unless RESCORE.VALID is False. Its outputs are people, by score, in input pixels; a
snippet that runs it with OpenCV, numpy and ONNX Runtime alone is printed. See docs/use_elsewhere.md.

--precision int8 (with --dialect onnx) makes a file for CPUs whose trunk computes in int8, calibrated on a folder of
images that are like those to come; how far its people are from those of the float32 graph is printed.

  python3 DEKR_pth2onnx.py --output models/dekr_bs1.onnx TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth
  python3 DEKR_pth2onnx.py --output models/dekr_people.onnx --dialect onnx --decode people --input uint8
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn
from yacs.config import CfgNode

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, cores, run, worker_count
from dekr_infer.cli.progress import progress
from dekr_infer.config.load import skeleton_of
from dekr_infer.config.settings import configured_sizes, decode_settings, require_one_scale, rescore_net
from dekr_infer.data.images import read_image
from dekr_infer.data.media import find_sources
from dekr_infer.detector import Detector
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.evaluation.agreement import MOVED, SHOWN, agreement, images_of
from dekr_infer.export.export import export_onnx
from dekr_infer.export.int8 import INT8, has_vnni, quantise_trunk
from dekr_infer.export.parity import HEAT_TOLERANCE, OFFSET_TOLERANCE, Difference
from dekr_infer.export.people_proof import PIXELS_TOLERANCE, SCORE_TOLERANCE, PeopleDifference
from dekr_infer.export.snippet import usage_snippet
from dekr_infer.export.variants import GATHER, SEPARATE, VARIANTS
from dekr_infer.geometry import InputSizes, Size
from dekr_infer.model.head import build_network
from dekr_infer.model.upstream import upstream_config, upstream_network, use_checkout
from dekr_infer.onnx_graph.baked import DECODINGS, FLOAT32, INPUTS, MAPS, PEOPLE, Baked
from dekr_infer.onnx_graph.dialects import ASCEND, DIALECTS, ONNX
from dekr_infer.pose.preprocess import warp
from dekr_infer.storage.atomic import atomic_write, sha256
from dekr_infer.structures import Frame, People

CALIBRATED = 64  # images at most
COMPARED = 16  # of them, on which both precisions are run


def main(argv: Arguments = None, input_sizes: InputSizes | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("models/dekr_bs1.onnx"), help="the ONNX file")
    parser.add_argument("--dialect", choices=DIALECTS, default=ASCEND, help="deformable operator")
    parser.add_argument(
        "--deform",
        choices=VARIANTS,
        default=SEPARATE,
        help="variant of the deformable convolutions; grouped and gather are experimental",
    )
    parser.add_argument("--input", choices=INPUTS, default=FLOAT32, help="normalised float32, or uint8 RGB")
    parser.add_argument("--decode", choices=DECODINGS, default=MAPS, help="what the file yields")
    parser.add_argument("--flip", choices=("on", "off"), help="for people: merge a flipped pass (default: FLIP_TEST)")
    parser.add_argument("--precision", choices=("float32", INT8), default="float32", help="of the trunk")
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help="for int8: images like those to come")
    parser.add_argument("--with_maps", action="store_true", help="for people: yield the maps, too")
    parser.add_argument("--skip_check", action="store_true", help="do not compare the written file with torch")
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    parser.add_argument("--upstream", type=Path, metavar="DEKR", help="network and config from this patched checkout")
    add_config(parser)
    args = parser.parse_args(argv)
    if args.decode == MAPS and (args.flip or args.with_maps):
        parser.error("--flip and --with_maps need --decode people")
    if (args.precision == INT8) != (args.calibrate is not None):
        parser.error("--precision int8 and --calibrate FOLDER need each other")
    if args.precision == INT8 and (args.dialect != ONNX or args.decode != MAPS or args.deform == GATHER):
        parser.error("--precision int8 needs --dialect onnx, and goes with neither --decode people nor --deform gather")

    def work() -> None:
        if args.upstream is None:
            config, network = config_of(args), None
        else:
            use_checkout(args.upstream)
            config = upstream_config(args.upstream, args.cfg, args.pairs)
            network = upstream_network(config)
        if args.flip:
            config.defrost()
            config.TEST.FLIP_TEST = args.flip == "on"
            config.freeze()
        options: dict[str, Any] = {
            "dialect": args.dialect,
            "deform": args.deform,
            "input_dtype": args.input,
            "people": args.decode == PEOPLE,
            "with_maps": args.with_maps,
            "check": not args.skip_check,
            "input_sizes": input_sizes,
            "threads": args.threads,
        }
        if args.precision == INT8:
            export_int8(config, args.output, args.calibrate, network, **options)
        else:
            export(config, args.output, network, **options)

    return run(work)


def export(
    config: CfgNode,
    output: Path,
    network: nn.Module | None = None,
    *,
    dialect: str = ASCEND,
    deform: str = SEPARATE,
    input_dtype: str = FLOAT32,
    people: bool = False,
    with_maps: bool = False,
    check: bool = True,
    input_sizes: InputSizes | None = None,
    threads: int | None = None,
    label: object = None,
) -> None:
    """Export the checkpoint that a configuration names, and print what was proven; see `export_onnx`.

    Args:
        config: names the checkpoint by TEST.MODEL_FILE.
        output: the ONNX file.
        network: by default the network of the configuration.
        dialect: one of `DIALECTS`.
        deform: one of `VARIANTS`.
        input_dtype: one of `INPUTS`.
        people: put decoding, and rescoring where it is on, into the file, with the configuration's settings.
        with_maps: see `export_onnx`.
        check: compare the written file with torch at every input size.
        input_sizes: of the graph; by default those of the configuration.
        threads: of torch and of the comparison.
        label: what to call the file; by default its path.
    Raises:
        ConfigError: no checkpoint is named, or the settings do not fit into a graph.
        DekrError: see `export_onnx`.
    """

    def show(found: Difference | PeopleDifference) -> None:
        difference, decoded = (found, "") if isinstance(found, Difference) else (found.maps, _decoded(found))
        if difference.input_size == sizes[0]:
            allowed = f"heatmap {HEAT_TOLERANCE:g}, offset {OFFSET_TOLERANCE:g} cells"
            if decoded:
                allowed += f"; from our decoding: {PIXELS_TOLERANCE:g} pixels, score {SCORE_TOLERANCE:g}"
            print(f"largest differences from torch (allowed: {allowed})")
        print(
            f"  {difference.input_size!s:>9}  heatmap {difference.heat:.1e} of {difference.largest_heat:.3g}"
            f"  offset {difference.offset:.1e} of {difference.largest_offset:.3g}{decoded}"
            f"  {'ok' if found.holds else 'TOO LARGE'}",
            flush=True,
        )

    sizes = input_sizes or configured_sizes(config)
    network = network or build_network(config)
    if not config.TEST.MODEL_FILE:
        raise ConfigError("no checkpoint is named; add TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth")
    rescore, baked = None, None
    if people:
        if config.TEST.MATCH_HMP:
            raise ConfigError("TEST.MATCH_HMP True: its refinement is not put into a graph; add TEST.MATCH_HMP False")
        require_one_scale(config)
        if sizes.exact:
            raise ConfigError("TEST.INPUT_SIZES exact: people are decoded at fixed input sizes; leave it out")
        rescore = rescore_net(config)
        sha = sha256(Path(config.RESCORE.MODEL_FILE)) if rescore is not None else None
        baked = Baked(decode_settings(config), config.TEST.FLIP_TEST, sha)
    report = export_onnx(
        network,
        Path(config.TEST.MODEL_FILE),
        output,
        dialect=dialect,
        deform=deform,
        input_dtype=input_dtype,
        people=baked,
        rescore=rescore,
        with_maps=with_maps,
        check=check,
        input_sizes=sizes,
        skeleton=skeleton_of(config),
        threads=threads,
        on_difference=show,
    )
    print(
        f"{label or report.output}: dialect {report.dialect}, {report.nodes} nodes, {report.deformable} deformable, "
        f"{report.size:,} bytes, in {report.seconds:.1f} s"
    )
    if baked is not None:
        print(f"to use it elsewhere:\n\n{usage_snippet(report.output, baked, sizes, input_dtype)}", end="")


def export_int8(
    config: CfgNode, output: Path, folder: Path, network: nn.Module | None = None, *, threads: int, **options: Any
) -> None:
    """Export a checkpoint as a graph whose trunk computes in int8, and print how far its people are from float32's.

    Args:
        config: names the checkpoint by TEST.MODEL_FILE, and the settings of decoding.
        output: the ONNX file.
        folder: images that are like those to come.
        network: by default the network of the configuration.
        threads: of torch and ONNX Runtime.
        options: of `export`, which makes the float32 graph first.
    Raises:
        DekrError: see `export`; or the folder holds no images, or one that cannot be read.
    """
    skeleton, sizes = skeleton_of(config), options.get("input_sizes") or configured_sizes(config)
    frames = [media_frame(path, sizes) for path in calibration_images(folder)]
    shown = frames[:: -(-len(frames) // COMPARED)]
    with atomic_write(output) as temporary, tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / output.name
        export(config, exact, network, threads=threads, label="in float32", **options)
        graph = OnnxRuntime(exact, threads)
        with progress("calibrate", len(frames)) as advance:

            def tensors() -> Iterator[np.ndarray]:
                for frame in frames:
                    yield graph.tensor_of(warp(frame.read(), frame.placement.input))
                    advance(1)

            quantised = quantise_trunk(onnx.load(exact), tensors())
        metadata = {entry.key: entry.value for entry in quantised.metadata_props}
        metadata |= {"precision": INT8, "calibration": json.dumps([frame.key for frame in frames])}
        onnx.helper.set_model_props(quantised, dict(sorted(metadata.items())))
        temporary.write_bytes(quantised.SerializeToString())
        people, speed = _people_of(config, (graph, OnnxRuntime(temporary, threads)), shown)
    print(f"{output}: trunk in int8, calibrated on {len(frames)} images, {output.stat().st_size:,} bytes")
    found = agreement(replace(images_of([frame.placement.image for frame in shown]), skeleton=skeleton), *people)
    agreed = f"nobody who scores {SHOWN} in float32, so there is nothing to compare"
    if found.people[0]:
        agreed = (
            f"{found.people[1]} people that score {SHOWN}, {found.people[0]} in float32; AP {found.ap:.3f} with "
            f"float32's as the truth, joints {found.pixels:.2f} pixels away, {found.changed} images changed by more "
            f"than {MOVED:g} pixel"
        )
    print(f"on {len(shown)} of them: {agreed}; {speed:.2f} times as fast as float32")
    if not has_vnni():
        print("this CPU has no VNNI, which multiplies int8 four at a time; with it, int8 gains more")


def calibration_images(folder: Path) -> list[Path]:
    """Return the images in a folder, at most `CALIBRATED`, spread evenly.

    Raises:
        DekrError: there are none.
    """

    def refuse(name: str, error: DekrError) -> None:
        raise error

    found = [Path(source.name) for source in find_sources([str(folder)], refuse) if source.rate is None]
    if not found:
        raise DekrError(f"{folder}: holds no images to calibrate with; name a folder of images like those to come")
    return found[:: -(-len(found) // CALIBRATED)]


def media_frame(path: Path, input_sizes: InputSizes) -> Frame:
    """Return an image as a frame; it is decoded now, to know its size, and again whenever it is read."""
    size = Size(*read_image(path).shape[:2])
    return Frame(path.name, input_sizes.place(size), lambda: read_image(path))


def _people_of(
    config: CfgNode, networks: Sequence[OnnxRuntime], frames: Sequence[Frame]
) -> tuple[list[list[People]], float]:
    """Return the people that each network finds, and how many times as fast as the first the second is, run in turn."""
    detectors = [Detector(network, decode_settings(config), flip=False) for network in networks]
    people: list[list[People]] = [[] for _ in networks]
    times: list[list[float]] = [[] for _ in networks]
    warm: set[Size] = set()
    for frame in frames:
        for detector, found, taken in zip(detectors, people, times, strict=True):
            if frame.placement.input not in warm:
                detector.detect(frame)  # the first pass of an input size takes longer
            one, passes = detector.detect(frame)
            assert passes is not None and passes.original.milliseconds is not None
            found.append(one)
            taken.append(passes.original.milliseconds)
        warm.add(frame.placement.input)
    first, second = (float(np.median(taken)) for taken in times)
    return people, first / second


def _decoded(found: PeopleDifference) -> str:
    count = "" if found.same else " (NOT AS MANY)"
    return f"  {found.people} people{count}  {found.pixels:.1e} pixels  score {found.score:.1e}"
