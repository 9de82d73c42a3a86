"""How the joints are calibrated: what a person is asked, and what the answers mean.

A state machine that is fed readings and keys and says what to show and what to do: it knows neither servos
nor terminals nor time, so that every way through it can be tried out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from robot.registers import RAD_PER_TICK, TICKS_PER_TURN, servo_name
from robot.settings import DynamixelConfig, Ticks, zero_ticks
from robot.types import Floats

Kind = Literal["begin", "straight", "bend", "stops", "choose", "again", "confirm", "agree", "write"]
Order = Literal["limp", "move", "relax", "write", "end"]

DEG = TICKS_PER_TURN / 360  # ticks
REST = 0.5  # s that joints must be at rest to be recorded; the median of these readings counts
FEWEST = 5  # readings in that time
WOBBLE = 6  # ticks, 0.5 deg, between them: a hand that holds still wobbles by so much
BEND = 15 * DEG  # ticks that a joint must be bent by: more than a limp finger hangs askew
MOVED = 10 * DEG  # ticks since the step began: a joint that only hangs bent was not bent by anybody
SPAN = 10 * DEG  # ticks that a joint must turn between its stops; one that turns less is blocked
JUMP = TICKS_PER_TURN / 4  # ticks between two readings that no hand turns in a twentieth of a second
CLOSE = 3.0  # deg: as well as a hand presses a joint against its stop, or holds a finger straight by eye
ALIGNED = 3.0  # deg by which a finger that is straight again may differ
ARRIVED = 5.0  # deg by which a joint that was sent to a pose may miss it, its load included
FINGER = 3  # joints
POSE = (
    0.0,
    -0.8,
    0.3,
)  # rad, where the robot shows what it has learned: outwards, 30 mm off the valve at least

# What each segment is bent towards, and the angle's sign there.
DIRECTIONS = (
    ("swing the finger's tip sideways, counter-clockwise seen from above,", 1),
    ("bend the finger's tip outwards, away from the valve,", -1),
    ("bend the finger's tip outwards, away from the valve,", -1),
)
KEYS = {
    "begin": "Enter begins   q quits",
    "straight": "Enter records   s keeps the stored zeros   b back   q quits",
    "bend": "Enter records   s keeps the stored direction   b back   r anew   q quits",
    "stops": "Enter records   s keeps the stored stops   a goes by the limits   b back   r anew   q quits",
    "choose": "Enter by your hands   m by the robot's motors   b back   q quits",
    "again": "Enter compares   r records this finger anew   b back   q quits",
    "confirm": "y moves   any other key does not",
    "agree": "y yes   n no",
    "write": "Enter writes   b back   q quits",
}


@dataclass(frozen=True, slots=True)
class Look:
    """Where the joints' servos were at a time (s): (J,) ticks."""

    time: float
    ticks: Ticks


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is asked, of these joints."""

    kind: Kind
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What is known of the joints: as configured, and as measured since."""

    zeros: tuple[int, ...]  # (J,) ticks when straight
    signs: tuple[Literal[1, -1], ...]  # (J,)
    stops: tuple[tuple[int, int] | None, ...]  # (J,) ticks; None: not measured
    rows: frozenset[int] = frozenset()  # the joints of which something was measured

    def with_zeros(self, rows: Sequence[int], zeros: Sequence[int]) -> Measured:
        """With other zeros of some joints."""
        found = dict(zip(rows, zeros, strict=True))
        changed = tuple(found.get(row, zero) for row, zero in enumerate(self.zeros))
        return replace(self, zeros=changed, rows=self.rows | {*rows})

    def with_sign(self, row: int, sign: Literal[1, -1]) -> Measured:
        """With the direction of one joint."""
        signs = (*self.signs[:row], sign, *self.signs[row + 1 :])
        return replace(self, signs=signs, rows=self.rows | {row})

    def with_stops(self, row: int, stops: tuple[int, int] | None) -> Measured:
        """With the stops of one joint."""
        changed = (*self.stops[:row], stops, *self.stops[row + 1 :])
        return replace(self, stops=changed, rows=self.rows | {row} if stops else self.rows)

    def degrees(self, ticks: Ticks) -> Floats:
        """(J,) deg of joints at ticks (J,)."""
        return np.asarray((ticks - np.array(self.zeros)) * np.array(self.signs) / DEG, np.float64)

    def stop_degrees(self, row: int) -> tuple[float, float] | None:
        """The stops of one joint, deg, the lower one first."""
        stops = self.stops[row]
        if stops is None:
            return None
        low, high = sorted((stop - self.zeros[row]) * self.signs[row] / DEG for stop in stops)
        return low, high


