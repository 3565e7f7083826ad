from __future__ import annotations

import sys

from lodestar_fast.cli import main

sys.exit(main())
