"""Skeletons: joint names, left/right partners, limbs, OKS sigmas and the pairs of the rescoring net, as one value.

"left" is the person's own left. The order of the joints is that of the annotations and of every (people, joints, 3)
array in this project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skeleton:
    """What is known of the joints of a data set.

    Args:
        joints: the names, in order.
        partners: joint j of a mirrored person is joint `partners[j]` of the person.
        limbs: pairs of joints that a drawing connects, 0-based.
        sigmas: per joint, the standard deviation of COCO's object keypoint similarity, as a share of a person's size.
        rescore_pairs: pairs of joints whose differences are features of the rescoring net.
        torso_pairs: indices into `rescore_pairs`; the mean length of these pairs is the unit of the features.
    """

    joints: tuple[str, ...]
    partners: tuple[int, ...]
    limbs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    rescore_pairs: tuple[tuple[int, int], ...]
    torso_pairs: tuple[int, int]

    def __len__(self) -> int:
        """Return the number of joints."""
        return len(self.joints)

    @property
    def heatmap_channels(self) -> int:
        """One channel a joint, then the person centre."""
        return len(self) + 1

    @property
    def offset_channels(self) -> int:
        """X then y of each joint."""
        return 2 * len(self)

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """The pairs (left, right) of partners, the lower index first."""
        return tuple((joint, partner) for joint, partner in enumerate(self.partners) if joint < partner)


COCO_17 = Skeleton(
    joints=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    partners=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    # The order of COCO's `skeleton`, which counts from 1.
    limbs=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10)),
        *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    # Source: COCO's keypoint evaluation, as pycocotools holds them.
    sigmas=(
        *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087),
        *(0.089, 0.089),
    ),
    # Source: the DEKR reference's link lists for COCO.
    rescore_pairs=(
        *((0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (5, 11), (6, 8), (6, 12), (7, 9)),
        *((8, 10), (11, 12), (11, 13), (12, 14), (13, 15), (14, 16)),
    ),
    torso_pairs=(9, 11),
)