class Track:
    """The readings of one step: whether joints rest, how far they went, whether one passed its edge."""

    def __init__(self, first: Look | None = None) -> None:
        """first: the last reading before the step, from which on motions count."""
        self._recent: deque[Look] = deque()
        self._start: Ticks | None = None
        self._rested: Ticks | None = None  # where all joints first came to rest
        self.low = self.high = np.zeros(0, np.int64)  # (J,) ticks, the extremes
        self.jumped: set[int] = set()  # rows
        if first is not None:
            self.see(first)

    @property
    def latest(self) -> Look | None:
        """The last reading, if any."""
        return self._recent[-1] if self._recent else None

    def see(self, look: Look) -> None:
        """Takes a reading."""
        if self._start is None:
            self._start = self.low = self.high = look.ticks
        elif self._recent:
            leap = np.abs(look.ticks - self._recent[-1].ticks)
            self.jumped |= {*np.flatnonzero(leap > JUMP).tolist()}
        self.low, self.high = np.minimum(self.low, look.ticks), np.maximum(self.high, look.ticks)
        self._recent.append(look)
        while self._recent[0].time < look.time - REST - 1e-9:
            self._recent.popleft()
        if self._rested is None and not self.restless(range(len(look.ticks))):
            self._rested = self.median

    def lose_sight(self) -> None:
        """To be told that readings failed: what comes next is not compared with what was before."""
        self._recent.clear()

    @property
    def median(self) -> Ticks:
        """(J,) ticks over the time in which joints must rest."""
        middle = np.median([look.ticks for look in self._recent], axis=0)
        return np.asarray(np.rint(middle), dtype=np.int64)

    def restless(self, rows: Sequence[int]) -> dict[int, int]:
        """Those of these joints that move, by how many ticks; all of them until there are enough readings."""
        if not self._recent or self._recent[-1].time - self._recent[0].time < 0.8 * REST:
            return dict.fromkeys(rows, 0)
        if len(self._recent) < FEWEST:
            return dict.fromkeys(rows, 0)
        spread = np.ptp([look.ticks for look in self._recent], axis=0)
        return {row: int(spread[row]) for row in rows if spread[row] > WOBBLE}

    @property
    def ticks(self) -> Ticks:
        """(J,) of the last reading; where the step began while there is none."""
        if self._recent:
            return self._recent[-1].ticks
        return self.low

    @property
    def moved(self) -> Ticks:
        """(J,) ticks since the step began."""
        return self._apart(self._start)

    @property
    def moved_since_rest(self) -> Ticks:
        """(J,) ticks since all joints came to rest first: until then, fingers that were let go may fall."""
        return self._apart(self._rested)

    def _apart(self, start: Ticks | None) -> Ticks:
        if start is None or not self._recent:
            return np.zeros_like(self.low)
        return self._recent[-1].ticks - start

    def passed_edge(self, row: int) -> bool:
        """Whether a joint was turned over the place where its servo's turn ends."""
        return row in self.jumped or self.low[row] < 0 or self.high[row] >= TICKS_PER_TURN


class Refused(Exception):
    """What was asked for is not what the readings show; says what to do."""


