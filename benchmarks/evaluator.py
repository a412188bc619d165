from benchmarks.setup import Setup
def rows(setup: Setup):
    yield from ()
