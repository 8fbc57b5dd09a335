"""What holds for every test."""

import signal
import sys

import pytest

# A shell without job control starts what runs in its background with SIGINT ignored, and every child would inherit
# that: the programs that the tests end with Ctrl-C would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_torch() -> None:
    """As in a fit (``mf.solvers.fit``): threads that wait for one another on cores that others use spin most of their
    time away. What imports PyTorch has done so when the first test begins."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
