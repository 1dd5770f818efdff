"""The folder that export leaves: its manifest, files and engines, written whole or not at all."""
