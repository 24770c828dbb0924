"""`python -m mbsd.cli`."""

from mbsd.cli.main import main

main()
