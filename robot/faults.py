"""What goes wrong on a bench, by schedule: which fault, of which servo, when, for how long, how often.

A schedule tells who asks it what begins and ends; the emulated wire and the simulated world act on it, each
on the kinds that are its own. The same faults, seed and questions give the same run. docs/emulator.md says
what every kind does.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, NamedTuple, Self, get_args

import numpy as np
from pydantic import Field, model_validator

from robot import registers as reg
from robot.protocol import Parser, build_status, collide
from robot.types import Config, ServoId

WireKind = Literal["lost", "late", "corrupt", "duplicate", "short", "id-conflict"]
AdapterKind = Literal["unplug", "usb-latency"]
ServoKind = Literal[
    "dead", "overload", "overheat", "electrical", "encoder", "voltage-dip", "reboot", "brown-out", "heat"
]
MechanicalKind = Literal["stuck-joint", "slipping-valve", "frozen-encoder"]
CameraKind = Literal[
    "camera-stall",
    "camera-drop",
    "camera-slow",
    "camera-duplicate",
    "camera-corrupt",
    "camera-size",
    "camera-black",
    "camera-white",
    "camera-gone",
]
FaultKind = Literal[WireKind, AdapterKind, ServoKind, MechanicalKind, CameraKind]

WIRE = frozenset[str](get_args(WireKind))
ADAPTER = frozenset[str](get_args(AdapterKind))
CAMERA = frozenset[str](get_args(CameraKind))
_SINGLE = WIRE | {"camera-drop", "camera-duplicate", "camera-corrupt"}  # packets, or pictures, one by one
ERRORS: dict[str, int] = {  # kinds that are a bit of register 70 and nothing else
    "overload": reg.OVERLOAD,
    "overheat": reg.OVERHEATING,
    "electrical": reg.ELECTRICAL_SHOCK,
    "encoder": reg.ENCODER_ERROR,
}
_OF_ONE_SERVO = WIRE | {"dead", *ERRORS, "voltage-dip", "reboot", "heat", "stuck-joint", "frozen-encoder"}
# How long what has no duration lasts, s; all other kinds last for good.
_BRIEF = {"reboot": 0.0, **dict.fromkeys(ERRORS, 0.0), "brown-out": 0.05}


class _Value(NamedTuple):
    """What `FaultConfig.value` means for a kind."""

    default: float
    low: float
    high: float
    meaning: str


VALUES = {
    "late": _Value(20.0, 0, 10_000, "ms by which the packet is late"),  # beyond the SDK's usual patience
    "usb-latency": _Value(16.0, 1, 255, "ms of the adapter's latency timer"),  # what FTDI ships with
    "voltage-dip": _Value(8.5, 0, 40, "V of the supply"),  # 12 V servos allow 9.5
    "heat": _Value(70.0, 0, 255, "deg C that the servo measures"),  # below 80, at which it would shut down
    "slipping-valve": _Value(0.5, 0, 1, "share of every turn that the encoder misses"),
    "camera-slow": _Value(5.0, 0.1, 120, "pictures per second"),
    "camera-corrupt": _Value(0.3, 0.05, 1, "share of each picture's data that is lost"),
}


class FaultConfig(Config):
    """One thing that goes wrong, once or again and again."""

    kind: FaultKind
    # None: every servo, of faults on the wire and of the supply; else one, drawn anew for each occurrence.
    servo: ServoId | None = None
    at: float = Field(0.0, ge=0)  # s after the schedule's start
    duration: float | None = Field(None, gt=0)  # s; None: for good, or what happens in no time
    probability: float = Field(1.0, ge=0, le=1)  # of each status packet on the wire, of each picture
    every: float | None = Field(None, ge=0.01)  # s between occurrences on average; None: once, at `at`
    value: float | None = None  # what the kind can have more or less of

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.probability != 1 and self.kind not in _SINGLE:
            kinds = ", ".join(sorted(_SINGLE))
            raise ValueError(f"probability is for packets and pictures ({kinds}), not for {self.kind}")
        if self.servo is not None and self.kind not in _OF_ONE_SERVO:
            raise ValueError(f"{self.kind} concerns no single servo: leave `servo` out")
        if self.duration is not None and self.kind == "reboot":
            raise ValueError("a reboot lasts as long as a servo boots: leave `duration` out, or say `dead`")
        if self.every is not None and math.isinf(self.lasting):
            raise ValueError(f"{self.kind} would last for good the first time: say for how long (`duration`)")
        self._check_value()
        return self

    def _check_value(self) -> None:
        if self.value is None:
            return
        if (known := VALUES.get(self.kind)) is None:
            raise ValueError(f"{self.kind} takes no value; {', '.join(VALUES)} do")
        if not known.low <= self.value <= known.high:
            raise ValueError(f"value: {known.meaning}, {known.low:g} to {known.high:g}, not {self.value:g}")

    @property
    def lasting(self) -> float:
        """How long one occurrence lasts, s; infinite for good."""
        return _BRIEF.get(self.kind, math.inf) if self.duration is None else self.duration

    @property
    def amount(self) -> float:
        """`value`, or what is usual for the kind; 0 for a kind that knows no more or less."""
        if self.value is None:
            return VALUES[self.kind].default if self.kind in VALUES else 0.0
        return self.value

    def concerns(self, servo: int) -> bool:
        """True when a fault of many servos reaches this one."""
        return self.servo is None or self.servo == servo


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A fault that happens now, or is going to."""

    fault: FaultConfig
    start: float  # s
    end: float  # s, infinite for good
    lot: float = 0.0  # 0..1, which servo it is where the fault does not say

    def victim(self, servos: Sequence[int]) -> int:
        """The one servo that is hit, of so many."""
        named = self.fault.servo
        return servos[int(self.lot * len(servos))] if named is None else named


