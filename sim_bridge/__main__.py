"""`python -m sim_bridge` is `dst-drive`."""

import sys

from sim_bridge.app import main

sys.exit(main())
