"""``python -m diva_rs.evaluation mmvp ...``: what ``diva-rs eval`` does."""

import sys

from diva_rs.cli import main

sys.exit(main(["eval", *sys.argv[1:]]))
