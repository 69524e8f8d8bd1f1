"""The detector: an image, or a stream of frames, to people, over any backend.

Every way through the project leads here: the published three steps (over `OutputFolder`), evaluation, prediction, and
the comparison with upstream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from dekr_infer.backends.base import Backend, open_network
from dekr_infer.config.load import load_config
from dekr_infer.config.settings import decode_settings
from dekr_infer.data.images import bgr, read_image
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import Placement, Size
from dekr_infer.model.weights import least_trained
from dekr_infer.onnx_graph.baked import Baked
from dekr_infer.pose.decode import DecodeSettings, decode_scales, transform_poses
from dekr_infer.pose.refine import RefineSettings, match_to_heatmap, match_to_scales
from dekr_infer.pose.rescore import RescoreNet, load_rescore_net
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.structures import Frame, Passes, People

R = TypeVar("R")
AnyFrame = TypeVar("AnyFrame", bound=Frame)


class Detector:
    """Finds the people of an image.

    Args:
        backend: runs the network, or reads its outputs; a path is that of an exported ONNX file, or of a model for an
            NPU (.om).
        settings: of decoding; by default those of the W32 recipe.
        flip: merge the pass over the flipped image (TEST.FLIP_TEST).
        refine: settings of the heatmap refinement (TEST.MATCH_HMP); `None` leaves it out.
        rescore: the rescoring net, or its checkpoint; `None` leaves the scores as decoded.
        skeleton: of the network; by default that of the backend's graph.
        scales: feed the image at each of these scales and merge (TEST.SCALE_FACTOR); 1 is among them.
        threads: of ONNX Runtime, for a backend given as a path; by default all cores.
        provider: the execution provider of ONNX Runtime, for a backend given as a path.
        devices: numbers of the NPUs, for a model of theirs; by default device 0.

    A graph that decodes people itself settles `settings`, `flip` and rescoring.

    Raises:
        ConfigError: the arguments ask for other things than such a graph does.
        DekrError: a file is missing, damaged or does not fit.
    """

    def __init__(
        self,
        backend: Backend | str | Path,
        settings: DecodeSettings | None = None,
        *,
        flip: bool = True,
        refine: RefineSettings | None = None,
        rescore: RescoreNet | str | Path | None = None,
        skeleton: Skeleton | None = None,
        scales: Sequence[float] = (1.0,),
        threads: int | None = None,
        provider: str | None = None,
        devices: Sequence[int] | None = None,
    ) -> None:
        if isinstance(backend, str | Path):
            backend = open_network(Path(backend), threads, provider, devices)
        self.backend: Backend = backend
        skeleton = skeleton or _skeleton_of(backend)
        self.settings = settings or decode_settings(load_config())
        if isinstance(rescore, str | Path):
            rescore = load_rescore_net(rescore, load_config().RESCORE.HIDDEN_LAYER, skeleton)
        self.flip, self.refine, self.rescore, self.skeleton = flip, refine, rescore, skeleton
        self.scales = tuple(map(float, scales))
        baked: Baked | None = getattr(backend, "baked", None)
        if baked is not None:
            if refine is not None or rescore is not None or settings not in (None, baked.settings):
                raise ConfigError("the graph decodes people itself; leave out settings, refinement and rescoring net")
            if baked.flip and not flip:
                raise ConfigError("the graph merges the flipped pass itself; export it with --flip off")
            if self.scales != (1.0,):
                raise ConfigError("the graph decodes people of one scale itself; leave out scales")
            self.settings, self.flip = baked.settings, baked.flip

    @property
    def weights(self) -> str:
        """The kind of the weights, `random`, `demo` or `trained`, of the network or the net that is less trained."""
        return least_trained(getattr(self.backend, "weights", None), self.rescore.kind if self.rescore else None)

    def __call__(self, image: np.ndarray | str | Path | Frame) -> People:
        """Find the people of one image.

        Args:
            image: (h, w, 3) uint8 BGR, a file of any format that OpenCV decodes (turned as its EXIF entry says), or a
                frame.
        Raises:
            DekrError: the image cannot be read, or the network's outputs are not usable.
        """
        if not isinstance(image, Frame):
            image = self.frame(image)
        return self.detect(image)[0]

    def detect(self, frame: Frame) -> tuple[People, Passes | None]:
        """Find the people of a frame; also return the maps of scale 1, if the backend yields maps."""
        if self.scales == (1.0,):
            found = self.backend.infer(frame, self.flip)
            if isinstance(found, People):
                return replace(found, skeleton=self.skeleton), None
            return self.decode(found, frame.placement), found
        image = frame.read()
        scales = {}
        for scale in self.scales:
            scaled = replace(frame, placement=frame.placement.scaled(scale), read=lambda: image)
            found = self.backend.infer(scaled, self.flip)
            assert isinstance(found, Passes)
            scales[scale] = found
        return self.decode(scales, frame.placement), scales[1.0]

    def decode(self, passes: Passes | Mapping[float, Passes], placement: Placement) -> People:
        """Turn the network's outputs into people in image pixels.

        Args:
            passes: the outputs, or those of each scale.
            placement: of the image at scale 1.
        Raises:
            DekrError: a value that matters is NaN, infinite or beyond all bounds.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # absurd values are refused below
            scales = {1.0: passes} if isinstance(passes, Passes) else passes
            poses, decoded = decode_scales(scales, self.settings, self.skeleton)
            scores = decoded
            if self.refine is not None and len(poses):
                if isinstance(passes, Passes):
                    poses = match_to_heatmap(poses, passes, self.refine, self.skeleton)
                else:
                    poses = match_to_scales(poses, scales, self.refine, self.skeleton)
            poses = transform_poses(poses, placement.to_image)
            if self.rescore is not None and np.isfinite(poses).all():
                factors = self.rescore(poses)
                if not np.isfinite(factors).all():
                    raise DekrError(
                        "RESCORE.MODEL_FILE: its net gives infinite scores; check that file, or add RESCORE.VALID False"
                    )
                scores = decoded * factors
        if not (np.isfinite(poses).all() and np.isfinite(scores).all()):
            sources = [source for one in scales.values() for maps in one if maps is not None for source in maps.sources]
            raise DekrError(f"{' or '.join(sources)}: holds values beyond all bounds; run the network on it again")
        return People(poses, scores, decoded if self.rescore is not None else None, self.skeleton)

    def stream(self, frames: Iterable[AnyFrame], workers: int = 1) -> Iterator[tuple[AnyFrame, People]]:
        """Find the people of many frames; yield them in order, with at most `2 * workers` frames under way.

        Args:
            frames: taken one by one, when there is room for one more.
            workers: threads. With 1 everything runs in the caller's thread.
        """
        return in_order(self, frames, workers)

    def frame(self, image: np.ndarray | str | Path, key: str = "image") -> Frame:
        """Return an image as a frame.

        Raises:
            DekrError: the image cannot be read.
        """
        if isinstance(image, str | Path):
            key, image = str(image), read_image(Path(image))
        pixels = bgr(image)
        return Frame(key, self.backend.input_sizes.place(Size(*pixels.shape[:2])), lambda: pixels)


