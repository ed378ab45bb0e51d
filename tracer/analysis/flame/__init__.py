"""Growth by call stack, as a tree."""
