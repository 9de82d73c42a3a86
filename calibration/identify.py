"""Fits the simulated plant to a recording: servo stiffness, damping, friction, delay, and the valve's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from calibration.least_squares import GOOD, Estimate, Parameter, Solution, Values, solve
from calibration.progress import Told
from calibration.recording import FingerMotion, Part, Recording, ValveTurn
from calibration.rollout import Rollouts
from robot.registers import RAD_PER_TICK
from robot.sim import SimConfig
from robot.types import Floats

NOISE = RAD_PER_TICK / math.sqrt(12)  # rad, rms: an encoder's rounding, which no model explains
DETERMINED = 0.25  # relative standard error up to which a parameter counts as known by the data
TRIES = 3  # starts from which the search goes down
CHANCE = 2.0  # standard errors that a value may be off by chance

# Bounds: a factor of ten around what servos of this size can be. The starts are a coarse net, because a stiff
# servo with little damping rings, and between two rings there are valleys that lead nowhere.
_DAMPING = (1e-3, 1.0)  # Nm s/rad
_STIFFNESS = (0.2, 40.0)  # Nm/rad
_FRICTION = (0.0, 0.5)  # Nm
_DELAY = (0.0, 0.15)  # s
_NET = {"stiffness": (0.8, 2.0, 4.0, 8.0), "damping": (0.02, 0.05, 0.13)}
FINGER_PARAMETERS = (
    Parameter("servo_stiffness", 2.0, *_STIFFNESS),
    Parameter("joint_damping", 0.1, *_DAMPING),
    # The encoder's rounding alone passes for 0.4 mNm (a plant without friction, 3 Nm/rad).
    Parameter("friction_loss", 0.01, *_FRICTION, scale="linear", vary=5e-4, least=1e-3),
    Parameter("command_delay", 0.01, *_DELAY, scale="linear", vary=5e-4, least=5e-4),
)
VALVE_PARAMETERS = (
    Parameter("valve_stiffness", 2.0, *_STIFFNESS),
    Parameter("valve_damping", 0.1, *_DAMPING),
    Parameter("valve_friction_loss", 0.003, *_FRICTION, scale="linear", vary=2e-4, least=5e-4),
    # Between the program's times and what is seen of the valve lie other packets than for the fingers: these
    # two are fitted so that they do not pass for friction, and then they are forgotten.
    Parameter("command_delay", 0.01, *_DELAY, scale="linear", vary=5e-4),
    Parameter("release_delay", 0.001, 0.0, 0.01, scale="linear", vary=5e-4),  # a packet is no longer
)
UNITS = {
    "servo_stiffness": "Nm/rad",
    "joint_damping": "Nm s/rad",
    "friction_loss": "Nm",
    "command_delay": "s",
    "valve_stiffness": "Nm/rad",
    "valve_damping": "Nm s/rad",
    "valve_friction_loss": "Nm",
}

JITTER = 2e-3  # s by which a packet's time varies on a machine that has other work too
_LATER = 1e-3  # s, to see what a delay does
TIMING = ("command_delay", "release_delay")  # of the valve: what is fitted with it and then forgotten


@dataclass(frozen=True)
class Finding:
    """What the data say of one parameter."""

    name: str
    nominal: float
    estimate: Estimate
    least: float  # what can be told from nothing

    @property
    def determined(self) -> bool:
        """Whether the data tell its value, or only, at most, a bound."""
        value = self.estimate.value
        return self.estimate.relative <= DETERMINED and value >= self.least and not self.estimate.at_bound

    @property
    def unit(self) -> str:
        """As in SI."""
        return UNITS[self.name]

    @property
    def upper(self) -> float:
        """What it is at most, if all that the data tell is that it is small; else infinite."""
        most = max(self.estimate.value + CHANCE * self.estimate.error, self.least)
        return most if self.nominal == 0 else math.inf


@dataclass(frozen=True)
class Comparison:
    """How far simulated positions are from measured ones, rad rms, by the nominal plant and by ours."""

    nominal: float
    identified: float


@dataclass(frozen=True)
class Identification:
    """A plant fitted to a recording."""

    recording: Recording
    nominal: SimConfig
    plant: SimConfig  # the nominal one with what the data determine
    findings: tuple[Finding, ...]
    timing: Mapping[str, float]  # s: the valve's own command_delay and release_delay in this recording

    def errors(self, what: str, part: Part) -> Comparison | None:
        """Of the "fingers" or the "valve", in what was fitted or held out; None where there is none."""
        if not (self.fingers(part) if what == "fingers" else self.turns(part)):
            return None
        before, after = (_rms(self.deviations(plant, what, part)) for plant in (self.nominal, self.plant))
        return Comparison(before, after)

    def deviations(self, plant: SimConfig, what: str, part: Part) -> list[Floats]:
        """Simulated less measured positions, rad, one series per joint and motion."""
        rollouts = Rollouts(self.recording.rig)
        if what == "fingers":
            return list(_finger_residuals(rollouts, plant, self.fingers(part)))
        return list(_valve_residuals(rollouts, plant, self.turns(part), self.timing))

    def fingers(self, part: Part) -> list[FingerMotion]:
        """The motions of fingers that were fitted or held out."""
        return [motion for motion in self.recording.fingers if motion.part == part]

    def turns(self, part: Part) -> list[ValveTurn]:
        """The turns of the valve that were fitted or held out."""
        return [turn for turn in self.recording.valve if turn.part == part]


def nominal_plant(sim: SimConfig) -> SimConfig:
    """The plant as it is taken to be before anything is identified: ROBEL's; all else as on this rig."""
    untouched = SimConfig()
    return sim.model_copy(update={name: getattr(untouched, name) for name in UNITS})


