"""What holds for every test."""

import signal

import torch

# Small networks gain nothing from a second thread, and where another program holds a core, two threads wait
# for each other at every layer: a test of two seconds then takes minutes.
torch.set_num_threads(1)

# Started in the background or by nohup, a process ignores these, and so do its children; tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
