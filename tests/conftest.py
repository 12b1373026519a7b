"""Before numpy is imported anywhere: a BLAS thread per core spins for every small product."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
