"""Pictures beside other libraries in one process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRAW_THEN_LEARN = """
import mujoco, torch
from robot.canvas import Canvas
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data, scene = mujoco.MjData(model), mujoco.MjvScene(model, maxgeom=10)
mujoco.mj_forward(model, data)
every = mujoco.mjtCatBit.mjCAT_ALL
mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, mujoco.MjvCamera(), every, scene)
canvas = Canvas(model, 32, 32)
picture = canvas.draw(scene)
weight = torch.nn.Parameter(torch.zeros(3))
optimiser = torch.optim.Adam([weight])
weight.grad = torch.ones(3)
optimiser.step()
canvas.close()
print(picture.shape)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs a build of torch for GPUs")
def test_a_process_that_has_drawn_can_learn() -> None:
    """Two LLVMs in one process: Mesa's and triton's."""
    done = subprocess.run([sys.executable, "-c", DRAW_THEN_LEARN], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(32, 32, 3)\n"), done.stderr
