"""What the system runs on: the embedded stack (`local/`), SQL, and files for running it elsewhere."""
