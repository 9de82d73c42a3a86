"""A model or a critic that is being lost is told from one that learns, long before a loss is not a number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agent.divergence import DivergenceWatch


def watch(discount: float = 0.97) -> DivergenceWatch:
    return DivergenceWatch(discount, most_bonus=0.6)


def heard(watch: DivergenceWatch, psnr: list[float]) -> list[str]:
    return [watch.hears({"psnr": value}, 3.0) for value in psnr]


def test_reconstructions_that_are_lost_are_told_within_fifty_updates() -> None:
    # What a model did whose learning rate was doubled: 22 to 10 dB within ten updates.
    rng = np.random.default_rng(0)
    lost = [22.0, 21.8, 21.0, 18.3, 13.9, 16.8, 11.4, 13.7, 12.5, 15.5, 11.3] + [11.0] * 39
    said = heard(watch(), [22 + 0.2 * rng.normal() for _ in range(600)] + lost)
    assert not any(said[:600])
    assert said[-1].startswith("reconstructions fell from 22.0 to 1")
    assert sum(map(bool, said)) > 30


def test_noise_learning_and_slow_changes_are_no_divergence() -> None:
    rng = np.random.default_rng(1)
    learning = [20 - 15 * math.exp(-k / 300) for k in range(3000)]
    darker = [20 - 4 * k / 5000 for k in range(5000)]  # the evening's images are mixed in
    noisy = [value + 0.5 * rng.normal() for value in learning + darker]
    assert not any(heard(watch(), noisy))


def test_a_dip_that_is_over_at_once_is_no_divergence() -> None:
    assert not any(heard(watch(), [22.0] * 300 + [16.0] * 5 + [22.0] * 300))


def test_a_few_updates_say_nothing() -> None:
    assert not any(heard(watch(), [22.0] * 60 + [10.0] * 40))


def test_after_it_was_told_to_forget_the_watch_begins_anew() -> None:
    one = watch()
    heard(one, [22.0] * 300)
    one.forget()
    assert not any(heard(one, [10.0] * 100))


@pytest.mark.parametrize(("target", "diverged"), [(-624.0, False), (6000.0, True), (-6000.0, True)])
def test_critics_that_expect_more_than_all_rewards_are_lost(target: float, diverged: bool) -> None:
    losses = {"target_q": target, "alpha": 0.01, "entropy": -9.0}
    assert bool(watch().hears(losses, largest_reward=math.pi)) is diverged


def test_without_rewards_so_far_the_entropy_bonus_bounds_what_critics_may_expect() -> None:
    one = DivergenceWatch(0.99, most_bonus=6.2)
    assert not one.hears({"target_q": 620.0, "alpha": 0.5, "entropy": 1.0}, largest_reward=0.0)
    assert one.hears({"target_q": 1e5, "alpha": 0.5, "entropy": 1.0}, largest_reward=0.0)


def test_undiscounted_values_have_no_bound() -> None:
    assert not watch(discount=1.0).hears({"target_q": 1e9}, largest_reward=1.0)


def test_every_loss_that_is_no_number_is_named() -> None:
    assert watch().hears({"kl": math.nan, "psnr": 20.0, "q": math.inf}, 1.0) == "kl, q is not a number"
