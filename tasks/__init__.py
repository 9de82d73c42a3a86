"""What counts as done: resets, observations, rewards and success."""
