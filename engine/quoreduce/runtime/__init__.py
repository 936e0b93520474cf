"""Sessions, and the executors that workers live in: this process, processes of this machine, actors of Ray."""