def _skeleton_of(backend: Backend) -> Skeleton:
    """Return the skeleton of a backend's network, COCO's where the backend names none.

    Raises:
        DekrError: its joints are those of no shipped skeleton.
    """
    joints = getattr(backend, "joints", None)
    skeleton: Skeleton | None = getattr(backend, "skeleton", COCO_17)
    if skeleton is None:
        raise DekrError(
            f"the graph finds {', '.join(joints or ())}: no shipped skeleton has these joints; pass skeleton"
        )
    return skeleton


def in_order(
    work: Callable[[AnyFrame], R], frames: Iterable[AnyFrame], workers: int = 1
) -> Generator[tuple[AnyFrame, R], None, None]:
    """Do some work on many frames in several threads; yield its results in order; see `Detector.stream`."""
    if workers == 1:
        yield from ((frame, work(frame)) for frame in frames)
        return
    rest = iter(frames)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[AnyFrame, Future[R]]] = deque()
        try:
            for frame in islice(rest, 2 * workers):
                waiting.append((frame, pool.submit(work, frame)))
            while waiting:
                frame, result = waiting.popleft()
                yield frame, result.result()
                for following in islice(rest, 1):
                    waiting.append((following, pool.submit(work, following)))
        finally:
            for _, future in waiting:
                future.cancel()
