"""The gallery's texts for each kind of result: its group and a paragraph for beginners.

A kind that is in no group still gets a card and a page, in the last group.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How one kind of result is introduced."""

    label: str
    """above the title: "Maximized pictures" """
    heading: str
    """the title for readers new to the field; "" where the result's own has to do"""
    text: str
    """what is shown, for readers new to the field: the first paragraph of the page"""
    of_unit: str
    """the same for the part of the result about one unit"""


@dataclass(frozen=True)
class Group:
    """A section of the overview."""

    title: str
    lead: str
    kinds: tuple[str, ...]


GROUPS = (
    Group(
        "The model",
        "Its layers, its training, and how often its predictions are right.",
        ("explorer", "layers", "pack", "train", "eval", "compare"),
    ),
    Group(
        "What its units respond to",
        "Patterns that activate single units, from edges in the first layer to objects in the "
        "last.",
        (
            "kernels",
            "growth",
            "maximize",
            "facets",
            "interpolation",
            "examples",
            "describe",
            "tuning",
            "circuit",
            "ablation",
        ),
    ),
    Group(
        "One picture through the network",
        "The activations of one picture, and the pixels that a prediction depends on.",
        (
            "classify",
            "maps",
            "patch",
            "grid",
            "attribute",
            "inversion",
            "accentuation",
            "caricature",
            "deepdream",
            "attribution-check",
            "patching",
            "layer-attribution",
        ),
    ),
    Group(
        "The feature space",
        "A late layer turns each picture into a list of numbers, a vector; pictures that are alike "
        "get similar lists.",
        ("embed", "neighbors", "atlas", "concepts", "cards"),
    ),
    Group(
        "Robustness",
        "Small or common changes of a picture that change the prediction.",
        ("attack", "audit", "universal", "adversarial-patch", "corruptions", "shape-bias"),
    ),
)
OTHER = Group("Further results", "Kinds of results that have no section of their own.", ())

