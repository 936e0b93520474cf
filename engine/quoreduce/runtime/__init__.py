"""The effects: workers, executors, the driver, clocks and files."""
