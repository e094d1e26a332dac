"""One thread for every test process: results do not depend on the machine's cores, and processes
that share them do not spin against each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
