"""The command line: one file per verb. Nothing imports it, and it alone imports tyro."""
