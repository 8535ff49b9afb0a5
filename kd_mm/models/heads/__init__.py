"""Classification heads that distil while they train."""
