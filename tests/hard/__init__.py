"""Hard use: processes killed at any moment, full disks, closed folders, damaged bytes, jumping clocks, bad rows.

kills.py         training, caching, sweeping and labelling, killed with -9 at random moments
shim.c, shim.py  a disk that fills up and a clock that jumps, put under a process from outside
bad_rows.py      rows that cannot be used, as many as are asked for
fuzz_loading.py  files of random bytes for the loaders: python -m tests.hard.fuzz_loading
"""
