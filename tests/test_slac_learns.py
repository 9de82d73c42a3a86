"""SLAC learns: from nothing but pictures of a pointer it finds the angle and turns the pointer upright."""

from __future__ import annotations

import numpy as np
import pytest

from agent.build import build_agent, build_policy
from agent.config import LatentConfig, SacConfig, SlacConfig
from agent.latent import probe
from agent.policy import Policy, RandomPolicy
from agent.replay import SequenceReplay

SIZE, STEPS = 32, 20
CONFIG = SlacConfig(
    sac=SacConfig(
        hidden=(128, 128), batch_size=32, actor_lr=1e-3, critic_lr=1e-3, temperature_lr=1e-3, discount=0.9
    ),
    model=LatentConfig(
        base_depth=4, features=32, z1=8, z2=32, hidden=64, initial_std=0.08, lr=1e-3, decoder_variance=0.04
    ),
    model_batch=16,
)


class Pointer:
    """A red pointer on grey; the action turns it by up to 0.5 rad; upright (angle 0) is paid best."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        grid = (np.arange(SIZE) + 0.5) / (SIZE / 2) - 1
        self.x, self.y = np.meshgrid(grid, grid)

    def draw(self, angle: float) -> np.ndarray:
        along = self.x * np.cos(angle) + self.y * np.sin(angle)
        across = -self.x * np.sin(angle) + self.y * np.cos(angle)
        image = np.full((SIZE, SIZE, 3), 40, np.uint8)
        image[(along > 0) & (along < 0.8) & (abs(across) < 0.2)] = (230, 40, 40)
        return image

    def episode(self, policy: Policy, explore: bool) -> dict[str, np.ndarray]:
        angle, carry = self.rng.uniform(-np.pi, np.pi), policy.initial()
        images, angles, actions, rewards = [self.draw(angle)], [angle], [], []
        for _ in range(STEPS):
            carry, action = policy.act(carry, {"image": images[-1]}, explore=explore)
            angle = (angle + 0.5 * float(action[0]) + np.pi) % (2 * np.pi) - np.pi
            images.append(self.draw(angle))
            angles.append(angle)
            actions.append(action)
            rewards.append(-abs(angle))
        return {
            "images": np.array(images),
            "angles": np.array(angles, np.float32)[:, None],
            "actions": np.array(actions),
            "rewards": np.array(rewards, np.float32),
        }


def store(replay: SequenceReplay, episode: dict[str, np.ndarray]) -> None:
    replay.add_episode(
        episode["images"], episode["angles"], episode["actions"], episode["rewards"], terminated=False
    )


@pytest.mark.slow
def test_slac_finds_the_angle_in_pictures_and_learns_to_turn_it_upright() -> None:
    rng = np.random.default_rng(0)
    world, replay = Pointer(rng), SequenceReplay(20_000, (SIZE, SIZE, 3), 1, 1)
    shape = (SIZE, SIZE, 3)
    agent = build_agent(CONFIG, image_shape=shape, state_size=None, action_size=1, seed=0)
    policy = build_policy(CONFIG, image_shape=shape, state_size=None, action_size=1, seed=0)
    for _ in range(60):
        store(replay, world.episode(RandomPolicy(1, rng), explore=True))
    for _ in range(350):
        agent.pretrain(replay.sample(agent.pretrain_batch_size, agent.window, rng))

    seen = replay.sample(400, agent.window, rng)
    assert seen.state is not None
    assert probe(agent.represent(seen), seen.state[:, -1, 0].numpy()) < 10  # degrees; 90 = blind

    for _ in range(30):
        policy.load_weights(agent.policy_weights())
        store(replay, world.episode(policy, explore=True))
        for _ in range(STEPS):
            agent.update(replay.sample(agent.batch_size, agent.window, rng))
    policy.load_weights(agent.policy_weights())
    final = [abs(world.episode(policy, explore=False)["angles"][-1, 0]) for _ in range(20)]
    assert np.median(final) < 0.4  # rad; 0.16 when written; chance is pi / 2
