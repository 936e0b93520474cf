"""Chaos campaigns: jobs under load while their machines, networks, disks and clocks fail; what is counted is what came
of them.

``plan`` and ``tally`` are pure: which faults strike which job, and the table. ``stage`` is the main program of a child
process that runs the jobs of one stage, with ``monkey`` (what breaks processes and files) and ``clusters`` (Ray,
started so that it fails). ``campaign`` runs the stages one after the other and looks for what they left behind.
"""
