"""Short, safe motions that make a plant show its stiffness, damping, friction and delay.

One joint moves at a time while the other fingers stand, all out of the valve's reach; then the valve turns by
its own servo and is let go. Every motion of a finger passes `Robot.command`, so the safety filter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from pydantic import Field, PositiveFloat

from calibration.progress import Told
from calibration.recording import FingerMotion, Part, Recording, ValveTurn
from robot.clock import Ticker
from robot.collision import FullTurnClearance
from robot.registers import FINGER_SEGMENTS, RAD_PER_S_PER_UNIT, RAD_PER_TICK
from robot.rig import Rig
from robot.settings import DynamixelConfig
from robot.types import Config, Floats, MotionFault, RobotState

SOON = 1e-6  # s: as good as now, where times are sums of floats


class Turn(Config):
    """One turn of the valve: by how much (rad), and after how much of it it is let go (None: at its end)."""

    angle: float = Field(gt=-math.pi, lt=math.pi)  # the valve takes the short way
    release: PositiveFloat | None = None
    part: Part = "fit"


class ExcitationConfig(Config):
    """What moves how far and how fast; angles are (proximal, middle, distal) rad, alike for all fingers."""

    # At least 30 mm from the valve, however it stands, at every corner of all motions (ROBEL's shapes), and
    # bent outwards, so that the middle servo carries a known torque, against which its stiffness shows.
    base: tuple[float, float, float] = (0.0, -0.8, -0.2)
    # A joint's excursion. 0.15 rad is 98 ticks of the encoder; the filter lets it pass within two periods.
    amplitude: PositiveFloat = 0.15
    step_hold: PositiveFloat = 0.4  # s: five times the slowest time constant that is plausible (0.08 s)
    steps: tuple[float, ...] = (1, 0, -1, 0)  # of the amplitude; fast: inertia, damping, delay
    # rad/s of ramps there and back. Dry friction holds a joint back as much in the slow one as in the fast
    # one, damping does not: that tells them apart.
    ramps: tuple[PositiveFloat, ...] = (0.25, 1.0)
    # Held out: all three joints of a finger at once on sines, as different from steps as a policy's motions.
    sines: tuple[PositiveFloat, ...] = (0.4, 0.7, 1.1)  # Hz of proximal, middle, distal; 1 rad/s at most
    sine_duration: PositiveFloat = 4.0  # s
    fingers: tuple[int, ...] = (0, 1, 2)
    turns: tuple[Turn, ...] = (
        *(Turn(angle=1.0), Turn(angle=-1.0), Turn(angle=0.4), Turn(angle=-0.4)),
        *(Turn(angle=1.2, release=0.6), Turn(angle=-1.2, release=0.6)),
        *(Turn(angle=1.5, release=1.0), Turn(angle=-1.5, release=1.0)),
        *(Turn(angle=0.7, part="held-out"), Turn(angle=-1.2, release=0.4, part="held-out")),
    )
    coast: PositiveFloat = 0.7  # s that a released valve is watched; ROBEL's stops within 0.1 s
    rest: PositiveFloat = 0.5  # s without motion before each finger's motions
    approach: PositiveFloat = 0.8  # rad/s on the way to the base pose
    settle: PositiveFloat = 0.8  # s for it
    # s between readings, where the bus is quick enough: joints settle within 0.05 s, which the control period
    # alone would miss. A slower bus gives fewer readings, at the times that they have.
    sample: PositiveFloat = 0.0125
    clear: PositiveFloat = 0.015  # m that planned poses keep from the valve and from each other
    # rad from the base pose: soft servos (1 Nm/rad) sag by 0.1 rad under a finger and stick by as much.
    tolerance: PositiveFloat = 0.3
    moved: float = Field(0.3, gt=0, lt=1)  # share of its excursion that a joint must make, or it is blocked
    valve_tolerance: PositiveFloat = 0.3  # rad, as loose: where it stops is a result here
    valve_timeout: PositiveFloat = 4.0  # s


class UnsafePlan(MotionFault):
    """The planned motions would come too near the valve or each other on this robot. Nothing has moved."""


@dataclass(frozen=True)
class Plan:
    """The targets of one motion, of one joint or of a whole finger; one per control period."""

    part: Part
    finger: int
    targets: Floats  # (K, J) rad


def plans(config: ExcitationConfig, dclaw: DynamixelConfig, period: float) -> list[Plan]:
    """What the fingers shall do, in order: joint by joint what is fitted, then what is held out."""
    size = len(FINGER_SEGMENTS)
    base = base_pose(config, dclaw)
    rest = np.zeros((round(config.rest / period), size))
    joints: list[tuple[Part, Floats]] = [
        ("fit", np.outer(_single(config, period), joint)) for joint in np.eye(size)
    ]
    found = []
    for finger in config.fingers:
        for part, motion in (*joints, ("held-out", _sines(config, period))):
            waves = np.concatenate([rest, motion])
            targets = np.tile(base, (len(waves), 1))
            targets[:, size * finger : size * (finger + 1)] += waves
            found.append(Plan(part, finger, targets))
    return found


def base_pose(config: ExcitationConfig, dclaw: DynamixelConfig) -> Floats:
    """The pose that all motions start from, (J,) rad."""
    return np.tile(np.array(config.base), len(dclaw.joint_ids) // len(FINGER_SEGMENTS))


def _single(config: ExcitationConfig, period: float) -> Floats:
    """(K,) rad: steps, then a slow and a fast triangle, back at 0 at the end."""
    hold = max(1, round(config.step_hold / period))
    wave = [np.repeat(np.array(config.steps, np.float64), hold) * config.amplitude]
    for speed in config.ramps:
        quarter = max(1, round(config.amplitude / speed / period))
        rising = np.arange(1, quarter + 1) / quarter
        wave.append(config.amplitude * np.r_[rising, 1 - rising, -rising, rising - 1])
    return np.concatenate([*wave, np.zeros(hold)])


def _sines(config: ExcitationConfig, period: float) -> Floats:
    """(K, 3) rad: each joint at its own frequency, gently begun and ended."""
    times = np.arange(round(config.sine_duration / period)) * period
    ends = np.minimum(1.0, np.minimum(times, config.sine_duration - times) / 0.5)
    waves = ends[:, None] * np.sin(math.tau * np.outer(times, config.sines))
    return np.asarray(config.amplitude * waves, np.float64)


def require_clear(config: ExcitationConfig, dclaw: DynamixelConfig, planned: Sequence[Plan]) -> None:
    """Raises UnsafePlan when a corner of the motions leaves the box or comes too near anything.

    Also when this robot may not move fast enough to make them.
    """
    speed, needed = dclaw.safety.max_velocity, config.amplitude / config.step_hold
    if speed < needed:
        raise UnsafePlan(
            f"hw.dclaw.safety.max_velocity is {speed:g} rad/s; steps of {config.amplitude:g} rad within "
            f"{config.step_hold:g} s need {needed:.2g}. Nothing has moved."
        )
    lower, upper = np.array(dclaw.safety.lower), np.array(dclaw.safety.upper)
    clearance = FullTurnClearance()
    corners = {corner for plan in planned for corner in _corners(plan)}
    for corner in sorted(corners):
        pose = np.array(corner)
        if (pose < lower).any() or (pose > upper).any():
            raise UnsafePlan(
                "The motions of the identification leave hw.dclaw.safety's box; it has to hold "
                f"{_numbers(pose[:3])} rad for each finger. Nothing has moved."
            )
        if (distance := clearance(pose)) < config.clear:
            raise UnsafePlan(
                f"At {_numbers(pose)} rad a finger would be {1e3 * distance:.0f} mm from the valve or from "
                f"another one, {1e3 * config.clear:.0f} mm are wanted. Nothing has moved."
            )


def _corners(plan: Plan) -> Iterator[tuple[float, ...]]:
    """The extreme poses of one finger's motion: all that it does lies between them."""
    low, high = plan.targets.min(axis=0), plan.targets.max(axis=0)
    if plan.part == "fit":  # one joint at a time
        for joint in range(len(low)):
            for edge in (low, high):
                pose = plan.targets[0].copy()
                pose[joint] = edge[joint]
                yield tuple(pose.round(6).tolist())
        return
    moving = slice(3 * plan.finger, 3 * plan.finger + 3)
    for choice in product((0, 1), repeat=3):
        pose = plan.targets[0].copy()
        pose[moving] = np.where(choice, high[moving], low[moving])
        yield tuple(pose.round(6).tolist())


