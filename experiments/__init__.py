"""The commands, one file each, and the presets. `measuring/` serves who works on the project."""
