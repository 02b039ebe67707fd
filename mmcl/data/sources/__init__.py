"""Sources that a configuration can name, see `mmcl.data.SOURCES`."""
