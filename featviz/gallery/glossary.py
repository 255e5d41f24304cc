"""The terms of the pages, one sentence each: the gallery's glossary, and `docs/glossary.md`."""

from __future__ import annotations

TERMS = {
    "activation": "The number that a unit gives, for a picture or for one position of it.",
    "adversarial example": "A picture with a change, often too small to notice, that changes the "
    "answer of a network.",
    "atlas": "A map of many pictures on which those with similar activations are neighbors.",
    "bias": "A number of its own that a unit adds to its weighted sum.",
    "channel": "One map of a convolutional layer: the values of one unit at all positions.",
    "circuit": "A unit together with the units before it that feed it and the weights between "
    "them.",
    "clean accuracy": "The share of pictures that a network gets right when nobody changes them.",
    "concept": "A direction in the activations of a layer, shared by many units, that stands for "
    "something in pictures.",
    "convolution": "A layer that lays each of its kernels over every position of its input.",
    "eps": "The largest change that an attack may make: with L∞ and eps 4/255 no pixel may change "
    "by more than 4 of 255 steps of brightness.",
    "fc6, fc7": "The two layers of AlexNet before its classes, each a list of 4,096 numbers (640 "
    "in alexnet-mini); relu6 and relu7 are the same with negative numbers set to 0.",
    "gradient": "How much a result would change if each number that it depends on were raised a "
    "little.",
    "interval": "The range in which the true value lies in 95 of 100 such measurements.",
    "kernel": "A small pattern of weights that slides over a picture or over maps and is compared "
    "with every place.",
    "L∞, L2": "Two sizes of a change: the largest change of any pixel, and the root of the sum of "
    "all squared changes.",
    "layer": "One step of a network: it takes the numbers of the step before and gives new ones.",
    "logit": "The number that a network gives to a class before it is turned into a probability: "
    "the higher, the more likely.",
    "map": "The values of one unit at all positions of a picture, drawn as a picture.",
    "maximized picture": "A picture made from noise by small steps, each of which raises the "
    "activation of one unit.",
    "neuron": "A unit at one position, written conv5:12@6,6.",
    "perplexity": "About how many neighbors of each picture the layout of an atlas tries to keep "
    "near.",
    "pooling": "A step that keeps the largest, or the mean, of neighboring values of a map, which "
    "becomes smaller.",
    "receptive field": "The square of the picture on which one value of a map depends.",
    "ReLU": "A step that sets negative numbers to 0 and leaves the others as they are.",
    "robust accuracy": "The share of pictures that a network still gets right whatever change of a "
    "stated size is made.",
    "top-1, top-5": "How often the right class is the most likely one, or among the five most "
    "likely.",
    "unit": "What computes one feature: a channel of a convolutional layer (conv5:12 is number 12 "
    "of conv5), one number of a later layer, or a class.",
    "weight": "A number that was learned in training, by which a network multiplies what it gets.",
}
