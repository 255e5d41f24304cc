"""Models: the three AlexNets, the door to other zoos, weights, named layers, receptive fields."""
