"""Moves and senses; knows nothing of tasks or learning."""
