// "Follow one picture": the steps with their texts. Each has one view, one thing to touch, one number.

function storySteps(state) {
  const {network, space, growth, units} = state;
  const first = network.first, layers = network.main, last = layers[layers.length - 1];
  const count = network.find(network.space).shape[0];
  const list = network.plainName(network.space);
  const classes = network.classes.length;
  const steps = [
    {
      id: "numbers", short: "Numbers", view: pixelsView,
      title: "A picture is a table of numbers",
      why: "For every pixel three numbers say how much red, green and blue it has. The network is given these numbers and nothing else.",
      touch: "Move the frame over your picture.",
      trust: () => [`The picture is cropped to a square and resized to ${network.size[0]} by ${network.size[1]} pixels, as the network was trained. Before the first layer the mean color of the training pictures is subtracted and the result divided by its spread; that is arithmetic, too, and part of what runs here.`],
    },
    first && {
      id: "kernel", short: "Kernel", view: kernelView,
      title: "A small window slides over it and compares",
      why: `The numbers under the window are multiplied by the ${first.kernel[0]} by ${first.kernel[1]} numbers of a kernel and added up. The sum is large where the picture looks like the kernel, so one cell of a map says how well it fits at one place.`,
      touch: "Drag the window, or choose another kernel below.",
      trust: () => [
        `The window moves by ${first.stride[1]} ${first.stride[1] === 1 ? "pixel" : "pixels"} at a time. Beyond the edge of the picture it reads zeros.`,
        "The sum is computed here, product by product; the map comes from the network that runs beside it. Both are shown so that you can compare: the products and the built-in number (the bias) add up to the cell of the map.",
        "The colors of products and maps are relative: red above zero, blue below, pale near zero, scaled to the largest value shown."],
    },
    first && {
      id: "maps", short: "Maps", view: mapsView, options: {layers: [first.name]},
      title: `${first.shape[0]} kernels draw ${first.shape[0]} maps of the picture`,
      why: "One kernel fits edges that lean to the left, another fits blue beside yellow. Everything that follows is computed from these maps; the picture itself is not used again.",
      touch: "Choose a map, then a cell in it.",
      trust: () => ["All maps of the layer share one scale of colors, so pale maps are weak. Each cell names the pixels that it depends on; a change elsewhere cannot alter it."],
    },
    layers.length > 1 && {
      id: "layers", short: "Deeper", view: mapsView, options: {start: layers[1].name},
      title: "The next layers read the maps before them",
      why: "A kernel of the second layer slides over all maps of the first at once, so it can fit a corner where two edges meet. Layer by layer the cells see more of the picture and fit larger things: textures, parts, objects.",
      touch: "Choose a cell, and follow what fed it down to the pixels.",
      trust: () => ["What a map added is the exact sum of its products under the window. It says what this value was computed from, not what the network would do without that map: for that, switch it off in a later step."],
    },
    {
      id: "list", short: "List", view: vectorsView,
      title: `In the end the picture is a list of ${whole(count)} numbers`,
      why: `The last maps are summed up into one list. Pictures with similar lists show similar things, even where no pixel is the same${network.logits ? `; the ${whole(classes)} classes are read from this list` : ""}.`,
      touch: space ? "Take one of the nearest pictures, or paint on yours." : "Move over the list, or paint on your picture.",
      gloss: network.space === "relu7" || network.space === "fc7"
        ? `AlexNet's list is called fc7, the seventh layer that has weights, and has 4,096 numbers in the original. This network: ${list}. Its numbers are read after the step that turns values below zero into zero.`
        : `This network: ${list}.`,
      trust: () => [space ? `Distance is the cosine distance between lists: it compares their directions, not their lengths. ${plural(space.count, "picture")} of ${space.source} were searched, all of them, with lists rounded to 8 bits (largest error of a distance ${space.rounding.toPrecision(1)}).` : "",
        "Nearest does not mean same: a near picture may show another thing with similar colors or shapes."].filter(Boolean),
    },
    network.logits && {
      id: "units", short: "Units", view: unitsView,
      title: "Every unit responds to something of its own",
      why: units.layers.length ? "To see what, start with noise and change it until one unit answers as strongly as possible: what appears is what the unit responds to. Real pictures that excite it are shown beside it."
        : "A unit is one kernel of a layer with its map. Without it, whatever the unit contributes to the answer is missing.",
      touch: "Switch a unit off and watch the classes.",
      trust: () => ["A picture made for a unit shows one thing that excites it, not everything. Compare it with the pieces of real pictures.",
        "Switched off means: its values are zero behind the activation, everywhere in the picture. Most single units change little, because many respond to similar things."],
    },
    space && space.places && {
      id: "map", short: "Map", view: atlasView,
      title: "All pictures lie on one map",
      why: "Put pictures with similar lists beside each other and a map appears: regions of animals, of vehicles, of textures. Nobody drew its borders.",
      touch: "Choose a picture on the map; yours moves there.",
      trust: () => [`A flat map cannot keep all distances of ${whole(count)} numbers. ${space.kept === null ? "" : `Of the ten nearest pictures ${percent(space.kept)} are also among the ten nearest on this map; by chance it would be ${percent(space.chance)}. `}Distances between far regions mean little.`,
        "Your picture is put at the mean place of its nearest pictures, the nearer the heavier."],
    },
    growth && first && {
      id: "training", short: "Training", view: growthView,
      title: "All this began as noise",
      why: "Nobody designed the kernels. They start as random numbers; after each batch of labeled pictures every number is moved a little in the direction that makes the right answers more probable.",
      touch: "Move the slider from the first step of the training to the last.",
      trust: () => [`The slider stops at ${plural(growth.steps.length, "moment")} that were kept during the training of this model; they are not evenly spaced in time. Kernels are scaled to their own largest number, so noise at the start looks as strong as edges at the end.`],
    },
    network.logits && {
      id: "fooled", short: "Fooled", view: fooledView,
      title: "A change that nobody sees can fool it",
      why: "The same arithmetic, run backwards, tells for every pixel in which direction it must change to make another answer more probable. Many tiny changes that all point the same way add up.",
      touch: "Move the slider until the answer changes.",
      trust: () => ["The gradients are computed in this page, backwards through all layers: ten, one after the other, each at the picture that the last one changed (projected gradient descent). The slider scales their sum, so that no pixel changes by more than the number beside it. Stronger attacks need less.",
        "This shows that the picture can be changed in this way, not how often it happens: that takes many pictures and strong attacks (featviz audit)."],
    },
  ].filter(Boolean);
  return steps;
}
