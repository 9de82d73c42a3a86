import mujoco
import numpy as np
import pytest

from robot.kinematics import TIPS, FingerPositions
from robot.world import JOINTS, original_model

POSITIONS = FingerPositions()
SCALE = np.tile([0.4, 1.0, 1.5], 3)


@pytest.mark.parametrize("seed", range(3))
def test_points_are_where_robels_own_model_has_joints_and_tips(seed: int) -> None:
    pose = np.random.default_rng(seed).uniform(-1, 1, 9) * SCALE
    model = original_model()
    data = mujoco.MjData(model)
    data.qpos[[model.joint(name).qposadr[0] for name in JOINTS]] = pose
    mujoco.mj_forward(model, data)
    points = POSITIONS(pose)
    assert points.shape == (3, 2, 3)
    for finger, tip in enumerate(TIPS):
        distal = data.joint(JOINTS[3 * finger + 2]).xanchor
        np.testing.assert_allclose(points[finger], [distal, data.site(tip).xpos], atol=1e-9)


def test_each_joint_moves_its_own_finger_alone_and_the_distal_one_only_the_tip() -> None:
    home = np.tile([0.0, -0.5, 0.5], 3)
    for joint in range(9):
        pose = home.copy()
        pose[joint] += 0.2
        moved = np.linalg.norm(POSITIONS(pose) - POSITIONS(home), axis=2) > 1e-6
        distal = joint % 3 == 2
        assert moved.tolist() == [
            [finger == joint // 3 and not distal, finger == joint // 3] for finger in range(3)
        ]


def test_results_of_two_calls_share_no_memory() -> None:
    first = POSITIONS(np.zeros(9))
    kept = first.copy()
    POSITIONS(np.full(9, 0.3))
    np.testing.assert_array_equal(first, kept)
