"""Promises of listing servos and of giving them ids: over the real wire, with a person played by a script."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from robot import registers as reg
from robot.emulator import Emulator, EmulatorConfig
from robot.motors import Naming, Range, show
from robot.rig import RigConfig
from robot.servo import Servo
from robot.sim import FINGER_SERVOS, VALVE_SERVO, SimConfig, SimPlant
from robot.types import PortLost

FAST = EmulatorConfig(wire=False, return_delay_us=0)
NEAR = Range(bauds=(57_600,), highest=22)  # of 7 and 252, each of which takes its 3 ms
ROBOT = Range(bauds=(57_600,), highest=50)
IDS = (*FINGER_SERVOS, VALVE_SERVO)
FIRST = FINGER_SERVOS[0]


class Bench:
    """A table with servos on it, of which a person connects some; and what the person was told."""

    def __init__(self, port: str, plant: SimPlant) -> None:
        self.plant, self.servos = plant, tuple(plant.servos.values())
        bus = {"port": port, "timeout_ms": 10}
        self.config = RigConfig.model_validate({"kind": "real", "bus": bus})
        self.console = Console(file=io.StringIO(), width=200)

    def connect(self, *servos: Servo) -> None:
        """These and no others."""
        for servo in self.servos:
            servo.powered = servo in servos
            servo.reboot()
        self.plant.refresh()

    def load(self, servo: Servo, id: int, baud: int) -> None:
        servo.load(reg.ID, id)
        servo.load(reg.BAUD_RATE, reg.BAUD_CODES[baud])
        self.plant.refresh()

    def name_all(self, ask: Callable[[str], str]) -> Naming:
        naming = Naming(self.config, ask, self.console, NEAR)
        self.finished = naming.run()
        return naming

    @property
    def told(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Ten servos as they come from the factory: id 1 at 57600 baud, none of them connected."""
    plant = SimPlant(SimConfig())
    with Emulator(FAST, plant, camera=False) as emulator:
        bench = Bench(emulator.port, plant)
        for servo in bench.servos:
            bench.load(servo, 1, 57_600)
        bench.connect()
        yield bench


class Script:
    """A person who does and types one thing after the other; in the end, `q`."""

    def __init__(self, *deeds: str | Callable[[], object]) -> None:
        self._deeds = list(deeds)
        self.questions: list[str] = []

    def __call__(self, question: str) -> str:
        self.questions.append(question)
        while self._deeds:
            deed = self._deeds.pop(0)
            if isinstance(deed, str):
                return deed
            deed()
        return "q"


def bus_address(servo: Servo) -> tuple[int, int]:
    return servo.value(reg.ID), servo.value(reg.BAUD_RATE)


MBPS = reg.BAUD_CODES[1_000_000]


# --- Ids


def test_ten_new_servos_get_their_ids_one_after_the_other(bench: Bench) -> None:
    pile = iter(bench.servos)

    def connect_the_next(question: str) -> str:
        bench.connect(next(pile))
        return ""

    naming = bench.name_all(connect_the_next)
    assert bench.finished
    assert tuple(naming.done) == IDS
    assert [bus_address(servo) for servo in bench.servos] == [(id, MBPS) for id in IDS]
    assert "servo 1 at 57600 baud is now servo 50 at 1000000" in bench.told


def test_a_guide_servo_gets_its_id_too(bench: Bench) -> None:
    dclaw = bench.config.dclaw.model_copy(update={"guide_id": 60})
    bench.config = bench.config.model_copy(update={"dclaw": dclaw})
    bench.name_all(Script(*"s" * 10, lambda: bench.connect(bench.servos[0]), ""))
    assert bus_address(bench.servos[0]) == (60, MBPS)


def test_nothing_is_written_while_several_servos_answer_and_they_are_told(bench: Bench) -> None:
    one, other, third = bench.servos[:3]
    bench.load(other, 7, 1_000_000)
    bench.name_all(Script(lambda: bench.connect(one, other), ""))
    assert "2 servos answer: id 7 at 1000000 baud, id 1 at 57600 baud. Disconnect all but one" in bench.told
    assert [bus_address(servo)[0] for servo in (one, other, third)] == [1, 7, 1]


def test_two_servos_that_say_the_same_are_not_taken_for_one(bench: Bench) -> None:
    """Both have id 1, both are of one kind, and both answer a ping at the same moment with the same bytes."""
    bench.plant.teleport([0.1, -1.0, 0.5] * 3, 0.0)
    one, other = bench.servos[:2]
    bench.name_all(Script(lambda: bench.connect(one, other), ""))
    assert "two servos with one id answer" in bench.told
    assert {bus_address(servo)[0] for servo in bench.servos} == {1}


def test_when_nobody_answers_it_says_what_to_look_at_and_asks_again(bench: Bench) -> None:
    script = Script("", lambda: bench.connect(bench.servos[0]), "")
    naming = bench.name_all(script)
    assert "no servo answers: servo power on?" in bench.told
    assert naming.done == [FIRST]


