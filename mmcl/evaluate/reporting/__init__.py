"""Metrics, reports, and their tables, figures and pages."""
