"""The training loop: optimiser, schedule, checkpoints, log and guards, on one process or many."""
