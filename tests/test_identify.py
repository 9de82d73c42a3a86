"""Identification: a hidden plant is found from motions that are safe, and nothing is invented."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run_robot
from calibration.excitation import (
    Excitation,
    ExcitationConfig,
    Turn,
    UnsafePlan,
    base_pose,
    on_grid,
    plans,
    require_clear,
)
from calibration.identify import Identification, identify
from calibration.least_squares import Parameter, solve
from calibration.recording import Recording, RecordingError
from calibration.rollout import Rollouts, setpoints
from robot.collision import FullTurnClearance
from robot.dynamixel import DynamixelRobot
from robot.faults import FaultConfig, FaultSchedule
from robot.registers import RAD_PER_TICK
from robot.rig import Rig, RigConfig, build
from robot.safety import SafetyConfig
from robot.settings import DynamixelConfig
from robot.sim import SimConfig, SimPlant
from robot.types import Applied, Floats, MotionFault

SHORT = ExcitationConfig(
    fingers=(1,),
    sine_duration=2.0,
    turns=(
        Turn(angle=1.0),
        Turn(angle=-1.0),
        Turn(angle=1.2, release=0.6),
        Turn(angle=-0.7, release=0.4, part="held-out"),
    ),
)
HIDDEN = SimConfig(
    servo_stiffness=5.0,
    joint_damping=0.04,
    friction_loss=0.02,
    command_delay=0.01,
    valve_stiffness=4.0,
    valve_damping=0.02,
    valve_friction_loss=0.01,
)

STIFF, SOFT = SimConfig(servo_stiffness=8.0, joint_damping=0.02), SimConfig(servo_stiffness=1.0)


def silent(what: str, share: float) -> None:
    """Nobody watches."""


def record(sim: SimConfig, config: ExcitationConfig = SHORT) -> Recording:
    with build(RigConfig(kind="sim", sim=sim), cameras=False) as rig:
        return Excitation(rig, config, silent).record("sim")


@pytest.fixture(scope="module")
def recording() -> Recording:
    return record(HIDDEN)


@pytest.fixture(scope="module")
def found(recording: Recording) -> Identification:
    return identify(recording)


def off(found: Identification, truth: SimConfig, name: str) -> float:
    """By which share a parameter was missed."""
    true = getattr(truth, name)
    return abs(float(getattr(found.plant, name)) - float(true)) / float(true)


def require_recovered(found: Identification, truth: SimConfig) -> None:
    """What the identification promises."""
    for name in ("servo_stiffness", "joint_damping", "valve_stiffness", "valve_damping"):
        assert off(found, truth, name) < 0.10, name
    for name in ("friction_loss", "valve_friction_loss"):
        assert off(found, truth, name) < 0.20, name
    error = found.errors("fingers", "held-out")
    assert error is not None
    assert error.identified < 0.5 * error.nominal


# --- The fit


def test_hidden_plant_is_recovered_from_the_motions_of_one_finger(found: Identification) -> None:
    require_recovered(found, HIDDEN)
    assert found.plant.command_delay == pytest.approx(0.01, abs=0.002)
    valve = found.errors("valve", "held-out")
    assert valve is not None
    assert valve.identified < 0.5 * valve.nominal


def test_standard_errors_cover_what_was_missed(found: Identification) -> None:
    for finding in found.findings:
        missed = abs(finding.estimate.value - getattr(HIDDEN, finding.name))
        assert missed < max(5 * finding.estimate.error, 0.03 * finding.estimate.value), finding.name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_plausible_plant_is_recovered(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    hidden = SimConfig(
        servo_stiffness=between(1, 8),
        joint_damping=between(0.02, 0.2),
        friction_loss=between(0.005, 0.1),
        command_delay=float(rng.uniform(0, 0.03)),
        valve_stiffness=between(1, 8),
        valve_damping=between(0.01, 0.1),
        valve_friction_loss=between(0.002, 0.05),
    )
    require_recovered(identify(record(hidden, ExcitationConfig())), hidden)


def test_rollouts_move_as_the_plant_did_to_the_tick(recording: Recording) -> None:
    rollouts = Rollouts(recording.rig)
    for motion in recording.fingers:
        (path,) = rollouts.fingers(HIDDEN, [motion])
        assert np.abs(path - motion.position[:, motion.joints]).max() < 1.5 * RAD_PER_TICK
    for turn in recording.valve:
        assert np.abs(rollouts.valve(HIDDEN, turn) - turn.position).max() < 3 * RAD_PER_TICK


@pytest.mark.slow
def test_what_the_recording_leaves_open_keeps_its_nominal_value_and_is_told() -> None:
    """Friction far below what a tick can show, in a soft servo, and no valve at all."""
    hidden = SimConfig(servo_stiffness=3.0, friction_loss=1e-5)
    quick = SHORT.model_copy(update={"turns": (), "step_hold": 0.25, "ramps": (0.4, 1.2), "rest": 0.3})
    found = identify(record(hidden, quick))
    findings = {finding.name: finding for finding in found.findings}
    assert set(findings) == {"servo_stiffness", "joint_damping", "friction_loss", "command_delay"}
    assert not findings["friction_loss"].determined
    assert found.plant.friction_loss == 0.0
    assert 1e-5 < findings["friction_loss"].upper < 0.005
    assert found.plant.valve_damping == SimConfig().valve_damping
    assert off(found, hidden, "servo_stiffness") < 0.10


def test_least_squares_finds_a_decay_and_admits_what_it_cannot_know() -> None:
    times, rng = np.linspace(0, 2, 200), np.random.default_rng(0)
    measured = 3.0 * np.exp(-times / 0.5) + rng.normal(0, 0.01, len(times))

    def residuals(values: Any) -> list[Floats]:
        return list(np.split(values["height"] * np.exp(-times / values["time"]) - measured, 4))

    unknown = [Parameter(name, 1.0, 0.01, 100.0) for name in ("height", "time", "idle")]
    solution = solve(residuals, unknown, [], 1e-6)
    assert solution.estimates["height"].value == pytest.approx(3.0, rel=0.01)
    assert solution.estimates["time"].value == pytest.approx(0.5, rel=0.01)
    assert solution.estimates["time"].relative < 0.02
    assert solution.estimates["idle"].relative > 1
    assert solution.rms == pytest.approx(0.01, rel=0.2)


def test_a_delay_of_a_part_of_a_step_has_a_part_of_its_effect() -> None:
    ends, start, goals = np.array([1.0, 2.0, 3.0]), np.zeros(1), np.array([[1.0]])
    for delay, first in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        path = setpoints(ends, np.array([delay]), goals, start, np.inf, 1.0)[:, 0]
        np.testing.assert_allclose(path, [first, 1.0, 1.0])
    ramp = setpoints(ends, np.array([0.5]), goals, start, 0.4, 1.0)[:, 0]
    np.testing.assert_allclose(ramp, [0.2, 0.6, 1.0])


# --- The motions


class Watched(DynamixelRobot):
    """Keeps every target that left the safety filter."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: list[Applied] = []

    def command(self, target: Floats, dt: float) -> Applied:
        self.sent.append(super().command(target, dt))
        return self.sent[-1]


