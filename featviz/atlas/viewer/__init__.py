"""The atlas's page: its source, and what puts an atlas into it."""
