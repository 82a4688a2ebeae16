"""The command line: parsing, printing, exit statuses; nothing else."""

import gc

# Every command is a process: collecting while modules are imported finds nothing and takes 4 of 60 ms.  main() turns it on.
gc.disable()
