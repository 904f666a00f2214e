"""`python -m optimum_moreau VERB …`."""

import sys

from .commands import main

sys.exit(main())
