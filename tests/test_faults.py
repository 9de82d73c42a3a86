"""Each fault as other people's programs meet it on the wire: with the unmodified SDK and bare pyserial."""

from __future__ import annotations

import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import dynamixel_sdk as sdk
import numpy as np
import pytest
import serial
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robot import registers as reg
from robot.emulator import Emulator, EmulatorConfig
from robot.faults import VALUES, WIRE, Change, FaultConfig, FaultKind, FaultSchedule, mangled
from robot.protocol import Instruction, Parser, build, build_status
from robot.sim import FINGER_SERVOS, VALVE_SERVO, SimConfig, SimPlant
from tests.client import Bare, Driver, wait_until

IDS = (*FINGER_SERVOS, VALVE_SERVO)
FAST = EmulatorConfig(wire=False, return_delay_us=0)
PONG, ANSWER = 14, 15  # bytes of a status packet after a ping, and after a read of four bytes
LONG = 20.0  # s of physics, 0.1 s of ours


def fault(kind: str, **settings: Any) -> FaultConfig:
    return FaultConfig.model_validate({"kind": kind, **settings})


# --- Settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "gremlin"}, "'lost'.*'frozen-encoder'"),
        ({"kind": "dead", "probability": 0.5}, "probability is for packets .*not for dead"),
        ({"kind": "unplug", "servo": 12}, "unplug concerns no single servo"),
        ({"kind": "reboot", "duration": 1}, "as long as a servo boots"),
        ({"kind": "dead", "every": 60}, "dead would last for good the first time.*`duration`"),
        ({"kind": "lost", "value": 3}, "lost takes no value; late, usb-latency, voltage-dip, heat"),
        ({"kind": "heat", "value": 300}, "deg C that the servo measures, 0 to 255, not 300"),
        ({"kind": "late", "at": -1}, "greater than or equal to 0"),
        ({"kind": "lost", "probability": 1.5}, "less than or equal to 1"),
        ({"kind": "lost", "wen": 3}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_refused_in_words(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FaultConfig.model_validate(settings)


@pytest.mark.parametrize("kind", get_args(FaultKind))
def test_every_kind_needs_no_more_than_its_name(kind: str) -> None:
    usual = fault(kind)
    assert FaultConfig.model_validate_json(usual.model_dump_json()) == usual
    assert usual.lasting >= 0
    assert (usual.amount > 0) == (kind in VALUES)


# --- Schedules ---------------------------------------------------------------------------------------------

POISSON = [fault("dead", every=10, duration=3), fault("overload", every=25, at=5), fault("unplug", at=7)]


def happenings(schedule: FaultSchedule, times: list[float]) -> list[Change]:
    return [change for time in times for change in schedule.changes(time)]


@settings(max_examples=50)
@given(st.integers(0, 1000), st.lists(st.floats(0, 200), max_size=20))
def test_a_schedule_is_the_same_however_often_it_is_asked(seed: int, times: list[float]) -> None:
    often = happenings(FaultSchedule(POISSON, seed).begin(0.0), sorted([*times, 200.0]))
    once = happenings(FaultSchedule(POISSON, seed).begin(0.0), [200.0])
    assert often == once
    assert [change.time for change in once] == sorted(change.time for change in once)


def test_another_seed_is_another_run_of_bad_luck_and_so_is_another_fault() -> None:
    first, second = (happenings(FaultSchedule(POISSON, seed).begin(0.0), [200.0]) for seed in (0, 1))
    assert first != second
    twins = [fault("dead", every=10, duration=3)] * 2
    starts = [change.time for change in happenings(FaultSchedule(twins, 0).begin(0.0), [50.0])]
    assert len(starts) == len(set(starts))


def test_a_fault_more_changes_nothing_for_the_others() -> None:
    fewer = happenings(FaultSchedule(POISSON[:1], 3).begin(0.0), [100.0])
    more = happenings(FaultSchedule(POISSON, 3).begin(0.0), [100.0])
    assert [change for change in more if change.occurrence.fault.kind == "dead"] == fewer


def test_random_faults_come_as_often_as_said_and_hit_every_servo() -> None:
    schedule = FaultSchedule([fault("overload", every=10)], 0).begin(0.0)
    begun = [change.occurrence for change in schedule.changes(10 * 1000) if change.begins]
    assert abs(len(begun) - 1000) < 4 * math.sqrt(1000)
    gaps = np.diff([happening.start for happening in begun])
    assert 0.8 < np.std(gaps) / np.mean(gaps) < 1.2  # as it is where one knows nothing of the next
    assert {happening.victim(IDS) for happening in begun} == set(IDS)


def test_a_schedule_counts_from_its_beginning_and_an_added_fault_from_then() -> None:
    schedule = FaultSchedule([fault("unplug", at=5, duration=2)]).begin(100.0)
    assert schedule.changes(104.9) == []
    assert schedule.next_time == 105.0
    (begun,) = schedule.changes(105.0)
    assert (begun.begins, schedule.active) == (True, [begun.occurrence])
    schedule.add(fault("usb-latency", at=1), 106.0)
    assert [(change.time, change.begins) for change in schedule.changes(200)] == [(107, False), (107, True)]


@given(st.sampled_from(sorted(WIRE)), st.binary(max_size=30), st.integers(0, 100))
def test_what_the_wire_spoils_is_never_taken_for_the_packet(kind: str, data: bytes, seed: int) -> None:
    packet = build_status(12, 0, data)
    spoiled = mangled(kind, packet, np.random.default_rng(seed))
    if kind in ("late", "duplicate"):
        assert set(spoiled) == {packet}
    else:
        found = [found for raw in spoiled for found in Parser().feed(raw)]
        assert not [whole for whole in found if whole.intact and whole.parameters == b"\0" + data]


# --- On the wire -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plant() -> Iterator[SimPlant]:
    plant = SimPlant(SimConfig())
    yield plant
    plant.close()


@pytest.fixture
def emulator(plant: SimPlant, tmp_path: Path) -> Iterator[Emulator]:
    plant.heal()
    for servo in plant.servos.values():
        servo.reboot()
    plant.teleport([0.0, -1.0, 1.0] * 3, 0.0)
    config = FAST.model_copy(update={"link": str(tmp_path / "ttyDclaw")})
    with Emulator(config, plant, camera=False) as emulator:
        yield emulator


@pytest.fixture
def driver(emulator: Emulator) -> Iterator[Driver]:
    driver = Driver(emulator.port)
    yield driver
    driver.port.closePort()


@pytest.fixture
def bare(emulator: Emulator) -> Iterator[Bare]:
    bare = Bare(emulator.port)
    yield bare
    bare.close()


def pass_by(plant: SimPlant, seconds: float) -> None:
    """So much time for servos and mechanics, without waiting for it."""
    plant.advance_to(plant.now() + seconds)


def test_lost_packets_of_one_servo_do_not_arrive_and_the_others_do(
    driver: Driver, emulator: Emulator
) -> None:
    emulator.inject(fault("lost", servo=12))
    assert driver.hears_nothing("ping", 12)
    assert driver.ping(11)[1] == sdk.COMM_SUCCESS


def test_packets_are_lost_as_probably_as_said_and_counted(bare: Bare, emulator: Emulator) -> None:
    emulator.inject(fault("lost", probability=0.5))
    for _ in range(20):
        for _ in range(20):
            bare.ping(12)
        assert bare.hear(PONG * 20, 0.02) is not None  # the terminal's buffer holds four thousand bytes
    wait_until(lambda: emulator.counts["packets"] == 400)
    assert 150 < emulator.counts["lost"] < 250  # 5 standard deviations


def test_late_packets_arrive_late_and_nothing_overtakes_them(bare: Bare, emulator: Emulator) -> None:
    emulator.inject(fault("late", servo=12, value=60))
    start = time.monotonic()
    bare.ping(12)
    bare.ping(11)
    first, second = bare.packets(2 * PONG)
    assert time.monotonic() - start >= 0.06
    assert (first.servo, second.servo) == (12, 11)


def test_corrupt_packets_differ_in_one_bit_and_the_sdk_says_so(
    driver: Driver, bare: Bare, emulator: Emulator
) -> None:
    bare.ping(12)
    good = bare.hear(PONG)
    emulator.inject(fault("corrupt", servo=12))
    bare.ping(12)
    bad = bare.hear(PONG)
    assert sum((a ^ b).bit_count() for a, b in zip(good, bad, strict=True)) == 1
    driver.patience = 34.0
    results = {driver.ping(12)[1] for _ in range(8)}
    assert results <= {sdk.COMM_RX_CORRUPT, sdk.COMM_RX_TIMEOUT}  # a broken header is no packet at all


def test_duplicate_packets_come_twice(bare: Bare, emulator: Emulator) -> None:
    emulator.inject(fault("duplicate", servo=12))
    bare.read(reg.PRESENT_POSITION, 12)
    first, second = bare.packets(2 * ANSWER)
    assert first == second
    assert first.intact


def test_short_packets_are_whole_in_themselves_but_carry_too_little(bare: Bare, emulator: Emulator) -> None:
    emulator.inject(fault("short", servo=12))
    bare.read(reg.PRESENT_POSITION, 12)
    (found,) = bare.packets(ANSWER - 2)
    assert found.intact
    assert len(found.parameters) == 1 + 2
    bare.serial.write(build(12, Instruction.WRITE, b"\x41\x00\x01"))  # the LED
    assert bare.hear(11, 0.05) == build_status(12, 0)[:7]  # without data there is only less to send


def test_an_id_conflict_garbles_every_answer_of_that_id_and_sends_more_than_asked(
    driver: Driver, bare: Bare, emulator: Emulator
) -> None:
    emulator.inject(fault("id-conflict", servo=12))
    bare.ping(12)
    noise = bare.hear(PONG + 1)
    assert len(noise) == PONG + 1
    assert not list(Parser().feed(noise)) or not next(Parser().feed(noise)).intact
    driver.patience = 34.0
    assert driver.ping(12)[1] != sdk.COMM_SUCCESS
    driver.patience = 800.0
    assert driver.ping(11)[1] == sdk.COMM_SUCCESS


def test_a_wire_fault_ends_when_its_time_is_over(driver: Driver, emulator: Emulator) -> None:
    emulator.inject(fault("lost", servo=12, duration=0.15))
    assert driver.hears_nothing("ping", 12)
    wait_until(lambda: not emulator.state()["faults"])
    assert driver.ping(12)[1] == sdk.COMM_SUCCESS


def test_unplugged_port_fails_and_comes_back_under_its_link(
    driver: Driver, bare: Bare, emulator: Emulator, plant: SimPlant
) -> None:
    before = plant.now()
    emulator.inject(fault("unplug", duration=0.2))
    assert not os.path.lexists(emulator.port)
    with pytest.raises(OSError, match=r"disconnected|Input/output"):  # what pyserial makes of it
        bare.hear(1)
    with pytest.raises(OSError, match="Input/output"):
        bare.ping(12)
    with pytest.raises(serial.SerialException):
        serial.Serial(emulator.port)
    wait_until(lambda: os.path.exists(emulator.port))
    assert plant.now() - before >= 0.15  # for the servos time went on
    again = Driver(emulator.port)
    assert again.ping(12)[1] == sdk.COMM_SUCCESS
    again.port.closePort()


def test_what_was_asked_before_the_plug_was_pulled_is_not_answered_after(
    bare: Bare, emulator: Emulator
) -> None:
    emulator.inject(fault("late", value=400))
    bare.ping(12)
    wait_until(lambda: emulator.counts["replies"] == 1)
    emulator.inject(fault("unplug", duration=0.05))
    wait_until(lambda: os.path.exists(emulator.port))
    emulator.heal()
    again = Bare(emulator.port)
    assert again.hear(PONG, 0.5) == b""
    again.close()


def pings(driver: Driver, count: int) -> float:
    """How long so many take, s."""
    start = time.monotonic()
    for _ in range(count):
        assert driver.ping(12)[1] == sdk.COMM_SUCCESS
    return time.monotonic() - start


def test_usb_latency_holds_every_answer_back_until_the_timer_ticks(
    driver: Driver, emulator: Emulator
) -> None:
    emulator.inject(fault("usb-latency"))
    assert pings(driver, 6) >= 5 * 0.016  # one for every tick
    emulator.heal()
    emulator.inject(fault("usb-latency", value=100))
    assert pings(driver, 3) >= 2 * 0.1


def test_a_client_mends_the_latency_through_the_file_that_sysfs_would_have(
    plant: SimPlant, tmp_path: Path
) -> None:
    timer = tmp_path / "sys/bus/usb-serial/devices/0/latency_timer"
    config = EmulatorConfig(usb_latency_ms=50, latency_file=timer, return_delay_us=0)
    with Emulator(config, plant, camera=False) as emulator:
        driver = Driver(emulator.port)
        assert timer.read_text() == "50\n"
        assert pings(driver, 4) >= 3 * 0.05
        for nonsense in ("fast", "0", "300", ""):
            timer.write_text(nonsense)
        time.sleep(0.05)  # the emulator looks at the file 50 times a second
        assert pings(driver, 4) >= 3 * 0.05
        timer.write_text("1\n")
        time.sleep(0.05)
        assert pings(driver, 4) < 3 * 0.05
        emulator.inject(fault("usb-latency"))
        assert timer.read_text() == "16\n"
        driver.port.closePort()
    assert not timer.exists()


def test_dead_servo_is_silent_and_comes_back_as_after_power_on(
    driver: Driver, emulator: Emulator, plant: SimPlant
) -> None:
    driver.write(reg.TORQUE_ENABLE, 12, 1)
    emulator.inject(fault("dead", servo=12, duration=LONG))
    assert driver.hears_nothing("ping", 12)
    assert driver.ping(11)[1] == sdk.COMM_SUCCESS
    pass_by(plant, LONG)
    assert driver.hears_nothing("ping", 12)  # it boots
    pass_by(plant, 0.2)
    assert driver.read(reg.TORQUE_ENABLE, 12) == 0


@pytest.mark.parametrize(
    ("kind", "bits", "torque"),
    [("overload", 0x20, 0), ("overheat", 0x04, 0), ("electrical", 0x10, 0), ("encoder", 0x08, 1)],
)
def test_hardware_errors_alert_and_cut_the_torque_where_the_servo_is_told_to(
    driver: Driver, emulator: Emulator, plant: SimPlant, kind: str, bits: int, torque: int
) -> None:
    driver.write(reg.TORQUE_ENABLE, 12, 1)
    emulator.inject(fault(kind, servo=12))
    assert driver.read4ByteTxRx(12, 132)[1:] == (sdk.COMM_SUCCESS, 0x80)
    assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == bits
    assert driver.read(reg.TORQUE_ENABLE, 12) == torque
    assert driver.read(reg.HARDWARE_ERROR_STATUS, 11) == 0
    driver.reboot(12)
    pass_by(plant, 0.3)
    assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0


def test_an_error_whose_cause_lasts_comes_back_after_every_reboot(
    driver: Driver, emulator: Emulator, plant: SimPlant
) -> None:
    emulator.inject(fault("overload", servo=12, duration=LONG))
    for _ in range(2):
        driver.reboot(12)
        pass_by(plant, 0.3)
        assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0x20
        assert driver.write(reg.TORQUE_ENABLE, 12, 1) == 0x81
    pass_by(plant, LONG)
    driver.reboot(12)
    pass_by(plant, 0.3)
    assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0


def test_a_dip_of_the_supply_shows_in_every_servo_and_leaves_an_error(
    driver: Driver, emulator: Emulator, plant: SimPlant
) -> None:
    driver.write(reg.TORQUE_ENABLE, 12, 1)
    emulator.inject(fault("voltage-dip", value=9.0, duration=LONG))
    for servo in IDS:
        assert driver.read(reg.PRESENT_INPUT_VOLTAGE, servo) == 90
        assert driver.read(reg.HARDWARE_ERROR_STATUS, servo) == 0x01
    assert driver.read(reg.TORQUE_ENABLE, 12) == 1
    pass_by(plant, LONG)
    assert driver.read(reg.PRESENT_INPUT_VOLTAGE, 12) == 120
    assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0x01


def test_a_dip_within_the_limits_is_no_error_and_may_be_of_one_servo(
    driver: Driver, emulator: Emulator
) -> None:
    emulator.inject(fault("voltage-dip", value=10.0, servo=12))
    assert driver.read(reg.PRESENT_INPUT_VOLTAGE, 12) == 100
    assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0
    assert driver.read(reg.PRESENT_INPUT_VOLTAGE, 11) == 120


def test_reboot_forgets_ram_and_raises_no_error(driver: Driver, emulator: Emulator, plant: SimPlant) -> None:
    driver.write(reg.TORQUE_ENABLE, 12, 1)
    driver.write(reg.BUS_WATCHDOG, 12, 127)
    emulator.inject(fault("reboot", servo=12))
    assert driver.hears_nothing("ping", 12)
    pass_by(plant, 0.3)
    assert driver.ping(12) == (1010, 0, 0)
    assert (driver.read(reg.TORQUE_ENABLE, 12), driver.read(reg.BUS_WATCHDOG, 12)) == (0, 0)


def test_brown_out_restarts_everybody_without_an_error(
    driver: Driver, emulator: Emulator, plant: SimPlant
) -> None:
    for servo in FINGER_SERVOS:
        driver.write(reg.TORQUE_ENABLE, servo, 1)
    emulator.inject(fault("brown-out"))
    assert driver.hears_nothing("ping", 12)
    pass_by(plant, 0.3)
    for servo in IDS:
        assert driver.read(reg.TORQUE_ENABLE, servo) == 0
        assert driver.read(reg.HARDWARE_ERROR_STATUS, servo) == 0


def test_heat_is_measured_without_an_error_until_the_limit_and_gone_when_it_ends(
    driver: Driver, emulator: Emulator, plant: SimPlant
) -> None:
    cold = driver.read(reg.PRESENT_TEMPERATURE, 12)
    emulator.inject(fault("heat", servo=12, value=66, duration=10))
    for _ in range(2):
        assert driver.read(reg.PRESENT_TEMPERATURE, 12) == 66
        assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0
        pass_by(plant, 4)  # it does not cool meanwhile
    pass_by(plant, 3)
    assert driver.read(reg.PRESENT_TEMPERATURE, 12) == cold
    emulator.inject(fault("heat", servo=12, value=80))
    assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0x04


def test_a_stuck_joint_pushes_in_vain_until_it_is_free(
    driver: Driver, emulator: Emulator, plant: SimPlant
) -> None:
    for servo in (10, 12):
        driver.write(reg.TORQUE_ENABLE, servo, 1)
    emulator.inject(fault("stuck-joint", servo=12, duration=60))
    stuck = driver.read(reg.PRESENT_POSITION, 12)
    driver.write(reg.GOAL_POSITION, 12, stuck + 300)
    pass_by(plant, 30)
    assert abs(driver.read(reg.PRESENT_POSITION, 12) - stuck) <= 1
    assert abs(driver.read(reg.PRESENT_CURRENT, 12)) > 100
    pass_by(plant, 31)
    assert abs(driver.read(reg.PRESENT_POSITION, 12) - stuck - 300) < 60


def test_a_frozen_encoder_stands_while_the_joint_moves(
    driver: Driver, emulator: Emulator, plant: SimPlant
) -> None:
    driver.write(reg.TORQUE_ENABLE, 12, 1)
    emulator.inject(fault("frozen-encoder", servo=12, duration=60))
    shown, before = driver.read(reg.PRESENT_POSITION, 12), plant.truth["qpos"][2]
    driver.write(reg.GOAL_POSITION, 12, shown + 300)
    pass_by(plant, 0.1)
    assert driver.read(reg.PRESENT_VELOCITY, 12) == 0
    pass_by(plant, 1)
    assert driver.read(reg.PRESENT_POSITION, 12) == shown
    assert plant.truth["qpos"][2] - before > 0.3
    pass_by(plant, 60)
    assert driver.read(reg.PRESENT_POSITION, 12) - shown > 200


def test_a_slipping_valve_turns_further_than_its_encoder_says_and_the_difference_stays(
    driver: Driver, emulator: Emulator, plant: SimPlant
) -> None:
    emulator.inject(fault("slipping-valve", value=0.25, duration=20))
    start = driver.read(reg.PRESENT_POSITION, VALVE_SERVO)
    driver.write(reg.OPERATING_MODE, VALVE_SERVO, 4)
    driver.write(reg.TORQUE_ENABLE, VALVE_SERVO, 1)
    driver.write(reg.GOAL_POSITION, VALVE_SERVO, start + 600)
    for joint in FINGER_SERVOS:
        driver.write(reg.TORQUE_ENABLE, joint, 1)
    pass_by(plant, 10)
    seen = (driver.read(reg.PRESENT_POSITION, VALVE_SERVO) - start) * reg.RAD_PER_TICK
    assert seen == pytest.approx(600 * reg.RAD_PER_TICK, abs=0.03)  # for its servo it has arrived
    assert plant.truth["valve"] == pytest.approx(seen / 0.75, abs=0.01)
    pass_by(plant, 11)
    driver.write(reg.GOAL_POSITION, VALVE_SERVO, start)
    pass_by(plant, 10)
    assert plant.truth["valve"] == pytest.approx(0.25 * seen / 0.75, abs=0.03)


def test_faults_by_configuration_come_when_they_should(plant: SimPlant) -> None:
    schedule = (fault("overload", servo=12, at=LONG), fault("lost", servo=11))
    plant.heal()
    config = FAST.model_copy(update={"faults": schedule})
    with Emulator(config, plant, camera=False) as emulator:
        driver = Driver(emulator.port)
        assert driver.hears_nothing("ping", 11)
        assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0
        pass_by(plant, LONG)
        assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0x20
        driver.port.closePort()


def test_a_fault_of_a_servo_that_is_not_there_is_refused(plant: SimPlant, emulator: Emulator) -> None:
    for inject in (emulator.inject, lambda wrong: plant.inject(FaultSchedule([wrong]))):
        with pytest.raises(ValueError, match="no servo 13 for the fault 'dead'; there are 10, 11, 12, 20"):
            inject(fault("dead", servo=13))
    config = FAST.model_copy(update={"faults": (fault("lost", servo=13),)})
    with pytest.raises(ValueError, match="no servo 13"):
        Emulator(config, plant, camera=False)


# --- Over HTTP ---------------------------------------------------------------------------------------------


def send(emulator: Emulator, method: str, body: Any = None, path: str = "/faults") -> tuple[int, str]:
    url = emulator.camera.replace("/cam.mjpg", path)
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_posted_fault_is_in_force_when_it_is_answered(driver: Driver, emulator: Emulator) -> None:
    status, text = send(emulator, "POST", {"kind": "overload", "servo": 12, "duration": 60})
    assert status == 200
    assert FaultConfig.model_validate_json(text) == fault("overload", servo=12, duration=60)
    assert driver.read(reg.HARDWARE_ERROR_STATUS, 12) == 0x20
    assert send(emulator, "POST", {"kind": "lost", "servo": 11})[0] == 200
    assert driver.hears_nothing("ping", 11)
    state = json.loads(send(emulator, "GET", path="/state")[1])
    assert state["faults"] == [{"kind": "lost", "servos": [11]}, {"kind": "overload", "servos": [12]}]
    assert send(emulator, "DELETE")[0] == 200
    assert emulator.state()["faults"] == []
    assert driver.ping(11)[1] == sdk.COMM_SUCCESS


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "gremlin"}, "Input should be 'lost'"),
        ({"kind": "dead", "servo": 13}, "there is no servo 13"),
        ([], "fault: Input should be an object"),
        ("x" * 70_000, "Content-Length is 70002, expected at most"),
    ],
)
def test_a_posted_fault_that_is_none_is_answered_with_what_is_wrong(
    emulator: Emulator, body: Any, words: str
) -> None:
    status, text = send(emulator, "POST", body)
    assert status == 400
    assert words in text
    assert emulator.state()["faults"] == []


def test_faults_are_told_at_one_place_only(emulator: Emulator) -> None:
    assert send(emulator, "POST", {"kind": "dead"}, "/state")[0] == 404
    assert send(emulator, "DELETE", path="/state")[0] == 404


def test_what_happens_is_told_to_whoever_listens(emulator: Emulator, plant: SimPlant) -> None:
    heard: list[str] = []
    emulator.events.listen(lambda event: heard.append(event.text))
    emulator.inject(fault("overload", servo=12))
    emulator.inject(fault("unplug", duration=0.05))
    wait_until(lambda: len(heard) == 3)
    assert heard == ["overload: servo 12 (finger 1, distal)", "unplug", "unplug is over"]
