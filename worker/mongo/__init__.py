"""Everything that talks to MongoDB: the client, snapshot reads, the change stream, the heartbeat."""
