"""The trusted side: it decides what is done, hears what workers claim, and publishes what was agreed on."""
