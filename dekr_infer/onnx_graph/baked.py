"""What is built into an ONNX file besides the network: the input's form, and the decoding of a file that yields people.

The file's metadata hold all of it, so a program that runs the file need not be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dekr_infer.errors import DekrError
from dekr_infer.pose.decode import DecodeSettings

FLOAT32, UINT8 = "float32", "uint8"  # normalised RGB; RGB as decoded, normalised in the graph
INPUTS = (FLOAT32, UINT8)
MAPS, PEOPLE = "maps", "people"
DECODINGS = (MAPS, PEOPLE)
PIXEL_NAME = "pixel"  # an input with a default: input pixels in an image pixel, the rescoring net's smallest torso
_SWITCH = {False: "off", True: "on"}


@dataclass(frozen=True)
class Baked:
    """The decoding inside a file that goes from an image to people.

    Args:
        settings: of decoding.
        flip: whether the pass over the flipped image is merged.
        rescore_sha256: of the rescoring net's checkpoint; `None` without rescoring.
    """

    settings: DecodeSettings
    flip: bool = True
    rescore_sha256: str | None = None

    def metadata(self) -> dict[str, str]:
        """Return the entries of a file's metadata."""
        limits = self.settings
        return {
            "decode": PEOPLE,
            "flip": _SWITCH[self.flip],
            "rescore": _SWITCH[self.rescore_sha256 is not None],
            "rescore_sha256": self.rescore_sha256 or "",
            "max_people": str(limits.max_people),
            "score_threshold": repr(limits.threshold),
            "nms_distance": repr(limits.nms_distance),
            "nms_joints": str(limits.nms_joints),
            "pool_sides": ",".join(map(str, limits.pool_sides)),
        }

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> Baked:
        """Return what a file's metadata say.

        Raises:
            DekrError: an entry is missing or malformed.
        """
        try:
            first, second = map(int, metadata["pool_sides"].split(","))
            settings = DecodeSettings(
                max_people=int(metadata["max_people"]),
                threshold=float(metadata["score_threshold"]),
                nms_distance=float(metadata["nms_distance"]),
                nms_joints=int(metadata["nms_joints"]),
                pool_sides=(first, second),
            )
            return cls(settings, metadata["flip"] == _SWITCH[True], metadata["rescore_sha256"] or None)
        except (KeyError, ValueError):
            raise DekrError("its metadata do not describe the decoding inside it") from None
