"""`python -m server` is `dst-serve`."""

import sys

from server.app import main

sys.exit(main())
