"""What breaks in a net when units or directions of a layer are silenced or exchanged."""