def watched(rig: Rig) -> Watched:
    assert isinstance(rig.clock, SimPlant)
    robot = Watched(rig.clock, rig.config.dclaw, rig.clock)
    rig.robot = robot
    return robot


@pytest.mark.parametrize("sim", [STIFF, SOFT], ids=["stiff", "soft"])
def test_fingers_stay_in_the_box_and_away_from_each_other_and_the_valve(sim: SimConfig) -> None:
    """Stiff and hardly damped, a finger swings over; soft, it sags. The valve is not there to be touched."""
    box, clearance = SafetyConfig(), FullTurnClearance()
    config = ExcitationConfig(fingers=(0,), turns=())
    rig = build(RigConfig(kind="sim", sim=sim), cameras=False)
    robot = watched(rig)
    with rig:
        motions = Excitation(rig, config, silent).record("sim").fingers
    targets = np.array([applied.target for applied in robot.sent])
    assert (targets >= box.lower).all()
    assert (targets <= box.upper).all()
    positions = np.concatenate([motion.position for motion in motions])
    extremes = np.unique(np.concatenate([positions.argmin(axis=0), positions.argmax(axis=0)]))
    assert min(clearance(positions[row]) for row in extremes) > 0.015
    assert max(np.abs(motion.velocity).max() for motion in motions) < 12.0


