"""What holds for every test."""

import signal

# A shell without job control starts what runs in its background with SIGINT ignored, and every child would inherit
# that: the programs that the tests end with Ctrl-C would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
