"""An articulated human body: proportions and a pose are sampled, 3-D joints and limb frames computed from them.

Positions are in the camera's frame and in units of body height: x to the image's right, y down, z towards the viewer,
the pelvis at the origin. A person who faces the viewer has the left hand at the larger x. A frame is a (3, 3) matrix
whose columns are the part's own axes: to the person's left, down, forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDES = (1.0, -1.0)  # left, right: the sign of the person's own left axis
LEGS = ("stand", "walk", "run", "sit", "squat", "lunge", "astride", "rest")
ARMS = ("hang", "swing", "up", "out", "wave", "hip", "reach", "fold", "ear", "behind")


@dataclass(frozen=True)
class Build:
    """Lengths and widths, as fractions of body height."""

    head: float  # chin to crown
    neck: float
    spine: float  # pelvis to the base of the neck
    shoulders: float  # half the distance between the shoulder joints
    hips: float  # half the distance between the hip joints
    upper_arm: float
    forearm: float
    thigh: float
    shin: float
    girth: float  # thickness of torso and limbs; 1 is average


@dataclass(frozen=True)
class Pose:
    """Angles in radians; arms and legs hold one row for the left and one for the right side."""

    legs: np.ndarray  # (2, 4): swing forwards, spread outwards, knee flexion, foot pointing down
    arms: np.ndarray  # (2, 4): swing forwards, spread outwards, elbow flexion, twist inwards
    bend: float  # spine, forwards
    side_bend: float
    turn: float  # chest against the pelvis
    gaze: np.ndarray  # (3,): head turned left, nodded, tilted
    seated: bool


@dataclass(frozen=True)
class Body:
    """A posed body seen by the camera. Points are (3,), frames (3, 3); index 0 is the left side, 1 the right."""

    build: Build
    pelvis: np.ndarray  # frames
    chest: np.ndarray
    head: np.ndarray
    waist_point: np.ndarray
    neck_point: np.ndarray
    head_point: np.ndarray
    shoulder: np.ndarray  # (2, 3) from here on
    elbow: np.ndarray
    wrist: np.ndarray
    hand: np.ndarray
    hip: np.ndarray
    knee: np.ndarray
    ankle: np.ndarray
    heel: np.ndarray
    toe: np.ndarray
    seated: bool


def swing(angle: float) -> np.ndarray:
    """Return the rotation that takes down towards forwards, by radians: (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def spread(angle: float) -> np.ndarray:
    """Return the rotation that takes down towards the person's left, by radians: (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


def twist(angle: float) -> np.ndarray:
    """Return the rotation that takes forwards towards the person's left, by radians: (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def view(facing: float, elevation: float, lean: float) -> np.ndarray:
    """Return the frame of a pelvis, (3, 3), from three angles in radians.

    Args:
        facing: 0 towards the viewer, pi / 2 to the image's right.
        elevation: the camera's angle above the horizontal.
        lean: rotation within the image.
    """
    return spread(lean) @ swing(-elevation) @ twist(facing)


def sample_build(rng: np.random.Generator) -> Build:
    """Sample an adult or (1 in 5) a child, with a larger head and shorter limbs."""
    child = rng.uniform(0.5, 1.0) if rng.random() < 0.2 else 0.0

    def about(mean: float, sigma: float = 0.05) -> float:
        return float(mean * np.clip(1 + sigma * rng.standard_normal(), 1 - 2.2 * sigma, 1 + 2.2 * sigma))

    leg = about(0.235 - 0.035 * child, 0.04)
    return Build(
        head=about(0.155 + 0.055 * child, 0.06),
        neck=about(0.035 - 0.012 * child),
        spine=about(0.28),
        shoulders=about(0.103 - 0.004 * child, 0.08),
        hips=about(0.062, 0.09),
        upper_arm=about(0.165 - 0.025 * child),
        forearm=about(0.145 - 0.02 * child),
        thigh=leg,
        shin=leg * about(1.0, 0.03),
        girth=about(1.0, 0.14),
    )


def _leg_angles(rng: np.random.Generator, style: str) -> tuple[np.ndarray, float]:
    """Sample degrees (2, 4) as in `Pose.legs`, and the forward bend of the spine that goes with them."""
    phase = rng.uniform(0, 2 * np.pi)
    swings = np.sin([phase, phase + np.pi])
    lifts = np.maximum(0, np.cos([phase, phase + np.pi]))  # the leg that comes forwards bends
    legs = np.zeros((2, 4))
    legs[:, 1] = rng.uniform(1, 9, 2)
    bend = rng.normal(2, 4)
    if style == "stand":
        legs[:, 0] = rng.normal(2, 5, 2)
        legs[:, 2] = np.abs(rng.normal(3, 6, 2))
    elif style == "walk":
        legs[:, 0] = 6 + rng.uniform(16, 30) * swings
        legs[:, 2] = 8 + 45 * lifts
        legs[:, 3] = 15 * lifts
    elif style == "run":
        legs[:, 0] = 15 + rng.uniform(35, 50) * swings
        legs[:, 2] = 20 + 80 * lifts
        legs[:, 3] = 30 * lifts
        bend = rng.normal(12, 5)
    elif style == "sit":
        legs[:, 0] = rng.uniform(75, 95) + rng.normal(0, 5, 2)
        legs[:, 1] = rng.uniform(2, 22, 2)
        legs[:, 2] = legs[:, 0] + rng.normal(0, 12, 2)
        bend = rng.normal(4, 8)
    elif style == "squat":
        legs[:, 0] = rng.uniform(85, 120) + rng.normal(0, 4, 2)
        legs[:, 1] = rng.uniform(8, 30, 2)
        legs[:, 2] = legs[:, 0] + rng.uniform(10, 30)
        bend = rng.uniform(10, 40)
    elif style == "lunge":
        legs[:, 0] = rng.permutation([rng.uniform(45, 75), rng.uniform(-30, -10)])
        legs[:, 2] = np.where(legs[:, 0] > 0, legs[:, 0] + rng.uniform(-15, 15), rng.uniform(10, 60))
    elif style == "astride":
        legs[:, 0] = rng.normal(4, 6, 2)
        legs[:, 1] = rng.uniform(14, 34, 2)
        legs[:, 2] = np.abs(rng.normal(5, 12, 2))
        legs[:, 3] = rng.uniform(0, 30, 2)
    else:  # at rest: lying, or floating in a jump
        legs[:, 0] = rng.uniform(-5, 50, 2)
        legs[:, 1] = rng.uniform(0, 20, 2)
        legs[:, 2] = rng.uniform(0, 70, 2)
        legs[:, 3] = rng.uniform(10, 40, 2)
    return legs, bend


def _arm_angles(rng: np.random.Generator, style: str, leg_swing: float) -> np.ndarray:
    """Sample degrees (4,) as in a row of `Pose.arms`."""
    ranges = {
        "hang": ((-12, 18), (6, 20), (3, 35), (-20, 30)),
        "up": ((-10, 30), (130, 172), (0, 50), (-60, 0)),
        "out": ((-15, 25), (55, 105), (0, 30), (-30, 30)),
        "wave": ((0, 25), (50, 105), (60, 125), (-110, -60)),
        "hip": ((-25, -5), (38, 55), (75, 100), (55, 85)),
        "reach": ((45, 110), (-5, 25), (0, 45), (-20, 30)),
        "fold": ((15, 40), (5, 20), (85, 115), (45, 75)),
        "ear": ((20, 60), (20, 60), (120, 140), (-20, 15)),
        "behind": ((-40, -20), (8, 25), (40, 80), (60, 90)),
    }
    if style == "swing":  # against the leg on the same side
        return np.array([-leg_swing + rng.normal(0, 6), rng.uniform(5, 14), rng.uniform(15, 95), rng.uniform(0, 30)])
    low, high = np.array(ranges[style], float).T
    return rng.uniform(low, high)


def sample_pose(rng: np.random.Generator, legs_style: str | None = None) -> Pose:
    """Sample a pose of one of the LEGS styles (sampled if not given); the arms are mostly independent."""
    style = legs_style or str(rng.choice(LEGS, p=[0.3, 0.2, 0.12, 0.13, 0.06, 0.06, 0.09, 0.04]))
    legs, bend = _leg_angles(rng, style)
    weights = np.array([4, 1.5, 1.2, 1.0, 1.2, 1.0, 1.5, 1.0, 0.7, 0.6])
    if style in ("walk", "run"):
        weights[ARMS.index("swing")] += 14
    styles = [str(name) for name in rng.choice(ARMS, 2, p=weights / weights.sum())]
    if rng.random() < 0.45:
        styles[1] = styles[0]
    arms = np.array([_arm_angles(rng, name, legs[side, 0]) for side, name in enumerate(styles)])
    if style == "stand" and rng.random() < 0.12:  # picks something up
        bend = rng.uniform(35, 95)
        arms[:, 0] += bend * 0.8
    gaze = rng.normal(0, (22, 9, 7)) - (0, 0.5 * max(bend - 10, 0), 0)
    radians = np.deg2rad
    return Pose(
        legs=radians(legs),
        arms=radians(arms),
        bend=float(radians(bend)),
        side_bend=float(radians(rng.normal(0, 5))),
        turn=float(radians(np.clip(rng.normal(0, 10), -25, 25))),
        gaze=radians(np.clip(gaze, (-55, -45, -18), (55, 30, 18))),
        seated=style == "sit",
    )


def assemble(build: Build, pose: Pose, pelvis: np.ndarray) -> Body:
    """Return the body, put together from the pelvis outwards; `pelvis` is its frame (3, 3) as `view` returns it."""
    down, forward = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    waist = pelvis @ spread(pose.side_bend / 2) @ swing(-pose.bend / 2) @ twist(pose.turn / 2)
    chest = pelvis @ spread(pose.side_bend) @ swing(-pose.bend) @ twist(pose.turn)
    head = chest @ twist(pose.gaze[0]) @ swing(-pose.gaze[1]) @ spread(pose.gaze[2])
    waist_point = waist @ (-0.36 * build.spine * down)
    neck_point = waist_point + chest @ (-0.64 * build.spine * down)
    head_point = neck_point + chest @ (-build.neck * down) + head @ np.array([0, -0.47, 0.09]) * build.head

    rows: list[list[np.ndarray]] = [[] for _ in range(9)]
    for side, arm, leg in zip(SIDES, pose.arms, pose.legs, strict=True):
        shrug = 0.022 * max(0.0, 1 - np.cos(arm[1])) * 2
        shoulder = neck_point + chest @ np.array([side * build.shoulders, 0.028 - shrug, 0.0])
        upper = chest @ spread(side * arm[1]) @ swing(arm[0]) @ twist(-side * arm[3])
        lower = upper @ swing(arm[2])
        elbow = shoulder + upper @ (build.upper_arm * down)
        wrist = elbow + lower @ (build.forearm * down)
        hip = pelvis @ np.array([side * build.hips, 0.012, 0.0])
        thigh = pelvis @ spread(side * leg[1]) @ swing(leg[0]) @ twist(side * 0.15)
        shin = thigh @ swing(-leg[2])
        knee = hip + thigh @ (build.thigh * down)
        ankle = knee + shin @ (build.shin * down)
        foot = shin @ swing(-leg[3])
        heel = ankle + foot @ (0.022 * down - 0.02 * forward)
        toe = ankle + foot @ (0.027 * down + 0.1 * forward)
        hand = wrist + lower @ (0.055 * down)
        for row, point in zip(rows, (shoulder, elbow, wrist, hand, hip, knee, ankle, heel, toe), strict=True):
            row.append(point)
    names = ("shoulder", "elbow", "wrist", "hand", "hip", "knee", "ankle", "heel", "toe")
    limbs = {name: np.array(row) for name, row in zip(names, rows, strict=True)}
    return Body(build, pelvis, chest, head, waist_point, neck_point, head_point, seated=pose.seated, **limbs)
