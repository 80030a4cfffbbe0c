"""What every part uses: files, errors, text, the machine, processes and progress."""
