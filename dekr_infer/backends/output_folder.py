"""The backend that reads what a network wrote earlier: two folders of outputs, from onnx_infer.py or from ais_bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage import npy
from dekr_infer.structures import Frame, Maps, Passes, output_files, output_shapes


class OutputFolder:
    """Outputs of both passes, as they are on the disk.

    Args:
        original, flipped: the folders of the two passes; `flipped` may be missing where nobody asks for it.
        skeleton: of the network.
        input_sizes: of the tensors that it was run on.
    """

    def __init__(
        self,
        original: Path,
        flipped: Path | None = None,
        skeleton: Skeleton = COCO_17,
        input_sizes: InputSizes = PUBLISHED_SIZES,
    ) -> None:
        self.folders = [folder for folder in (original, flipped) if folder is not None]
        self.skeleton = skeleton
        self.input_sizes = input_sizes

    def infer(self, frame: Frame, flip: bool) -> Passes:
        """Open the outputs of a frame; its image is not needed.

        Raises:
            DekrError: a file is missing, damaged, or of another shape.
        """
        return Passes(*(self._open(folder, frame) for folder in self.folders[: 1 + flip]))

    def _open(self, folder: Path, frame: Frame) -> Maps:
        paths = [folder / name for name in output_files(frame.key)]
        maps = []
        for path, shape in zip(paths, output_shapes(self.skeleton, frame.placement.cells), strict=True):
            values = npy.read_unchecked(path, npy.OUTPUTS)
            if values.shape != shape:
                raise DekrError(
                    f"{path}: has shape {values.shape}, {frame.name} needs {shape} at {frame.placement.input} of the "
                    f"input sizes {self.input_sizes}; it is of another image or network, or of other input sizes"
                )
            maps.append(values[0])
        return Maps(maps[0], maps[1], (str(paths[0]), str(paths[1])))

    def complete(self, frames: Sequence[Frame], data_set: str, allow_missing: bool) -> list[Frame]:
        """Return the frames whose outputs exist; by default the folders must hold those of all frames, and no others.

        Args:
            frames: of the whole data set.
            data_set: names the owner of the frames in messages.
            allow_missing: leave frames without outputs out. Foreign files are refused all the same.
        Raises:
            DekrError: files are missing or foreign, or no frame is complete.
        """
        expected = {name for frame in frames for name in output_files(frame.key)}
        present = {folder: npy.names_in(folder) for folder in self.folders}
        complaints = []
        for folder, names in present.items():
            if not allow_missing:
                complaints += _complaint(folder, sorted(expected - names), len(expected), "missing")
            complaints += _complaint(folder, sorted(names - expected), len(names), f"not of {data_set}")
        if complaints:
            raise DekrError(
                f"{'; '.join(complaints)}; run the network on all images into empty folders, "
                "or add --allow_missing to evaluate the images that have outputs"
            )
        complete = [f for f in frames if all(set(output_files(f.key)) <= names for names in present.values())]
        if not complete:
            raise DekrError(
                f"{', '.join(map(str, self.folders))}: no image's outputs are complete; run the network first"
            )
        return complete


def _complaint(folder: Path, names: Sequence[str], total: int, what: str) -> list[str]:
    return [f"{folder}: {len(names)} of {total} files are {what}, the first is {names[0]}"] if names else []
