"""The commands of ``quoreduce``: a module or a folder for each, its parser and what it does. quoreduce.cli lists them.

Each has ``parser()`` and ``main(words)``, which takes the words after the command's name and returns the exit code.
A parser is in a module that imports little, so that ``--help`` and what is mistyped are answered at once.
"""
