"""Becomes another program, one that ends when its parent does.

Run as a script, `python tether.py [--user UID:GID] PARENT SIGNAL PROGRAM [ARGUMENT …]`, never imported by Citadel: it
must start in milliseconds and needs nothing but the standard library. It asks the kernel for SIGNAL at the death of the
process PARENT (Linux: prctl(2), PR_SET_PDEATHSIG), gives back the default signal handling that a shell takes from what
it runs in the background, and becomes PROGRAM, so that the process id that the supervisor knows is PROGRAM's own.

With `--user` it gives up root first: PostgreSQL refuses to run as root. The one capability that stays is to pass file
permissions (capabilities(7), CAP_DAC_OVERRIDE, as an ambient capability), without which that user could not reach a
program and data that lie in root's own, closed directories; those directories keep every other user out meanwhile.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


def prctl(*arguments: int) -> None:
    """Call prctl(2) with up to five numbers; raises OSError when the kernel refuses."""
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:5]]
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(*padded) < 0:
        raise OSError(ctypes.get_errno(), f"prctl{arguments}: {os.strerror(ctypes.get_errno())}")


def keep_only(capability: int) -> None:
    """Make one capability the only one of this process and of what it becomes; raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    mask = 1 << capability
    # Two structs of effective, permitted, inheritable: capabilities 0 to 31, then 32 to 63.
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    if library.capset(ctypes.byref(header), ctypes.byref(data)) < 0:
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def give_up_root(user: int, group: int) -> None:
    """Become this user for good, keeping the passage through closed directories; raises OSError."""
    # The change of user keeps the capabilities, and access(2), by which PostgreSQL checks its programs, counts them.
    prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    keep_only(CAP_DAC_OVERRIDE)


def main(arguments: list[str]) -> None:
    """Do what the module says; comes back only by an exception or when PARENT is already dead."""
    if arguments[0] == "--user":
        user, _, group = arguments[1].partition(":")
        give_up_root(int(user), int(group))
        arguments = arguments[2:]
    parent, at_its_death, *command = arguments
    # After the change of user, which clears it. Elsewhere than on Linux the next start ends what was left behind.
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, int(at_its_death))
    if os.getppid() != int(parent):
        sys.exit("the supervisor has ended meanwhile")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execvp(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"{Path(__file__).name} {' '.join(sys.argv[1:])}: {error}")