@dataclass(frozen=True, slots=True)
class Change:
    """An occurrence begins or is over."""

    begins: bool
    occurrence: Occurrence

    @property
    def time(self) -> float:
        """When, s."""
        return self.occurrence.start if self.begins else self.occurrence.end


@dataclass(slots=True)
class _Source:
    """A fault and the randomness of its occurrences: independent of all other faults."""

    fault: FaultConfig
    luck: np.random.Generator

    def next(self, after: float) -> Occurrence:
        """The first occurrence from a time on."""
        start = after + (self.luck.exponential(self.fault.every) if self.fault.every else 0.0)
        return Occurrence(self.fault, start, start + self.fault.lasting, self.luck.random())


class FaultSchedule:
    """Faults in the order of time. Seconds count from `begin`, on whatever clock it was told by."""

    def __init__(self, faults: Sequence[FaultConfig] = (), seed: int = 0) -> None:
        self.luck = np.random.default_rng(seed)  # for what hangs on single packets
        self.faults = tuple(faults)
        self.active: list[Occurrence] = []  # what holds at present
        self._seed = seed
        self._order = count()  # what happens at one time happens in the order of the schedule
        self._ahead: list[tuple[float, int, Change, _Source]] = []  # a heap, the soonest first

    def begin(self, now: float) -> Self:
        """Starts the schedule's time."""
        for number, fault in enumerate(self.faults):
            source = _Source(fault, np.random.default_rng([self._seed, number]))
            self._plan(source, now + fault.at)
        return self

    def add(self, fault: FaultConfig, now: float) -> None:
        """One fault more; its time counts from now."""
        source = _Source(fault, np.random.default_rng([self._seed, len(self.faults)]))
        self.faults = (*self.faults, fault)
        self._plan(source, now + fault.at)

    def clear(self) -> None:
        """Forgets all that holds and all that was to come."""
        self._ahead.clear()
        self.active.clear()

    @property
    def over(self) -> bool:
        """True when nothing holds and nothing will come."""
        return not (self._ahead or self.active)

    @property
    def next_time(self) -> float:
        """When the next change comes, s; infinite when none does."""
        return self._ahead[0][0] if self._ahead else math.inf

    def changes(self, now: float) -> list[Change]:
        """What has begun and ended since the last call, in order; `active` is what holds after it."""
        found = []
        while self._ahead and self._ahead[0][0] <= now + 1e-9:
            _, _, change, source = heapq.heappop(self._ahead)
            found.append(change)
            self._enter(change, source)
        return found

    def _enter(self, change: Change, source: _Source) -> None:
        happening = change.occurrence
        if not change.begins:
            self.active.remove(happening)
            return
        self.active.append(happening)
        if happening.end < math.inf:
            self._push(Change(False, happening), source)
        if source.fault.every:
            self._plan(source, happening.start)

    def _plan(self, source: _Source, after: float) -> None:
        happening = source.next(after)
        self._push(Change(True, happening), source)

    def _push(self, change: Change, source: _Source) -> None:
        heapq.heappush(self._ahead, (change.time, next(self._order), change, source))


def require_servos(faults: Sequence[FaultConfig], there: Collection[int]) -> None:
    """Raises ValueError when a fault names a servo that is not there."""
    for fault in faults:
        if fault.servo is not None and fault.servo not in there:
            ids = ", ".join(map(str, sorted(there)))
            raise ValueError(f"there is no servo {fault.servo} for the fault {fault.kind!r}; there are {ids}")


def refuse_camera(faults: Sequence[FaultConfig]) -> None:
    """Raises ValueError for faults that only a camera with a cable can have."""
    for fault in faults:
        if fault.kind in CAMERA:
            raise ValueError(f"{fault.kind} is for an emulated camera; a simulated one has no cable")


def split(faults: Sequence[FaultConfig]) -> tuple[list[FaultConfig], list[FaultConfig]]:
    """Faults of cable, adapter and camera, and those of servos and mechanics."""
    outside = WIRE | ADAPTER | CAMERA
    return [f for f in faults if f.kind in outside], [f for f in faults if f.kind not in outside]


def mangled(kind: str, packet: bytes, luck: np.random.Generator) -> list[bytes]:
    """What becomes of a status packet (or of one servo's part of a fast one) by a fault on the wire."""
    match kind:
        case "lost":
            return []
        case "duplicate":
            return [packet, packet]
        case "corrupt":
            garbled = bytearray(packet)
            garbled[int(luck.integers(len(packet)))] ^= 1 << int(luck.integers(8))
            return [bytes(garbled)]
        case "short":
            return [_shortened(packet)]
        case "id-conflict":
            # Another servo says something else a little later: no driver is aligned to the byte.
            return [collide([packet + packet[-1:], bytes([packet[0], *packet])])]
    return [packet]


def _shortened(packet: bytes) -> bytes:
    """A status packet that is in itself correct, with half of its data; of what is none, the beginning."""
    for found in Parser().feed(packet):
        error, data = found.parameters[:1], found.parameters[1:]
        if found.size == len(packet) and data:
            return build_status(found.servo, error[0], data[: len(data) // 2])
    return packet[: len(packet) * 2 // 3]
