"""What a run is, how it is made once, kept and found again."""
