"""`python -m auris COMMAND` is `auris COMMAND`."""

from auris.cli import main

main()
