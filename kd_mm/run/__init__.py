"""What the tools share: start, rehearsal, and errors in one sentence."""
