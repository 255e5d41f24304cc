"""The most likely classes of pictures."""
