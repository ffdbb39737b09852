"""Private interfaces of Lightning and torch that auris relies on. Each has a test, so that an upgrade fails here."""
