"""The safety filter's promises, for any command and any state."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from robot.safety import OUTSIDE_BOX, POSITION_LIMIT, VELOCITY_LIMIT, SafetyConfig, SafetyFilter
from robot.types import Floats, InvalidCommand, JointState

CONFIG = SafetyConfig()
LOWER, UPPER = np.array(CONFIG.lower), np.array(CONFIG.upper)
J = len(LOWER)
ANY = st.floats(allow_nan=True, allow_infinity=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PERIOD = st.floats(1e-4, 10.0)
safe = SafetyFilter(CONFIG)


def state(position: Floats) -> JointState:
    return JointState(0.0, np.asarray(position, np.float64), np.zeros(len(position)), np.zeros(len(position)))


@given(target=arrays(np.float64, J, elements=ANY), position=arrays(np.float64, J, elements=ANY), dt=ANY)
def test_whatever_comes_in_is_refused_or_comes_out_finite_and_inside_the_box(
    target: Floats, position: Floats, dt: float
) -> None:
    try:
        applied = safe(target, state(position), dt)
    except InvalidCommand:
        finite = np.isfinite(target).all() and np.isfinite(position).all() and math.isfinite(dt) and dt > 0
        assert not finite, "refused although everything was finite"
        return
    assert np.isfinite(target).all()
    assert np.isfinite(applied.target).all()
    assert (applied.target >= LOWER).all()
    assert (applied.target <= UPPER).all()


@given(
    target=arrays(np.float64, J, elements=FINITE),
    share=arrays(np.float64, J, elements=st.floats(0, 1)),
    dt=PERIOD,
)
def test_no_target_is_further_from_the_measurement_than_the_velocity_allows(
    target: Floats, share: Floats, dt: float
) -> None:
    inside = np.clip(LOWER + share * (UPPER - LOWER), LOWER, UPPER)
    applied = safe(target, state(inside), dt)
    assert (np.abs(applied.target - inside) <= CONFIG.max_velocity * dt + 1e-12).all()
    assert (np.abs(applied.target - inside) <= CONFIG.max_velocity * CONFIG.max_period + 1e-12).all()


@given(
    targets=arrays(np.float64, (4, J), elements=st.floats(-9, 9)),
    positions=arrays(np.float64, (4, J), elements=st.floats(-3, 3)),
    dt=PERIOD,
)
def test_many_bounded_at_once_are_what_the_filter_makes_of_each(
    targets: Floats, positions: Floats, dt: float
) -> None:
    each = [safe(target, state(at), dt).target for target, at in zip(targets, positions, strict=True)]
    np.testing.assert_array_equal(safe.bounded(targets, positions, dt), each)


@given(
    target=arrays(np.float64, J, elements=FINITE), position=arrays(np.float64, J, elements=FINITE), dt=PERIOD
)
def test_a_joint_outside_the_box_is_never_sent_further_out(
    target: Floats, position: Floats, dt: float
) -> None:
    sent = safe(target, state(position), dt).target
    above, below = position > UPPER, position < LOWER
    assert (sent[above] <= UPPER[above]).all()
    assert (sent[below] >= LOWER[below]).all()
    edge = np.clip(position, LOWER, UPPER)
    assert (np.abs(sent - edge) <= CONFIG.max_velocity * dt + 1e-12).all()


@given(
    position=arrays(np.float64, J, elements=st.floats(-0.4, 0.4)),
    step=arrays(np.float64, J, elements=st.floats(-0.05, 0.05)),
)
def test_a_modest_wish_passes_unchanged(position: Floats, step: Floats) -> None:
    applied = safe(position + step, state(position), 0.1)
    assert np.array_equal(applied.target, position + step)
    assert applied.reasons == ()


def test_reasons_say_what_was_changed() -> None:
    centre = np.zeros(J)
    assert safe(UPPER + 1, state(UPPER), 0.1).reasons == (POSITION_LIMIT,)
    assert safe(UPPER, state(centre), 0.1).reasons == (VELOCITY_LIMIT,)
    assert safe(UPPER, state(UPPER + 0.1), 0.1).reasons == (OUTSIDE_BOX,)


def test_the_wish_is_kept_beside_the_deed_and_nothing_is_shared_or_changed() -> None:
    target, position = np.full(J, 9.0), np.zeros(J)
    applied = safe(target, state(position), 0.1)
    assert np.array_equal(applied.requested, np.full(J, 9.0))
    assert not np.shares_memory(applied.requested, target)
    assert not np.shares_memory(applied.target, position)
    assert np.array_equal(position, np.zeros(J))


def test_a_step_is_robels_set_point_clip() -> None:
    applied = safe(np.full(J, 0.48), state(np.zeros(J)), 0.1)
    assert applied.target == pytest.approx(np.full(J, 2 * math.pi / 3 * 0.1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_refuses_the_whole_command(bad: float) -> None:
    target = np.zeros(J)
    target[4] = bad
    with pytest.raises(InvalidCommand, match="nothing was sent"):
        safe(target, state(np.zeros(J)), 0.1)


@pytest.mark.parametrize("shape", [(), (8,), (9, 1), (10,)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidCommand, match="shape"):
        safe(np.zeros(shape), state(np.zeros(J)), 0.1)


@pytest.mark.parametrize("dt", [0.0, -0.1, math.nan, math.inf])
def test_a_period_that_is_none_is_refused(dt: float) -> None:
    with pytest.raises(InvalidCommand, match="dt"):
        safe(np.zeros(J), state(np.zeros(J)), dt)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lower": (-1.0,), "upper": (1.0, 2.0)},
        {"lower": (1.0,), "upper": (-1.0,)},
        {"lower": (math.nan,), "upper": (1.0,)},
        {"lower": (-1.0,), "upper": (math.inf,)},
        {"max_velocity": 0.0},
        {"max_velocity": 100.0},
        {"max_velocity": math.inf},
        {"max_period": 5.0},
        {"enabled": False},
    ],
)
def test_the_filter_cannot_be_configured_away(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SafetyConfig.model_validate(wrong)


def test_what_was_applied_cannot_be_rewritten() -> None:
    applied = safe(np.zeros(J), state(np.zeros(J)), 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        applied.target = np.ones(J)  # type: ignore[misc]
