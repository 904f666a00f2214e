"""`python -m optimum_moreau VERB …`."""

import sys

from .cli import main

sys.exit(main())
