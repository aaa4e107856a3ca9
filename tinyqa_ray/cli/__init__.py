"""The shell's commands, and the doors of jobs: parse, call, print."""
