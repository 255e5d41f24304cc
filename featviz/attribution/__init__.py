"""Which pixels the logit of a class depends on, by methods of captum."""
