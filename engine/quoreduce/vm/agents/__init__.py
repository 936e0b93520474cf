"""The agents as processes: servers, the manager that relays between them, users; and the channels that join them."""
