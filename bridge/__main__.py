"""`python -m bridge` is `callscribe`."""

import sys

from bridge.cli import main

sys.exit(main())
