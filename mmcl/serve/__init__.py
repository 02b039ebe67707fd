"""A web page over an index: search by text and picture, more like this, duplicates, labels (extra `serve`)."""
