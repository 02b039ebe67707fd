"""File access, local and remote: atomic writes, bounded reads and caches."""