def identify(recording: Recording, told: Told = lambda what, share: None) -> Identification:
    """The plant that moves as the recorded one did. Parameters that the data leave open stay nominal.

    Deterministic: the same recording gives the same plant. Raises RecordingError.
    """
    recording.require_usable()
    nominal, rollouts = nominal_plant(recording.rig.sim), Rollouts(recording.rig)
    motions = [motion for motion in recording.fingers if motion.part == "fit"]
    turns = [turn for turn in recording.valve if turn.part == "fit"]

    def finger_series(values: Values) -> Sequence[Floats]:
        return list(_finger_residuals(rollouts, nominal.model_copy(update=dict(values)), motions))

    def valve_plant(values: Values) -> SimConfig:
        return nominal.model_copy(update={name: values[name] for name in values if name in UNITS})

    def valve_series(values: Values) -> Sequence[Floats]:
        return list(_valve_residuals(rollouts, valve_plant(values), turns, values))

    def untimed_series(values: Values) -> Sequence[Floats]:
        return [_untimed(rollouts, valve_plant(values), turn, values) for turn in turns]

    findings = _findings(nominal, FINGER_PARAMETERS, finger_series, lambda share: told("fingers", share))
    timing: dict[str, float] = {}
    if turns:
        found = _findings(nominal, VALVE_PARAMETERS, valve_series, lambda share: told("valve", share))
        left = _rms(valve_series({item.name: item.estimate.value for item in found}))
        if left > GOOD * NOISE:  # with exact times, delays of its own for each turn would only blur the rest
            found = _findings(nominal, VALVE_PARAMETERS, untimed_series, lambda share: told("valve", share))
        timing = {item.name: item.estimate.value for item in found if item.name in TIMING}
        findings += [item for item in found if item.name not in TIMING]
    known = {item.name: item.estimate.value for item in findings if item.determined}
    plant = nominal.model_copy(update=known)
    return Identification(recording, nominal, plant, tuple(findings), timing)


