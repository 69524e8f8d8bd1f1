"""The command line comes first: only a run imports what takes long."""

import sys

from ais_bench.options import read

if __name__ == "__main__":
    args = read(sys.argv[1:])
    from ais_bench.session import run

    run(args)
