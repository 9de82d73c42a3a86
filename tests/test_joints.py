"""Promises of the joints' calibration: what a person's hands show is found, what they do wrong is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from calibration.joints import BEND, DIRECTIONS, Look, Procedure, limits
from robot.kinematics import FingerPositions
from robot.registers import TICKS_PER_TURN
from robot.safety import SafetyConfig
from robot.settings import DynamixelConfig, Sign

ONE_FINGER = DynamixelConfig(
    joint_ids=(10, 11, 12),
    offsets=(-np.pi / 2, -np.pi, -np.pi),
    signs=(1, 1, 1),
    safety=SafetyConfig(lower=(-0.48, -1.0472, -1.5708), upper=(0.48, 1.0472, 1.5708)),
)
TRUTH = np.array([1100, 2100, 1950])  # ticks when straight, of which the configuration knows nothing


class Bench:
    """A finger whose servos show what a test wants, and whoever presses the keys."""

    def __init__(self, config: DynamixelConfig = ONE_FINGER) -> None:
        self.procedure = Procedure(config)
        self.ticks, self.time = TRUTH.copy(), 0.0

    def look(self, ticks: Sequence[int] | np.ndarray) -> None:
        self.ticks, self.time = np.array(ticks), self.time + 0.05
        self.procedure.see(Look(self.time, self.ticks))

    def hold(self, offset: Sequence[int], looks: int = 15) -> None:
        """For three quarters of a second, so many ticks away from straight."""
        for _ in range(looks):
            self.look(TRUTH + np.array(offset))

    def sweep(self, *ends: Sequence[int]) -> None:
        """From place to place, ticks from straight, no faster than hands are."""
        for end in ends:
            goal = TRUTH + np.array(end)
            while (self.ticks != goal).any():
                self.look(self.ticks + np.clip(goal - self.ticks, -80, 80))

    def press(self, *keys: str) -> str:
        """Presses keys; what was said to the last one."""
        for key in keys:
            self.procedure.told()
            self.procedure.press(key)
        return " ".join(self.procedure.told())

    @property
    def kind(self) -> str:
        return self.procedure.step.kind

    def straighten(self) -> None:
        self.press("enter")
        self.hold([0, 0, 0])
        self.press("enter")
        assert self.kind == "bend"

    def to_stops(self) -> None:
        """At the first joint's stops, its direction recorded."""
        self.straighten()
        self.hold([200, 0, 0])
        self.press("enter")
        assert self.kind == "stops"
        self.hold([200, 0, 0])

    def through(self) -> None:
        """Everything is recorded, but not verified."""
        self.straighten()
        for row in range(3):
            self.sweep(*unit(row, 0, 200 * DIRECTIONS[row][1]))
            self.hold(unit(row, 200 * DIRECTIONS[row][1])[0])
            self.press("enter")
            self.sweep(*unit(row, 700, -700, 0))
            self.press("enter", "enter")
            while self.kind == "stops":
                self.press("a")


def unit(row: int, *amounts: int) -> list[list[int]]:
    """Displacements of one joint alone."""
    return [[amount if place == row else 0 for place in range(3)] for amount in amounts]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- Straight


def test_zeros_are_the_median_of_a_rest(bench: Bench) -> None:
    bench.press("enter")
    for wobble in (0, 3, -2, 1, 0, 0, -3, 2, 0, 1, -1, 0):
        bench.look(TRUTH + wobble)
    assert "straight with 10 at 1100, 11 at 2100, 12 at 1950 ticks" in bench.press("enter")
    assert bench.procedure.measured.zeros == tuple(TRUTH)


def test_no_zero_is_recorded_while_a_joint_moves_and_it_is_named(bench: Bench) -> None:
    bench.press("enter")
    for step in range(15):
        bench.look(TRUTH + np.array([0, 3 * step, 0]))
    assert bench.press("enter").startswith("servo 11 (finger 1, middle) moves, by 2.")
    assert bench.kind == "straight"
    bench.hold([0, 42, 0])
    bench.press("enter")
    assert bench.procedure.measured.zeros == (1100, 2142, 1950)


