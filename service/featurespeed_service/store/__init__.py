"""Jobs and all that belongs to them, durable, in a database."""
