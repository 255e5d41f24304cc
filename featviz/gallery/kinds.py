"""What the gallery says of each kind of result: its chapter, and a paragraph for beginners.

A kind that stands in no group here still gets a card and a page, in the last group.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How one kind of result is introduced."""

    label: str
    """over the title, as in "Maximised pictures" """
    words: str
    """what is seen, in plain words: the first paragraph of the page"""
    of_unit: str
    """the same for the part of the result that shows one unit"""


@dataclass(frozen=True)
class Group:
    """A chapter of the overview."""

    title: str
    lead: str
    kinds: tuple[str, ...]


GROUPS = (
    Group(
        "The model",
        "What it is made of, how it learned, and how often it is right.",
        ("layers", "growth", "train", "eval"),
    ),
    Group(
        "What it looks for",
        "The patterns its units answer to, from edges in the first layer to whole things in the "
        "last.",
        ("kernels", "maximize", "facets", "interpolation", "examples"),
    ),
    Group(
        "What it sees",
        "One photograph goes in: what the units answer, and which pixels counted.",
        ("maps", "patch", "attribute", "inversion", "accentuation", "caricature", "deepdream"),
    ),
    Group(
        "How it sorts pictures",
        "Near its end the network turns each picture into a list of numbers; alike pictures get "
        "alike lists.",
        ("embed", "neighbors", "atlas"),
    ),
    Group(
        "Where it breaks",
        "Changes that people hardly see, and answers that no longer hold.",
        ("attack", "audit", "universal", "adversarial-patch", "corruptions"),
    ),
)
OTHER = Group("Further results", "Kinds of results that this gallery has no chapter for.", ())

