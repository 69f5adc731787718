"""What a client trains: one paper, one file, one signature."""
