"""The page in which the network itself runs.

The page (`build`) is one HTML file: a JSON document, blocks of bytes in base64, and scripts. The
document describes the network as a list of operations (`trace`, `program`, `weights`):

    model, classes, input   name; class names; size, resize, channels, mean, std, interpolation
    ops                     in the order of execution: {op, value, inputs, shape, settings ...},
                            and the numbers of its tensors as weight, bias, scale, shift. Value 0 is
                            the picture in [0, 1], operation i gives value i + 1
    layers, logits          name -> value and shape; the value of the logits, null for a trunk
    tensors                 of each: shape, type (f32, f16, i8), first byte in the block "weights"
                            (inflated), and for i8 the tensor with the scale of each row
    snapshots               moments of training: step, top1, tensors that stand for others

`engine` runs it in a Worker; a view calls (each gives a promise; an older call in the same slot is
dropped and gives null):

    engine.forward(pixels, {layers, off: {layer: [units]}, weights: snapshot})
        -> {logits, values: {layer: {shape, data}}, ms}
    engine.gradient(pixels, class or {layer, unit, y, x})  -> {gradient, value}
    engine.perturb(pixels, {eps, steps, label, towards})   -> {pixels, logits}
    engine.contributions(pixels, layer, unit, y, x)
        -> {patch, kernel, products, channels, bias, value ...}
    engine.inputOf(file, bitmap or canvas)                 -> pixels, resized as pillow does
    engine.tensor(number), engine.times()

`static` holds the views, `gathered` collects what they show beside the network.
"""
