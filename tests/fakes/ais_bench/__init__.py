"""A fake of ais_bench: its contract over the stand-in that the fake atc writes, run by ONNX Runtime.

AIS_BENCH_DIALECT: T23 (default), T25 or T26, three generations with different options and checks.
AIS_BENCH_TROUBLE: `device` (cannot open it), `lost` (the last output is not written), `slow`, `child` (slow, with a
process of its own), `deaf` (does not listen to SIGTERM, and waits while there is a file `hold`), `wrong` (offsets in
reverse order), `nan`; the last two also for some models only, as `wrong@name`.
"""
