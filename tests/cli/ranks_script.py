"""Owns a command line in which something goes wrong on one rank: WHAT RANK STEP ARGUMENTS..."""

import os
import signal
import sys
import time

from rustgpt.cli import main
from rustgpt.errors import DataError
from rustgpt.parallel import ranks
from rustgpt.parallel.data_parallel import DataParallel
from rustgpt.parallel.mpi import launched_rank
from rustgpt.parallel.ranks import Ranks
from rustgpt.text import stored

what, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
differentiate, gather = DataParallel.differentiate, Ranks.gather_parameters
steps = [0]


def broken(self, *args):
    steps[0] += 1
    if launched_rank() == rank and steps[0] == step:
        if what == "raise":
            raise DataError("the rank is ill")
        if what == "bug":
            raise ZeroDivisionError("the rank is wrong")
        if what == "sleep":
            time.sleep(1000)
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
    return differentiate(self, *args)


def forgetful(self, parameters):
    gather(self, parameters)
    if what == "forget" and launched_rank() == rank and steps[0] == 100:
        parameters[0] += 1.0


DataParallel.differentiate, Ranks.gather_parameters = broken, forgetful
ranks.HUNG_AFTER = 2.0
if what == "store":
    stored.LARGE = 1  # bytes, from which on data are stored
sys.exit(main(sys.argv[4:]))
