"""``python -m diva_rs.cli``."""

import sys

from diva_rs.cli import main

sys.exit(main())
