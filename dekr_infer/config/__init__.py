"""Configuration: upstream's keys with their defaults and bounds, loading, and the shipped YAML files."""
