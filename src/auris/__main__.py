"""Entry point of `python -m auris COMMAND`, which is the same as `auris COMMAND`."""

import sys

from auris.cli import main

sys.exit(main())