def test_one_joint_moves_at_a_time_and_the_whole_takes_two_minutes_at_most() -> None:
    config, dclaw = ExcitationConfig(), DynamixelConfig()
    planned = plans(config, dclaw, 0.05)
    away = [plan.targets - base_pose(config, dclaw) for plan in planned if plan.part == "fit"]
    assert max((np.abs(one) > 1e-9).sum(axis=1).max() for one in away) == 1
    assert (np.abs(np.concatenate(away)).max(axis=0) > 0.1).all()  # each of nine in its turn
    with build(RigConfig(kind="sim"), cameras=False) as rig:
        assert Excitation(rig, config, silent).duration < 115.0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"base": (0.0, -0.6, 0.8)}, "mm from the valve"),
        ({"base": (0.4, -0.8, -0.2)}, "safety's box"),
        ({"amplitude": 0.14, "step_hold": 0.05}, "max_velocity"),
    ],
)
def test_motions_that_come_too_near_the_valve_are_refused_before_anything_moves(
    changed: dict[str, Any], words: str
) -> None:
    config, dclaw = ExcitationConfig(**changed), DynamixelConfig()
    with pytest.raises(UnsafePlan, match=words):
        require_clear(config, dclaw, plans(config, dclaw, 0.05))


def test_a_robot_that_may_not_make_the_motions_is_not_even_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be opened, for torque comes with it")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calibration.procedures.build", opened)
    lower = "[-0.48,-0.7,-1.57,-0.48,-0.7,-1.57,-0.48,-0.7,-1.57]"
    assert run_robot.main(["identify", "--hw", "sim", "--set", f"hw.dclaw.safety.lower={lower}"]) == 1
    assert "Nothing has moved" in capsys.readouterr().err


def test_targets_are_recorded_as_the_servos_got_them() -> None:
    dclaw = DynamixelConfig(signs=(1, -1, 1) * 3, offsets=(-np.pi / 2, np.pi, -np.pi) * 3)
    angles = on_grid(dclaw, np.full(9, 0.1234))
    assert np.abs(angles - 0.1234).max() <= RAD_PER_TICK / 2 + 1e-12
    np.testing.assert_allclose(on_grid(dclaw, angles), angles, atol=1e-12)
    ticks = (angles - np.array(dclaw.offsets)) / RAD_PER_TICK
    np.testing.assert_allclose(ticks, np.rint(ticks), atol=1e-6)


def test_a_blocked_joint_ends_it_by_name() -> None:
    with build(RigConfig(kind="sim"), cameras=False) as rig:
        plant = rig.clock
        assert isinstance(plant, SimPlant)
        excitation = Excitation(rig, SHORT, silent)
        excitation._approach()
        plant.inject(FaultSchedule([FaultConfig(kind="stuck-joint", servo=21, at=0.0, duration=60.0)]))
        began = plant.now()
        with pytest.raises(MotionFault, match="Finger 2, middle, moved by"):
            excitation.record("sim")
        assert plant.now() - began < 40  # of the finger before and of one joint: not of the whole finger


# --- Recordings


