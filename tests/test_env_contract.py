"""The control step of a D'Claw, in simulation through the real driver; test_contract has all tasks."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence

from configs.document import Layer
from configs.loader import load
from configs.run import RunConfig
from robot import registers as reg
from robot.rig import Rig, RigConfig, build
from robot.sim import SimPlant
from robot.types import BusFault, CameraFault, InvalidCommand, StaleFrame
from tasks import PoseConfig, RobotEnv, ValveConfig, make_task
from tasks.valve import AngleRange

RIGHT = math.pi / 2
CONFIGS = Path(__file__).parents[1] / "configs"
SIM_STATE = ("hw/sim.yaml", "agent/sac_state.yaml")


def from_file(name: str) -> ValveConfig | PoseConfig:
    config = load(RunConfig, [Layer.from_file(CONFIGS / path) for path in (f"tasks/{name}.yaml", *SIM_STATE)])
    assert isinstance(config.task, ValveConfig | PoseConfig)
    return config.task


TASKS: dict[str, ValveConfig | PoseConfig] = {
    "valve_random": ValveConfig(goal=AngleRange(low=-RIGHT, high=RIGHT)),
    **{name: from_file(name) for name in ("turn_fixed", "screw_fixed")},
}
SHORT = TASKS["valve_random"].model_copy(update={"horizon": 4})
REST = np.zeros(9, np.float32)


def sim(**changes: Any) -> Rig:
    return build(RigConfig(kind="sim", name="sim", **changes))


def make(rig: Rig, config: ValveConfig | PoseConfig = SHORT, **options: Any) -> RobotEnv:
    return RobotEnv(rig, make_task(config), **options)


def plant_of(rig: Rig) -> SimPlant:
    assert isinstance(rig.clock, SimPlant)
    return rig.clock


@pytest.fixture
def rig() -> Iterator[Rig]:
    with sim() as rig:
        yield rig


def goals(rig: Rig) -> list[int]:
    return [servo.value(reg.GOAL_POSITION) for servo in plant_of(rig).servos.values()]


def torques(rig: Rig) -> set[bool]:
    return {servo.torque for servo in plant_of(rig).servos.values()}


def actions(count: int, seed: int = 0) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    return list(np.random.default_rng(seed).uniform(-1, 1, (count, 9)).astype(np.float32))


# --- episodes ---


def test_constructor_seed_fixes_the_first_draw() -> None:
    starts = []
    for _ in range(2):
        with sim() as rig:
            starts.append(make(rig, seed=11, images=False).reset()[1]["parameters"])
    assert starts[0] == starts[1]


def test_starts_and_goals_differ_between_episodes(rig: Rig) -> None:
    env = make(rig, images=False)
    drawn = [env.reset(seed=7 if first else None)[1]["parameters"] for first in (True, False, False)]
    assert len({p["start"] for p in drawn}) == len({p["goal"] for p in drawn}) == 3


# --- episodes ---


def test_stepping_before_a_reset_or_after_the_end_moves_nothing(rig: Rig) -> None:
    env = make(rig, images=False)
    with pytest.raises(ResetNeeded):
        env.step(REST)
    env.reset(seed=0)
    for action in actions(SHORT.horizon):
        env.step(action)
    before, time = goals(rig), rig.clock.now()
    with pytest.raises(ResetNeeded):
        env.step(REST)
    assert (goals(rig), rig.clock.now()) == (before, time)


@pytest.mark.parametrize(
    "action",
    [
        np.full(9, np.nan),
        np.array([np.inf] * 9),
        np.full(9, 1.01),
        np.full(9, -1.001),
        np.zeros(8),
        np.zeros((1, 9)),
    ],
)
def test_invalid_action_is_refused_before_anything_moves(rig: Rig, action: Any) -> None:
    env = make(rig, images=False)
    env.reset(seed=0)
    before, time = goals(rig), rig.clock.now()
    with pytest.raises(InvalidCommand):
        env.step(action)
    assert (goals(rig), rig.clock.now()) == (before, time)
    assert not env.step(REST)[3]  # the episode goes on


def test_rounding_beyond_one_is_clipped(rig: Rig) -> None:
    env = make(rig, images=False)
    env.reset(seed=0)
    observation = env.step(np.full(9, 1 + 5e-7, np.float32))[0]
    np.testing.assert_array_equal(observation["state"][23:], np.ones(9, np.float32))


def test_last_action_is_zero_at_reset_and_then_what_was_done(rig: Rig) -> None:
    env = make(rig, images=False)
    observation, _ = env.reset(seed=0)
    assert not observation["state"][23:].any()
    for action in actions(3):
        np.testing.assert_array_equal(env.step(action)[0]["state"][23:], action)


def test_control_steps_are_exactly_one_period_apart(rig: Rig) -> None:
    env = make(rig)
    _, info = env.reset(seed=0)
    times = [info["telemetry"]["time"]] + [env.step(a)[4]["telemetry"]["time"] for a in actions(4)]
    np.testing.assert_allclose(np.diff(times), SHORT.period, atol=1e-9)


def test_telemetry_shows_what_was_measured_wished_and_sent(rig: Rig) -> None:
    env = make(rig)
    env.reset(seed=0)
    action = np.ones(9, np.float32)
    observation, _, _, _, info = env.step(action)
    logged = info["telemetry"]
    np.testing.assert_allclose(logged["joint_position"], observation["state"][:9], rtol=1e-6)
    np.testing.assert_allclose(logged["requested"], np.tile([0.48, math.pi / 3, math.pi / 2], 3))
    assert np.abs(logged["applied"] - logged["requested"]).max() > 0.5  # the velocity limit
    assert logged["reasons"]
    assert 0 <= logged["frame_age"] <= SHORT.period
    assert logged["overrun"] == 0.0
    assert logged["object_position"].shape == (1,)
    assert logged["servo_temperature"] == pytest.approx([30.0] * 10, abs=1.0)
    assert logged["servo_voltage"] == pytest.approx([12.0] * 10)


def test_no_joint_is_sent_further_than_the_velocity_limit_allows(rig: Rig) -> None:
    env = make(rig, TASKS["valve_random"], images=False)
    _, info = env.reset(seed=0)
    before = info["telemetry"]["joint_position"]
    for action in np.sign(actions(20, seed=5)).astype(np.float32):
        info = env.step(action)[4]
        sent = info["telemetry"]["applied"]
        assert np.abs(sent - before).max() <= 2 * math.pi / 3 * 0.1 + 1e-9
        before = info["telemetry"]["joint_position"]


# --- images ---


def test_image_shows_the_goal_and_without_images_no_camera_is_needed() -> None:
    with build(RigConfig(kind="sim", name="sim"), cameras=False) as blind:
        assert set(make(blind, images=False).reset(seed=0)[0]) == {"state"}
        with pytest.raises(ValueError, match="without a camera"):
            make(blind, images=True)
    with sim() as rig:
        image = make(rig).reset(seed=0)[0]["image"].astype(int)
        green = (image[..., 1] > image[..., 0] + 100) & (image[..., 1] > image[..., 2] + 80)
        assert 12 <= green.sum() <= 24


def test_render_gives_a_larger_picture_and_only_when_asked(rig: Rig) -> None:
    assert make(rig).render() is None
    env = make(rig, render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.shape[0] >= 256
    assert picture.shape[2] == 3


# --- faults ---


def test_silent_servo_ends_the_episode_without_becoming_a_number(rig: Rig) -> None:
    env = make(rig)
    env.reset(seed=0)
    before = env.step(REST)[0]
    plant_of(rig).servos[21].powered = False
    observation, reward, terminated, truncated, info = env.step(REST)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["fault"] == "servo-silent"
    assert "21" in info["fault_message"]
    assert "telemetry" not in info
    assert data_equivalence(observation, before, exact=True)
    with pytest.raises(ResetNeeded):
        env.step(REST)


def test_overloaded_servo_ends_the_episode_by_name(rig: Rig) -> None:
    env = make(rig, images=False)
    env.reset(seed=0)
    plant_of(rig).servos[12].raise_hardware_error(0x20)
    plant_of(rig).refresh()
    info = env.step(REST)[4]
    assert info["fault"] == "servo-alert"
    assert "overload" in info["fault_message"]


@pytest.mark.parametrize(
    ("thinking", "fault"),
    [
        (0.0, "servo-silent"),  # seen while it boots
        (0.25, "torque-lost"),  # seen when it answers again, limp and without its settings
    ],
)
def test_rebooted_servo_ends_the_episode_by_name_and_the_next_one_sets_it_anew(
    rig: Rig, thinking: float, fault: str
) -> None:
    env = make(rig, images=False)
    env.reset(seed=0)
    before = env.step(REST)[0]
    plant_of(rig).reboot(22)
    rig.clock.sleep_until(rig.clock.now() + thinking)
    observation, reward, _, truncated, info = env.step(REST)
    assert (info["fault"], reward, truncated) == (fault, 0.0, True)
    assert "servo 22 (finger 2, distal)" in info["fault_message"]
    np.testing.assert_array_equal(observation["state"], before["state"])
    rig.clock.sleep_until(rig.clock.now() + 0.25)
    env.reset()
    assert plant_of(rig).read(reg.BUS_WATCHDOG, 22) > 0
    assert "fault" not in env.step(REST)[4]


def test_resets_fail_by_name_until_the_servo_is_well_again(rig: Rig) -> None:
    env, plant = make(rig, images=False), plant_of(rig)
    env.reset(seed=0)
    plant.power(12, False)
    assert env.step(REST)[4]["fault"] == "servo-silent"
    for _ in range(2):
        with pytest.raises(BusFault, match=r"servo 12 \(finger 1, distal\)"):
            env.reset()
    plant.power(12, True)
    rig.clock.sleep_until(rig.clock.now() + 0.25)
    env.reset()
    assert "fault" not in env.step(REST)[4]


def test_overloaded_servo_is_restarted_by_the_next_reset_but_not_for_ever(rig: Rig) -> None:
    env, plant = make(rig, images=False), plant_of(rig)
    for _ in range(3):
        env.reset(seed=0)
        plant.servos[12].raise_hardware_error(0x20)
        plant.refresh()
        assert env.step(REST)[4]["fault"] == "servo-alert"
    env.reset()
    plant.servos[12].raise_hardware_error(0x20)
    plant.refresh()
    with pytest.raises(BusFault, match=r"servo 12 \(finger 1, distal\) reports overload.* after 3 restarts"):
        env.reset()
    assert torques(rig) == {False}


def test_reset_on_a_dead_bus_raises_and_leaves_the_robot_without_torque(rig: Rig) -> None:
    env = make(rig, images=False)
    env.reset(seed=0)
    plant_of(rig).servos[30].powered = False
    with pytest.raises(BusFault, match="30"):
        env.reset()
    assert not any(s.torque for s in plant_of(rig).servos.values() if s.powered)
    with pytest.raises(ResetNeeded):
        env.step(REST)


@pytest.mark.parametrize(("delay", "max_age"), [(0.2, 0.5), (0.05, 0.03)])
def test_stale_frame_fails_the_reset(delay: float, max_age: float) -> None:
    """Older than a control period, or than the camera's own limit."""
    with sim(sim={"frame_delay": delay}, camera={"max_age": max_age}) as rig, pytest.raises(StaleFrame):
        make(rig).reset(seed=0)


