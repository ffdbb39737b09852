"""Judges that rate free-form answers."""
