"""What an optimizer does to a parameter that is frozen."""
