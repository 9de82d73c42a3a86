"""Procedures with a person or a target: what makes angles and pixels mean what they say."""