def test_a_servo_that_has_its_id_is_recognised_and_not_written(bench: Bench) -> None:
    servo = bench.servos[0]
    bench.load(servo, FIRST, 1_000_000)
    servo.load(reg.TORQUE_ENABLE, 1)
    naming = bench.name_all(Script(lambda: setattr(servo, "powered", True), ""))
    assert naming.done == [FIRST]
    assert servo.torque, "it was written to"
    assert "it is servo 10 at 1000000 baud already" in bench.told


@pytest.mark.parametrize(("answer", "id"), [("yes", FIRST), ("", 22), ("y", 22)])
def test_a_servo_with_another_place_on_the_robot_loses_it_only_after_a_yes(
    bench: Bench, answer: str, id: int
) -> None:
    servo = bench.servos[5]
    bench.load(servo, 22, 1_000_000)
    bench.name_all(Script(lambda: bench.connect(servo), "", answer))
    assert "This one is servo 22 (finger 2, distal), of this robot already." in bench.told
    assert bus_address(servo) == (id, MBPS)


def test_torque_is_off_before_anything_is_written(bench: Bench) -> None:
    """EEPROM takes nothing under torque; and whoever holds the servo wants it limp."""
    servo = bench.servos[0]

    def connect_driven() -> None:
        bench.connect(servo)
        servo.load(reg.TORQUE_ENABLE, 1)
        servo.load(reg.STATUS_RETURN_LEVEL, 1)  # and one that confirms no write

    bench.name_all(Script(connect_driven, ""))
    assert bus_address(servo) == (FIRST, MBPS)
    assert not servo.torque


def test_a_servo_with_half_of_its_address_gets_the_other_half(bench: Bench) -> None:
    """Where Ctrl-C between id and baud rate leaves it."""
    servo = bench.servos[0]
    bench.load(servo, FIRST, 57_600)
    bench.name_all(Script(lambda: bench.connect(servo), ""))
    assert bus_address(servo) == (FIRST, MBPS)


def test_ctrl_c_at_a_question_tells_what_is_done_and_what_is_left(bench: Bench) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.name_all(Script(lambda: bench.connect(bench.servos[0]), "", "s", interrupt))
    assert "done: 10\n" in bench.told
    assert "left: 11, 12, 20, 21, 22, 30, 31, 32, 50" in bench.told


def test_an_adapter_that_is_not_there_is_told_before_the_first_question() -> None:
    config = RigConfig.model_validate({"kind": "real", "bus": {"port": "/dev/ttyNobody"}})
    script = Script()
    with pytest.raises(PortLost, match="/dev/ttyNobody"):
        Naming(config, script, Console(file=io.StringIO())).run()
    assert not script.questions


# --- The list


def test_the_list_shows_where_every_servo_is_and_what_is_strange(bench: Bench) -> None:
    for id, servo in zip(IDS, bench.servos, strict=True):
        bench.load(servo, id, 1_000_000)
    bench.connect(*bench.servos)
    bench.load(bench.servos[2], 1, 57_600)
    assert not show(bench.config, bench.console, ROBOT)
    lines = {line.split("  ")[0].strip(): line.split() for line in bench.told.splitlines()}
    assert lines["servo 31 (finger 3, middle)"][5:] == ["XH430-W210", "45", "1000000", "12.0", "V", "30"]
    assert " ".join(lines["servo 1"][2:]) == "XH430-W210 45 57600 12.0 V 30 unexpected, other baud"
    assert "9 of 10 configured servos answer at 1000000 baud" in bench.told
    assert "missing: servo 12 (finger 1, distal)" in bench.told
    assert "--set-id" in bench.told


def test_the_list_is_content_when_every_servo_is_in_place(bench: Bench) -> None:
    for id, servo in zip(IDS, bench.servos, strict=True):
        bench.load(servo, id, 1_000_000)
    bench.connect(*bench.servos)
    assert show(bench.config, bench.console, ROBOT)
    assert "missing" not in bench.told


def test_two_servos_with_one_id_are_told_by_name(bench: Bench) -> None:
    for id, servo in zip(IDS, bench.servos, strict=True):
        bench.load(servo, id, 1_000_000)
    bench.connect(*bench.servos)
    bench.load(bench.servos[1], 12, 1_000_000)
    bench.servos[2].load(reg.FIRMWARE_VERSION, 44)  # else even their answers to a ping are the same
    assert not show(bench.config, bench.console, ROBOT)
    assert "missing: servo 11 (finger 1, middle), servo 12 (finger 1, distal)" in bench.told
    assert "answers of servo 12 (finger 1, distal) are garbled: two servos have one id" in bench.told


def test_an_empty_bus_is_told_with_what_to_look_at(bench: Bench) -> None:
    assert not show(bench.config, bench.console, ROBOT)
    assert "0 of 10 configured servos answer" in bench.told
    assert "servo power on?" in bench.told