def _findings(
    nominal: SimConfig,
    parameters: Sequence[Parameter],
    series: Callable[[Values], Sequence[Floats]],
    told: Callable[[float], None],
) -> list[Finding]:
    """Fits all, then again without what turned out to be open, at its nominal value, until all are known."""
    free, findings = list(parameters), dict[str, Finding]()
    starts = _starts(parameters)
    while free:
        solution = solve(series, free, starts, NOISE, told, TRIES)
        findings |= _judged(nominal, free, solution)
        # The worst first: with it out of the way, the others may well be told.
        ranked = sorted(free, key=lambda item: -solution.estimates[item.name].relative)
        worst = next((item for item in ranked if _is_open(item, findings)), None)
        if worst is None:
            break
        free = [replace(item, start=solution.values[item.name]) for item in free if item is not worst]
        starts = []
    return [findings[parameter.name] for parameter in parameters]


def _is_open(parameter: Parameter, findings: Mapping[str, Finding]) -> bool:
    """What is forgotten anyway may stay as it was found."""
    return parameter.name != "release_delay" and not findings[parameter.name].determined


def _judged(nominal: SimConfig, parameters: Sequence[Parameter], solution: Solution) -> dict[str, Finding]:
    return {
        item.name: Finding(
            item.name, float(getattr(nominal, item.name, 0.0)), solution.estimates[item.name], item.least
        )
        for item in parameters
    }


def _starts(parameters: Sequence[Parameter]) -> list[Mapping[str, float]]:
    """A net over stiffness and damping."""
    names = [parameter.name for parameter in parameters[: len(_NET)]]
    return [dict(zip(names, knot, strict=True)) for knot in product(*_NET.values())]


def _finger_residuals(
    rollouts: Rollouts, plant: SimConfig, motions: Sequence[FingerMotion]
) -> Iterator[Floats]:
    """Simulated less measured, rad, one series for each joint of each moving finger."""
    for together in _rounds(motions):
        for motion, path in zip(together, rollouts.fingers(plant, together), strict=True):
            yield from (path - motion.position[:, motion.joints]).T


def _rounds(motions: Sequence[FingerMotion]) -> Iterator[list[FingerMotion]]:
    """Groups in which no finger occurs twice."""
    waiting = list(motions)
    while waiting:
        seen: dict[int, FingerMotion] = {}
        for motion in waiting:
            seen.setdefault(motion.finger, motion)
        yield list(seen.values())
        waiting = [motion for motion in waiting if motion is not seen[motion.finger]]


def _valve_residuals(
    rollouts: Rollouts, plant: SimConfig, turns: Sequence[ValveTurn], timing: Values
) -> Iterator[Floats]:
    """Simulated less measured, rad, one series for each turn."""
    timing = {"command_delay": plant.command_delay, "release_delay": 0.0, **timing}
    here = plant.model_copy(update={"command_delay": timing["command_delay"]})
    for turn in turns:
        yield rollouts.valve(here, turn, timing["release_delay"]) - turn.position


def _untimed(rollouts: Rollouts, plant: SimConfig, turn: ValveTurn, timing: Values) -> Floats:
    """One turn's residuals, less what its own small delays explain, at the price that they are unlikely.

    On a busy machine a packet leaves some milliseconds late, and a valve at 3 rad/s makes of each three times
    as many milliradians, which would pass for friction.
    """
    (here,) = _valve_residuals(rollouts, plant, [turn], timing)
    slopes = []
    for name in TIMING:
        later = {**timing, name: timing.get(name, 0.0) + _LATER}
        slopes.append((next(_valve_residuals(rollouts, plant, [turn], later)) - here) / _LATER)
    price = NOISE / JITTER
    design = np.concatenate([np.stack(slopes, axis=1), price * np.eye(len(TIMING))])
    padded = np.concatenate([here, np.zeros(len(TIMING))])
    delays = np.linalg.lstsq(design, -padded, rcond=None)[0]
    return np.asarray(padded + design @ delays, np.float64)


def _rms(series: Sequence[Floats]) -> float:
    return float(np.sqrt(np.square(np.concatenate(series)).mean()))
