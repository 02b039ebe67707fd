"""From samples to batches: which, in what order, shown how, and what replaces the unusable ones."""
