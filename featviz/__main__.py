"""`python -m featviz` is the command `featviz`."""

from featviz.cli.main import main

main()
