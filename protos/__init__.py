"""The wire: message definitions, their generated code, and the block hash that all parts share."""
