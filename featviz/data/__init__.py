"""Data sets of pictures: what is listed, how it is labeled, how it is read."""
