"""What `dst-bench serve` measures of this project, each in processes of its own: a client, and a server where it needs one."""
