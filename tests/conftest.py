"""What holds for every test."""

import torch

# Small networks gain nothing from a second thread, and where another program holds a core, two threads wait
# for each other at every layer: a test of two seconds then takes minutes.
torch.set_num_threads(1)
