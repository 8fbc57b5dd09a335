"""What holds for every test."""

import os
import signal

# A fit has one thread of PyTorch, and workers (``mf.solvers.fit``); so has what the tests compute beside it. Threads
# that wait for one another on cores that others use, too, spin through most of their time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts what runs in its background with SIGINT ignored, and every child would inherit
# that: the programs that the tests end with Ctrl-C would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
