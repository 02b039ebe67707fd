"""Building blocks of metrics: ranks, confidence intervals, calibration, paired tests."""