KINDS = {
    "layers": Kind(
        "Layers",
        "A network like this is a chain of layers; each takes the numbers of the one before it "
        "and makes new ones. Here they are in order, with the shape of what comes out, how many "
        "weights were learned, and the receptive field: how large a square of the picture one of "
        "the layer's neurons can see. The first layers see a few pixels, so they can only find "
        "edges and colours; the last see nearly everything, so they can find things.",
        "The unit's layer.",
    ),
    "train": Kind(
        "Training",
        "A network starts with random weights. It is shown pictures together with their right "
        "names, over and over, and after each small batch its weights move a little so that the "
        "mistake would have been smaller. The loss is the size of that mistake. The line of the "
        "validation pictures is the one that counts, since the network never learns from those.",
        "The unit while the network was trained.",
    ),
    "growth": Kind(
        "How kernels grow",
        "Before training, the kernels of the first layer are noise. As the network sees more "
        "pictures, each of them settles on something: a stripe of one direction, a border "
        "between two colours. Nobody told it to look for edges; they turned out to be useful, as "
        "they did for the first cells of our own sight. Time runs from left to right.",
        "Its kernel while the network was trained: from noise, on the left, to what it is.",
    ),
    "eval": Kind(
        "Accuracy",
        "How often is the network right on pictures that it did not learn from? Top-1 counts an "
        "answer as right when the likeliest class is the right one, top-5 when the right one is "
        "among the five likeliest. An interval beside a number says how far chance alone could "
        "have moved it, given so many pictures.",
        "The unit in the measurement of accuracy.",
    ),
    "kernels": Kind(
        "Kernels",
        "The first layer looks at the picture through small windows. Each kernel is a pattern of "
        "weights laid over such a window, and its unit answers strongly where the picture "
        "resembles the pattern. As these weights sit right on the pixels, they can be shown as "
        "small pictures. Striped kernels find edges of one direction and fineness, two-coloured "
        "blobs find borders between colours; a flat grey one finds little. Deeper kernels no "
        "longer sit on pixels and are shown through the layers below them.",
        "The unit's kernel: the pattern of weights that it lays over the picture.",
    ),
    "maximize": Kind(
        "Maximised pictures",
        "What would this unit most like to see? We start from noise and change the picture step "
        "by step so that the unit answers more strongly. What comes out is a caricature: no "
        "photograph looks like it, and its score lies far above any photograph's. But it shows "
        "what the unit reacts to: stripes and textures in the middle layers, eyes, fur or wheels "
        "in the later ones, and in the last something like an idea of a class.",
        "A picture made from noise so that the unit answers as strongly as possible.",
    ),
    "facets": Kind(
        "Facets",
        "A unit may have more than one reason to answer. One that finds fruit stands may know "
        "heaps of apples and rows of melons; a single maximised picture shows one of them, or a "
        "mixture. Here several pictures of the same unit were made at once and pushed to differ, "
        "or each was begun from another group of the real pictures that the unit likes best. "
        "Where they still look alike, the unit most likely has one reason only.",
        "Several pictures that the unit answers to, made to differ.",
    ),
    "interpolation": Kind(
        "From one unit to another",
        "At the left end stands the picture of one unit, at the right end that of another. "
        "Between them both are asked for at once, the first less and less, the second more and "
        "more. What two units share stays in its place; what only one of them wants comes or "
        "goes. The lines below say how strongly each of the two answers on the way.",
        "The way between this unit and another.",
    ),
    "examples": Kind(
        "Strongest patches",
        "Which pieces of real pictures move a unit most? Every picture of a collection went "
        "through the network, and for each unit the places where it answered most strongly are "
        "cut out, each as large as the unit can see. Look for what the pieces in a row share; "
        "that is what the unit looks for. Compare them with the maximised picture of the same "
        "unit: it should exaggerate what they have in common.",
        "The pieces of real pictures that move the unit most.",
    ),
    "maps": Kind(
        "Activation maps",
        "A photograph went into the network, and this is what its units answer, place by place. "
        "Each small map belongs to one unit: bright where it found what it looks for, dark where "
        "it did not. Maps of deeper layers are coarser, because each of their points stands for a "
        "larger piece of the picture.",
        "Where the unit answers on a photograph: bright is strong.",
    ),
    "patch": Kind(
        "Patch times kernel",
        "Why does this unit answer so strongly just here? Cut out the patch of the picture that "
        "the neuron looks at, lay the kernel over it and multiply them, number by number. Where "
        "both are positive or both negative the product is positive and speaks for the answer. "
        "Add it all up, with the bias, and the answer itself comes out: that sum is all "
        "that a unit does. Above the first layer the patch is cut not from the picture but from "
        "the maps of the layer below.",
        "One of its answers taken apart: the patch, the kernel, their product.",
    ),
    "attribute": Kind(
        "Attribution",
        "Which parts of the picture spoke for this answer? Each method gives its own account, "
        "from the gradient at every pixel to covering a square and looking how the answer drops. "
        "They need not agree, and where they do one may trust them more. An attribution explains "
        "the network, not the world: it shows what the network used, for good or bad reasons.",
        "Attributions for the unit.",
    ),
    "inversion": Kind(
        "What is kept",
        "A layer turns the photograph into numbers. Could one draw the photograph again from "
        "these numbers alone? Each picture here began as noise and was changed until the layer "
        "gave nearly the same numbers as for the photograph. Early layers keep almost every "
        "pixel. Later ones keep what things are and roughly where, but no longer the exact "
        "colours and places: what looks wrong in the picture is what the layer has let go.",
        "What the unit's layer keeps of a photograph.",
    ),
    "accentuation": Kind(
        "Accentuation",
        "The photograph was changed a little so that one unit answers more strongly, while an "
        "early layer was held to what it saw before. So the picture stays the same picture, and "
        "what grows in it is what the unit had found there, or what it would have liked to find. "
        "Where nothing sensible grows, the answer rested on little.",
        "A photograph, changed a little so that the unit answers more strongly.",
    ),
    "caricature": Kind(
        "Caricature",
        "A caricature keeps what is typical and makes it larger. Here a layer draws it: from "
        "noise, a picture is sought to which the layer answers in the same way as to the "
        "photograph, only far more strongly. What the layer cares about is overdone, what it "
        "does not notice is missing.",
        "A photograph as the unit's layer would exaggerate it.",
    ),
    "deepdream": Kind(
        "Deep dream",
        "Like seeing animals in clouds: the photograph is changed so that a layer sees more of "
        "whatever it sees a little of already, first in large shapes, then in fine ones. Nothing "
        "is asked for by name, so what appears are the layer's own habits. They say more about "
        "the pictures it was trained on than about this one.",
        "A photograph in which the unit's layer sees more and more.",
    ),
    "embed": Kind(
        "Embedding",
        "A late layer turns each picture into a long list of numbers, 4,096 of them in AlexNet's "
        "fc7. Pictures with alike content get alike lists, though the network was only taught "
        "names. Here the lists of all pictures are kept on disk; the neighbours and the atlas "
        "are made from them.",
        "The unit as a component of the embedding.",
    ),
    "neighbors": Kind(
        "Neighbours",
        "For each picture on the left, the pictures whose lists of numbers in a late layer lie "
        "nearest to its own. This is what the network holds for alike. The precision says how "
        "many of the nearest have the same class; beside it stands what blind choice would reach.",
        "The unit among the neighbours.",
    ),
    "atlas": Kind(
        "Atlas",
        "A map of many pictures at once: those that the network holds for alike lie side by side. "
        "Thousands of numbers for each picture are squeezed into two coordinates, and that cannot "
        "keep everything. Trust that close is alike; do not read much into the distance between "
        "two islands, or into their size.",
        "The unit in the atlas.",
    ),
    "attack": Kind(
        "Attack",
        "A change that people hardly see makes the network say something else. The change is "
        "computed from the network's own gradients: each pixel moves a little in the direction "
        "that hurts most. It is shown magnified beside the picture, because at its true size "
        "there is almost nothing to see. That is the point.",
        "An attack on or through the unit.",
    ),
    "audit": Kind(
        "Audit",
        "How much of the accuracy is left when every picture may be changed a little? The curve "
        "falls as the allowed change (eps) grows: 1/255 is one step of brightness on a screen. An "
        "attack shows what can go wrong at least; a stronger one may show more, so the curve is "
        "a limit from above, never a promise. Below it: which pictures fall first and last, what "
        "weather, blur and noise do, whether one change fools for all pictures, and what happens "
        "inside the network, layer by layer, while one thing becomes another to it.",
        "The unit in the audit.",
    ),
    "universal": Kind(
        "Universal perturbation",
        "One and the same change, added to any photograph, and the network errs on most of them. "
        "It was made from some pictures and is judged on others that it has never met. Its "
        "structure matters: shuffle its pixels and it does no more than noise. The answers it "
        "leads to are few; the network has favourite mistakes.",
        "The unit's class as an answer to the perturbation.",
    ),
    "adversarial-patch": Kind(
        "Adversarial patch",
        "A sticker that the network cannot look away from. Wherever it lies in the picture, at "
        "whatever angle, it speaks louder than all the rest, and the answer follows it. Unlike "
        "the other attacks it is no secret: everybody sees it. A patch of noise of the same size "
        "shows how much of this is mere covering.",
        "The unit's class as an answer to the patch.",
    ),
    "corruptions": Kind(
        "Corruptions",
        "Nobody attacks here; the pictures are only as bad as pictures often are: noisy, out of "
        "focus, snowed over, compressed too much. Each corruption comes in five severities. "
        "People read most of them without effort, so the loss shows what the network leans on: "
        "often fine texture, which noise and blur destroy first.",
        "The unit's class under corruptions.",
    ),
}


def kind_words(kind: str) -> Kind:
    """The words for a kind; for an unknown one, words that say so."""
    label = kind.replace("-", " ").replace("_", " ").strip().capitalize() or "Result"
    unknown = Kind(
        label,
        "This gallery has no words for this kind of result; its figures, numbers and files "
        "follow as they are.",
        "What this result shows of the unit.",
    )
    return KINDS.get(kind, unknown)


def group_of(kind: str) -> Group:
    """The chapter to which a kind belongs."""
    return next((group for group in GROUPS if kind in group.kinds), OTHER)