def test_a_recording_is_on_the_disk_before_it_has_its_name(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fsync = tmp_path / "plant.npz", os.fsync
    synced: list[tuple[int, bool]] = []

    def seen(handle: int) -> None:
        fsync(handle)
        synced.append((os.fstat(handle).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", seen)
    recording.save(path)
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_a_recording_survives_its_file(recording: Recording, tmp_path: Path) -> None:
    recording.save(tmp_path / "one.npz")
    again = Recording.load(tmp_path / "one.npz")
    assert again.rig == recording.rig
    for kept, made in zip(
        (*again.fingers, *again.valve), (*recording.fingers, *recording.valve), strict=True
    ):
        assert vars(kept).keys() == vars(made).keys()
        for key, value in vars(made).items():
            np.testing.assert_array_equal(getattr(kept, key), value)
    assert [path.name for path in tmp_path.iterdir()] == ["one.npz"]


def with_nan(recording: Recording) -> Recording:
    motion = recording.fingers[0]
    position = motion.position.copy()
    position[7, 3] = np.nan
    return replace(recording, fingers=(replace(motion, position=position), *recording.fingers[1:]))


def cut(recording: Recording) -> Recording:
    motion = recording.fingers[0]
    keys = ("times", "position", "velocity", "current")
    short = replace(motion, **{key: getattr(motion, key)[:50] for key in keys})
    return replace(recording, fingers=(short, *recording.fingers[1:]))


def of_six_joints(recording: Recording) -> Recording:
    motion = recording.fingers[0]
    narrow = {
        key: getattr(motion, key)[..., :6] for key in ("start", "targets", "position", "velocity", "current")
    }
    return replace(recording, fingers=(replace(motion, **narrow), *recording.fingers[1:]))


def without_held_out(recording: Recording) -> Recording:
    return replace(recording, fingers=recording.fingers[:1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (with_nan, "position holds something that is no number"),
        (cut, "too short"),
        (of_six_joints, "not of this robot, which has 9 joints"),
        (without_held_out, "no held-out motion"),
    ],
)
def test_nonsense_is_refused_by_name(
    recording: Recording, tmp_path: Path, spoil: Callable[[Recording], Recording], words: str
) -> None:
    spoilt = spoil(recording)
    with pytest.raises(RecordingError, match=words):
        identify(spoilt)
    spoilt.save(tmp_path / "spoilt.npz")
    with pytest.raises(RecordingError, match=rf"spoilt\.npz: .*{words}"):
        Recording.load(tmp_path / "spoilt.npz")


# --- The command


def call(command: str) -> int:
    return run_robot.main(shlex.split(command))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recording_with_wrong_bytes_is_refused_or_the_same(recording: Recording, tmp_path: Path) -> None:
    path, rng = tmp_path / "plant.npz", np.random.default_rng(0)
    short = replace(recording, fingers=recording.fingers[:1] + recording.fingers[-1:], valve=())
    short.require_usable().save(path)
    whole = path.read_bytes()
    for wrong in (1, 20) * 100:
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), wrong):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with suppress(RecordingError):
            np.testing.assert_equal(vars(Recording.load(path).fingers[0]), vars(short.fingers[0]))


def test_a_file_that_is_no_recording_is_told_plainly(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "some.npz").write_bytes(b"PK\x03\x04 not really")
    for name, words in (
        ("some.npz", "is no recording"),
        ("none.npz", "does not exist"),
        (".", "is no recording"),
    ):
        assert call(f"identify --from {name}") == 2
        assert words in capsys.readouterr().err
    for more in ("--hw sim", "--set hw.sim.servo_stiffness=5"):
        assert call(f"identify --from some.npz {more}") == 2
        assert "--from fits what was recorded" in capsys.readouterr().err


def test_a_fault_while_it_moves_is_named_and_leaves_no_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Excitation.record

    def interrupted(self: Excitation, name: str) -> Recording:
        plant = self._rig.clock
        assert isinstance(plant, SimPlant)
        plant.inject(FaultSchedule([FaultConfig(kind="dead", servo=22, at=3.0, duration=60.0)]))
        return record(self, name)

    monkeypatch.setattr(Excitation, "record", interrupted)
    assert call("identify --hw sim") == 1
    assert "servo 22" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_an_interrupt_while_it_moves_relaxes_and_leaves_no_file(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plants: list[SimPlant] = []

    def told(self: Excitation, what: str) -> None:
        assert isinstance(self._rig.clock, SimPlant)
        plants.append(self._rig.clock)
        if self._rig.clock.now() > 5.0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Excitation, "_tell", told)
    assert call("identify --hw sim") == 130
    assert list(here.iterdir()) == []
    assert plants[-1].now() > 5.0
    assert not any(servo.torque for servo in plants[-1].servos.values())


@pytest.mark.slow
def test_the_command_writes_a_plant_that_the_next_command_uses(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = "--set hw.sim.servo_stiffness=5 --set hw.sim.joint_damping=0.05 --set hw.sim.friction_loss=0.03"
    assert call(f"identify --hw sim {hidden}") == 0
    told = capsys.readouterr().out
    (plant,) = (here / "plants").glob("sim-*.yaml")
    assert sorted(path.suffix for path in (here / "plants").iterdir()) == [".npz", ".png", ".yaml"]
    assert plant.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    command = told.split("To learn on this plant: run_robot.py ")[1].strip()
    assert call(f"{command} --print-config") == 0
    shown = capsys.readouterr().out
    stiffness, varied = [line.split(":")[1] for line in shown.splitlines() if "servo_stiffness:" in line]
    assert varied.strip() == "null"  # hw.sim.randomise draws none
    assert float(stiffness) == pytest.approx(5.0, rel=0.1)
    assert call(f"identify --from {plant.with_suffix('.npz').relative_to(here)}") == 0
    assert "held out" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_plant_behind_a_serial_line_is_recovered_in_real_time() -> None:
    # A busy machine may keep the program waiting for longer than a robot of metal should be left alone.
    dclaw = DynamixelConfig(watchdog=2.5)
    config = RigConfig(kind="emulated", sim=HIDDEN, dclaw=dclaw)
    with build(config, cameras=False) as rig:
        recording = Excitation(rig, ExcitationConfig(), silent).record("emulated")
    found = identify(recording)
    for finding in found.findings:
        print(finding.name, getattr(HIDDEN, finding.name), finding.estimate)
    print(found.errors("fingers", "held-out"), found.errors("valve", "held-out"))
    require_recovered(found, HIDDEN)
