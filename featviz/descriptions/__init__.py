"""Words for units: classes, groups of classes, pairs of them, and drawn stimuli."""
