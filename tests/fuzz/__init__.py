"""Hostile files and hostile arguments, case by case in a child process (`python -m fuzz --help`)."""
