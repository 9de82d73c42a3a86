"""Promises of the joints' calibration at the bench: the plant is recovered, whatever happens meanwhile."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import signal
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import run_robot
from calibration import publishing
from calibration.joints_session import Bench, JointsError, Session
from calibration.terminal import NoTerminal, Terminal
from configs.document import Layer
from configs.loader import load
from configs.run import HwConfig
from robot import registers as reg
from robot.dynamixel import DynamixelRobot
from robot.emulator import Emulator, EmulatorConfig
from robot.faults import FaultConfig, FaultSchedule
from robot.settings import DynamixelConfig, zero_ticks
from robot.sim import SimConfig, SimPlant
from robot.types import ServoSilent
from tests.hands import Deed, Hands, Person
from tests.screen import Screen

ROOT = Path(__file__).parents[1]
# Each servo mounted otherwise than the configuration believes, some the other way round.
TRUTH = SimConfig(
    zero_ticks=(1100, 2100, 1950, 980, 2048, 2148, 1024, 1990, 2048, 2000),
    signs=(1, -1, 1, 1, -1, 1, 1, 1, -1, 1),
)
FINGER = DynamixelConfig.model_validate(
    {
        "joint_ids": (10, 11, 12),
        "offsets": (-np.pi / 2, -np.pi, -np.pi),
        "signs": (1, 1, 1),
        "safety": {"lower": (-0.48, -1.0472, -1.5708), "upper": (0.48, 1.0472, 1.5708)},
    }
)
AGREE = "Do all fingers lean outwards"
Deeds = Mapping[str, Callable[[], Deed]]


class Room:
    """A plant, a person with hands before it, and what was said and written."""

    def __init__(self, folder: Path) -> None:
        self.plant = SimPlant(TRUTH)
        self.hands = Hands(self.plant.hold_by_hand, self.plant.now)
        self.path = folder / "joints" / "dclaw.yaml"
        self.console = Console(file=io.StringIO(), width=120)

    def calibrate(self, config: DynamixelConfig, deeds: Deeds | None = None) -> bool:
        """True when the settings were written."""
        self.person = Person(self.hands, deeds)
        bench = Bench(self.plant, config, self.plant)
        return Session(bench, self.person, self.console, "dclaw", self.path, "2026-11-21 23:30").run()

    @property
    def found(self) -> DynamixelConfig:
        """What the written settings say."""
        return load(HwConfig, [Layer.from_file(self.path)]).hw.dclaw

    @property
    def said(self) -> str:
        return "\n".join(self.person.said)

    @property
    def limp(self) -> bool:
        return not any(servo.torque for servo in self.plant.servos.values())

    def fail(self, kind: str, servo: int | None = None, duration: float | None = None) -> None:
        fault = FaultConfig.model_validate({"kind": kind, "servo": servo, "duration": duration})
        self.plant.inject(FaultSchedule([fault], 0))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    room.plant.close()


def keys(*pressed: str) -> Callable[[], Deed]:
    return lambda: iter(pressed)


def require_the_truth(found: DynamixelConfig) -> None:
    """Zeros within a tick, directions and stops as the plant has them."""
    np.testing.assert_allclose(zero_ticks(found), TRUTH.zero_ticks[:9], atol=1)
    assert found.signs == TRUTH.signs[:9]
    assert found.calibration
    for row, servo in enumerate(found.calibration.servos):
        low, high = ((-0.45, 1.35), (-2.0, 2.0), (-2.0, 2.0))[row % 3]
        ends = sorted(TRUTH.zero_ticks[row] + TRUTH.signs[row] * np.array([low, high]) / reg.RAD_PER_TICK)
        np.testing.assert_allclose(servo.range or (0, 0), ends, atol=2)


# --- What is found


def test_planted_zeros_directions_and_stops_are_recovered_by_hand(room: Room) -> None:
    assert room.calibrate(DynamixelConfig())
    assert room.limp
    found = room.found
    require_the_truth(found)
    np.testing.assert_allclose(found.safety.upper, DynamixelConfig().safety.upper, atol=1e-4)
    room.plant.hold_by_hand({})
    with DynamixelRobot(room.plant, found, room.plant) as robot:
        np.testing.assert_allclose(robot.read().joints.position, room.plant.truth["qpos"][:9], atol=2e-3)
    with DynamixelRobot(room.plant, DynamixelConfig(), room.plant) as robot:
        assert np.abs(robot.read().joints.position - room.plant.truth["qpos"][:9]).max() > 0.05


def test_the_robot_verifies_it_by_moving_slowly_to_a_pose(room: Room) -> None:
    speeds: list[float] = []

    def look() -> Deed:
        speeds.append(float(np.abs(room.plant.truth["qvel"][:9]).max()))
        np.testing.assert_allclose(room.plant.truth["qpos"][:9], [0, -0.8, 0.3] * 3, atol=0.05)
        assert not room.limp
        assert room.plant.read(reg.GOAL_CURRENT, 11) * reg.AMPERE_PER_UNIT[1010] < 0.51  # A
        yield "y"

    deeds = {"or let the robot": keys("m"), "THE ROBOT WILL MOVE": hands_off(room), "lean outwards": look}
    assert room.calibrate(DynamixelConfig(goal_current=None), deeds)
    assert room.limp
    require_the_truth(room.found)
    assert "residuals, commanded against measured: 10 +0.0, 11 +1.6" in room.said
    assert speeds[0] < 0.05


def hands_off(room: Room) -> Callable[[], Deed]:
    """What is to be done before the robot moves: the fingers hang, then it may."""

    def deed() -> Deed:
        yield from room.hands.let_go()
        yield "y y"  # a finger that trembles has not seen how the robot will stand

    return deed


def test_one_finger_alone_is_verified_by_hand(room: Room) -> None:
    deeds = {"or let the robot": keys("m"), "THE ROBOT WILL MOVE": keys("y")}
    assert room.calibrate(FINGER, deeds)
    assert "A robot of 3 joints is not moved" in room.said
    assert room.limp
    assert room.found.signs == (1, -1, 1)


@pytest.mark.slow
def test_nobody_who_looks_lets_the_robot_go_limp(room: Room) -> None:
    def leave() -> Deed:
        room.person.patience = 200.0
        yield from room.hands.wait(55)
        assert not room.limp
        yield from room.hands.wait(10)

    deeds = {
        "or let the robot": keys("m"),
        "THE ROBOT WILL MOVE": hands_off(room),
        "lean outwards": leave,
        "All joints are recorded": keys("q", "q"),
    }
    assert not room.calibrate(DynamixelConfig(), deeds)
    assert "Nobody answered for 60 s: the robot is limp again" in room.said
    assert room.limp


def test_a_key_stops_the_motion_and_none_that_was_typed_ahead_starts_it(room: Room) -> None:
    deeds = {
        "or let the robot": keys("m y"),
        "THE ROBOT WILL MOVE": keys("y", "x"),
        "All joints are recorded": keys("q", "q"),
    }
    assert not room.calibrate(DynamixelConfig(), deeds)
    assert "Stopped: the robot is limp again" in room.said
    assert room.limp


@pytest.mark.slow
def test_a_cable_that_comes_out_while_it_moves_leaves_it_limp_once_it_is_back(room: Room) -> None:
    def pull() -> Deed:
        yield from room.hands.let_go()
        fault = FaultConfig(kind="unplug", at=1.0, duration=3.0)
        room.plant.inject(FaultSchedule([fault], 0))
        yield "y"

    def come_back() -> Deed:
        yield from room.hands.wait(6.0)
        assert room.limp
        yield "enter"

    deeds = {"or let the robot": keys("m"), "THE ROBOT WILL MOVE": pull, "All joints are recorded": come_back}
    assert room.calibrate(DynamixelConfig(), deeds)
    require_the_truth(room.found)


# --- What happens meanwhile


def test_a_cable_that_comes_out_loses_nothing(room: Room) -> None:
    def pull() -> Deed:
        room.fail("unplug", duration=3.0)
        yield from room.hands.wait(4.0)
        yield from room.hands.answer("servo 11 (finger 1, middle): bend")

    assert room.calibrate(FINGER, {"servo 11 (finger 1, middle): bend": pull})
    assert "What was recorded is kept; it goes on by itself" in room.said
    assert "the servos answer again: go on" in room.said
    assert "no answer" in room.person.seen
    np.testing.assert_allclose(zero_ticks(room.found), TRUTH.zero_ticks[:3], atol=1)


def test_a_servo_that_restarts_with_torque_is_made_limp_again(room: Room) -> None:
    def meddle() -> Deed:
        room.fail("unplug", duration=1.0)
        for servo in (10, 12):
            room.plant.servos[servo].load(reg.TORQUE_ENABLE, 1)
        yield from room.hands.wait(2.0)
        assert room.limp
        yield from room.hands.answer("servo 11 (finger 1, middle): bend")

    assert room.calibrate(FINGER, {"servo 11 (finger 1, middle): bend": meddle})


def test_nothing_goes_limp_before_the_first_enter(room: Room) -> None:
    def shake_the_cable() -> Deed:
        room.fail("unplug", duration=1.0)
        room.plant.servos[12].load(reg.TORQUE_ENABLE, 1)
        yield from room.hands.wait(2.0)
        assert room.plant.servos[12].torque
        yield "enter"
        yield ""
        assert room.limp

    deeds = {"All joints go limp": shake_the_cable, "hold it straight down": keys("q", "q")}
    assert not room.calibrate(FINGER, deeds)
    assert "the servos answer again" in room.said


def test_other_servos_after_a_replug_end_it(room: Room) -> None:
    def exchange() -> Deed:
        room.fail("unplug", duration=1.0)
        room.plant.servos[12].load(reg.MODEL_NUMBER, 1050)
        yield from room.hands.wait(2.0)

    with pytest.raises(JointsError, match=r"servo 12 \(finger 1, distal\) is another one than before"):
        room.calibrate(FINGER, {"servo 11 (finger 1, middle): bend": exchange})
    assert not room.path.exists()


def test_a_missing_servo_is_named_before_anything_is_asked(room: Room) -> None:
    room.plant.power(12, on=False)
    with pytest.raises(ServoSilent, match=r"servo 12 \(finger 1, distal\) did not answer"):
        room.calibrate(FINGER)
    assert not room.path.exists()


def test_a_stuck_joint_is_told_and_the_others_are_calibrated(room: Room) -> None:
    def push() -> Deed:
        yield from room.hands.wait(0.5)
        yield from ("enter", "", "a")

    assert room.calibrate(FINGER, {"servo 12 (finger 1, distal): turn it to its one": push})
    assert "servo 12 (finger 1, distal) turned by 0 deg only. Is it blocked?" in room.said
    assert room.found.calibration
    assert [servo.range is None for servo in room.found.calibration.servos] == [False, False, True]


def test_two_servos_with_each_others_id_are_told_by_who_moved(room: Room) -> None:
    eleven, twelve = room.plant.servos[11], room.plant.servos[12]
    eleven.load(reg.ID, 12)
    twelve.load(reg.ID, 11)
    room.plant.refresh()

    def bend() -> Deed:
        yield from room.hands.bring({12: -0.35})  # the middle joint, whose servo says that it is 12
        yield from room.hands.wait(0.7)
        yield from ("enter", "q", "q")

    assert not room.calibrate(FINGER, {"servo 11 (finger 1, middle): bend": bend})
    assert "servo 12 (finger 1, distal) has moved by 20 deg, servo 11 (finger 1, middle) by 0" in room.said
    assert not room.path.exists()


@pytest.mark.parametrize(
    "when", ["servo 12 (finger 1, distal): turn", pytest.param("lean outwards", marks=pytest.mark.slow)]
)
def test_ctrl_c_leaves_it_limp_and_the_old_settings_untouched(room: Room, when: str) -> None:
    def interrupt() -> Deed:
        raise KeyboardInterrupt
        yield ""

    room.path.parent.mkdir()
    room.path.write_text("old")
    deeds = {"or let the robot": keys("m"), "THE ROBOT WILL MOVE": hands_off(room), when: interrupt}
    config = FINGER if "servo 12" in when else DynamixelConfig()
    with pytest.raises(KeyboardInterrupt):
        room.calibrate(config, deeds)
    assert room.limp
    assert room.path.read_text() == "old"


def test_a_full_disk_loses_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    write = publishing.write_whole
    full = [OSError(errno.ENOSPC, "No space left on device")]

    def write_if_there_is_room(path: Path, fill: Callable[[Path], object]) -> None:
        if full:
            raise full.pop()
        write(path, fill)

    monkeypatch.setattr(publishing, "write_whole", write_if_there_is_room)
    assert room.calibrate(FINGER, {"Enter writes": keys("enter", "", "enter")})
    assert "could not be written: No space left on device. Its text is above" in room.said
    assert isinstance(room.console.file, io.StringIO)
    assert "offsets: [-1.6873789" in room.console.file.getvalue()
    assert room.found.signs == (1, -1, 1)


def test_stops_of_another_robots_calibration_are_not_taken_over(room: Room) -> None:
    assert room.calibrate(FINGER)
    room.plant.servos[12].load(reg.MODEL_NUMBER, 1050)
    assert Bench(room.plant, room.found, room.plant).config.calibration is None
    room.plant.servos[12].load(reg.MODEL_NUMBER, 1010)
    assert Bench(room.plant, room.found, room.plant).config.calibration


# --- The command


def test_without_a_terminal_it_says_so_and_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(os.devnull) as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert run_robot.main(["calibrate", "joints", "--hw", "dclaw"]) == 2
    assert "`ssh -t`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("calibrate joints --hw sim", "--hw sim has no joints that a hand could move"),
        (
            "calibrate joints --hw dclaw --from x",
            "--from is for `calibrate camera`, not for `calibrate joints`",
        ),
        ("calibrate knees --hw dclaw", "invalid choice: 'knees'"),
    ],
)
def test_what_the_command_cannot_do_is_told(
    command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run_robot.main(command.split())
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    assert code == 2
    assert words in capsys.readouterr().err


def test_keys_count_one_by_one_and_the_terminal_is_as_before() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stream:
        before = termios.tcgetattr(slave)
        with Terminal(stream, Console(file=io.StringIO())) as terminal:
            assert terminal.pressed() == []
            os.write(master, b"S\r\x1b[A")
            assert terminal.pressed() == ["s", "enter"]
            os.write(master, b"\x04")
            with pytest.raises(KeyboardInterrupt):
                terminal.pressed()
        assert termios.tcgetattr(slave) == before
    os.close(master)
    with open(os.devnull) as nobody:
        for stream in (nobody, None):
            with pytest.raises(NoTerminal):
                Terminal(stream, Console())


def play(screen: Screen, hands: Hands, until: str = "\0", limit: float = 90.0) -> None:
    """Answers each question on the screen until the command ends, or says the words."""
    asked, deed, deadline = 0, iter(()), time.monotonic() + limit  # type: int, Deed, float
    while screen.process.poll() is None and until not in screen.text:
        assert time.monotonic() < deadline, screen.text
        screen.read()
        places = [*re.finditer(r"\[(\d+) of \d+\] .*?(?:Enter|y moves|y yes)", screen.text, re.DOTALL)]
        if len(places) > asked:
            asked, text = len(places), " ".join(places[-1][0].split())
            deed = hands.answer(text)
        if key := next(deed, ""):
            screen.press(key)
    while screen.read():
        pass


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[tuple[SimPlant, Emulator, list[str]]]:
    """A plant behind the serial driver, and the words of the command that calibrates it."""
    plant = SimPlant(TRUTH)
    link = tmp_path / "ttyDclaw"
    config = EmulatorConfig(wire=False, return_delay_us=0, link=str(link))
    with Emulator(config, plant, camera=False) as emulator:
        settings = [f"--set=hw.bus.port={link}", "--set=hw.bus.timeout_ms=200"]
        yield plant, emulator, ["calibrate", "joints", "--hw", "dclaw", *settings]


@pytest.mark.slow
def test_the_command_leads_from_keys_and_hands_to_settings_for_the_robot(
    wired: tuple[SimPlant, Emulator, list[str]], tmp_path: Path
) -> None:
    _, emulator, command = wired
    screen = Screen(command, tmp_path)
    try:
        play(screen, Hands(emulator.hold_by_hand, time.monotonic))
        assert screen.process.wait(10) == 0, screen.text
    finally:
        screen.close()
    (path,) = (tmp_path / "joints").glob("dclaw-*.yaml")
    require_the_truth(load(HwConfig, [Layer.from_file(path)]).hw.dclaw)
    assert f"check --hw dclaw --config joints/{path.name}" in " ".join(screen.text.split())


@pytest.mark.slow
def test_an_interrupted_command_writes_nothing_and_gives_the_terminal_back(
    wired: tuple[SimPlant, Emulator, list[str]], tmp_path: Path
) -> None:
    plant, emulator, command = wired
    screen = Screen(command, tmp_path)
    try:
        play(screen, Hands(emulator.hold_by_hand, time.monotonic), until="[4 of 29]")
        screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(10) == 130, screen.text
    finally:
        screen.close()
    assert not (tmp_path / "joints").exists()
    assert not any(servo.torque for servo in plant.servos.values())


@pytest.mark.slow
@pytest.mark.parametrize("when", ["[4 of", AGREE])
def test_ctrl_c_again_and_again_leaves_it_limp_and_the_terminal_as_it_was(
    wired: tuple[SimPlant, Emulator, list[str]], tmp_path: Path, when: str
) -> None:
    plant, emulator, command = wired
    screen = Screen(command, tmp_path)
    hands = MovesByItself(emulator.hold_by_hand, time.monotonic)
    try:
        play(screen, hands, until=when)
        if when == AGREE:
            assert any(servo.torque for servo in plant.servos.values()), screen.text
        screen.interrupt_until_it_ends()
        assert screen.process.wait(10) in (130, -signal.SIGINT), screen.text  # the same to a shell
        assert screen.echoes
    finally:
        screen.close()
    assert "Traceback" not in screen.text
    assert "KeyboardInterrupt" not in screen.text
    assert not (tmp_path / "joints").exists()
    assert not any(servo.torque for servo in plant.servos.values())


class MovesByItself(Hands):
    """Lets the robot show whether it was understood."""

    def answer(self, asked: str) -> Deed:
        if "All joints are recorded" in asked:
            yield "m"
        elif "THE ROBOT WILL MOVE" in asked:
            yield from self.let_go()
            yield "y"
        else:
            yield from super().answer(asked)
