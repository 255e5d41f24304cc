"""Directions that a layer uses: dictionaries over a store of activations, and what they show."""
