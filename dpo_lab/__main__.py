"""`python -m dpo_lab` is `dpo-lab`: for launchers such as `torchrun -m`, and where no script is installed."""

import sys

from dpo_lab.workbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