class Procedure:
    """Leads through the calibration of all joints, finger by finger; nothing is lost by going back.

    Feed it with `see` and `press`; it says what to show (`ask`, `live`, `told`) and what to do (`orders`).
    """

    def __init__(self, config: DynamixelConfig) -> None:
        self._config, self._ids = config, config.joint_ids
        joints = range(len(self._ids))
        self._fingers = [tuple(joints[first : first + FINGER]) for first in joints[::FINGER]]
        self.steps = tuple(self._plan())
        self._at = 0
        self._back_to: int | None = None  # the step from which a finger is recorded anew
        self._quitting = False
        self._warned = False  # that a stop is within the limits
        self._lost = ""
        self.measured = known(config)
        self.residuals: dict[int, float] = {}  # row -> deg
        self.track = Track()
        self._told: list[str] = []
        self._orders: list[Order] = []

    # --- What to show and do -------------------------------------------------------------------------------

    @property
    def step(self) -> Step:
        """What is asked at present."""
        return self.steps[self._at]

    @property
    def place(self) -> str:
        """How far it is: '3 of 25'."""
        return f"{self._at + 1} of {len(self.steps)}"

    @property
    def keys(self) -> str:
        """What can be pressed."""
        return KEYS[self.step.kind]

    @property
    def worst(self) -> float:
        """The largest residual, deg."""
        return max((abs(error) for error in self.residuals.values()), default=0.0)

    def told(self) -> list[str]:
        """What has been said since the last time."""
        said, self._told = self._told, []
        return said

    def orders(self) -> list[Order]:
        """What is to be done since the last time."""
        orders, self._orders = self._orders, []
        return orders

    def ask(self) -> str:
        """What the person shall do."""
        rows = self.step.rows
        match self.step.kind:
            case "begin":
                return (
                    "All joints go limp and stay so: hold what may fall. Take the valve off, or turn it so "
                    "that its arms are between the fingers. Nothing is written before the end."
                )
            case "straight":
                return f"Finger {self._finger(rows)}: hold it straight down, all its joints in one line."
            case "bend":
                towards = DIRECTIONS[rows[0] % FINGER][0]
                return f"{self._name(rows[0])}: {towards} by 15 degrees or more, it alone. Hold it there."
            case "stops":
                return f"{self._name(rows[0])}: turn it to its one stop, then to its other stop."
            case "choose":
                return (
                    "All joints are recorded. To verify: put each finger straight once more (Enter), or let "
                    "the robot move to a pose by itself (m)."
                )
            case "again":
                return f"Finger {self._finger(rows)}: let go of it, then hold it straight down once more."
            case "confirm":
                return (
                    "THE ROBOT WILL MOVE: torque goes on, every finger moves from where it is to lean "
                    "outwards by 46 degrees, slowly, with at most 0.5 A. Put the fingers about straight, "
                    "take your hands away. A key stops it."
                )
            case "agree":
                return "Do all fingers lean outwards alike, away from the valve, none of them to a side?"
            case "write":
                return (
                    f"Verified: the largest residual is {self.worst:.1f} degrees. Enter writes the settings."
                )

    def live(self) -> str:
        """The readings of the joints that are asked for, deg, and what is wrong at the moment."""
        if self._lost:
            return self._lost
        look = self.track.latest
        if look is None or not self.step.rows:
            return ""
        finger = next(finger for finger in self._fingers if self.step.rows[0] in finger)
        angles = self.measured.degrees(look.ticks)
        readings = "  ".join(f"{self._ids[row]}: {angles[row]:+6.1f}" for row in finger)
        return f"{readings} deg   {self._hint()}".rstrip()

    # --- What happens --------------------------------------------------------------------------------------

    def see(self, look: Look) -> None:
        """Takes a reading of all joints."""
        if self._lost:
            self._lost = ""
            self._say("the servos answer again: go on")
        self.track.see(look)

    def lose_sight(self, why: str) -> None:
        """To be told that a reading failed: what was recorded stays, and it goes on once they answer."""
        if not self._lost:
            self._say(
                f"{why} What was recorded is kept; it goes on by itself when the servos answer. q quits."
            )
        self._lost = "no answer"
        self.track.lose_sight()

    def press(self, key: str) -> None:
        """Takes a key: a letter, or `enter`."""
        if self._quitting:
            self._quitting = False
            if key == "q":
                self._orders.append("end")
            else:
                self._say("going on")
            return
        if key == "q" and self.step.kind not in ("confirm", "agree"):
            self._quitting = True
            self._say("Quit without writing anything? q again quits, any other key goes on.")
            return
        try:
            self._act(key)
        except Refused as refusal:
            self._say(str(refusal))

    def moved(self, degrees: Floats) -> None:
        """The robot stands in its pose and misses it by (J,) deg."""
        self.residuals = dict(enumerate(np.asarray(degrees, np.float64).tolist()))
        self._say(f"residuals, commanded against measured: {self._listed(self.residuals)}")
        if self.worst > ARRIVED:
            self.failed(f"More than {ARRIVED:g} degrees: is a joint blocked, or a sign wrong?")
            return
        self._go("agree")

    def failed(self, why: str) -> None:
        """What was ordered did not succeed: says why, and asks for the choice, or the writing, again."""
        self._say(why)
        if self.step.kind != "write":
            self._orders.append("relax")
            self._go("choose")

    # --- Keys ----------------------------------------------------------------------------------------------

    def _act(self, key: str) -> None:
        kind = self.step.kind
        if kind in ("confirm", "agree"):
            self._decide(key)
        elif self._lost:
            raise Refused("The servos do not answer: nothing can be recorded now.")
        elif key == "b":
            self._go_back()
        elif key == "enter":
            self._enter()
        elif key == "r" and kind in ("bend", "stops"):
            self._begin_step()
            self._say("from anew")
        elif key == "r" and kind == "again":
            self._record_anew()
        elif key == "s" and kind in ("straight", "bend", "stops"):
            self._say(f"{self._whom()}: kept as it was")
            self._advance()
        elif key == "a" and kind == "stops":
            self.measured = self.measured.with_stops(self.step.rows[0], None)
            self._say(f"{self._whom()}: the limits stay as configured, its stops were not measured")
            self._advance()
        elif key == "m" and kind == "choose":
            self._require_something()
            self._go("confirm")

    def _decide(self, key: str) -> None:
        """A question whose answer is a motor's motion, or the end of one."""
        if self.step.kind == "confirm":
            if key == "y":
                self._orders.append("move")
            else:
                self._go("choose")
        elif key == "y":
            self._orders.append("relax")
            self._go("write")
        elif key in ("n", "q", "b"):
            self.failed("Then a direction or a zero is wrong: `b` leads back to the joints.")

    def _enter(self) -> None:
        match self.step.kind:
            case "begin":
                self._orders.append("limp")
            case "straight":
                self._record_straight()
            case "bend":
                self._record_bend(self.step.rows[0])
            case "stops":
                self._record_stops(self.step.rows[0])
            case "choose":
                self._require_something()
            case "again":
                self._compare()
            case "write":
                self._orders.append("write")
                return
        self._advance()

    def _record_straight(self) -> None:
        rows = self.step.rows
        zeros = self._at_rest(rows)
        for row in rows:
            self._require_one_turn(row, int(zeros[row]), int(zeros[row]))
        self.measured = self.measured.with_zeros(rows, zeros[[*rows]].tolist())
        self._forget_residuals(rows)
        at = ", ".join(f"{self._ids[row]} at {zeros[row]}" for row in rows)
        self._say(f"finger {self._finger(rows)}: straight with {at} ticks")

    def _record_bend(self, row: int) -> None:
        at = self._at_rest((row,))
        self._require_alone(row)
        bent, moved = int(at[row]) - self.measured.zeros[row], int(self.track.moved[row])
        if abs(bent) < BEND or abs(moved) < MOVED or (bent > 0) != (moved > 0):
            raise Refused(
                f"{self._name(row)} is {abs(bent) / DEG:.0f} deg from straight and was moved by "
                f"{abs(moved) / DEG:.0f}: bend it from straight by 15 or more. If you did, its horn is loose."
            )
        sign: Literal[1, -1] = 1 if (bent > 0) == (DIRECTIONS[row % FINGER][1] > 0) else -1
        self._require_limits_fit(row, sign)
        was = "" if sign == self._config.signs[row] else f", configured was {self._config.signs[row]:+d}"
        self.measured = self.measured.with_sign(row, sign)
        self._forget_residuals((row,))
        self._say(f"{self._name(row)}: direction {sign:+d}{was}")

    def _record_stops(self, row: int) -> None:
        if self.track.latest is None:
            raise Refused("There was no reading yet.")
        low, high, zero = int(self.track.low[row]), int(self.track.high[row]), self.measured.zeros[row]
        if high - low < SPAN:
            self._require_alone(row)
            raise Refused(
                f"{self._name(row)} turned by {(high - low) / DEG:.0f} deg only. Is it blocked? Free it and "
                "turn it; `a` goes by the configured limits instead."
            )
        self._require_one_turn(row, low, high)
        if not low - CLOSE * DEG <= zero <= high + CLOSE * DEG:
            raise Refused(
                f"{self._name(row)} was straight at {zero} ticks, not between these stops, {low} and {high}. "
                "Turn it to both stops; if you did, it was not straight then: `b` goes back."
            )
        measured = self.measured.with_stops(row, (low, high))
        self._warn_of_near_stops(row, measured)
        self.measured = measured
        self._say(f"{self._name(row)}: stops at {self._between(measured.stop_degrees(row))} deg")

    def _warn_of_near_stops(self, row: int, measured: Measured) -> None:
        """A stop within the limits is either the joint's, or the person did not turn it all the way."""
        lower, upper = limits(self._config, measured)[row]
        box = self._config.safety.lower[row], self._config.safety.upper[row]
        if (lower, upper) == box or self._warned:
            return
        self._warned = True
        allowed = self._between((np.rad2deg(box[0]), np.rad2deg(box[1])))
        raise Refused(
            f"{self._name(row)} was turned from {self._between(measured.stop_degrees(row))} deg, but is "
            f"allowed {allowed}. If these are its stops, Enter again: it will not be sent beyond them. Else "
            "turn it on."
        )

    def _compare(self) -> None:
        rows = self.step.rows
        degrees = self.measured.degrees(self._at_rest(rows))
        found = {row: float(degrees[row]) for row in rows}
        self._say(f"finger {self._finger(rows)}: residuals {self._listed(found)}")
        if max(abs(error) for error in found.values()) > ALIGNED:
            raise Refused(
                f"More than {ALIGNED:g} degrees. Hold it straight and Enter again, or `r` records this "
                "finger anew."
            )
        self.residuals |= found

    # --- What is refused -----------------------------------------------------------------------------------

    def _at_rest(self, rows: Sequence[int]) -> Ticks:
        """(J,) ticks. Raises Refused while one of these joints moves."""
        restless = self.track.restless(rows)
        if not restless:
            return self.track.median
        row, ticks = max(restless.items(), key=lambda item: item[1])
        by = f"moves, by {ticks / DEG:.1f} deg in half a second" if ticks else "has not been at rest for long"
        raise Refused(
            f"{self._name(row)} {by}. Hold it still for a second, then Enter: nothing was recorded."
        )

    def _require_alone(self, row: int) -> None:
        """Refuses when another joint was moved instead of this one."""
        other, degrees = self._mover(row)
        if other == row:
            return
        mine = abs(self.track.moved[row]) / DEG
        raise Refused(
            f"{self._name(other)} has moved by {degrees:.0f} deg, {self._name(row)} by {mine:.0f}. Move "
            f"servo {self._ids[row]} alone, the others held; `r` begins anew. If you did, these two are "
            "exchanged: `run_robot.py motors --set-id` gives each its id."
        )

    def _mover(self, row: int) -> tuple[int, float]:
        """The joint that was moved, this one or another in its place, and by how many deg.

        Once this one was moved, the other fingers do not count, which may swing or slip from where they lean,
        nor does what fell at first.
        """
        mine, moved = abs(self.track.moved[row]), np.abs(self.track.moved)
        if mine >= MOVED:
            moved = np.abs(self.track.moved_since_rest) * self._beside(row)
        # What was put straight, from the stop that it was at, was not bent in place of another.
        bent = np.abs(self.track.ticks - np.array(self.measured.zeros)) >= MOVED
        other = int((moved * bent).argmax())
        exchanged = other != row and moved[other] > max(MOVED, mine)
        return (other, float(moved[other] / DEG)) if exchanged else (row, float(mine / DEG))

    def _beside(self, row: int) -> Ticks:
        """(J,) 1 for the joints of this one's finger, 0 for others."""
        finger = next(finger for finger in self._fingers if row in finger)
        return np.isin(np.arange(len(self._ids)), finger).astype(np.int64)

    def _require_one_turn(self, row: int, low: int, high: int) -> None:
        if low >= 0 and high < TICKS_PER_TURN and row not in self.track.jumped:
            return
        raise Refused(
            f"{self._name(row)} has passed the end of its servo's turn (0/{TICKS_PER_TURN} ticks), where "
            "angles jump. Turn it back, switch the servo power off and on, `r`. If it must pass there to be "
            "straight or to get to a stop, loosen its horn and mount it with straight near 2048 ticks."
        )

    def _require_limits_fit(self, row: int, sign: int) -> None:
        """A servo takes goals within its turn, so the limits must lie there."""
        config, zero = self._config, self.measured.zeros[row]
        margin = config.limit_margin
        box = np.array([config.safety.lower[row] - margin, config.safety.upper[row] + margin])
        low, high = np.sort(np.rint(zero + sign * box / RAD_PER_TICK)).astype(int).tolist()
        if low < 0 or high >= TICKS_PER_TURN:
            raise Refused(
                f"{self._name(row)} is straight at {zero} ticks, so its limits would be {low} to {high}; a "
                f"servo takes 0 to {TICKS_PER_TURN - 1}. Loosen its horn, mount it with straight nearer to "
                "2048, then `b`."
            )

    def _require_something(self) -> None:
        if not self.measured.rows:
            raise Refused("Nothing was measured: there is nothing to write. `b` goes back, q quits.")

    # --- Going on ------------------------------------------------------------------------------------------

    def _plan(self) -> Iterator[Step]:
        yield Step("begin")
        for finger in self._fingers:
            yield Step("straight", finger)
            for row in finger:
                yield Step("bend", (row,))
                yield Step("stops", (row,))
        yield Step("choose")
        yield from (Step("again", finger) for finger in self._fingers)
        yield from (Step("confirm"), Step("agree"), Step("write"))

    def _advance(self) -> None:
        if self._back_to is not None and self.step.kind == "straight":
            self._at, self._back_to = self._back_to, None
        else:
            self._at += 1
        while self.step.kind == "again" and not self.measured.rows & {*self.step.rows}:
            self._at += 1  # of this finger nothing was measured
        if self.step.kind == "confirm":
            self._go("write")
        self._begin_step()

    def _go(self, kind: Kind) -> None:
        self._at = next(number for number, step in enumerate(self.steps) if step.kind == kind)
        self._begin_step()

    def _go_back(self) -> None:
        if self.step.kind == "write":
            self._go("choose")
        elif self._at > 1:
            self._at -= 1
            self._begin_step()

    def _record_anew(self) -> None:
        self._back_to, rows = self._at, self.step.rows
        self._at = self.steps.index(Step("straight", rows))
        self._begin_step()

    def _begin_step(self) -> None:
        self.track, self._warned = Track(self.track.latest), False

    def _forget_residuals(self, rows: Sequence[int]) -> None:
        self.residuals = {row: error for row, error in self.residuals.items() if row not in rows}

    # --- Words ---------------------------------------------------------------------------------------------

    def _hint(self) -> str:
        """What the readings of the moment mean for what is asked."""
        rows, kind = self.step.rows, self.step.kind
        if passed := [row for row in rows if self.track.passed_edge(row)]:
            return f"servo {self._ids[passed[0]]} has passed the end of its turn"
        if kind in ("bend", "stops"):
            other, _ = self._mover(rows[0])
            if other != rows[0] and self._beside(rows[0])[other]:
                return f"servo {self._ids[other]} moves, it should be {self._ids[rows[0]]}"
        if kind == "stops":
            low, high = (int(ends[rows[0]]) for ends in (self.track.low, self.track.high))
            return f"seen {low} to {high} ticks"
        return "moving" if self.track.restless(rows) else "at rest"

    def _name(self, row: int) -> str:
        return servo_name(self._ids[row])

    def _finger(self, rows: Sequence[int]) -> str:
        servos = ", ".join(str(self._ids[row]) for row in rows)
        return f"{self._fingers.index(tuple(rows)) + 1} (servos {servos})"

    def _whom(self) -> str:
        rows = self.step.rows
        return self._name(rows[0]) if len(rows) == 1 else f"finger {self._finger(rows)}"

    def _listed(self, degrees: dict[int, float]) -> str:
        return ", ".join(f"{self._ids[row]} {error:+.1f}" for row, error in degrees.items()) + " deg"

    @staticmethod
    def _between(ends: tuple[float, float] | None) -> str:
        return f"{ends[0]:+.0f} to {ends[1]:+.0f}" if ends else "?"

    def _say(self, text: str) -> None:
        self._told.append(text)


def known(config: DynamixelConfig) -> Measured:
    """What the configuration says of the joints."""
    record = config.calibration
    stops = [servo.range for servo in record.servos] if record else [None] * len(config.joint_ids)
    return Measured(tuple(zero_ticks(config).tolist()), config.signs, tuple(stops))


def limits(config: DynamixelConfig, measured: Measured) -> list[tuple[float, float]]:
    """(lower, upper) rad of each joint: as configured, but for stops that lie clearly within."""
    found = []
    for row, (lower, upper) in enumerate(zip(config.safety.lower, config.safety.upper, strict=True)):
        low, high = np.deg2rad(measured.stop_degrees(row) or (-180.0, 180.0))
        close = np.deg2rad(CLOSE)
        found.append(
            (
                float(low) if low > lower + close else lower,
                float(high) if high < upper - close else upper,
            )
        )
    return found
