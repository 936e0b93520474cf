"""GridMix: the six applications, their data and their runner."""
