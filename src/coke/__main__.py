"""``python -m coke``, for torchrun."""

import sys

from coke.cli import main

sys.exit(main())
