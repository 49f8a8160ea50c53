"""The protocol as models that Spin checks exhaustively; docs/protocol.md tells what they say."""
