"""Reward terms as pure functions of angles and poses: named, so that a log can say why."""

from __future__ import annotations

import math

import numpy as np

from robot.types import Floats

# ROBEL's turn task (dclaw/turn.py): bonus radii and the speed above which a joint is penalised.
NEAR = 0.25  # rad
AT_GOAL = 0.10  # rad
FAST_JOINT = 0.5  # rad/s
# ROBEL's pose task (dclaw/pose.py).
RACING_JOINT = math.pi  # rad/s, from which on a joint is penalised
LOST = math.pi / 4  # rad, the mean error from which on a pose scores nothing


def wrap_angle(angle: float) -> float:
    """The same direction in (-pi, pi], so that an error never jumps by a turn at the goal's far side.

    `math.remainder` is exact (no rounding of the quotient), unlike the usual modulo by 2 pi.
    """
    wrapped = math.remainder(angle, 2 * math.pi)
    return math.pi if wrapped == -math.pi else wrapped


def distance(error: float) -> dict[str, float]:
    """The closer the better: -|error|, error in rad."""
    return {"distance": -abs(error)}


def robel_turn(error: float, position: Floats, velocity: Floats, home: Floats) -> dict[str, float]:
    """ROBEL's turn reward, term by term, for comparison with its published numbers.

    error: rad. position, home: (J,) rad. velocity: (J,) rad/s.
    """
    fast = velocity[np.abs(velocity) >= FAST_JOINT]
    return {
        "distance": -5.0 * abs(error),
        "pose": -float(np.linalg.norm(position - home)),
        "speed": -float(np.linalg.norm(fast)),
        "near": 10.0 * (abs(error) < NEAR),
        "at_goal": 50.0 * (abs(error) < AT_GOAL),
    }


def turn_score(error: float) -> float:
    """ROBEL's points for a turn: 1 at the goal, 0 opposite of it; error in rad, within [-pi, pi]."""
    return 1 - abs(error) / math.pi


def robel_pose(error: Floats, velocity: Floats) -> dict[str, float]:
    """ROBEL's pose reward, term by term. error: (J,) rad. velocity: (J,) rad/s."""
    fast = velocity[np.abs(velocity) >= RACING_JOINT]
    return {"pose": -float(np.linalg.norm(error)), "speed": -0.1 * float(np.linalg.norm(fast))}


def pose_score(error: Floats) -> float:
    """ROBEL's points for a pose: 1 at the goal, 0 from a mean error of 45 degrees on; error (J,) rad."""
    return 1 - min(float(np.mean(np.abs(error))) / LOST, 1.0)


def wrap_angles(angles: Floats) -> Floats:
    """`wrap_angle` for many angles at once, of any shape; to rounding, as a plan can bear it."""
    return np.asarray(np.pi - np.remainder(np.pi - angles, 2 * np.pi))


def distances(errors: Floats) -> Floats:
    """The sums of `distance` for errors (N,) rad."""
    return -np.abs(errors)


def robel_turns(errors: Floats, positions: Floats, velocities: Floats, home: Floats) -> Floats:
    """The sums of `robel_turn` for N states: errors (N,) rad; positions, velocities (N, J) rad, rad/s."""
    fast = np.where(np.abs(velocities) >= FAST_JOINT, velocities, 0.0)
    away = np.abs(errors)
    penalty = 5.0 * away + np.linalg.norm(positions - home, axis=1) + np.linalg.norm(fast, axis=1)
    return np.asarray(10.0 * (away < NEAR) + 50.0 * (away < AT_GOAL) - penalty)
