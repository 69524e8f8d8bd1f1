"""What a backend is: it turns a frame into the network's outputs."""

from __future__ import annotations

from typing import Protocol

from dekr_infer.geometry import InputSizes
from dekr_infer.structures import Frame, Passes, People


class Backend(Protocol):
    """The network, wherever it runs, or its recorded outputs."""

    @property
    def input_sizes(self) -> InputSizes:
        """The sizes that the network takes."""

    def infer(self, frame: Frame, flip: bool) -> Passes | People:
        """Return the maps of a frame and, with `flip`, those of its flipped twin; or its people in image pixels.

        A backend that returns people has an attribute `baked`, which describes the decoding and settles the flip.

        Raises:
            DekrError: the frame cannot be read, or the network does not run on it.
        """