def _numbers(values: Floats) -> str:
    return np.array2string(np.asarray(values), precision=2, separator=", ")


@dataclass
class _Trace:
    """Readings and commands as they come."""

    states: list[RobotState] = field(default_factory=list)
    sent: list[tuple[float, Floats]] = field(default_factory=list)

    def joints(self, quantity: str) -> Floats:
        return np.array([getattr(state.joints, quantity) for state in self.states])

    def object(self, quantity: str) -> Floats:
        return np.array([getattr(state.object, quantity)[0] for state in self.states])

    @property
    def times(self) -> Floats:
        return np.array([state.time for state in self.states])


class Excitation:
    """Moves an engaged rig through all motions of an identification and keeps what it measures."""

    def __init__(self, rig: Rig, config: ExcitationConfig, told: Told) -> None:
        """Raises UnsafePlan before anything moves."""
        self._rig, self._config, self._told = rig, config, told
        self._dclaw, self._period = rig.config.dclaw, rig.config.control_period
        self._plans = plans(config, self._dclaw, self._period)
        require_clear(config, self._dclaw, self._plans)
        self._base = base_pose(config, self._dclaw)
        self._total = sum(len(plan.targets) * self._period for plan in self._plans)
        self._total += sum(_turn_time(turn, config) for turn in config.turns)
        self._done = 0.0

    @property
    def duration(self) -> float:
        """About how long it takes, s, without the way to the base pose."""
        return self._total

    def record(self, name: str) -> Recording:
        """All motions, from wherever the fingers are. Raises MotionFault naming what is blocked, Fault."""
        self._tell("to the base pose")
        self._approach()
        fingers = tuple(self._move(plan) for plan in self._plans)
        valve = tuple(self._turn(turn) for turn in self._config.turns)
        return Recording(name, self._rig.config, fingers, valve)

    def _tell(self, what: str) -> None:
        self._told(what, min(1.0, self._done / self._total))

    # --- Fingers -------------------------------------------------------------------------------------------

    def _approach(self) -> None:
        """Middle joints first: they lead the fingers outwards, away from each other and from the valve."""
        here = self._rig.robot.read().joints.position
        middle = np.arange(len(here)) % len(FINGER_SEGMENTS) == 1
        self._ease(np.where(middle, self._base, here))
        self._ease(self._base)
        self._require_there()

    def _ease(self, pose: Floats) -> None:
        """Goes straight to a pose (J,) rad and rests there a while."""
        start, safety = self._rig.robot.read().joints.position, self._dclaw.safety
        speed = min(self._config.approach, safety.max_velocity)
        stride = speed * min(self._period, safety.max_period)
        count = max(1, math.ceil(float(np.abs(pose - start).max()) / stride))
        shares = np.minimum(np.arange(1, count + 1 + round(self._config.settle / self._period)) / count, 1.0)
        self._follow(start + shares[:, None] * (pose - start), lambda: None)

    def _require_there(self) -> None:
        away = self._rig.robot.read().joints.position - self._base
        stuck = np.flatnonzero(np.abs(away) > self._config.tolerance).tolist()
        if stuck:
            raise MotionFault(
                f"{_joint(stuck[0])} is {away[stuck[0]]:+.2f} rad from where it was sent; "
                f"{self._config.tolerance:g} are allowed for. Free the fingers and the valve by hand, then "
                "try again."
            )

    def _move(self, plan: Plan) -> FingerMotion:
        what = f"finger {plan.finger + 1}, {'one joint' if plan.part == 'fit' else 'all joints'}"
        start = on_grid(self._dclaw, self._base)
        began = self._done
        trace = self._follow(plan.targets, lambda: self._tell(what))
        self._done = began + len(plan.targets) * self._period
        motion = FingerMotion(
            plan.part,
            plan.finger,
            start,
            np.array([time for time, _ in trace.sent]),
            np.array([target for _, target in trace.sent]),
            trace.times,
            *(trace.joints(quantity) for quantity in ("position", "velocity", "current")),
        )
        self._require_moved(plan, motion)
        self._require_there()
        return motion

    def _follow(self, targets: Floats, tell: Callable[[], None]) -> _Trace:
        """Sends each target at its time and reads as often as the bus can between them."""
        clock, trace = self._rig.clock, _Trace()
        ticker = Ticker(clock, min(self._config.sample, self._period))
        ticker.start()
        done, due = self._done, clock.now()
        while len(trace.sent) < len(targets) or clock.now() < due - SOON:
            trace.states.append(self._rig.robot.read())
            if len(trace.sent) < len(targets) and (now := clock.now()) >= due - SOON:
                # A machine that was asleep goes on from here: it neither skips targets nor hurries.
                due = due + self._period if now < due + self._period else now + self._period
                self._done = done + len(trace.sent) * self._period
                trace.sent.append(self._send(targets[len(trace.sent)]))
                tell()
            ticker.wait()
        self._done = done
        return trace

    def _send(self, target: Floats) -> tuple[float, Floats]:
        applied = self._rig.robot.command(target, self._period)
        return self._rig.clock.now(), on_grid(self._dclaw, applied.target)

    def _require_moved(self, plan: Plan, motion: FingerMotion) -> None:
        wished, made = np.ptp(plan.targets, axis=0), np.ptp(motion.position, axis=0)
        for joint in np.flatnonzero(made < self._config.moved * wished).tolist():
            raise MotionFault(
                f"{_joint(joint)} moved by {made[joint]:.3f} rad where it was sent over {wished[joint]:.3f}: "
                "something blocks it, or its gain is too low. Free it, then try again."
            )

    # --- Valve ---------------------------------------------------------------------------------------------

    def _turn(self, turn: Turn) -> ValveTurn:
        """One turn by the valve's own servo, then a while without it if it was let go."""
        self._tell("the valve")
        config, trace = self._config, _Trace()

        def watch(state: RobotState) -> bool:
            trace.states.append(state)
            turned = abs(float(state.object.position[0] - trace.states[0].object.position[0]))
            return turn.release is None or turned < turn.release

        here = float(self._rig.robot.read().object.position[0])
        self._rig.robot.drive_object(here + turn.angle, config.valve_tolerance, config.valve_timeout, watch)
        released = trace.states[-1].time
        if turn.release is not None:
            self._watch_coasting(trace, released + config.coast)
        self._done += _turn_time(turn, config)
        quantities = [trace.object(quantity) for quantity in ("position", "velocity", "current")]
        goal, speed = valve_goal(self._dclaw, here + turn.angle), profile_speed(self._dclaw.object_velocity)
        return ValveTurn(turn.part, goal, speed, released, trace.times, *quantities)

    def _watch_coasting(self, trace: _Trace, until: float) -> None:
        ticker = Ticker(self._rig.clock, self._config.sample)
        ticker.start()
        while self._rig.clock.now() < until:
            trace.states.append(self._rig.robot.read())
            ticker.wait()


def _turn_time(turn: Turn, config: ExcitationConfig) -> float:
    return 1.0 + (config.coast if turn.release else 0.0)  # measured: a turn takes 0.3 to 0.9 s


def _joint(index: int) -> str:
    finger, joint = divmod(index, len(FINGER_SEGMENTS))
    return f"Finger {finger + 1}, {FINGER_SEGMENTS[joint]},"


def on_grid(dclaw: DynamixelConfig, angles: Floats) -> Floats:
    """Joint angles (J,) rad as servos take them: the nearest whole ticks."""
    offsets = np.array(dclaw.offsets)
    return np.asarray(np.rint((angles - offsets) / RAD_PER_TICK) * RAD_PER_TICK + offsets, np.float64)


def valve_goal(dclaw: DynamixelConfig, angle: float) -> float:
    """A valve angle (rad) as its servo takes it: the nearest whole tick."""
    offset = dclaw.object_offset
    return round((angle - offset) / RAD_PER_TICK) * RAD_PER_TICK + offset


def profile_speed(speed: float) -> float:
    """A profile velocity (rad/s) as servos take it: in whole units of its register."""
    return max(1, round(speed / RAD_PER_S_PER_UNIT)) * RAD_PER_S_PER_UNIT
