"""`python -m regen` is `regen`."""

from regen.cli import main

main()
