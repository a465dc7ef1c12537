"""Lightning: the one subpackage that names it."""
