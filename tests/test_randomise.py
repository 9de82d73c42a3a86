"""What a draw varies, how much, and that it leaves nothing behind."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.utils import seeding
from numpy.typing import NDArray

import run_robot
from agent.episodes import read_episode
from configs.document import ConfigError, Layer
from configs.loader import dump, load
from configs.run import HwConfig
from robot import registers as reg
from robot.faults import FaultConfig, FaultSchedule
from robot.randomise import COUNTS, PRESETS, Draw, RandomiseConfig, Variation, blurred
from robot.registers import RAD_PER_TICK
from robot.rig import Rig, RigConfig, build
from robot.sim import FINGER_SERVOS, RESET_POSE, VALVE_SERVO, ZERO_TICKS, SimConfig, SimPlant
from robot.types import Floats, Image, StaleFrame, ValveGeometry
from robot.world import JOINTS, WorldConfig, dclaw_model, find_robel
from tasks import RobotEnv, ValveConfig, make_task
from tasks.task import Action
from tasks.valve import AngleRange, Dot, FixedAngle, project

ROOT = Path(__file__).parents[1]
IDS = (*FINGER_SERVOS, VALVE_SERVO)
STEP = 0.0025  # s
WITHOUT = Draw()
RANDOM = ValveConfig(goal=AngleRange(low=-1.5, high=1.5), horizon=3)
SIM2REAL = RandomiseConfig.model_validate("sim2real")
TEXTURED = SimConfig(randomise=RandomiseConfig(floor_texture=(0.0, 1.0)))


def of(**values: float | tuple[float, ...]) -> Draw:
    return Draw({name: value if isinstance(value, tuple) else (value,) for name, value in values.items()})


def draws(config: RandomiseConfig, count: int) -> Iterator[Draw]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield config.draw(rng)


@pytest.fixture(scope="module")
def only_plant() -> Iterator[SimPlant]:
    with closing(SimPlant(TEXTURED)) as plant:
        yield plant


@pytest.fixture
def plant(only_plant: SimPlant) -> SimPlant:
    """The nominal plant, at rest at the reset pose without torque."""
    only_plant.sync_write(reg.TORQUE_ENABLE, dict.fromkeys(IDS, 0))
    become(only_plant, WITHOUT)
    return only_plant


def become(plant: SimPlant, draw: Draw, valve: float = 0.0) -> None:
    plant.vary(draw)
    plant.teleport(RESET_POSE, valve)


def torque_on(plant: SimPlant) -> None:
    plant.sync_write(reg.TORQUE_ENABLE, dict.fromkeys(FINGER_SERVOS, 1))


def command(plant: SimPlant, angle: float, servo: int = 12) -> None:
    row = FINGER_SERVOS.index(servo)
    plant.sync_write(reg.GOAL_POSITION, {servo: int(ZERO_TICKS[row]) + round(angle / RAD_PER_TICK)})


def after(plant: SimPlant, seconds: float) -> Floats:
    """Joint and valve angles, (10,) rad, so much later."""
    plant.sleep_until(plant.now() + seconds)
    return np.asarray(plant.truth["qpos"])


# --- Presets and draws ---


def robels_ranges() -> dict[str, tuple[float, ...]]:
    """What the installed ROBEL's TurnRandomDynamics passes to its randomiser."""
    source = (find_robel() / "dclaw/turn.py").read_text(encoding="utf-8")
    found = re.findall(r"(\w+_range)=(\([^)]*\))", source.partition("class DClawTurnRandomDynamics")[2])
    return {name: ast.literal_eval(pair) for name, pair in found}


def test_the_robel_preset_has_robels_ranges_and_nothing_else() -> None:
    theirs = robels_ranges()
    assert RandomiseConfig.model_validate("robel").ranges == {
        "servo_stiffness": theirs["kp_range"],
        "joint_damping": theirs["damping_range"],
        "friction_loss": theirs["friction_loss_range"],
        "valve_damping": theirs["damping_range"],
        "valve_friction_loss": theirs["friction_loss_range"],
        "friction": theirs["friction_slide_range"],
        "friction_torsional": theirs["friction_spin_range"],
        "friction_rolling": theirs["friction_roll_range"],
        "mount_offset": theirs["position_perturb_range"],
        "mount_colour": theirs["color_range"],
        "valve_colour": theirs["color_range"],
    }


