"""What holds for every test."""

import signal

import pytest
import torch

# Small networks gain nothing from a second thread, and where another program holds a core, two threads wait
# for each other at every layer: a test of two seconds then takes minutes.
torch.set_num_threads(1)

# Started in the background or by nohup, a process ignores these, and so do its children; tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the endurance tests last; by default they only show that they work."""
    group = parser.getgroup("endurance")
    group.addoption("--learner-updates", type=int, default=3000, help="updates that memory is watched for")
    group.addoption("--kills", type=int, default=4, help="processes killed at random moments")
    group.addoption("--soak-hours", type=float, default=0.2, help="simulated hours with faults, accelerated")
    group.addoption(
        "--soak-minutes", type=float, default=0.5, help="minutes with faults over the serial line"
    )