def test_nor_right_after_it_came_to_rest(bench: Bench) -> None:
    bench.press("enter")
    bench.hold([0, 0, 0], looks=4)
    assert "has not been at rest for long" in bench.press("enter")


@pytest.mark.parametrize("ticks", [-3, TICKS_PER_TURN])
def test_straight_beyond_the_end_of_a_turn_is_refused(bench: Bench, ticks: int) -> None:
    bench.press("enter")
    bench.hold([0, 0, ticks - TRUTH[2]])
    assert "servo 12 (finger 1, distal) has passed the end of its servo's turn" in bench.press("enter")
    assert bench.kind == "straight"


# --- Direction


@pytest.mark.parametrize("moved", [200, -200])
@pytest.mark.parametrize("row", range(3))
def test_the_direction_is_that_of_the_motion_that_was_asked_for(bench: Bench, row: int, moved: int) -> None:
    bench.straighten()
    bench.press(*"sa" * row)
    bench.sweep(*unit(row, moved))
    bench.hold(unit(row, moved)[0])
    bench.press("enter")
    expected: Sign = 1 if (moved > 0) == (DIRECTIONS[row][1] > 0) else -1
    assert bench.procedure.measured.signs[row] == expected
    assert bench.kind == "stops"


def test_the_motions_asked_for_go_where_the_model_says() -> None:
    """Sideways is counter-clockwise seen from above, outwards is away from the valve's axis."""
    at = FingerPositions()
    straight = at(np.zeros(9))[:, 1]
    for row in range(9):
        sign = DIRECTIONS[row % 3][1]
        tip, (x, y, _) = at(np.eye(9)[row] * 0.26 * sign)[row // 3, 1], straight[row // 3]
        outwards, around = np.array([x, y, 0]), np.array([-y, x, 0])
        towards = around if row % 3 == 0 else outwards
        assert (tip - straight[row // 3]) @ towards / np.linalg.norm(towards) > 0.015


def test_a_joint_that_was_not_bent_is_told(bench: Bench) -> None:
    bench.straighten()
    bench.hold([100, 0, 0])
    said = bench.press("enter")
    assert "servo 10 (finger 1, proximal) is 9 deg from straight and was moved by 9" in said
    assert "bend it from straight by 15 or more" in said
    assert bench.kind == "bend"


def test_a_joint_that_hangs_bent_is_not_taken_for_bent(bench: Bench) -> None:
    bench.press("enter")
    bench.hold([0, -int(BEND) - 100, 0])
    bench.press(*"ssa")
    bench.hold([0, -int(BEND) - 100, 0])
    assert "was moved by 0" in bench.press("enter")


def test_the_joint_that_was_moved_in_place_of_another_is_named(bench: Bench) -> None:
    """A person's mistake, or two servos with each other's id."""
    bench.straighten()
    bench.sweep([0, 0, 250])
    bench.hold([0, 0, 250])
    assert "servo 12 moves, it should be 10" in bench.procedure.live()
    said = bench.press("enter")
    assert "servo 12 (finger 1, distal) has moved by 22 deg, servo 10 (finger 1, proximal) by 0" in said
    assert "motors --set-id" in said
    assert bench.kind == "bend"


def test_a_joint_that_falls_when_it_is_let_go_is_not_blamed(bench: Bench) -> None:
    bench.straighten()
    bench.sweep([0, 0, 400])
    bench.hold([0, 0, 400])  # nobody moved it
    bench.sweep([200, 0, 400])
    bench.hold([200, 0, 400])
    assert "direction +1" in bench.press("enter")


def test_other_fingers_may_swing_unless_nothing_else_was_moved() -> None:
    procedure, time = Procedure(DynamixelConfig()), iter(np.arange(0.0, 9.0, 0.05))
    straight = np.array([1024, 2048, 2048] * 3)

    def see(proximal: int, swing: int) -> None:
        for step in range(15):
            moved = np.array([proximal, 0, 0, 0, 0, 0, 0, 0, swing * (step + 5)])
            procedure.see(Look(float(next(time)), straight + moved))

    procedure.press("enter")
    see(0, 0)
    procedure.press("enter")
    see(0, 30)
    assert "servo 32" not in procedure.live()
    procedure.told()
    procedure.press("enter")
    assert "servo 32 (finger 3, distal) has moved by" in procedure.told()[0]
    see(200, 30)
    procedure.press("enter")
    assert procedure.told() == ["servo 10 (finger 1, proximal): direction +1"]


def test_a_joint_that_is_put_straight_from_its_stop_is_not_blamed(bench: Bench) -> None:
    bench.to_stops()
    bench.sweep([890, 0, 0], [-330, 0, 0])
    bench.press("enter")
    bench.hold([-330, 0, 0])
    bench.sweep([0, 200, 0])
    bench.hold([0, 200, 0])
    assert "servo 11 (finger 1, middle): direction -1" in bench.press("enter")


def test_a_zero_that_leaves_no_room_for_the_limits_is_told_with_the_cure() -> None:
    bench = Bench()
    bench.press("enter")
    bench.hold([0, 0, 300 - TRUTH[2]])
    bench.press("enter", *"sasa")
    bench.sweep([0, 0, 600 - TRUTH[2]])
    bench.hold([0, 0, 600 - TRUTH[2]])
    said = bench.press("enter")
    assert "is straight at 300 ticks, so its limits would be -757 to 1357; a servo takes 0 to 4095" in said
    assert "Loosen its horn" in said
    assert bench.kind == "bend"


# --- Stops


def test_stops_are_the_furthest_that_a_joint_was_turned(bench: Bench) -> None:
    bench.to_stops()
    bench.sweep([890, 0, 0], [-330, 0, 0])
    assert "stops at -29 to +78 deg" in bench.press("enter")
    assert bench.procedure.measured.stops[0] == (770, 1990)
    assert limits(ONE_FINGER, bench.procedure.measured)[0] == (-0.48, 0.48)


def test_a_stop_within_the_limits_is_asked_about_and_then_narrows_them(bench: Bench) -> None:
    bench.to_stops()
    bench.sweep([890, 0, 0], [-200, 0, 0])
    assert "is allowed -28 to +28. If these are its stops, Enter again" in bench.press("enter")
    assert bench.kind == "stops"
    bench.press("enter")
    lower, upper = limits(ONE_FINGER, bench.procedure.measured)[0]
    assert (lower, upper) == (pytest.approx(-200 * 2 * np.pi / 4096), 0.48)


def test_a_blocked_joint_is_told_and_may_be_left_unmeasured(bench: Bench) -> None:
    bench.to_stops()
    bench.sweep([220, 0, 0], [180, 0, 0])
    assert "turned by 4 deg only. Is it blocked?" in bench.press("enter")
    assert "limits stay as configured" in bench.press("a")
    assert bench.procedure.measured.stops[0] is None


def test_the_wrong_joint_at_its_stops_is_named(bench: Bench) -> None:
    bench.to_stops()
    bench.sweep([200, 900, 0], [200, -900, 0])
    assert "servo 11 (finger 1, middle) has moved by 79 deg" in bench.press("enter")


@pytest.mark.parametrize("wraps", [True, False], ids=["jumps", "counts on"])
def test_a_joint_that_passes_the_end_of_its_turn_is_told_at_once(bench: Bench, wraps: bool) -> None:
    bench.to_stops()
    bench.sweep([-1090, 0, 0])
    for ticks in (-20, -60):
        bench.look([ticks % TICKS_PER_TURN if wraps else ticks, 2100, 1950])
    assert "servo 10 has passed the end of its turn" in bench.procedure.live()
    assert "has passed the end of its servo's turn (0/4096 ticks)" in bench.press("enter")
    bench.sweep([0, 0, 0])
    bench.press("r")
    bench.sweep([400, 0, 0], [-400, 0, 0])
    assert "stops at" in bench.press("enter")


def test_a_zero_beyond_the_stops_is_told(bench: Bench) -> None:
    bench.to_stops()
    bench.hold([600, 0, 0])
    bench.press("r")
    bench.sweep([900, 0, 0], [500, 0, 0])
    assert "was straight at 1100 ticks, not between these stops, 1600 and 2000" in bench.press("enter")


# --- Verifying


def test_fingers_that_are_straight_again_verify_it(bench: Bench) -> None:
    bench.through()
    assert bench.kind == "choose"
    bench.press("enter")
    bench.hold([5, -10, 0])
    said = bench.press("enter")
    assert "residuals 10 +0.4, 11" in said
    assert bench.kind == "write"
    assert bench.procedure.worst == pytest.approx(0.88, abs=0.01)
    bench.press("enter")
    assert bench.procedure.orders() == ["limp", "write"]


def test_a_bad_residual_refuses_to_write_until_the_finger_is_recorded_anew(bench: Bench) -> None:
    bench.through()
    bench.press("enter")
    bench.hold([0, 60, 0])
    assert "More than 3 degrees" in bench.press("enter")
    assert bench.kind == "again"
    bench.press("r")
    assert bench.kind == "straight"
    bench.hold([0, 60, 0])
    bench.press("enter")
    assert bench.kind == "again", "what was measured before needs no second time"
    bench.hold([0, 60, 0])
    bench.press("enter")
    assert bench.kind == "write"
    assert bench.procedure.measured.zeros[1] == 2160


def test_the_robot_moves_only_after_it_was_announced_and_agreed_to(bench: Bench) -> None:
    bench.through()
    bench.procedure.orders()
    bench.press("m")
    assert "THE ROBOT WILL MOVE" in bench.procedure.ask()
    bench.press("enter")
    assert (bench.kind, bench.procedure.orders()) == ("choose", [])
    bench.press("m", "y")
    assert bench.procedure.orders() == ["move"]
    bench.procedure.moved(np.array([0.1, -1.6, 0.2]))
    assert bench.kind == "agree"
    bench.press("y")
    assert (bench.kind, bench.procedure.orders()) == ("write", ["relax"])


@pytest.mark.parametrize("wrong", ["residual", "eyes"])
def test_a_pose_that_was_missed_or_looks_wrong_refuses_to_write(bench: Bench, wrong: str) -> None:
    bench.through()
    bench.press("m", "y")
    bench.procedure.moved(np.array([0.1, 5.6 if wrong == "residual" else 0.1, 0.2]))
    if wrong == "eyes":
        bench.press("n")
    assert bench.kind == "choose"
    assert "relax" in bench.procedure.orders()


# --- Keys


def test_what_is_skipped_stays_as_it_was_and_nothing_measured_is_nothing_to_write(bench: Bench) -> None:
    bench.press("enter", "s", *"ss" * 3)
    assert bench.kind == "choose"
    assert bench.procedure.measured.zeros == (1024, 2048, 2048)
    for key in ("enter", "m"):
        assert "Nothing was measured" in bench.press(key)
    assert bench.kind == "choose"


def test_going_back_forgets_nothing(bench: Bench) -> None:
    bench.to_stops()
    bench.press("b", "b")
    assert bench.kind == "straight"
    bench.press("s", "s")
    assert bench.kind == "stops"
    assert bench.procedure.measured.zeros == tuple(TRUTH)


def test_quitting_is_asked_twice(bench: Bench) -> None:
    bench.to_stops()
    assert "Quit without writing anything?" in bench.press("q")
    assert bench.press("x") == "going on"
    assert bench.kind == "stops"
    bench.press("q", "q")
    assert bench.procedure.orders()[-1] == "end"


def test_silence_loses_nothing_and_records_nothing(bench: Bench) -> None:
    bench.straighten()
    bench.procedure.lose_sight("servo 12 (finger 1, distal) did not answer.")
    bench.procedure.lose_sight("servo 12 (finger 1, distal) did not answer.")
    said = bench.procedure.told()
    assert len([line for line in said if "did not answer" in line]) == 1
    assert "The servos do not answer" in bench.press("enter")
    bench.hold([200, 0, 0])
    assert "the servos answer again" in " ".join(bench.procedure.told())
    assert "direction +1" in bench.press("enter")
