"""Runs as a configuration describes them: built, checked, trained, evaluated, compared."""