KINDS = {
    "layers": Kind(
        "Layers",
        "What the network is made of",
        "A convolutional network is a chain of layers; each takes the output of the one before "
        "it. The table lists them in order, with the shape of their output, the number of learned "
        "weights, and the receptive field: the side of the square of input pixels on which one "
        "neuron of the layer depends. The first layers depend on a few pixels, so they can detect "
        "edges and colors; the last depend on nearly the whole picture, so they can detect "
        "objects.",
        "The unit's layer.",
    ),
    "classify": Kind(
        "Classification",
        "What the network sees in pictures",
        "What is in the picture? The network gives a number to each of its classes, and these "
        "numbers are turned into probabilities. Under each picture are the most likely classes, "
        "as in figure 4 of the AlexNet paper; where the right one is known, it stands above the "
        "picture, and its bar has another color. A high probability is no proof: a network is "
        "often sure and wrong, above all of pictures unlike those it was trained on.",
        "Pictures for which this class is the most likely one.",
    ),
    "pack": Kind(
        "Pack",
        "Pictures made ready for fast reading",
        "Reading a picture file takes longer than a fast network needs to look at the picture. So "
        "the files are decoded and resized once, and kept as plain numbers, which trainings and "
        "measurements then read as they are.",
        "The unit beside a packed data set.",
    ),
    "train": Kind(
        "Training",
        "How it was trained",
        "Training starts from random weights. The network gets labeled pictures in small batches, "
        "and after each batch every weight changes a little in the direction that lowers the "
        "loss, the size of the error. The curve of the validation pictures is the one that "
        "counts, since the network is never trained on those.",
        "The unit while the network was trained.",
    ),
    "explorer": Kind(
        "Explorer",
        "The network itself, to touch",
        "The network itself runs in this page. Take one of its pictures or your own, and follow "
        "it from the numbers of its pixels through kernels, maps and layers to the answer, to "
        "the pictures that are alike for the network, and to a change too small to notice that "
        "fools it. Nothing leaves your machine.",
        "The unit in the explorer.",
    ),
    "growth": Kind(
        "Kernels during training",
        "How its first kernels grew out of noise",
        "Before training, the kernels of the first layer are noise. In the course of training "
        "most of them become an edge of one orientation or a border between two colors. Nothing "
        "in the loss asks for edges; they are useful for telling classes apart, as they are in "
        "the first cells of the visual cortex. Time runs from left to right.",
        "Its kernel during training: noise on the left, the trained kernel on the right.",
    ),
    "eval": Kind(
        "Accuracy",
        "How often it is right",
        "How often is the prediction right on pictures that were not used for training? Top-1 "
        "counts a prediction as right if the most likely class is the label, top-5 if the label "
        "is among the five most likely. The interval says how far chance alone could have moved "
        "the number, given this many pictures.",
        "The unit in the measurement of accuracy.",
    ),
    "compare": Kind(
        "Comparison",
        "What differs between two networks",
        "Two models saw the same pictures, so each picture is a pair: right in both, wrong in "
        "both, fixed or broken. Were nothing different, fixed and broken pictures would be "
        "equally likely; the exact McNemar test says how likely a difference as large as this "
        "one would then be. With many classes some differ by chance alone, so their tests are "
        "corrected for their number. Units of the two models are paired by the correlation of "
        "their activations.",
        "The unit in the comparison.",
    ),
    "kernels": Kind(
        "Kernels",
        "The patterns that a layer looks for",
        "A kernel of the first layer is a small pattern of weights that is laid over every "
        "position of the picture; its unit responds strongly where the picture resembles the "
        "pattern. Since these weights multiply pixels, they can be shown as small pictures. "
        "Striped kernels respond to edges of one orientation and scale, two-colored ones to "
        "borders between colors; a flat gray one responds to little. Kernels of deeper layers "
        "multiply activations, not pixels, and are shown through the layers below them.",
        "The unit's kernel: the pattern of weights that is laid over the picture, or over the maps "
        "of the layer before.",
    ),
    "maximize": Kind(
        "Maximized pictures",
        "What excites its units most",
        "Which picture activates this unit most? Optimization starts from noise and changes the "
        "picture step by step so that the activation rises. The result is an exaggeration: no "
        "photograph looks like it, and its score is far above that of any photograph. It shows "
        "what the unit responds to: stripes and textures in the middle layers, eyes, fur or "
        "wheels in the later ones, and typical parts of a class in the last.",
        "A picture optimized from noise so that the unit's activation is as high as possible.",
    ),
    "facets": Kind(
        "Facets",
        "The different things that one unit responds to",
        "A unit may respond to several kinds of pictures. One for fruit stands may respond to "
        "heaps of apples and to rows of melons; a single maximized picture shows one of them, or "
        "a mixture. Here several pictures of one unit were optimized together with a penalty on "
        "their similarity, or each was started from another cluster of the unit's top activating "
        "pictures. Where they still look alike, the unit most likely responds to one kind only.",
        "Several pictures for this unit, optimized to differ.",
    ),
    "interpolation": Kind(
        "Interpolation between units",
        "From one unit to another",
        "The leftmost picture maximizes one unit, the rightmost another. Between them a weighted "
        "sum of both is maximized, with the weight moving from the first to the second. What the "
        "two units share stays in place; what only one of them responds to appears or disappears. "
        "The curves below show the activation of each of the two along the way.",
        "The interpolation between this unit and another.",
    ),
    "examples": Kind(
        "Top activating patches",
        "The pieces of pictures that excite its units",
        "Which parts of real pictures activate a unit most? Every picture of a data set went "
        "through the network, and for each unit the patches with the highest activations are "
        "shown, each as large as the unit's receptive field. Whatever the patches of a row have "
        "in common is what the unit responds to. The maximized picture of the same unit should "
        "exaggerate it.",
        "The patches of real pictures that activate the unit most.",
    ),
    "describe": Kind(
        "Descriptions",
        "Words that fit its units",
        "Which word fits a unit? Every class, every group of classes and pairs of them were tried: "
        "AUROC is the probability that a picture of the set gives a higher value than another one "
        "(50% is chance, 100% perfect). The best of many tries looks good by luck, so the search "
        "was repeated with shuffled labels, and only what luck does not explain is named. A unit "
        "that prefers fish is no fish detector: hit rate, false-alarm rate and the share of right "
        "findings say how far its value alone would find them.",
        "What describes the unit in words, if anything does.",
    ),
    "tuning": Kind(
        "Tuning curves",
        "How units respond to drawn stripes and colors",
        "Stripes, colors, curved edges and discs of stripes were drawn where the unit looks, one "
        "property varied at a time, as in experiments on cells of the visual cortex. The top of a "
        "curve is what the unit prefers; a narrow curve means that it responds to little else.",
        "How the unit depends on drawn stripes, colors, curves and sizes.",
    ),
    "circuit": Kind(
        "Circuits",
        "What one unit is built from",
        "A unit of a deeper layer is a weighted sum of the units of the layer before, and is added "
        "to units of the next. The graph shows, layer by layer from the first kernels to the "
        "classes, the strongest of these connections with their weights; click on a unit to see "
        "what each of them adds on pictures. The page also says how much of the unit its few "
        "strongest inputs explain, on pictures that were not used to choose them: a drawing of "
        "eight inputs is a summary, and seldom the whole unit.",
        "The units that build it and those that it feeds.",
    ),
    "concepts": Kind(
        "Concepts",
        "Directions that many units share",
        "A layer uses more directions than it has units: what a picture shows there is often "
        "spread over many units. Here directions were sought in which the activations of many "
        "positions can be written as sums of a few parts. Each direction, a concept, was found "
        "without labels; how much of the activations they explain was measured on pictures that "
        "were not used to find them.",
        "The concept: a direction over all units of its layer.",
    ),
    "ablation": Kind(
        "Silenced units",
        "What it loses without a unit",
        "What does the network lose without a unit? Its activation is set to 0 on every picture, "
        "and everything behind it is computed again. Most units of a layer can be spared: the "
        "overall accuracy hardly changes. But single classes may lose much, because a few units "
        "carry what sets them apart. Of many units and classes some change by chance alone, so "
        "the tests are corrected for their number, and the class that loses most is chosen on "
        "half of the pictures and measured on the other half.",
        "Effect when silenced: what the accuracy and single classes lose without a unit; of a "
        "class, the units that it needs.",
    ),
    "grid": Kind(
        "Semantic dictionary",
        "What a layer sees at each place",
        "What has a layer seen at each place of a picture? A list of hundreds of numbers says "
        "little, so each is shown as a picture: at every position one that was optimized so that "
        "the activations point as they do there, larger where they are stronger. Units that are "
        "active together in this picture were put into a few groups, and each group is shown where "
        "it is. What the groups add to the logits, and the rest that no group explains, adds up "
        "to gradient times activation of the whole layer.",
        "The unit, or the class, in this picture.",
    ),
    "cards": Kind(
        "Concept cards",
        "What each concept is, and what it does",
        "What is each concept, and what is it for? Its card has a picture optimized from noise so "
        "that the layer's activations point along the concept, and the pictures in which it is "
        "strongest; what fades there is not part of it. Then the concept was taken out of the "
        "activations of those pictures: the bars show how much the logits of classes change. A "
        "logit that falls without it was raised by it. For some classes the concepts are ranked "
        "by how much of the logit's variation they have a part in (total Sobol index).",
        "The concepts of its layer that a class is made of, or what this concept does.",
    ),
    "layer-attribution": Kind(
        "Attribution to a layer",
        "What each unit adds to an answer",
        "How much does each unit of a layer, and each of its positions, add to a prediction? "
        "Integrated gradients follow the prediction while the layer's activations grow from 0 to "
        "what they are, and share the sum out. Whether such shares mean something is checked: each "
        "unit is set to 0, and the loss is compared with its share.",
        "What the unit adds to predictions.",
    ),
    "patching": Kind(
        "Patched activations",
        "Where two pictures become different",
        "Where is the difference between two pictures decided? At one position of a layer after "
        "the other, the activations of the one picture take the place of those of the other, and "
        "the rest of the network is computed again. Where the prediction moves towards the first "
        "picture's class, that position carries what makes the difference. The same is done with "
        "single units, at all positions.",
        "What the prediction gains when the unit has its values on another picture.",
    ),
    "maps": Kind(
        "Activation maps",
        "Where units respond in a picture",
        "One picture went through the network; these are the activations of its units at every "
        "position. Each map belongs to one unit: bright where its activation is high, dark where "
        "it is low. Maps of deeper layers are coarser, because each of their positions covers a "
        "larger part of the picture.",
        "The unit's activations on a picture: bright is high.",
    ),
    "patch": Kind(
        "Patch times kernel",
        "One number of a map, added up by hand",
        "Why is the activation high at this position? Cut out the patch of the picture that the "
        "neuron depends on, lay the kernel over it and multiply number by number. Where both are "
        "positive or both negative the product is positive and raises the activation. The sum of "
        "all products and the bias is the activation before the ReLU: nothing else enters. Above "
        "the first layer the patch is cut from the maps of the layer below.",
        "One of its activations taken apart: patch, kernel, product.",
    ),
    "attribute": Kind(
        "Attribution",
        "Which pixels the answer depends on",
        "Which pixels contributed to this prediction? Each method gives its own account, from the "
        "gradient at every pixel to the drop of the logit when a square is covered. The methods "
        "need not agree; where they do, they are more credible. An attribution explains the "
        "network, not the world: it shows what the network used, for good or bad reasons.",
        "Attributions for the unit.",
    ),
    "attribution-check": Kind(
        "Attributions, checked",
        "Whether such explanations can be trusted",
        "A map that explains a prediction must depend on what the network learned. Here the "
        "weights are shuffled layer by layer, and the maps made again: a map that stays the same "
        "shows the picture and explains nothing. Then the picture is covered, or uncovered, in "
        "the order of the map, and the probability of the class must fall, or rise, fast.",
        "The unit in the check of attributions.",
    ),
    "inversion": Kind(
        "Inversion",
        "What a layer remembers of a picture",
        "A layer turns a picture into activations. Can the picture be reconstructed from these "
        "alone? Each picture here started as noise and was optimized until the layer's "
        "activations were nearly those of the original. Early layers keep almost every pixel. "
        "Later ones keep what the objects are and roughly where, but no longer exact colors and "
        "positions: where the reconstruction differs, the layer has discarded information.",
        "A reconstruction from the activations of the unit's layer.",
    ),
    "accentuation": Kind(
        "Accentuation",
        "A picture with more of what a unit responds to",
        "The picture was changed a little so that one unit's activation rises, while the "
        "activations of an early layer were kept close to those of the original. What changes is "
        "what the unit responds to in this picture. Where nothing recognizable appears, the "
        "activation rested on little.",
        "A picture, changed a little so that the unit's activation rises.",
    ),
    "caricature": Kind(
        "Caricature",
        "A picture, exaggerated",
        "A caricature exaggerates what is typical. Here a picture is optimized from noise so that "
        "the layer's activations point in the same direction as those of the original and are as "
        "large as possible. What the layer represents strongly is exaggerated; what it does not "
        "represent is absent.",
        "The picture as exaggerated by the unit's layer.",
    ),
    "deepdream": Kind(
        "DeepDream",
        "What a layer makes of a picture",
        "The picture was changed so that the activations of a layer grow, first at large scales, "
        "then at small ones. No unit was chosen, so the patterns that appear are those that the "
        "layer responds to most easily. They depend on the pictures it was trained on more than "
        "on this one.",
        "A picture changed so that the activations of the unit's layer grow.",
    ),
    "embed": Kind(
        "Embedding",
        "Each picture as a list of numbers",
        "A late layer maps each picture to a vector: 4,096 numbers in AlexNet's fc7, fewer in "
        "smaller models. Pictures of similar content get similar vectors, although the network "
        "was trained on class labels only. The vectors of all pictures are stored here; neighbors "
        "and atlas are computed from them.",
        "The unit as a component of the embedding.",
    ),
    "neighbors": Kind(
        "Nearest neighbors",
        "Which pictures are alike for it",
        "For each picture on the left, the pictures whose vectors in a late layer are nearest to "
        "its own. Precision is the share of the nearest with the same class; the precision of a "
        "random choice is given beside it.",
        "The unit among the neighbors.",
    ),
    "atlas": Kind(
        "Atlas",
        "All pictures on one map",
        "A map of many pictures: those with similar vectors are placed side by side. Vectors of "
        "hundreds or thousands of components are reduced to two coordinates, which cannot "
        "preserve everything. Close points are similar; the distance between two clusters, and "
        "their sizes, mean little.",
        "The unit in the atlas.",
    ),
    "attack": Kind(
        "Adversarial attack",
        "A small change that fools it",
        "A change that is hard to see gives another prediction. It is computed from the network's "
        "own gradients: each pixel moves a little in the direction that raises the loss most. It "
        "is shown magnified beside the picture, because at its true size it is almost invisible.",
        "An attack on or through the unit.",
    ),
    "shape-bias": Kind(
        "Shape against texture",
        "Shape or texture",
        "A cat drawn with the skin of an elephant: people see a cat, many networks an elephant. "
        "Each stimulus has the shape of one thing and the texture of another. Of the decisions "
        "for one of the two, the figure shows how many follow the shape.",
        "The unit in the test of shape against texture.",
    ),
    "audit": Kind(
        "Robustness audit",
        "How much change it withstands",
        "How much accuracy is left when every picture may be changed a little? The curve falls as "
        "the allowed change (eps) grows; 1/255 is one step of brightness on a screen. An attack "
        "gives an upper bound on robust accuracy: a stronger one may lower it. Below: the least "
        "and the most robust pictures, corruptions such as noise, blur and weather, one "
        "perturbation for all pictures, and how the activations change layer by layer.",
        "The unit in the audit.",
    ),
    "universal": Kind(
        "Universal perturbation",
        "One change that fools it on most pictures",
        "One perturbation that changes the prediction on most pictures to which it is added. It "
        "was computed from some pictures and is measured on others. Its structure matters: with "
        "its pixels shuffled it does no more than noise. The predictions it leads to are few "
        "classes.",
        "The unit's class as a prediction under the perturbation.",
    ),
    "adversarial-patch": Kind(
        "Adversarial patch",
        "A patch that fools it",
        "A small patch that changes the prediction wherever it is placed in the picture, at any "
        "angle. Unlike the other attacks it is clearly visible. A patch of noise of the same size "
        "shows how much of the effect is mere occlusion.",
        "The unit's class as a prediction under the patch.",
    ),
    "corruptions": Kind(
        "Corruptions",
        "How it copes with pictures of low quality",
        "No attack, but pictures of lower quality: noise, blur, weather, compression. Each "
        "corruption has five severities. People recognize most of these pictures without effort, "
        "so the loss of accuracy shows what the network depends on: often fine texture, which "
        "noise and blur remove first.",
        "The unit's class under corruptions.",
    ),
}


def kind_text(kind: str) -> Kind:
    """The texts of a kind; an unknown kind is introduced as such."""
    label = kind.replace("-", " ").replace("_", " ").strip().capitalize() or "Result"
    unknown = Kind(
        label,
        "",
        "The gallery has no text for this kind of result; its figures, numbers and files follow.",
        "What this result shows of the unit.",
    )
    return KINDS.get(kind, unknown)


def group_of(kind: str) -> Group:
    """The section to which a kind belongs."""
    return next((group for group in GROUPS if kind in group.kinds), OTHER)
