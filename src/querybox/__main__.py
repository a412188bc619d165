"""Entry point of ``python -m querybox``, also used by ``torchrun -m`` and ``accelerate launch -m``."""

import sys

from querybox.cli import main

sys.exit(main())
