"""The training loop: optimizer, schedule, checkpoints, log and guards, on one process or many."""
