"""How a unit is built from the units of the layer before it."""
