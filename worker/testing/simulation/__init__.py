"""The whole worker and a queue in one Trio loop, on virtual time, in a faulty world that a seed decides.

    seed ─▸ plan ─▸ world ─┬─ the embedded queue       behind network.py, which loses, delays and repeats
                           ├─ workers: `run_worker`    with ports.py, engine.py and hooks.py, which fail
                           └─ events                   tasks, cancels, signals, kills, outages
    what happens ─▸ history ◂─ ledger.py, witness.py   which know what must never happen

The first thing that must not happen ends a seed. The same seed gives the same history, to the last byte.
"""