def test_image_of_the_wrong_size_fails_the_reset_and_leaves_the_robot_without_torque() -> None:
    with sim(camera={"size": (48, 48)}) as rig:
        with pytest.raises(CameraFault, match=r"\(48, 48, 3\)"):
            make(rig, SHORT.model_copy(update={"cue": "none"})).reset(seed=0)
        assert torques(rig) == {False}


def test_three_late_steps_in_a_row_are_a_fault_two_are_not(rig: Rig) -> None:
    env = make(rig, TASKS["valve_random"], images=False)
    env.reset(seed=0)
    late = [True, True, False, True, True, True]
    infos = [env.step(REST)[4]]
    for thinking in late:
        rig.clock.sleep_until(rig.clock.now() + (0.125 if thinking else 0.0))
        infos.append(env.step(REST)[4])
    assert [info.get("fault") for info in infos] == [None] * 6 + ["late"]
    overruns = [info["telemetry"]["overrun"] for info in infos[:-1]]
    assert overruns == pytest.approx([0, 0.025, 0.025, 0, 0.025, 0.025], abs=1e-6)


def test_thinking_before_the_first_action_is_not_late(rig: Rig) -> None:
    env = make(rig, images=False)
    env.reset(seed=0)
    rig.clock.sleep_until(rig.clock.now() + 0.2)
    assert env.step(REST)[4]["telemetry"]["overrun"] == 0.0


