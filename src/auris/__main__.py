"""`python -m auris COMMAND` is `auris COMMAND`."""

import sys

from auris.cli import main

sys.exit(main())
