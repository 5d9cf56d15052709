"""Former name of `gradflow.testing.contract_docs`; old imports and the old command keep working."""

import sys

from gradflow.testing.contract_docs import *  # noqa: F403
from gradflow.testing.contract_docs import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
