"""The switchboard we talk to."""
