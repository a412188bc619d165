"""Run the command line as ``python -m querybox``, which is what ``torchrun -m`` and ``accelerate launch -m`` need."""

import sys

from querybox.cli import main

sys.exit(main())
