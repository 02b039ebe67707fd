"""Command line, one file per verb. No other package imports it, and only it imports tyro."""
