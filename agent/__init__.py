"""Learns; knows neither the robot nor the tasks."""
