"""How many jobs the service takes in, how long that takes each client, and how fast it works them off."""
