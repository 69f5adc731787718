"""One thread for each numerical library, set before any is imported: on two cores more threads are far slower.

Examples have no deadline either: how long one takes on a busy machine says nothing about the code.
"""

import os

from hypothesis import settings

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
