"""The robot side: tasks, client, guard, control loop, recorder."""