def test_close_takes_the_torque_off_and_may_be_repeated(rig: Rig) -> None:
    env = make(rig, images=False)
    env.reset(seed=0)
    assert torques(rig) == {True, False}  # the valve's servo is free in an episode
    for _ in range(2):
        env.close()
        assert torques(rig) == {False}


def test_task_for_another_robot_is_refused(rig: Rig) -> None:
    config = SHORT.model_copy(update={"action_range": (0.4, 0.4)})
    with pytest.raises(ValueError, match="6 joints, the robot has 9"):
        make(rig, config, images=False)


# --- goals that move ---


def test_goal_moves_before_each_step_and_not_while_the_agent_thinks(rig: Rig) -> None:
    env = make(rig, TASKS["screw_fixed"], images=False)
    _, info = env.reset(seed=0)
    rig.clock.sleep_until(rig.clock.now() + 0.25)
    behind = [info["measures"]["error"]] + [env.step(env.task.hold)[4]["measures"]["error"] for _ in range(6)]
    assert behind[0] == pytest.approx(0.0, abs=0.06)  # the valve is at 0 within the reset's tolerance
    assert np.diff(behind) == pytest.approx([0.05] * 6, abs=0.004)


def test_late_step_does_not_carry_the_goal_away(rig: Rig) -> None:
    env = make(rig, TASKS["screw_fixed"], images=False)
    env.reset(seed=0)
    behind = [env.step(env.task.hold)[4]["measures"]["error"]]
    rig.clock.sleep_until(rig.clock.now() + 0.125)  # 25 ms more than a period
    behind.append(env.step(env.task.hold)[4]["measures"]["error"])
    assert np.diff(behind) == pytest.approx([0.05], abs=0.004)


# --- against published numbers ---


@pytest.mark.parametrize(("name", "published"), [("turn_fixed", -631), ("screw_fixed", -646)])
def test_holding_the_reset_pose_scores_what_robels_own_environment_gives(
    rig: Rig, name: str, published: float
) -> None:
    """DClawTurnFixed-v0 and DClawScrewFixed-v0 on the nominal model."""
    env = make(rig, TASKS[name], images=False)
    env.reset(seed=0)
    rewards = [env.step(env.task.hold)[1] for _ in range(env.task.horizon)]
    assert sum(rewards) == pytest.approx(published, abs=2)


def test_unknown_reset_options_are_refused(rig: Rig) -> None:
    with pytest.raises(ValueError, match="angel"):
        make(rig, images=False).reset(options={"angel": 1.0})
