"""Technologies behind the ports, one file each; none imports another."""
