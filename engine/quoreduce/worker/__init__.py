"""The untrusted side: it executes what it is asked. Nothing that it says is taken on trust."""