def test_sim2real_varies_all_but_what_the_agent_is_told_wrong() -> None:
    assert set(RandomiseConfig.model_fields) - set(SIM2REAL.ranges) == {"base", "observation_noise"}


@pytest.mark.parametrize(("preset", "column"), [("robel", 2), ("sim2real", 3)])
def test_the_document_lists_every_quantity_with_its_range(preset: str, column: int) -> None:
    document = (ROOT / "docs/randomisation.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in document.splitlines() if line.startswith("| `")]
    assert {row[0].strip("`") for row in rows} == set(RandomiseConfig.model_fields) - {"base"}
    ranges = {row[0].strip("`"): tuple(json.loads(row[column])) for row in rows if row[column] != "-"}
    assert ranges == PRESETS[preset]


@pytest.mark.parametrize("preset", ["robel", "sim2real"])
def test_draws_fill_their_ranges_and_never_leave_them(preset: str) -> None:
    config = RandomiseConfig.model_validate(preset)
    drawn = [draw.values for draw in draws(config, 100)]
    for name, (low, high) in config.ranges.items():
        values = np.array([one[name] for one in drawn])
        assert values.shape == (100, COUNTS.get(name, 1))
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high >= values.max() > high - 0.1 * (high - low)


def test_no_colour_is_drawn_that_passes_for_the_pointers_or_the_goals() -> None:
    any_colour = RandomiseConfig(valve_colour=(0.0, 1.0), floor_colour=(0.0, 1.0))
    for draw in draws(any_colour, 300):
        for red, green, blue in (draw.values["valve_colour"], draw.values["floor_colour"]):
            assert red <= max(green, blue) + 0.1
            assert green <= max(red, blue) + 0.1


def test_a_seed_decides_the_whole_draw() -> None:
    one, same, other = (SIM2REAL.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same
    assert not {name for name, value in one.values.items() if other.values[name] == value}


def test_a_draw_comes_back_from_its_log_to_the_bit() -> None:
    draw = SIM2REAL.draw(np.random.default_rng(3))
    logged = json.loads(json.dumps({"goal": 1.0, **draw.floats(), "start": 0.5}))
    assert Draw.of(logged) == draw
    assert Draw.of({"goal": 1.0, "start": 0.5}) == WITHOUT


# --- Settings ---


def settings(*overrides: str) -> RandomiseConfig:
    given = Layer.from_overrides([f"hw.sim.randomise{override}" for override in overrides])
    return load(HwConfig, [Layer.from_text("hw: {kind: sim}", "test"), given]).hw.sim.randomise


def test_a_section_changes_the_ranges_of_its_base() -> None:
    changed = settings(".base=robel", ".backlash=[0.0, 0.02]", ".mount_colour=null")
    expected = {**PRESETS["robel"], "backlash": (0.0, 0.02)}
    del expected["mount_colour"]
    assert changed.ranges == expected
    assert settings("=robel").ranges == PRESETS["robel"]
    assert settings("=off").ranges == {}


def test_ranges_come_back_from_a_runs_config_file() -> None:
    config = HwConfig(hw=RigConfig(sim=SimConfig(randomise=settings(".base=sim2real", ".light=null"))))
    assert load(HwConfig, [Layer.from_text(dump(config), "config.yaml")]) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("=roble", r"hw\.sim\.randomise\.base: expected one of .* saw text 'roble' - did you mean 'robel'\?"),
        (".backlas=[0, 1]", r"unknown key 'backlas' - did you mean 'backlash'\?"),
        (".backlash=[1, 0]", r"hw\.sim\.randomise\.backlash: low 1 is above high 0; swap them"),
        (".backlash=0.1", r"hw\.sim\.randomise\.backlash: expected a list, saw the number 0\.1"),
        (".friction=[-1, 0]", r"must be at least 0, saw -1"),
        (".camera_distance=[-0.5, 0]", r"camera_distance: from 0\.42 m, -0\.5 is too much"),
        (".camera_fovy=[0, 140]", r"camera_fovy: with 45 deg, 0 to 140 leaves"),
        (".frame_drops=[0, 2]", r"must be at most 1, saw 2"),
        (".mount_offset=[5, 5]", r"mount_offset: numbers go to 0\.1 here"),
        (".encoder_noise=[1e300, 1e300]", r"encoder_noise: numbers go to 100 here"),
    ],
)
def test_a_mistaken_range_says_what_was_meant(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(override)


@pytest.mark.parametrize("others", ["--task valve_fixed --hw emulated", "--task dm_reacher_easy --hw sim"])
def test_what_is_not_randomised_refuses_to_be(others: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"train {others} --agent sac_state --set hw.sim.randomise=robel --print-config"
    assert run_robot.main(command.split()) == 2
    assert "hw.sim.randomise: is for the simulated D'Claw" in capsys.readouterr().err


# --- Off ---


def test_a_rig_that_varies_nothing_stays_the_same_to_the_bit() -> None:
    worlds = []
    for randomised in (False, True):
        with build(RigConfig(), cameras=False) as rig:
            if randomised:
                assert rig.randomise(np.random.default_rng(0)) == {}
                rig.imitate({"goal": 1.0})
            plant = plant_of(rig)
            torque_on(plant)
            command(plant, 0.3)
            worlds.append(after(plant, 0.5).tobytes())
    assert worlds[0] == worlds[1]


def test_without_a_draw_the_model_is_what_it_was() -> None:
    """The whole compiled model, byte for byte, after many draws and an empty one."""
    model = dclaw_model(WorldConfig(), floor_texture=True)
    fresh = written(model)
    variation = Variation(model)
    for draw in draws(SIM2REAL, 3):
        variation.apply(draw)
        assert written(model) != fresh
    variation.apply(WITHOUT)
    assert written(model) == fresh


def written(model: mujoco.MjModel) -> bytes:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


# --- Physics ---


def test_a_stiffer_servo_follows_faster(plant: SimPlant) -> None:
    moved = []
    for stiffness in (1.0, 3.0):
        become(plant, of(servo_stiffness=stiffness))
        torque_on(plant)
        before = plant.truth["qpos"][2]
        command(plant, before - 0.5)
        moved.append(before - after(plant, 0.05)[2])
    assert moved[1] > 1.5 * moved[0] > 0


def test_the_position_gain_register_scales_a_drawn_stiffness(plant: SimPlant) -> None:
    become(plant, of(servo_stiffness=6.0))
    torque_on(plant)
    plant.write(reg.POSITION_P_GAIN, 12, 450)
    command(plant, 1.5)
    plant.sleep_until(plant.now() + STEP)
    plant.write(reg.POSITION_P_GAIN, 12, 900)
    assert plant.truth["torque"][2] == pytest.approx(3.0 * (1.5 - RESET_POSE[2]), rel=1e-2)


def test_each_joint_has_its_own_damping_and_more_of_it_is_slower(plant: SimPlant) -> None:
    become(plant, of(joint_damping=tuple(np.repeat([0.01, 0.05, 0.2], 3).tolist())))
    torque_on(plant)
    for servo in (10, 20, 30):
        command(plant, -0.4, servo)
    first, second, third = -after(plant, 0.05)[[0, 3, 6]]
    assert first > 1.1 * second > 1.5 * third > 0


def test_dry_friction_holds_a_limp_finger_up(plant: SimPlant) -> None:
    fallen = []
    for loss in (0.0, 0.5):
        become(plant, of(friction_loss=(loss,) * 9))
        fallen.append(np.abs(after(plant, 0.5)[:9] - RESET_POSE).max())
    assert fallen[0] > 0.2
    assert fallen[1] < 0.03


@pytest.mark.parametrize("brake", [{"valve_damping": 0.3}, {"valve_friction_loss": 1.0}])
def test_a_braked_valve_turns_less(plant: SimPlant, brake: dict[str, float]) -> None:
    turned = []
    for draw in (of(valve_damping=0.01), of(**{"valve_damping": 0.01, **brake})):
        become(plant, draw)
        plant.write(reg.GOAL_POSITION, VALVE_SERVO, 2048 + 1000)
        plant.write(reg.TORQUE_ENABLE, VALVE_SERVO, 1)
        turned.append(after(plant, 0.1)[9])
        plant.write(reg.TORQUE_ENABLE, VALVE_SERVO, 0)
    assert 0 < turned[1] < 0.8 * turned[0]


def test_every_contact_has_the_drawn_frictions() -> None:
    model = dclaw_model(WorldConfig())
    drawn = of(friction=0.83, friction_torsional=0.0061, friction_rolling=7e-5)
    Variation(model).apply(drawn)
    data, rng, seen = mujoco.MjData(model), np.random.default_rng(0), 0
    for _ in range(200):
        data.qpos[:9] = rng.uniform(-1, 1, 9) * np.tile([0.45, 1.05, 1.57], 3)
        mujoco.mj_forward(model, data)
        seen += data.ncon
        for contact in data.contact:
            np.testing.assert_allclose(contact.friction, [0.83, 0.83, 0.0061, 7e-5, 7e-5])
    assert seen > 20


def test_the_hand_is_mounted_elsewhere_and_the_valve_stays() -> None:
    model, offset = dclaw_model(WorldConfig()), (0.01, -0.007, 0.004)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    before = data.xpos.copy()
    Variation(model).apply(of(mount_offset=offset))
    mujoco.mj_kinematics(model, data)
    hand = model.body_rootid == model.body("mount").id
    assert hand.sum() > len(JOINTS)
    np.testing.assert_allclose((data.xpos - before)[hand], [offset] * hand.sum(), atol=1e-12)
    assert not (data.xpos - before)[~hand].any()


def test_a_hand_that_is_set_down_into_the_valve_opens_its_fingers(plant: SimPlant) -> None:
    pose = [0.0, -0.2, 0.9] * 3
    for height, left in ((0.099, pose), (0.0, RESET_POSE)):
        plant.vary(of(mount_offset=(0.0, 0.0, 0.1)))
        plant.teleport(pose, 1.0)
        plant.vary(of(mount_offset=(0.0, 0.0, height)))
        np.testing.assert_allclose(plant.truth["qpos"], [*left, 1.0])


def test_backlash_leaves_a_dead_band_of_its_size(plant: SimPlant) -> None:
    become(plant, of(backlash=0.1))
    torque_on(plant)
    stops = []
    for goal in (0.5, 0.45, 0.41, 0.3, 0.35, 0.45):
        command(plant, goal)
        plant.sleep_until(plant.now() + STEP)
        stops.append(plant.truth["setpoint"][2])
    # Down from 1.05 it stops at the upper edge of the band, and turns round only when that is crossed.
    np.testing.assert_allclose(stops, [0.55, 0.5, 0.46, 0.35, 0.35, 0.4], atol=2 * RAD_PER_TICK)


def test_a_stuck_joint_that_comes_free_has_the_damping_of_the_present_draw(plant: SimPlant) -> None:
    """It was stuck in one draw, stayed so in another and came free there."""
    first, second = of(joint_damping=(0.4,) * 9), of(joint_damping=(0.02,) * 9)
    become(plant, first)
    plant.inject(FaultSchedule([FaultConfig(kind="stuck-joint", servo=12)]))
    become(plant, second)
    torque_on(plant)
    command(plant, 0.3)
    assert after(plant, 0.5)[2] == pytest.approx(RESET_POSE[2], abs=1e-4), "the draw must not free it"
    plant.heal()
    swings = []
    for draw in (None, second):
        if draw is not None:
            plant.vary(draw)
        plant.teleport(RESET_POSE, 0.0)
        command(plant, 0.3)
        swings.append(after(plant, 0.1)[2])
    assert swings[0] == pytest.approx(swings[1], abs=1e-9)
    become(plant, first)
    command(plant, 0.3)
    assert after(plant, 0.1)[2] > swings[0] + 0.1, "the first draw's would have been slower"


# --- Time ---


@pytest.mark.parametrize("steps", [0, 1, 8])
def test_a_command_takes_effect_as_many_steps_later_as_was_drawn(plant: SimPlant, steps: int) -> None:
    become(plant, of(command_delay=steps * STEP))
    torque_on(plant)
    command(plant, 0.3)
    for _ in range(steps):
        plant.sleep_until(plant.now() + STEP)
        assert plant.truth["setpoint"][2] == pytest.approx(RESET_POSE[2], abs=RAD_PER_TICK)
    plant.sleep_until(plant.now() + STEP)
    assert plant.truth["setpoint"][2] == pytest.approx(0.3, abs=RAD_PER_TICK)


def test_a_frame_is_as_late_as_was_drawn_and_shows_what_was_then(plant: SimPlant) -> None:
    become(plant, of(frame_delay=0.02))
    torque_on(plant)
    command(plant, -0.5)
    plant.sleep_until(plant.now() + 0.05)
    present = plant.latest(1.0)
    plant.sleep_until(plant.now() + 0.02)
    late = plant.latest(0.02)
    assert late.time == pytest.approx(plant.now() - 0.02)
    assert late.time > present.time
    plant.vary(WITHOUT)
    prompt = plant.latest(0.0)
    assert prompt.time == plant.now()
    assert (prompt.image != late.image).any()


def test_a_dropped_frame_leaves_the_one_before_which_ages_until_it_is_refused(plant: SimPlant) -> None:
    become(plant, of(frame_drops=1.0, colour_noise=5.0))
    first = plant.latest(0.0)
    command(plant, 0.3)
    plant.sleep_until(plant.now() + 0.09)
    again = plant.latest(0.1)
    assert (again.time, again.sequence) == (first.time, first.sequence)
    np.testing.assert_array_equal(again.image, first.image)
    assert not np.shares_memory(again.image, first.image)
    plant.sleep_until(plant.now() + 0.02)
    with pytest.raises(StaleFrame, match=r"0\.110 s old"):
        plant.latest(0.1)


def test_as_many_frames_are_lost_as_was_drawn(plant: SimPlant) -> None:
    become(plant, of(frame_drops=0.3, luck=7.0))
    times = set()
    for _ in range(200):
        plant.sleep_until(plant.now() + 0.0325)
        times.add(plant.latest(10.0).time)
    assert len(times) / 200 == pytest.approx(0.7, abs=0.1)  # three standard deviations


# --- Sensors ---


def test_encoders_err_by_whole_ticks_within_what_was_drawn(plant: SimPlant) -> None:
    truth = plant.sync_read([reg.PRESENT_POSITION], IDS).values[:, 0]
    become(plant, of(encoder_noise=2.0))
    errors = np.array([plant.sync_read([reg.PRESENT_POSITION], IDS).values[:, 0] - truth for _ in range(50)])
    assert set(np.unique(errors)) == {-2, -1, 0, 1, 2}
    assert {plant.read(reg.PRESENT_POSITION, 12) - truth[2] for _ in range(50)} == {-2, -1, 0, 1, 2}


def test_observation_noise_is_as_wide_as_robels() -> None:
    with build(RigConfig(), cameras=False) as rig:
        snapshot = rig.snapshot_without_images()
    luck = np.random.default_rng(0)
    many = [blurred(snapshot, 0.05, luck) for _ in range(400)]
    off = np.array([seen.joints.position - snapshot.joints.position for seen in many])
    np.testing.assert_allclose(np.abs(off).max(0), [0.024, 0.0524, 0.0785] * 3, rtol=0.03)
    off = np.array([seen.joints.velocity - snapshot.joints.velocity for seen in many])
    np.testing.assert_allclose(np.abs(off).max(0), 0.105, rtol=0.03)
    off = np.array([seen.object.position - snapshot.object.position for seen in many])
    np.testing.assert_allclose(np.abs(off).max(0), 0.157, rtol=0.03)
    assert not any((seen.object.velocity - snapshot.object.velocity).any() for seen in many)


# --- Looks ---


def reddish(image: Image) -> NDArray[np.bool_]:
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    return (red > 2 * green + 30) & (red > 2 * blue + 30)


def test_the_projection_is_that_of_the_drawn_camera(plant: SimPlant) -> None:
    """The goal's dot must lie where a calibrated camera would have it."""
    looks = RandomiseConfig(
        camera_shift=(-0.02, 0.02),
        camera_distance=(-0.05, 0.05),
        camera_azimuth=(-20, 20),
        camera_elevation=(-10, 10),
        camera_fovy=(-5, 5),
    )
    tip, missed = ValveGeometry(radius=0.085), 0  # just inside the tip
    nominal = plant.projection
    for draw in draws(looks, 8):
        become(plant, draw, valve=0.6)
        red = reddish(plant.latest(0.0).image)
        u, v = project(plant.projection, tip.rim(0.6))
        assert red[round(v), round(u)]
        u, v = project(nominal, tip.rim(0.6))
        missed += not red[round(v), round(u)]
    assert missed, "the nominal projection would do as well: the camera hardly moved"


def test_no_drawn_camera_loses_the_goals_dot() -> None:
    for draw in draws(SIM2REAL, 200):
        projection = draw.pose(SimConfig().camera).projection(64, 64)
        for angle in np.linspace(-np.pi, np.pi, 12, endpoint=False):
            Dot.at(project(projection, ValveGeometry().rim(angle)), (64, 64))  # raises


def test_the_pointer_stays_red_and_in_view_in_every_draw(plant: SimPlant) -> None:
    for draw in draws(SIM2REAL, 12):
        become(plant, draw, valve=1.0)
        assert 12 < reddish(plant.latest(1.0).image).sum() < 250


def brightness(plant: SimPlant, draw: Draw) -> float:
    become(plant, draw)
    return float(plant.latest(1.0).image.mean())


@pytest.mark.parametrize(
    "brighter",
    [{"exposure": 1.2}, {"light": (1.5, 1.5, 1.5)}, {"ambient": 1.4}, {"floor_colour": (0.9, 0.9, 0.9)}],
)
def test_more_light_makes_a_brighter_picture(plant: SimPlant, brighter: dict[str, Any]) -> None:
    darker = {name: tuple(0.5 * np.atleast_1d(value)) for name, value in brighter.items()}
    assert brightness(plant, of(**brighter)) > brightness(plant, of(**darker)) + 5


@pytest.mark.parametrize("name", ["floor_colour", "finger_colour", "valve_colour"])
def test_each_part_takes_its_colour_and_no_other_part_does(plant: SimPlant, name: str) -> None:
    become(plant, WITHOUT)
    before = plant.render(128, 128).astype(int)
    become(plant, of(**{name: (0.0, 0.0, 1.0)}))
    seen = plant.render(128, 128).astype(int)
    changed = (np.abs(seen - before) > 25).any(2)
    assert changed.sum() > 5
    assert (seen[changed][:, 2] > 2 * seen[changed][:, :2].max(1)).mean() > 0.8
    share = {"floor_colour": (0.4, 1), "finger_colour": (0.05, 0.4)}
    low, high = share.get(name, (0.01, 0.1))
    assert low < changed.mean() < high


def test_the_mount_which_this_camera_does_not_see_takes_its_colour_too() -> None:
    model = dclaw_model(WorldConfig())
    before = model.geom_rgba.copy()
    Variation(model).apply(of(mount_colour=(0.1, 0.2, 0.3)))
    (changed,) = np.flatnonzero((model.geom_rgba != before).any(1))
    assert changed == model.geom("mount").id
    np.testing.assert_allclose(model.geom_rgba[changed], [0.1, 0.2, 0.3, 1.0], rtol=1e-6)


def test_white_balance_tints_the_agents_picture_and_not_that_for_people(plant: SimPlant) -> None:
    become(plant, WITHOUT)
    agents, peoples = plant.latest(0.0).image.mean((0, 1)), plant.render(64, 64)
    become(plant, of(white_balance=(0.8, 1.0, 0.9)))
    np.testing.assert_allclose(plant.latest(0.0).image.mean((0, 1)) / agents, [0.8, 1.0, 0.9], atol=0.01)
    np.testing.assert_array_equal(plant.render(64, 64), peoples)


def test_colour_noise_is_new_in_each_frame_and_as_strong_as_was_drawn(plant: SimPlant) -> None:
    become(plant, of(exposure=0.5))
    quiet = plant.latest(0.0).image.astype(float)
    become(plant, of(exposure=0.5, colour_noise=4.0))
    first, second = (plant.latest(0.0).image.astype(float) for _ in range(2))
    clear = (quiet > 20) & (quiet < 235)
    assert (first - quiet)[clear].std() == pytest.approx(4.0, rel=0.05)
    assert (first - second)[clear].std() == pytest.approx(4.0 * np.sqrt(2), rel=0.05)


def test_the_floor_has_another_pattern_in_each_draw(plant: SimPlant) -> None:
    pictures = []
    for contrast, luck in ((0.0, 0.0), (0.5, 1.0), (0.5, 2.0)):
        become(plant, of(floor_texture=contrast, luck=luck))
        pictures.append(plant.render(128, 128)[90:, :30].astype(int))  # nothing but floor
    assert pictures[1].std() > pictures[0].std() + 5
    assert np.abs(pictures[1] - pictures[2]).mean() > 5


# --- Episodes ---


def plant_of(rig: Rig) -> SimPlant:
    assert isinstance(rig.clock, SimPlant)
    return rig.clock


def rig_of(randomise: str | dict[str, Any], **changes: Any) -> Rig:
    return build(
        RigConfig.model_validate({"sim": {"randomise": randomise}, **changes}), cameras=False
    ).__enter__()


@pytest.fixture(scope="module")
def robel() -> Iterator[Rig]:
    with closing(rig_of("robel", patience={"total": 100})) as rig:
        yield rig


def of_the_rig(parameters: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in parameters.items() if name.startswith("sim.")}


def begun(rig: Rig, seed: int | None, config: ValveConfig = RANDOM) -> dict[str, float]:
    parameters: dict[str, float] = RobotEnv(rig, make_task(config), images=False).reset(seed=seed)[1][
        "parameters"
    ]
    return parameters


def test_an_episode_says_what_it_drew_and_that_is_what_is_simulated(robel: Rig) -> None:
    drawn = of_the_rig(begun(robel, 5))
    assert len(drawn) == sum(COUNTS.get(name, 1) for name in PRESETS["robel"]) + 1
    plant = plant_of(robel)
    command(plant, 1.5)
    error = 1.5 - plant.truth["qpos"][2]
    plant.sleep_until(plant.now() + STEP)
    assert plant.truth["torque"][2] / error == pytest.approx(drawn["sim.servo_stiffness"], rel=0.02)


def test_goals_are_the_same_on_a_rig_that_is_randomised_and_on_one_that_is_not(robel: Rig) -> None:
    with closing(rig_of("off")) as plain:
        for seed in (1, 2):
            alone = RANDOM.goal.sample(seeding.np_random(seed)[0])
            assert begun(robel, seed)["goal"] == begun(plain, seed)["goal"] == alone


def test_goals_of_later_episodes_are_the_same_too(robel: Rig) -> None:
    with closing(rig_of("off")) as plain:
        goals = []
        for rig in (robel, plain):
            env = RobotEnv(rig, make_task(RANDOM), images=False)
            goals.append([env.reset(seed=seed)[1]["parameters"]["goal"] for seed in (3, None, None)])
    assert goals[0] == goals[1]


def test_a_hand_put_down_again_does_not_swing_back_however_late_commands_are() -> None:
    plant = SimPlant(SimConfig(command_delay=0.02, servo_stiffness=8.0))
    for servo in plant.servos:
        plant.write(reg.TORQUE_ENABLE, servo, 1)
    plant.teleport(np.tile([0.0, -0.6, 0.9], 3), 0.0)
    plant.advance_to(plant.now() + 0.2)
    plant.teleport(RESET_POSE, 0.0)
    furthest = 0.0
    for _ in range(40):
        plant.advance_to(plant.now() + 0.0025)
        furthest = max(furthest, float(np.abs(plant.truth["qpos"][:9] - RESET_POSE).max()))
    assert furthest < 0.03


def test_a_seed_gives_the_same_draw_again_also_after_a_failed_attempt(robel: Rig) -> None:
    expected, drawn = of_the_rig(begun(robel, 5)), []
    randomise = robel.randomise

    def watched(rng: np.random.Generator) -> Mapping[str, float]:
        drawn.append(randomise(rng))
        return drawn[-1]

    robel.randomise = watched
    plant_of(robel).inject(FaultSchedule([FaultConfig(kind="unplug", duration=0.5)]))
    try:
        assert of_the_rig(begun(robel, 5)) == expected
    finally:
        robel.randomise = randomise
    assert drawn == [expected] * len(drawn)
    assert len(drawn) > 1, "no attempt failed"


def test_episodes_after_one_another_differ_even_where_the_task_draws_nothing(robel: Rig) -> None:
    fixed = RANDOM.model_copy(update={"goal": FixedAngle(angle=0.5), "start": FixedAngle(angle=0.0)})
    env = RobotEnv(robel, make_task(fixed), images=False, seed=1)
    first, second = (of_the_rig(env.reset()[1]["parameters"]) for _ in range(2))
    assert not first.items() & second.items()


def test_the_agent_is_told_wrong_and_the_reward_and_the_log_are_right() -> None:
    with closing(rig_of({"observation_noise": [0.05, 0.05]})) as rig:
        env = RobotEnv(rig, make_task(RANDOM), images=False, seed=1)
        env.reset()
        action: Action = np.zeros(9, np.float32)
        observation, reward, *_, info = env.step(action)
    measured = info["telemetry"]
    assert 0.01 < np.abs(observation["state"][:9] - measured["joint_position"]).max() < 0.08
    assert reward == -info["measures"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["robel", "sim2real"])
def test_resets_succeed_in_all_that_a_preset_can_draw(preset: str) -> None:
    with closing(rig_of(preset)) as rig:
        env, rng = RobotEnv(rig, make_task(RANDOM), images=False), np.random.default_rng(0)
        for seed in range(60):
            env.reset(seed=seed)  # raises
            for _ in range(RANDOM.horizon):
                env.step(rng.uniform(-1, 1, 9).astype(np.float32))


# --- From the command line ---


def collected(run: Path, more: str) -> list[Path]:
    command = (
        f"collect --task valve_random --hw sim --set task.horizon=3 --set hw.sim.randomise=sim2real {more}"
    )
    assert run_robot.main([*command.split(), "--run", str(run)]) == 0
    return sorted((run / "episodes").glob("*.mcap"))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return collected(tmp_path_factory.mktemp("logs") / "run", "--episodes 2")


def test_every_log_holds_its_own_draw(logs: list[Path]) -> None:
    first, second = (read_episode(log, images=False).parameters for log in logs)
    assert first.keys() == second.keys() > {"goal", "start", "sim.backlash", "sim.joint_damping.8"}
    assert not of_the_rig(first).items() & of_the_rig(second).items()
    for name, values in Draw.of(first).values.items():
        low, high = PRESETS["sim2real"].get(name, (0, 2**32))
        assert low <= min(values) <= max(values) <= high


def test_a_randomised_episode_is_rescored_as_it_was_logged(
    logs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_robot.main(["replay", str(logs[0]), "--rescore"]) == 0, capsys.readouterr().out


def test_a_replay_in_simulation_happens_in_the_logged_draw(
    logs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    vary = SimPlant.vary
    monkeypatch.setattr(SimPlant, "vary", lambda plant, draw: (seen.append(draw), vary(plant, draw))[1])
    assert run_robot.main(["replay", str(logs[1]), "--hw", "sim"]) == 0
    assert seen == [Draw.of(read_episode(logs[1], images=False).parameters)]


@pytest.mark.slow
def test_several_robots_draw_what_one_would(logs: list[Path], tmp_path: Path) -> None:
    side_by_side = collected(tmp_path / "run", "--episodes 2 --envs 2")
    for one, other in zip(logs, side_by_side, strict=True):
        alone, together = (of_the_rig(read_episode(log, images=False).parameters) for log in (one, other))
        assert alone == together
