"""The command line: one file a command, each thin: read arguments, call the function, save, print.

Nothing here imports torch at the top of a file, so help and usage errors come at once.
"""
