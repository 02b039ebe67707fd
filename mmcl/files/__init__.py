"""Files and servers: written whole, read within bounds, cached."""
