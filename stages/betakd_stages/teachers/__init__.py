"""Teachers: whatever can say, per supervised token, how probable it finds every other token."""
