"""The page in which the network itself runs."""
