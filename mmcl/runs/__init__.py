"""Runs described by a configuration: building, checking, training, evaluation and comparison."""
