"""What metrics are computed from: ranks, intervals, calibration, paired tests."""
