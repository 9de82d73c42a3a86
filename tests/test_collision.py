"""Fingers and their distances: what the model says, and that no command leads them into each other."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robot.collision import FAR, FingerClearance, FullTurnClearance, ValveClearance
from robot.safety import SELF_COLLISION, SafetyConfig, SafetyFilter
from robot.types import Floats, JointState
from robot.world import JOINTS, VALVE_JOINT, WorldConfig, dclaw_model

CONFIG = SafetyConfig()
LOWER, UPPER = np.array(CONFIG.lower), np.array(CONFIG.upper)
HOME = np.tile([0.0, -math.pi / 3, math.pi / 3], 3)
CLEARANCE = FingerClearance()
SAFE = SafetyFilter(CONFIG, CLEARANCE)
SHARE = arrays(np.float64, 9, elements=st.floats(0, 1))


def state(position: Floats) -> JointState:
    return JointState(0.0, position, np.zeros(9), np.zeros(9))


def pose(share: Floats) -> Floats:
    return LOWER + share * (UPPER - LOWER)


def touching() -> Floats:
    """All distal joints inwards: the finger tips meet over the valve."""
    rng = np.random.default_rng(0)
    return next(q for _ in range(1000) if CLEARANCE(q := pose(rng.uniform(size=9))) < 0)


def test_at_home_the_fingers_are_far_apart() -> None:
    assert CLEARANCE(HOME) == FAR
    assert CLEARANCE.keeps(HOME, 0.02)


def test_it_agrees_with_the_contacts_of_the_physics() -> None:
    """MuJoCo itself reports contacts between fingers exactly where the clearance is below its margin."""
    model = dclaw_model(WorldConfig())
    data = mujoco.MjData(model)
    qpos = [model.joint(name).qposadr[0] for name in JOINTS]
    rng = np.random.default_rng(1)
    agreed = 0
    for _ in range(200):
        q = pose(rng.uniform(size=9))
        data.qpos[qpos] = q
        mujoco.mj_forward(model, data)
        pairs = [
            (finger_of(model, contact.geom1), finger_of(model, contact.geom2))
            for contact in data.contact
            if contact.dist < 0
        ]
        touches = any(a and b and a != b for a, b in pairs)
        if abs(CLEARANCE(q)) > 1e-4:  # at the very edge both may be right
            assert touches == (CLEARANCE(q) < 0)
            agreed += touches
    assert agreed > 20


def test_distance_to_the_valve_agrees_with_the_contacts_of_the_physics() -> None:
    beside, model = ValveClearance(), dclaw_model(WorldConfig())
    data, valve = mujoco.MjData(model), model.body("valve").id
    qpos = [model.joint(name).qposadr[0] for name in (*JOINTS, VALVE_JOINT)]
    rng, agreed = np.random.default_rng(2), 0
    for _ in range(200):
        q = np.append(pose(rng.uniform(size=9)), rng.uniform(-math.pi, math.pi))
        data.qpos[qpos] = q
        mujoco.mj_forward(model, data)
        touching = [c for c in data.contact if c.dist < 0 and valve in model.geom_bodyid[[c.geom1, c.geom2]]]
        if abs(beside(q)) > 1e-4:  # at the very edge both may be right
            assert bool(touching) == (beside(q) < 0)
            assert beside.keeps(q, 0.0) == (not touching)
            agreed += bool(touching)
    assert agreed > 20


def finger_of(model: mujoco.MjModel, geom: int) -> str:
    body = int(model.geom_bodyid[geom])
    while body:
        name = model.body(body).name
        if name in ("FF10", "MF20", "TH30"):
            return str(name)
        body = int(model.body_parentid[body])
    return ""


@settings(max_examples=60, deadline=None)
@given(SHARE, st.floats(0.0, 0.02))
def test_the_quick_question_has_the_same_answer_as_the_distance(share: Floats, margin: float) -> None:
    distance = CLEARANCE(pose(share))
    if abs(distance - margin) > 1e-5:
        assert CLEARANCE.keeps(pose(share), margin) == (distance >= margin)


@settings(max_examples=80, deadline=None)
@given(SHARE, SHARE)
def test_no_command_leads_fingers_into_each_other(start: Floats, wish: Floats) -> None:
    """From anywhere to anywhere: the sent pose keeps its distance, or is no nearer than the measured one."""
    here = pose(start)
    applied = SAFE(pose(wish), state(here), 0.1)
    assert np.isfinite(applied.target).all()
    assert (applied.target >= LOWER).all()
    assert (applied.target <= UPPER).all()
    assert (np.abs(applied.target - here) <= CONFIG.max_velocity * 0.1 + 1e-12).all()
    after = CLEARANCE(applied.target)
    assert after >= -CONFIG.overlap - 1e-6 or after >= CLEARANCE(here) - 1e-9


def test_a_walk_into_a_collision_stops_before_it_and_says_so() -> None:
    goal, here = touching(), HOME.copy()
    reasons: set[str] = set()
    for _ in range(60):
        applied = SAFE(goal, state(here), 0.1)
        reasons |= set(applied.reasons)
        here = applied.target
        assert CLEARANCE(here) >= -CONFIG.overlap - 1e-6
    assert SELF_COLLISION in reasons


def test_fingers_that_touch_may_always_part() -> None:
    """A filter that froze touching fingers would need a person each time."""
    here = touching()
    before = CLEARANCE(here)
    for _ in range(60):
        here = SAFE(HOME, state(here), 0.1).target
    assert before < 0
    assert here == pytest.approx(HOME, abs=0.05)


def test_valve_clearance_is_near_where_any_angle_of_the_valve_is_near() -> None:
    clearance = FullTurnClearance()
    assert clearance(np.tile([0.0, -0.8, -0.2], 3)) == pytest.approx(0.03)
    assert clearance(np.tile([0.0, -0.75, 1.0], 3)) < 0.005
    assert not clearance.keeps(np.tile([0.0, -0.4, 0.6], 3), 0.0)
